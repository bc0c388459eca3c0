"""How finely expectations without a closed form are integrated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

DEFAULT_POINTS = 32

_POINTS: list[int] = [DEFAULT_POINTS]


def current_points() -> int:
    """How many quadrature nodes are in use."""
    return _POINTS[-1]


@contextmanager
def quadrature_points(count: int) -> Iterator[None]:
    """Inside, functions of one Gaussian scalar are integrated with at least ``count`` nodes."""
    _POINTS.append(count)
    try:
        yield
    finally:
        _POINTS.pop()
