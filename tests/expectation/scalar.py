"""E f(x) and its gradients for one Gaussian scalar x, by panels of Gauss-Legendre points.

The panels are cut at every half standard deviation, at integers near 0, where torch's elementary
functions have their features, and at the kinks that are named. The points are fixed in x and the
density carries mean and std, so its derivatives give the gradient even of functions that jump.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

REACH = 38.0  # standard deviations: beyond, the density is 0 in double precision
EPS = torch.finfo(torch.float64).eps
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_FEATURES = np.concatenate([np.arange(-24.0, 24.5), [-200, -100, -50, 50, 100, 200]])


class Known(NamedTuple):
    """An integral, the integral of the absolute values, and its own rounding error."""

    value: float
    scale: float
    rounding: float

    def error(self, value: float) -> float:
        """How far off a value is beyond rounding, relative to the scale."""
        beyond = max(abs(value - self.value) - self.rounding, 0.0)
        return beyond / self.scale if self.scale > 0 else beyond


class Reference(NamedTuple):
    value: Known
    in_mean: Known
    in_std: Known


def points(mean: float, std: float, kinks: Sequence[float] = ()) -> tuple[Tensor, Tensor]:
    """Points in x and the lengths they stand for."""
    low, high = mean - REACH * std, mean + REACH * std
    features = np.concatenate([_FEATURES, kinks])
    inside = features[(features > low) & (features < high)]
    edges = np.unique(np.concatenate([np.linspace(low, high, int(4 * REACH) + 1), inside]))
    half = np.diff(edges)[:, None] / 2
    x = edges[:-1, None] + half * (_NODES + 1)
    return torch.as_tensor(x.ravel()), torch.as_tensor((half * _WEIGHTS).ravel())


def reference(
    function: Callable[[Tensor], Tensor], mean: float, std: float, kinks: Sequence[float] = ()
) -> Reference:
    """For std > 0, in double precision."""
    x, lengths = points(mean, std, kinks)
    z = (x - mean) / std
    density = lengths * torch.exp(-0.5 * z * z) / (std * math.sqrt(2 * math.pi))
    center = function(torch.tensor(mean, dtype=x.dtype)).to(x.dtype)
    values = torch.where(density > 0, function(x).to(x.dtype), center)
    size = float(values.abs() @ density)
    blur = 16 * EPS * (1 + abs(mean) / std)  # of z, by the rounding of x

    def known(values: Tensor, score: Tensor, offset: float, rounding: float) -> Known:
        terms = values * density * score
        scale = float(terms.abs().sum())
        moved = float((values * density * (1 + z.abs()) * (1 + score.abs())).abs().sum())
        return Known(offset + float(terms.sum()), scale, rounding + blur * moved)

    # The value at the mean is taken off: the derivative of the total mass is 0.
    change = values - center
    cancelled = 16 * EPS * (size + abs(float(center))) / std
    one = torch.ones_like(z)
    return Reference(
        known(change, one, float(center), 4 * EPS * abs(float(center)))._replace(scale=size),
        known(change, z / std, 0.0, cancelled),
        known(change, (z * z - 1) / std, 0.0, cancelled),
    )
