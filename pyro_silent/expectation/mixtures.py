"""E[log p] of mixtures whose components are summed out."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.expectation.coercion import without_validation
from pyro_silent.expectation.links import odds_of, odds_of_probability
from pyro_silent.expectation.moments import mean
from pyro_silent.expectation.registry import closed_form, expectation_of, no_closed_form
from pyro_silent.expectation.substitution import by_substitution
from pyro_silent.expectation.terms import compacted, elementwise, shape_of, total
from pyro_silent.looking import may_look
from pyro_silent.random_tensor.program import random_tensors
from pyro_silent.random_tensor.tensor import RandomTensor


@closed_form(
    dist.ZeroInflatedDistribution, dist.ZeroInflatedPoisson, dist.ZeroInflatedNegativeBinomial
)
def zero_inflated(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """E log(1 - g) + the base's, and where a zero is seen E log(g + (1 - g) p(0)), as a softplus."""
    base = distribution.base_dist
    if "gate_logits" in vars(distribution):
        gate = compacted(distribution.gate_logits)
        log_rest, log_gate = -F.softplus(gate), -F.softplus(-gate)
    else:
        log_gate, log_rest = _gate(compacted(distribution.gate))
    if isinstance(value, RandomTensor):
        raise no_closed_form(distribution, value, "its counts are random")
    counts = mean(log_rest) + expectation_of(base, value, 0)
    zero = value == 0
    if may_look(zero) and not bool(zero.any()):
        return total(distribution, value, num_summed, counts)
    if random_tensors(base) or isinstance(log_rest, RandomTensor):
        nothing = _log_prob_of_zero(base, value)
        zeros = mean(log_rest + nothing) + mean(F.softplus(log_gate - log_rest - nothing))
    else:
        zeros = torch.logaddexp(log_gate, log_rest + base.log_prob(torch.zeros_like(value)))
    return total(distribution, value, num_summed, torch.where(zero, zeros, counts))


def _gate(gate: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(gate, RandomTensor):
        return odds_of_probability(gate).logarithms()
    return gate.log(), (-gate).log1p()


def _log_prob_of_zero(base: Distribution, like: Tensor) -> Tensor:
    """log p(0) as a random tensor."""
    if isinstance(base, torch.distributions.Poisson):
        return -base.rate
    if isinstance(base, torch.distributions.NegativeBinomial):
        _, log_q = odds_of(base).logarithms()
        return base.total_count * log_q
    with without_validation():
        return base.log_prob(like.new_zeros(base.batch_shape))


@closed_form(dist.MaskedMixture)
def masked_mixture(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """Each component's expectation where the mask chooses it; P[mask] weights for a random mask."""
    mask = distribution.mask
    shape = shape_of(distribution, value)
    value = value.expand(shape + distribution.event_shape)
    first = expectation_of(distribution.component0, value, 0)
    second = expectation_of(distribution.component1, value, 0)
    if isinstance(mask, RandomTensor):
        components = (distribution.component0, distribution.component1)
        random = isinstance(value, RandomTensor) or random_tensors(components)
        if random:
            raise no_closed_form(distribution, value, "a random mask meets a random density")
        log_prob = first + mean(mask.to(first.dtype)) * (second - first)
    else:
        log_prob = torch.where(mask, second, first)
    return total(distribution, value, num_summed, log_prob)


@closed_form(dist.MixtureSameFamily, torch.distributions.MixtureSameFamily)
def mixture_same_family(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """log sum_k w_k p_k(x), a function of one or two random scalars, by quadrature or enumeration.

    A random parameter with one scalar per component counts as that many.
    """
    if len(distribution.event_shape):
        raise no_closed_form(distribution, value, "the components are of random vectors")
    log_prob = by_substitution(distribution, value, 1)
    return total(distribution, value, num_summed, log_prob)


@closed_form(dist.FoldedDistribution)
def folded(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """log(p(x) + p(-x)), a function of one or two random scalars."""

    def log_prob(base: Distribution, value: Tensor) -> Tensor:
        return torch.logaddexp(base.log_prob(value), base.log_prob(-value))

    base = distribution.base_dist
    result = by_substitution(base, value, 0, log_prob)
    return total(distribution, value, num_summed, result)


@closed_form(dist.LogNormalNegativeBinomial)
def log_normal_negative_binomial(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """Its own formula, an integral by itself, at quadrature nodes."""

    def log_prob(value: Tensor, *parameters: Tensor) -> Tensor:
        count = distribution.num_quad_points
        return type(distribution)(*parameters, num_quad_points=count, validate_args=False).log_prob(
            value
        )

    names = ("total_count", "logits", "multiplicative_noise_scale")
    parameters = (compacted(getattr(distribution, name)) for name in names)
    return total(distribution, value, num_summed, mean(elementwise(log_prob, value, *parameters)))


@closed_form(dist.TruncatedPolyaGamma)
def truncated_polya_gamma(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """Its own formula at quadrature nodes."""
    return total(distribution, value, num_summed, mean(elementwise(distribution.log_prob, value)))


@closed_form(dist.Empirical)
def empirical(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """Refused: the density is one of a list of points."""
    raise no_closed_form(distribution, value, "it has a density only at its samples")
