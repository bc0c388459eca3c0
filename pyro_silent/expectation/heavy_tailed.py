"""E[log p] of distributions of location and scale on the whole line that are not Gaussian."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.expectation.links import log_of
from pyro_silent.expectation.moments import mean
from pyro_silent.expectation.ranges import interval_of, within
from pyro_silent.expectation.registry import closed_form, no_closed_form
from pyro_silent.expectation.terms import (
    compacted,
    elementwise,
    independent,
    lgamma,
    product,
    total,
)
from pyro_silent.random_tensor.tensor import RandomTensor


def standardized(distribution: Any, value: Tensor) -> Tensor:
    """(x - m) / s."""
    return (value - compacted(distribution.loc)) / compacted(distribution.scale)


@closed_form(dist.Laplace, torch.distributions.Laplace)
def laplace(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """-log 2 - E log s - E|x - m| / s."""
    scale = compacted(distribution.scale)
    deviation = value - compacted(distribution.loc)
    if independent(deviation, scale):
        spread = mean(deviation.abs()) * mean(scale.reciprocal())
    else:
        spread = mean(deviation.abs() / scale)
    normaliser = mean(log_of(scale)) + math.log(2.0)
    return total(distribution, value, num_summed, -spread, -normaliser)


@closed_form(dist.AsymmetricLaplace)
def asymmetric_laplace(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """-E relu(m - x) / (s a) - E relu(x - m) a / s - E log(s (a + 1 / a))."""
    scale, a = compacted(distribution.scale), compacted(distribution.asymmetry)
    deviation = value - compacted(distribution.loc)
    left = product(torch.relu(-deviation), (scale * a).reciprocal())
    right = product(torch.relu(deviation), a / scale)
    normaliser = mean(log_of(scale)) + mean((a + a.reciprocal()).log())
    return total(distribution, value, num_summed, -(left + right), -normaliser)


@closed_form(dist.Cauchy, torch.distributions.Cauchy)
def cauchy(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """-log pi - E log s - E log(1 + z^2), z = (x - m) / s."""
    z = standardized(distribution, value)
    normaliser = mean(log_of(compacted(distribution.scale))) + math.log(math.pi)
    return total(distribution, value, num_summed, -mean(z.square().log1p()), -normaliser)


@closed_form(dist.StudentT, torch.distributions.StudentT)
def student_t(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """-E[(v + 1) / 2 log(1 + z^2 / v)] - E log s, and the normaliser of v degrees of freedom."""
    df, scale = compacted(distribution.df), compacted(distribution.scale)
    z = standardized(distribution, value)
    spread = product(0.5 * (df + 1), (z.square() / df).log1p())
    normaliser = (
        mean(log_of(scale))
        + 0.5 * mean(log_of(df))
        + 0.5 * math.log(math.pi)
        + lgamma(0.5 * df)
        - lgamma(0.5 * (df + 1))
    )
    return total(distribution, value, num_summed, -spread, -normaliser)


@closed_form(dist.Logistic)
def logistic(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """E z - 2 E softplus(z) - E log s."""
    z = standardized(distribution, value)
    normaliser = mean(log_of(compacted(distribution.scale)))
    return total(distribution, value, num_summed, mean(z) - 2 * mean(F.softplus(z)), -normaliser)


@closed_form(dist.SkewLogistic)
def skew_logistic(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """E log a - E z - E[(a + 1) softplus(-z)] - E log s."""
    z, a = standardized(distribution, value), compacted(distribution.asymmetry)
    spread = mean(z) + product(a + 1, F.softplus(-z))
    normaliser = mean(log_of(compacted(distribution.scale))) - mean(log_of(a))
    return total(distribution, value, num_summed, -spread, -normaliser)


@closed_form(dist.SoftLaplace)
def soft_laplace(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """log(2 / pi) - E log s - E log(e^z + e^-z), where the last is E softplus(2 z) - E z."""
    z = standardized(distribution, value)
    normaliser = mean(log_of(compacted(distribution.scale))) - math.log(2 / math.pi)
    return total(distribution, value, num_summed, mean(z) - mean(F.softplus(2 * z)), -normaliser)


@closed_form(dist.Gumbel, torch.distributions.Gumbel)
def gumbel(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """E y - E exp(y) - E log s, y = (m - x) / s."""
    scale = compacted(distribution.scale)
    deviation = compacted(distribution.loc) - value
    if isinstance(scale, RandomTensor) and not bool((interval_of(scale)[0] > 0).all()):
        if not within(deviation, -math.inf, 0.0):
            raise no_closed_form(
                distribution,
                value,
                "exp((loc - x) / scale) has no mean where loc > x, because scale comes close to 0",
            )
    y = deviation / scale
    normaliser = mean(log_of(scale))
    return total(distribution, value, num_summed, mean(y) - mean(y.exp()), -normaliser)


@closed_form(dist.SoftAsymmetricLaplace)
def soft_asymmetric_laplace(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """Its own formula at quadrature nodes, with a log erfc that does not underflow."""
    scale = compacted(distribution.scale)
    a, softness = compacted(distribution.asymmetry), compacted(distribution.softness)
    z = standardized(distribution, value)
    inner = mean(elementwise(_log_soft_asymmetric, z, a, softness))
    normaliser = mean((a + a.reciprocal()).log()) + mean(log_of(scale))
    return total(distribution, value, num_summed, inner, -normaliser)


def _log_soft_asymmetric(z: Tensor, a: Tensor, softness: Tensor) -> Tensor:
    """Two exponentials, each convolved with a Gaussian; log(erfc(x) / 2) is log_ndtr(-sqrt(2) x)."""
    left = (0.5 * softness.square() + a * z) / a.square()
    left = left + torch.special.log_ndtr(-(softness / a + z / softness))
    right = (0.5 * softness.square() - z / a) * a.square()
    right = right + torch.special.log_ndtr(-(softness * a - z / softness))
    return torch.logaddexp(left, right)


@closed_form(dist.StableWithLogProb)
def stable(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """Its own formula, an integral by itself, at quadrature nodes."""

    def log_prob(value: Tensor, *parameters: Tensor) -> Tensor:
        at_nodes = type(distribution)(*parameters, distribution.coords, validate_args=False)
        return at_nodes.log_prob(value)

    names = ("stability", "skew", "scale", "loc")
    parameters = (compacted(getattr(distribution, name)) for name in names)
    return total(distribution, value, num_summed, mean(elementwise(log_prob, value, *parameters)))
