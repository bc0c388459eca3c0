"""The weight of the silent part: a number in [0, 1] for each step."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias

from torch import Tensor

from pyro_silent.errors import ConfigurationError
from pyro_silent.schedules import Constant, Schedule

WeightSchedule: TypeAlias = Callable[[int], float]

_ROUNDING = 1e-6  # a weight so far outside [0, 1] is one that was computed in single precision


def as_schedule(schedule: Any) -> WeightSchedule:
    """The schedule, once its numbers are known to be weights as far as they can be told."""
    if isinstance(schedule, Real) and not isinstance(schedule, bool):
        checked_weight(schedule, schedule)
        return Constant(float(schedule))
    if not callable(schedule) or isinstance(schedule, type):
        raise ConfigurationError(
            f"schedule: got {schedule!r}, expected a callable from the step to the silent part's weight, "
            "such as Linear(1.0, 0.0, num_steps=1000), or a number in [0, 1]."
        )
    if isinstance(schedule, Schedule):
        for bound in ("start", "stop", "w"):
            checked_weight(getattr(schedule, bound, 0.0), schedule)
    checked_weight(schedule(0), schedule, 0)
    return schedule


def checked_weight(weight: Any, schedule: Any, step: int | None = None) -> float:
    """A weight as a float.

    :raises ConfigurationError: unless it is a number in [0, 1].
    """
    if isinstance(weight, Tensor) and weight.numel() == 1:
        weight = weight.item()
    if isinstance(weight, Real) and not isinstance(weight, bool):
        clipped = min(max(0.0, float(weight)), 1.0)
        if abs(clipped - float(weight)) <= _ROUNDING:
            return clipped
    where = "" if step is None else f" at step {step}"
    raise ConfigurationError(
        f"schedule: got the weight {weight!r} from {schedule!r}{where}, expected a number in [0, 1]."
    )
