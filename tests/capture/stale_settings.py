"""Settings of a Python module, read by models of tests."""

from __future__ import annotations

noise = 0.5


def scale(value: float) -> float:
    """Something that a model calls."""
    return value
