"""E[log p] of distributions on the positive half line."""

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
from pyro_silent.expectation.ranges import is_gaussian, within
from pyro_silent.expectation.registry import closed_form, no_closed_form
from pyro_silent.expectation.terms import (
    compacted,
    independent,
    lgamma,
    log_term,
    product,
    total,
)
from pyro_silent.looking import holds
from pyro_silent.random_tensor.program import random_tensors
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.tensor import RandomTensor


@closed_form(dist.Exponential, torch.distributions.Exponential)
def exponential(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """E log r - E[r x]."""
    rate = compacted(distribution.rate)
    return total(distribution, value, num_summed, mean(log_of(rate)), -product(rate, value))


@closed_form(dist.Gamma, torch.distributions.Gamma, dist.Chi2, torch.distributions.Chi2)
def gamma(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """E[c log r] + E[(c - 1) log x] - E[r x] - E lgamma(c)."""
    c, rate = compacted(distribution.concentration), compacted(distribution.rate)
    if not isinstance(value, RandomTensor) and not isinstance(c, RandomTensor):
        powers = torch.xlogy(c - 1, value)
    else:
        powers = product(c - 1, log_of(value))
    return total(
        distribution,
        value,
        num_summed,
        log_term(c, rate),
        powers,
        -product(rate, value),
        -lgamma(c),
    )


@closed_form(dist.InverseGamma, torch.distributions.InverseGamma)
def inverse_gamma(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """E[c log r] - E[(c + 1) log x] - E[r / x] - E lgamma(c)."""
    c, rate = compacted(distribution.concentration), compacted(distribution.rate)
    return total(
        distribution,
        value,
        num_summed,
        log_term(c, rate),
        -product(c + 1, log_of(value)),
        -product(rate, value.reciprocal()),
        -lgamma(c),
    )


def _require_nonnegative(distribution: Distribution, value: Tensor) -> None:
    if isinstance(value, RandomTensor) and not within(value, 0.0, math.inf):
        raise no_closed_form(
            distribution, value, "the value may be negative, where the density is 0"
        )


def _outside(value: Tensor, log_prob: Tensor) -> Tensor:
    """-inf where a plain value is negative."""
    if isinstance(value, RandomTensor):
        return log_prob
    return torch.where(value >= 0, log_prob, -torch.inf)


def expected_ratio_squared(value: Tensor, scale: Tensor) -> Tensor:
    """E[(x / s)^2]."""
    if isinstance(value, RandomTensor) and isinstance(scale, RandomTensor):
        if not independent(value, scale):
            return mean((value / scale).square())
    return mean(value.square()) * mean(scale.pow(-2))


@closed_form(dist.HalfNormal, torch.distributions.HalfNormal)
def half_normal(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """log 2 - E log s - (log 2 pi + E[(x / s)^2]) / 2."""
    _require_nonnegative(distribution, value)
    scale = compacted(distribution.scale)
    normaliser = mean(log_of(scale)) + 0.5 * math.log(0.5 * math.pi)
    quadratic = _outside(value, -0.5 * expected_ratio_squared(value, scale))
    return total(distribution, value, num_summed, quadratic, -normaliser)


@closed_form(dist.HalfCauchy, torch.distributions.HalfCauchy)
def half_cauchy(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """log(2 / pi) - E log s - E softplus(2 (log x - log s))."""
    _require_nonnegative(distribution, value)
    scale = compacted(distribution.scale)
    log_scale = log_of(scale)
    if isinstance(value, RandomTensor):
        log_ratio = log_of(value) - log_scale
    else:
        # log 0 would be -inf; nothing below the least normal number counts
        log_ratio = value.clamp(min=torch.finfo(value.dtype).tiny).log() - log_scale
    spread = _outside(value, -mean(F.softplus(2 * log_ratio)))
    return total(distribution, value, num_summed, spread, math.log(2 / math.pi) - mean(log_scale))


_EXP = frozenset(functions("exp"))


def _holds_exp(tensor: Tensor) -> bool:
    """Whether there is an exponential in a random tensor's program."""
    seen: set[int] = set()
    stack = random_tensors(tensor)
    while stack:
        node = stack.pop()
        if id(node) in seen or node._call is None:
            continue
        seen.add(id(node))
        if node._call.function in _EXP:
            return True
        stack.extend(random_tensors((node._call.args, node._call.kwargs)))
    return False


@closed_form(dist.Weibull, torch.distributions.Weibull)
def weibull(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """E log k - E log s + E[(k - 1) log(x / s)] - E exp(k log(x / s))."""
    scale, k = compacted(distribution.scale), compacted(distribution.concentration)
    log_k = log_of(k)
    log_ratio = log_of(value) - log_of(scale)
    if is_gaussian(log_k) or _holds_exp(k):
        if isinstance(log_ratio, RandomTensor) or not holds("sign", (log_ratio <= 0).all()):
            raise no_closed_form(
                distribution,
                value,
                "(x / scale)^concentration has no mean where x > scale, because concentration grows as "
                "the exponential of a Gaussian",
            )
    return total(
        distribution,
        value,
        num_summed,
        mean(log_k),
        -mean(log_of(scale)),
        product(k - 1, log_ratio),
        -mean(torch.exp(k * log_ratio)),
    )


@closed_form(dist.Pareto, torch.distributions.Pareto)
def pareto(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """E log a + E[a log s] - E[(a + 1) log x], where x >= s almost surely."""
    scale, alpha = compacted(distribution.scale), compacted(distribution.alpha)
    log_prob = mean(log_of(alpha)) + log_term(alpha, scale) - product(alpha + 1, log_of(value))
    if isinstance(value, RandomTensor) or isinstance(scale, RandomTensor):
        if not within(value, scale, math.inf):
            raise no_closed_form(distribution, value, "the value may be smaller than scale")
    else:
        log_prob = torch.where(value >= scale, log_prob, -torch.inf)
    return total(distribution, value, num_summed, log_prob)


@closed_form(dist.GeneralizedPareto, torch.distributions.GeneralizedPareto)
def generalized_pareto(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """-E log s - (1 / c + 1) E log(1 + c (x - m) / s), and -E[(x - m) / s] where c = 0."""
    loc, scale = compacted(distribution.loc), compacted(distribution.scale)
    c = compacted(distribution.concentration)
    if isinstance(c, RandomTensor):
        raise no_closed_form(distribution, value, "concentration is random")
    ceiling = torch.where(c < 0, -1 / c, torch.inf)
    z = (value - loc) / scale
    if not isinstance(z, RandomTensor) or not within(z, 0.0, ceiling):
        raise no_closed_form(distribution, value, "the value may lie outside of the support")
    straight = c.abs() < 1e-8
    safe = torch.where(straight, 1.0, c)
    curved = (1 / safe + 1) * mean(torch.log1p(safe * z))
    spread = torch.where(straight, mean(z), curved)
    return total(distribution, value, num_summed, -mean(log_of(scale)), -spread)
