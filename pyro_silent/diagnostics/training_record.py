"""What came of one training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Record:
    """What came of a run.

    :ivar curve: one dict for each evaluation: step, seconds, loss, yardstick.
    :ivar steps: how many were taken; so for ``seconds``.
    :ivar stopped: why it ended early; None if it did not.
    :ivar error: what went wrong; None if nothing did.
    """

    name: str
    seed: int
    curve: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    error: str | None = None

    @property
    def best(self) -> dict[str, Any] | None:
        """The first of the best evaluations; None before there is one that is finite."""
        finite = [point for point in self.curve if math.isfinite(point["yardstick"])]
        return min(finite, key=lambda point: point["yardstick"], default=None)
