"""E[log p] of counts: Poisson, binomial, negative binomial, geometric."""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.ops.special import log_binomial
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.expectation.links import expected_trials, log_of, odds_of
from pyro_silent.expectation.moments import mean
from pyro_silent.expectation.registry import closed_form
from pyro_silent.expectation.terms import compacted, lgamma, log_term, pieces, product, total
from pyro_silent.random_tensor.tensor import RandomTensor

_FEW = 64

"""From this many counts on, a function of a shared parameter is worked out per distinct count only."""


@closed_form(dist.Poisson, torch.distributions.Poisson)
def poisson(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """E[x log r] - E[r] - E[log x!]; with r = exp(eta) that is E[x eta] - exp(E eta + Var eta / 2)."""
    rate = compacted(distribution.rate)
    return total(
        distribution, value, num_summed, log_term(value, rate), -mean(rate), -lgamma(value + 1)
    )


def _log_binomial(distribution: Distribution, trials: Tensor, value: Tensor) -> Tensor:
    """E of the log binomial coefficient."""
    if isinstance(value, RandomTensor) or isinstance(trials, RandomTensor):
        return lgamma(trials + 1) - lgamma(value + 1) - lgamma(trials - value + 1)
    return log_binomial(trials, value, tol=getattr(distribution, "approx_log_prob_tol", 0.0))


@closed_form(dist.Binomial, torch.distributions.Binomial)
def binomial(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """E[x l] - E[n softplus(l)] + log of the binomial coefficient, l the logits."""
    trials = distribution.total_count
    odds = odds_of(distribution)
    likelihood = expected_trials(odds, value, trials)
    choices = _log_binomial(distribution, trials, value)
    return total(distribution, value, num_summed, likelihood, choices)


@closed_form(dist.ExtendedBinomial, dist.ExtendedBetaBinomial)
def extended(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """As without extension inside the support, -inf outside."""
    trials = distribution.total_count
    if isinstance(value, RandomTensor) or isinstance(trials, RandomTensor):
        return _bounded_rule(distribution)(distribution, value, num_summed)
    invalid = (value < 0) | (value > trials)
    inside = copy.copy(distribution)
    inside.total_count = trials.clamp(min=0)
    base = _bounded_rule(distribution)(
        inside, value.expand(invalid.shape).masked_fill(invalid, 0), 0
    )
    return total(distribution, value, num_summed, base.masked_fill(invalid, -torch.inf))


def _bounded_rule(distribution: Distribution) -> Any:
    return binomial if isinstance(distribution, dist.ExtendedBinomial) else beta_binomial


@closed_form(dist.BetaBinomial)
def beta_binomial(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """log B(x + a, n - x + b) - log B(a, b) + log of the binomial coefficient."""
    a, b = pieces(distribution._beta._dirichlet.concentration, distribution._beta.batch_shape)
    trials = distribution.total_count
    return total(
        distribution,
        value,
        num_summed,
        _log_binomial(distribution, trials, value),
        _log_beta(a + value, b + (trials - value)),
        -_log_beta(a, b),
    )


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _rising(n: Tensor, value: Tensor) -> Tensor:
    """E[lgamma(n + x) - lgamma(n)], 0 where both are 0."""
    if isinstance(n, RandomTensor) or isinstance(value, RandomTensor):
        if n.numel() == 1 and not isinstance(value, RandomTensor) and value.numel() >= _FEW:
            counts, where = torch.unique(value, return_inverse=True)
            return (lgamma(n.reshape(()) + counts) - lgamma(n.reshape(())))[where]
        return lgamma(n + value) - lgamma(n)
    return (torch.lgamma(n + value) - torch.lgamma(n)).masked_fill(n + value == 0, 0.0)


@closed_form(dist.NegativeBinomial, torch.distributions.NegativeBinomial)
def negative_binomial(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """E[x l] - E[(n + x) softplus(l)] + lgamma(n + x) - lgamma(n) - log x!, l the logits."""
    n = compacted(distribution.total_count)
    likelihood = expected_trials(odds_of(distribution), value, n + value)
    return total(distribution, value, num_summed, likelihood, _rising(n, value), -lgamma(value + 1))


@closed_form(dist.GammaPoisson)
def gamma_poisson(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """A negative binomial of c trials and log odds -log r."""
    c, log_rate = compacted(distribution.concentration), log_of(compacted(distribution.rate))
    return total(
        distribution,
        value,
        num_summed,
        product(c, log_rate),
        -product(c + value, F.softplus(log_rate)),
        _rising(c, value),
        -lgamma(value + 1),
    )


@closed_form(dist.Geometric, torch.distributions.Geometric)
def geometric(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """E log p + E[x log(1 - p)]."""
    likelihood = expected_trials(odds_of(distribution), torch.ones_like(value), value + 1)
    return total(distribution, value, num_summed, likelihood)
