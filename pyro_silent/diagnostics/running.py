"""Mean and spread of figures that come one after the other."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Running:
    """Mean and variance of arrays of one shape, none of which is kept (Welford 1962).

    :ivar count: how many arrays there were.
    :ivar mean: of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Array = np.zeros(0)
        self._squares: Array = np.zeros(0)

    def add(self, values: Array) -> None:
        """One array more; rows that the ones before it lacked were zero in them."""
        values = np.asarray(values, dtype=np.float64)
        if self.count == 0:
            self.mean, self._squares = np.zeros_like(values), np.zeros_like(values)
        elif len(values) > len(self.mean):
            self.mean, self._squares = (_padded(x, len(values)) for x in (self.mean, self._squares))
        self.count += 1
        with np.errstate(invalid="ignore", over="ignore"):  # of infinite figures the spread is nan
            delta = values - self.mean
            self.mean = self.mean + delta / self.count
            self._squares = self._squares + delta * (values - self.mean)

    @property
    def is_constant(self) -> bool:
        """Whether all arrays were the same, up to what is not a number."""
        return not (self._squares != 0).any() or bool(np.isnan(self._squares).all())

    @property
    def std(self) -> Array:
        """Root of the unbiased variance; nan before there are two."""
        if self.count < 2:
            return np.full_like(self.mean, math.nan)
        return np.sqrt(self._squares / (self.count - 1))

    @property
    def se(self) -> Array:
        """Standard error of the mean; nan before there are two."""
        return self.std / math.sqrt(max(self.count, 1))


def _padded(rows: Array, length: int) -> Array:
    missing = length - len(rows)
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]))])
