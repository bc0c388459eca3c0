"""E[log p] of distributions of location and scale on the whole line that are not Gaussian."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.expectation.cauchy import log1p_square
from pyro_silent.expectation.integral import deviation as deviation_of
from pyro_silent.expectation.links import log_of
from pyro_silent.expectation.method import note
from pyro_silent.expectation.moments import covariance, mean, variance
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
from pyro_silent.looking import Decision, holds
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


def expected_log_spread(distribution: Any, value: Tensor, df: Tensor | float) -> Tensor:
    """E log(1 + z^2 / v), z = (x - m) / s, by whatever of x, m, s and v is random."""
    scale = compacted(distribution.scale)
    deviation = value - compacted(distribution.loc)
    if not isinstance(deviation, RandomTensor):
        # log 0 would be -inf; nothing below the least normal number counts
        log_size = deviation.abs().clamp(min=torch.finfo(deviation.dtype).tiny).log()
        log_df = log_of(df) if isinstance(df, Tensor) else math.log(df)
        return mean(F.softplus(2 * (log_size - log_of(scale)) - log_df))
    if _is_gaussian(deviation) and not isinstance(df, RandomTensor):
        center, spread = mean(deviation), deviation_of(variance(deviation))
        root = math.sqrt(df) if isinstance(df, float) else df.sqrt()
        if not isinstance(scale, RandomTensor):
            return log1p_square(center / (scale * root), spread / (scale * root))
        log_scale = log_of(scale)
        if _is_gaussian(log_scale):
            joint = (
                None if independent(deviation, scale) else covariance(deviation, log_scale) / root
            )
            found = _given_log_scale(center / root, spread / root, log_scale, joint)
            if found is not None:
                return found
        elif independent(deviation, scale):
            return mean(elementwise(_log1p_square_of_ratio, center / root, spread / root, scale))
    z = deviation / scale
    return mean((z.square() / df).log1p())


def _given_log_scale(
    center: Tensor, spread: Tensor, log_scale: Tensor, joint: Tensor | None
) -> Tensor | None:
    """E log(1 + z^2) by nodes for the Gaussian log scale, given which the rest is Gaussian.

    ``joint`` is the covariance of the two, where they are not independent; a numerator that nearly is
    a function of the scale takes too many nodes, and None is returned.

    In the log scale the poles are pi / 2 away whatever the rest is, which says how many nodes it takes.
    """
    average, width = mean(log_scale), deviation_of(variance(log_scale))
    loading: Tensor | float = 0.0
    widest: Tensor = width
    if joint is not None:
        known = width > 0
        loading = torch.where(known, joint / torch.where(known, width, 1.0), 0.0)
        # A full correlation is taken for one just below: gradients stay finite.
        least = torch.finfo(spread.dtype).eps ** 0.75 * spread.square()
        spread = deviation_of(torch.maximum(spread.square() - loading.square(), least))
        # The numerator moves with the node: poles at +-i, smoothed by what is left of its spread.
        factor = (3 * width - average).exp()
        pace = loading.abs() * factor / (3.4 * spread * factor).clamp(min=1.0)
        widest = torch.maximum(width, 0.5 * math.pi * pace)
    decision = Decision("width", widest)
    seen: float | None = decision.answer
    provided = None if seen is None else _ROOM * seen
    if decision.looks and widest.numel():
        seen = provided = float(widest.detach().max())
        decision.keep(seen)
    elif provided is not None and widest.numel():
        decision.verify(widest.detach().max() <= provided)
    if joint is not None and seen is not None and not _num_nodes(seen) <= _MOST_NODES:
        return None
    count = _MOST_NODES
    if provided is not None and _num_nodes(provided) < _MOST_NODES:
        count = math.ceil(_num_nodes(provided))
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    inner = []
    for node, weight in zip(nodes.tolist(), (weights / weights.sum()).tolist()):
        factor = (-average - node * width).exp()
        moved = (center + node * loading) * factor
        # how many nodes there are may change: what one of them met says nothing of the next step's
        inner.append(weight * log1p_square(moved, spread * factor, is_same_term=False))
    note(f"quadrature({count})")
    return torch.stack(torch.broadcast_tensors(*inner)).sum(0)


_MOST_NODES = 220
_ROOM = 2.0  # how far the width may grow before it is looked at again


def _num_nodes(width: float) -> float:
    return 6 + (7.33 * width) ** 2  # error exp(-pi sqrt(n) / width), 1e-10 up to a width of 2


def _log1p_square_of_ratio(center: Tensor, spread: Tensor, scale: Tensor) -> Tensor:
    return log1p_square(center / scale, spread / scale)


def _is_gaussian(tensor: Tensor) -> bool:
    """Whether every element is one Gaussian scalar."""
    form = tensor._form if isinstance(tensor, RandomTensor) else None
    return form is not None and not any(term.source.is_discrete for term in form.terms)


@closed_form(dist.Cauchy, torch.distributions.Cauchy)
def cauchy(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """-log pi - E log s - E log(1 + z^2), z = (x - m) / s."""
    spread = expected_log_spread(distribution, value, 1.0)
    normaliser = mean(log_of(compacted(distribution.scale))) + math.log(math.pi)
    return total(distribution, value, num_summed, -spread, -normaliser)


@closed_form(dist.StudentT, torch.distributions.StudentT)
def student_t(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """-E[(v + 1) / 2 log(1 + z^2 / v)] - E log s, and the normaliser of v degrees of freedom."""
    df, scale = compacted(distribution.df), compacted(distribution.scale)
    if isinstance(df, RandomTensor):
        z = standardized(distribution, value)
        spread = product(0.5 * (df + 1), (z.square() / df).log1p())
    else:
        spread = 0.5 * (df + 1) * expected_log_spread(distribution, value, df)
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
    if isinstance(scale, RandomTensor) and not holds("scale", (interval_of(scale)[0] > 0).all()):
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
