"""E[log p] of distributions on an interval, a simplex, a circle, and of correlation matrices."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.von_mises import _log_modified_bessel_fn

from pyro_silent.expectation.links import log_of, odds_of_probability
from pyro_silent.expectation.moments import mean
from pyro_silent.expectation.ranges import within
from pyro_silent.expectation.registry import closed_form, expectation_of, no_closed_form
from pyro_silent.expectation.terms import (
    compacted,
    elementwise,
    lgamma,
    pieces,
    product,
    shape_of,
    total,
)
from pyro_silent.random_tensor.program import random_tensors
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.tensor import RandomTensor


@closed_form(dist.Uniform, torch.distributions.Uniform)
def uniform(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """-E log(high - low), where the value lies between them almost surely."""
    low, high = compacted(distribution.low), compacted(distribution.high)
    if not within(value, low, math.inf) or not within(value, -math.inf, high):
        raise no_closed_form(
            distribution,
            value,
            "the value may lie outside of [low, high], where the density is 0",
        )
    return total(distribution, value, num_summed, -mean((high - low).log()))


@closed_form(dist.Beta, torch.distributions.Beta)
def beta(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """E[(a - 1) log x] + E[(b - 1) log(1 - x)] - E log B(a, b)."""
    a, b = pieces(distribution._dirichlet.concentration, distribution.batch_shape)
    a, b = compacted(a), compacted(b)
    if isinstance(value, RandomTensor):
        log_x, log_y = odds_of_probability(value).logarithms()
        powers = product(a - 1, log_x) + product(b - 1, log_y)
    else:
        powers = torch.xlogy(mean(a) - 1, value) + torch.xlogy(mean(b) - 1, 1 - value)
    return total(distribution, value, num_summed, powers, lgamma(a + b) - lgamma(a) - lgamma(b))


@closed_form(dist.Kumaraswamy, torch.distributions.Kumaraswamy)
def kumaraswamy(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """E log a + E log b + E[(a - 1) log x] + E[(b - 1) log(1 - x^a)]."""
    a, b = compacted(distribution.concentration1), compacted(distribution.concentration0)
    log_x = log_of(value)
    inner = elementwise(_log_complement_of_power, a, log_x)
    return total(
        distribution,
        value,
        num_summed,
        mean(log_of(a)) + mean(log_of(b)),
        product(a - 1, log_x) + product(b - 1, inner),
    )


def _log_complement_of_power(a: Tensor, log_x: Tensor) -> Tensor:
    """log(1 - x^a)."""
    return (-torch.expm1(a * log_x)).log()


@closed_form(dist.Dirichlet, torch.distributions.Dirichlet)
def dirichlet(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """sum_k E[(c_k - 1) log x_k] + E lgamma(sum_k c_k) - sum_k E lgamma(c_k)."""
    c = distribution.concentration
    if isinstance(value, RandomTensor):
        powers = product(c - 1, log_of(value)).sum(-1)
    else:
        powers = torch.xlogy(mean(c) - 1, value).sum(-1)
    normaliser = mean(_lgamma_of_sum(c)) - lgamma(c).sum(-1)
    return total(distribution, value, num_summed, powers, normaliser)


@closed_form(dist.DirichletMultinomial)
def dirichlet_multinomial(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """log n! - sum_k log x_k! + sum_k E[lgamma(c_k + x_k) - lgamma(c_k)], less the same of the sums."""
    if isinstance(value, RandomTensor):
        raise no_closed_form(distribution, value, "its counts are random")
    c, trials = distribution.concentration, value.sum(-1)
    choices = torch.lgamma(trials + 1) - torch.lgamma(value + 1).sum(-1)
    growth = (lgamma(c + value) - lgamma(c)).sum(-1)
    whole = mean(_lgamma_of_sum(c, trials)) - mean(_lgamma_of_sum(c))
    return total(distribution, value, num_summed, choices, growth, -whole)


_MUL = frozenset(functions("mul", "multiply", "__mul__", "__rmul__"))


def _lgamma_of_sum(c: Tensor, added: Tensor | float = 0.0) -> Tensor:
    """lgamma(sum_k c_k + a); one random scalar times a plain vector stays one scalar."""
    c = compacted(c)
    if not isinstance(c, RandomTensor):
        return torch.lgamma(c.sum(-1) + added)
    if c._call is not None and c._call.function in _MUL:
        scalar, vector = c._call.args
        if not isinstance(scalar, RandomTensor):
            scalar, vector = vector, scalar
        single = isinstance(scalar, RandomTensor) and (scalar.dim() == 0 or scalar.shape[-1] == 1)
        if single and isinstance(vector, Tensor) and not isinstance(vector, RandomTensor):
            scalar = scalar if scalar.dim() == 0 else scalar.squeeze(-1)
            return torch.lgamma(scalar * vector.sum(-1) + added)
    terms = (torch.as_tensor(added, dtype=c.dtype, device=c.device), *pieces(c, c.shape[:-1]))
    return elementwise(_log_gamma_of_sum, *terms)


def _log_gamma_of_sum(*terms: Tensor) -> Tensor:
    return torch.lgamma(torch.stack(torch.broadcast_tensors(*terms)).sum(0))


@closed_form(dist.VonMises, torch.distributions.VonMises)
def von_mises(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """E[k cos(x - m)] - log 2 pi - E log I_0(k)."""
    k = compacted(distribution.concentration)
    turn = torch.cos(value - compacted(distribution.loc))
    normaliser = mean(elementwise(_log_bessel, k)) + math.log(2 * math.pi)
    return total(distribution, value, num_summed, product(k, turn), -normaliser)


def _log_bessel(k: Tensor) -> Tensor:
    return _log_modified_bessel_fn(k, order=0)


@closed_form(dist.SineSkewed)
def sine_skewed(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """The base's expectation, and E log(1 + sum_k a_k sin(x_k - m_k)), if of two scalars at most."""
    base = distribution.base_dist
    if random_tensors((base, distribution.skewness)):
        raise no_closed_form(distribution, value, "parameters are random")
    angles = (value - base.mean).unbind(-1)

    def log_skew(*angles: Tensor) -> Tensor:
        sines = torch.stack(torch.broadcast_tensors(*angles), -1).sin()
        return (distribution.skewness * sines).sum(-1).log1p()

    skew = mean(elementwise(log_skew, *angles, shape=shape_of(distribution, value)))
    return total(distribution, value, num_summed, expectation_of(base, value, 0), skew)


@closed_form(dist.LKJCholesky, torch.distributions.LKJCholesky, dist.LKJCorrCholesky)
def lkj_cholesky(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """sum_i E[(2 c - 2 + d - i) log L_ii] - E log of the normaliser."""
    size, c = distribution.dim, distribution.concentration
    diagonal = value.diagonal(dim1=-1, dim2=-2)[..., 1:]
    order = torch.arange(2, size + 1, device=value.device)
    powers = 2 * (c - 1).unsqueeze(-1) + size - order

    def log_normaliser(c: Tensor) -> Tensor:
        alpha = c + 0.5 * (size - 1)
        numerator = torch.mvlgamma(alpha - 0.5, size - 1)
        return 0.5 * (size - 1) * math.log(math.pi) + numerator - torch.lgamma(alpha) * (size - 1)

    log_prob = product(powers, log_of(diagonal)).sum(-1)
    normaliser = mean(elementwise(log_normaliser, compacted(c)))
    return total(distribution, value, num_summed, log_prob, -normaliser)
