"""Expectations of functions with kinks and jumps of a Gaussian scalar, without cancellation.

A piecewise linear function is its value at the mean plus, for each kink at ``t`` where the slope
grows by ``a``, the amount ``a * shortfall(|mean - t|)`` that the spread adds. All terms of one
kink are positive, so nothing cancels in the tails, and ``std = 0`` is the function itself.

Gradients at ``std = 0`` are those of the function, one-sided (from the left) on a kink itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# exp(-z^2 / 2) is 0 in double precision beyond: there a Gaussian scalar is on one side for sure
_CERTAIN = 40.0


def _standardized(distance: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``distance / std``, std made positive, and where the sign of the scalar is certain."""
    distance, std = torch.broadcast_tensors(distance, std)
    certain = distance.abs() >= _CERTAIN * std
    # double where: neither branch may meet 0 / 0 or infinity, or the gradient is NaN
    std = torch.where(certain, 1.0, std)
    return torch.where(certain, 0.0, distance) / std, std, certain


def shortfall(distance: Tensor, std: Tensor) -> Tensor:
    r"""``E[max(-x, 0)]`` for ``x ~ N(distance, std^2)``, ``distance >= 0``.

    ``std * phi(z) * (1 - z R(z))`` with ``z = distance / std`` and the Mills ratio ``R``.
    """
    z, std, certain = _standardized(distance, std)
    mills = math.sqrt(math.pi / 2) * torch.special.erfcx(z / math.sqrt(2))
    value = std * torch.exp(-0.5 * z * z) * ((1 - z * mills) / math.sqrt(2 * math.pi))
    return torch.where(certain, 0.0, value)


def _gap(mean: Tensor, kink: Tensor | float) -> Tensor:
    """``|mean - kink|`` with slope -1 on the kink, where the values below keep their left slope."""
    distance = mean - kink
    return torch.where(distance > 0, distance, -distance)


def ramp(mean: Tensor, std: Tensor) -> Tensor:
    """``E[max(x, 0)] = mean * Phi(mean / std) + std * phi(mean / std)``."""
    return torch.where(mean > 0, mean, 0.0) + shortfall(_gap(mean, 0.0), std)


def absolute(mean: Tensor, std: Tensor) -> Tensor:
    """``E|x|``."""
    return mean.abs() + 2 * shortfall(mean.abs(), std)


def clamped(
    mean: Tensor,
    std: Tensor,
    min: Tensor | float | None = None,
    max: Tensor | float | None = None,
) -> Tensor:
    """``E[x.clamp(min, max)]``; bounds may be infinite or missing."""
    value, extra = mean, torch.zeros((), dtype=mean.dtype, device=mean.device)
    if min is not None:
        value = torch.where(value > min, value, min)
        extra = extra + shortfall(_gap(mean, min), std)
    if max is not None:
        value = torch.where(value > max, max, value)
        extra = extra - shortfall(_gap(mean, max), std)
        if min is not None:  # torch: max wins where the bounds are in the wrong order
            crossed = torch.as_tensor(min, device=mean.device) > max
            extra = torch.where(crossed, 0.0, extra)
    return value + extra


def larger(mean: Tensor, std: Tensor, other: Tensor) -> Tensor:
    """``E[max(x, other)]``."""
    return clamped(mean, std, min=other)


def smaller(mean: Tensor, std: Tensor, other: Tensor) -> Tensor:
    """``E[min(x, other)]``."""
    return clamped(mean, std, max=other)


def leaky(mean: Tensor, std: Tensor, slope: Tensor | float = 0.01) -> Tensor:
    """``E[max(x, 0) + slope * min(x, 0)]``."""
    value = torch.where(mean > 0, mean, slope * mean)
    return value + (1 - slope) * shortfall(_gap(mean, 0.0), std)


def above(mean: Tensor, std: Tensor, threshold: Tensor | float) -> Tensor:
    """``P[x > threshold]``."""
    return _probability(mean - threshold, std, at_zero=0.0)


def at_least(mean: Tensor, std: Tensor, threshold: Tensor | float) -> Tensor:
    """``P[x >= threshold]``."""
    return _probability(mean - threshold, std, at_zero=1.0)


def below(mean: Tensor, std: Tensor, threshold: Tensor | float) -> Tensor:
    """``P[x < threshold]``."""
    return _probability(threshold - mean, std, at_zero=0.0)


def at_most(mean: Tensor, std: Tensor, threshold: Tensor | float) -> Tensor:
    """``P[x <= threshold]``."""
    return _probability(threshold - mean, std, at_zero=1.0)


def step(mean: Tensor, std: Tensor, values: Tensor) -> Tensor:
    """``E[heaviside(x, values)]``: ``values`` count only where ``x`` is exactly 0 for sure."""
    return _probability(mean, std, at_zero=values)


def _probability(margin: Tensor, std: Tensor, at_zero: Tensor | float) -> Tensor:
    """``P[x > 0]`` for ``x ~ N(margin, std^2)``."""
    z, _, certain = _standardized(margin, std)
    known = torch.where(margin > 0, 1.0, torch.where(margin == 0, at_zero, 0.0)).to(margin.dtype)
    return torch.where(certain, known, 0.5 * torch.erfc(z / -math.sqrt(2)))


def sign(mean: Tensor, std: Tensor) -> Tensor:
    """``E[sign(x)] = erf(mean / (std sqrt 2))``."""
    z, _, certain = _standardized(mean, std)
    return torch.where(certain, torch.sign(mean), torch.erf(z / math.sqrt(2)))


def shrunk(mean: Tensor, std: Tensor, width: float = 0.5) -> Tensor:
    """``E[x - x.clamp(-width, width)]``, the soft threshold."""
    value = torch.where(mean > width, mean - width, torch.where(mean > -width, 0.0, mean + width))
    return value + shortfall(_gap(mean, width), std) - shortfall(_gap(mean, -width), std)
