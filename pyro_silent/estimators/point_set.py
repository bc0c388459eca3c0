"""Uniform points in the unit cube to average over: independent, or a lattice with a random shift."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_MAX_CANDIDATES = 128
_MAX_SEARCH = 2**22
_MAX_DISTINCT_DIMS = 64


class PointSet(ABC):
    """``num_points`` points in ``(0, 1)^num_dims`` for every row, which come in chunks.

    Every point by itself is uniform and the rows are independent, so that an average over the points
    is unbiased; the points of one row may depend on each other. Uniform here means the midpoints
    of a fine grid: neither 0 nor 1 occurs.

    :param num_points: of each row, in all chunks together.
    :param num_dims: of the cube.
    :param num_rows: how many independent point sets.
    :param Tensor like: gives dtype and device.
    :param generator: of that device; None for the global one.
    :cvar is_even: whether the points of a row are placed with regard to each other.
    """

    is_even: ClassVar[bool] = False

    def __init__(
        self,
        num_points: int,
        num_dims: int,
        num_rows: int,
        like: Tensor,
        generator: torch.Generator | None = None,
    ) -> None:
        self.num_points = num_points
        self.num_dims = num_dims
        self.num_rows = num_rows
        self.like = like
        self.generator = generator

    @abstractmethod
    def fill(self, out: Tensor) -> Tensor:
        """Overwrite ``out`` with the next points, ``[size, num_dims, num_rows]``, and return it.

        All calls but the last, which brings the number of points to K, have the same size.
        """


class IndependentPoints(PointSet):
    """Points that have nothing to do with each other: plain Monte Carlo."""

    def fill(self, out: Tensor) -> Tensor:
        """See :class:`PointSet`."""
        # uniform_ returns multiples of a grid's step, among them 0 and not 1
        return out.uniform_(generator=self.generator).clamp_min_(torch.finfo(out.dtype).eps / 4)


class LatticePoints(PointSet):
    r"""A rank-1 lattice with a random shift for every row, folded by the tent.

    .. math::
        u_m = \left| 2 \{ m z / K + \Delta \} - 1 \right|, \quad m = 0, \dots, K - 1,
        \qquad \Delta \sim \mathrm{uniform}([0, 1)^d)

    with braces for the fractional part and z the generating vector. In each dimension alone the points
    are equally spaced, in pairs of dimensions as evenly as z allows; the tent makes a periodic
    function of any smooth one, which is what lattices integrate well. Two points are antithetic.

    Sources: Cranley and Patterson 1976, "Randomization of Number Theoretic Methods for Multiple
    Integration"; Hickernell 2002, "Obtaining O(N^{-2+eps}) Convergence for Lattice Quadrature Rules".

    One random number per row and dimension, however many points.
    """

    is_even = True

    def __init__(
        self,
        num_points: int,
        num_dims: int,
        num_rows: int,
        like: Tensor,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(num_points, num_dims, num_rows, like, generator)
        # Coordinates run over [-2, 2), in which the lattice has period 2. They live on a grid on
        # which their sums are exact, the shift on its midpoints: folding hits neither 0 nor 1.
        self._cells = 2.0 / torch.finfo(like.dtype).eps / 4
        shift = like.new_empty(num_dims, num_rows).uniform_(generator=generator)
        self._shift = shift.mul_(self._cells).floor_().add_(0.5).mul_(2 / self._cells).sub_(2)
        build = _generating_vector
        self._vector = (build.__wrapped__ if isinstance(like, FakeTensor) else build)(
            num_points, num_dims, like.device
        )
        self._first: Tensor | None = None
        self._left = num_points

    def fill(self, out: Tensor) -> Tensor:
        """See :class:`PointSet`."""
        size = len(out)
        if self._first is None:
            index = torch.arange(size, device=out.device)
            self._first = self._coordinates(index.unsqueeze(-1) * self._vector)
            self._stride = self._coordinates(size * self._vector)
        elif size <= self._left:
            shift = self._shift.add_(self._stride)
            shift.sub_((shift / 2).floor_().add_(1), alpha=2)  # back to [-2, 0)
        self._left -= size
        return torch.add(self._first[:size], self._shift, out=out).abs_().sub_(1).abs_()

    def _coordinates(self, multiples: Tensor) -> Tensor:
        """``2 {multiples / K}`` rounded down to the grid, with a last dim of size 1."""
        fraction = (multiples % self.num_points).to(self.like.dtype) / self.num_points
        return fraction.mul_(self._cells).floor_().mul_(2 / self._cells).unsqueeze(-1)


POINT_SETS: dict[str, type[PointSet]] = {
    "lattice": LatticePoints,
    "independent": IndependentPoints,
}


@lru_cache(maxsize=128)
def _generating_vector(num_points: int, num_dims: int, device: torch.device) -> Tensor:
    """The vector of :func:`generating_vector`, where it is needed."""
    return torch.tensor(generating_vector(num_points, num_dims), device=device)


def generating_vector(num_points: int, num_dims: int) -> list[int]:
    r"""A generating vector found component by component.

    Each component is the one, coprime to the number of points, that makes the smallest error with
    those before it: the sum over pairs of dimensions of

    .. math::
        \sum_m \omega(m z_i / K) \, \omega(m z_j / K), \qquad \omega(x) = 2 \pi^2 (x^2 - x + 1/6)

    and over triples that contain dimension 0. Pairs with dimension 0 count three times: it is the noise
    of the category that was drawn, which all others are compared with. Beyond 64 dimensions the
    components repeat.
    """
    units = np.arange(1, max(num_points // 2, 1) + 1)
    units = units[np.gcd(units, num_points) == 1]
    limit = max(8, min(_MAX_CANDIDATES, _MAX_SEARCH // num_points))
    if len(units) > limit:  # spread over the units; 1 stays among them
        units = units[np.linspace(0, len(units) - 1, limit).astype(int)]
    fraction = np.outer(np.arange(num_points), units) % num_points / num_points
    errors = 2 * math.pi**2 * (fraction**2 - fraction + 1 / 6)
    vector = [1]
    first, others = errors[:, 0], np.zeros(num_points)
    for _ in range(1, min(num_dims, _MAX_DISTINCT_DIMS)):
        with_chosen = 3 * first + others + 0.3 * first * others
        best = int((with_chosen @ errors).argmin())
        vector.append(int(units[best]))
        others = others + errors[:, best]
    return [vector[dim % len(vector)] for dim in range(num_dims)]
