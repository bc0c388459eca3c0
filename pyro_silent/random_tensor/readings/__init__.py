"""Readings of programs as pointwise forms. Importing this package fills the table."""

from pyro_silent.random_tensor.readings import (  # noqa: I001
    arithmetic,
    exponentials,
    choices,
    sums,
    moves,
    whole,
)
from pyro_silent.random_tensor.readings.linearity import is_linear_call
from pyro_silent.random_tensor.readings.table import read, read_all

__all__ = [
    "arithmetic",
    "choices",
    "exponentials",
    "is_linear_call",
    "moves",
    "read",
    "read_all",
    "sums",
    "whole",
]
