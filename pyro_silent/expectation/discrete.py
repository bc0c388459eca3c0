"""E[log p] of binary and categorical distributions."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.errors import IntractableError
from pyro_silent.expectation.coercion import CONSTRUCTORS
from pyro_silent.expectation.links import expected_trials, odds_of
from pyro_silent.expectation.moments import mean
from pyro_silent.expectation.ranges import within
from pyro_silent.expectation.registry import closed_form, no_closed_form
from pyro_silent.expectation.terms import compacted, elementwise, independent, pieces, total
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.shapes import sum_rightmost
from pyro_silent.random_tensor.tensor import RandomTensor


@closed_form(dist.Bernoulli, torch.distributions.Bernoulli)
def bernoulli(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """E[x l] - E softplus(l), l the logits; with plain ones E[x] log p + (1 - E[x]) log(1 - p)."""
    odds = odds_of(distribution)
    if odds.logits is not None and not isinstance(odds.logits, RandomTensor):
        logits, average = torch.broadcast_tensors(odds.logits, mean(value))
        return sum_rightmost(
            -F.binary_cross_entropy_with_logits(logits, average, reduction="none"), num_summed
        )
    return total(distribution, value, num_summed, expected_trials(odds, value, 1.0))


@closed_form(dist.ContinuousBernoulli, torch.distributions.ContinuousBernoulli)
def continuous_bernoulli(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """E[x l] - E softplus(l) + E log(l / tanh(l / 2)), l the logits."""
    logits = distribution.logits
    normaliser = mean(elementwise(_log_normaliser, logits))
    likelihood = expected_trials(odds_of(distribution), value, 1.0)
    return total(distribution, value, num_summed, likelihood, normaliser)


def _log_normaliser(logits: Tensor) -> Tensor:
    """log(l / tanh(l / 2))."""
    small = logits.abs() < 1e-2
    safe = torch.where(small, 1.0, logits)
    square = torch.where(small, logits, 0.0).square()
    series = 0.6931471805599453 + square / 12 - 7 * square.square() / 1440
    return torch.where(small, series, (safe / torch.tanh(0.5 * safe)).log())


@closed_form(torch.distributions.relaxed_bernoulli.LogitRelaxedBernoulli)
def logit_relaxed_bernoulli(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """log t + E d - 2 E softplus(d), d = l - t x."""
    odds = odds_of(distribution)
    if odds.logits is None:
        log_p, log_q = odds.logarithms()
        logits = log_p - log_q
    else:
        logits = odds.logits
    temperature = distribution.temperature
    difference = logits - value * temperature
    return total(
        distribution,
        value,
        num_summed,
        mean(temperature.log()),
        mean(difference) - 2 * mean(F.softplus(difference)),
    )


# Categories. What is known of a random vector of probabilities is kept as unnormalised logits.

_SOFTMAX = frozenset(functions("softmax", "special.softmax"))
_LOG_SOFTMAX = frozenset(functions("log_softmax", "special.log_softmax"))
_SUB = frozenset(functions("sub", "subtract", "__sub__"))
_DIV = frozenset(functions("div", "true_divide", "divide", "__truediv__"))
_LOGSUMEXP = frozenset(functions("logsumexp"))
_SUM = frozenset(functions("sum"))


def _call_of(tensor: Any, names: frozenset) -> tuple | None:
    """The arguments of the call that made a tensor, if it is one of these."""
    if type(tensor) is RandomTensor and tensor._form is None and tensor._call is not None:
        if tensor._call.function in names and tensor._index is None:
            return tensor._call.args
    return None


def unnormalized(logits: Tensor) -> Tensor:
    """Logits before torch normalised them, where their program shows it."""
    args = _call_of(logits, frozenset((Tensor.expand,)))
    if args is not None:
        return unnormalized(args[0]).expand(logits.shape)
    args = _call_of(logits, _SUB)
    if args is not None:
        inner = _call_of(args[1], _LOGSUMEXP)
        if inner is not None and inner[0] is args[0]:
            return unnormalized(args[0])
    args = _call_of(logits, _LOG_SOFTMAX)
    if args is not None:
        return unnormalized(args[0])
    return logits


def unnormalized_logs(probs: Tensor) -> Tensor:
    """Logits of random probabilities, up to a constant along the last dim."""
    args = _call_of(probs, frozenset((Tensor.expand,)))
    if args is not None:
        return unnormalized_logs(args[0]).expand(probs.shape)
    args = _call_of(probs, _DIV)
    if args is not None:
        inner = _call_of(args[1], _SUM)
        if inner is not None and inner[0] is args[0]:
            return unnormalized_logs(args[0])
    args = _call_of(probs, _SOFTMAX)
    if args is not None:
        return unnormalized(args[0])
    if isinstance(probs, RandomTensor) and probs._form is not None:
        return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
    return probs.log()


def random_logits(distribution: Any) -> Tensor | None:
    """The unnormalised logits of a categorical distribution, None where they are plain."""
    held = vars(distribution)
    probs, logits = held.get("probs"), held.get("logits")
    param = held.get("_param")
    if isinstance(param, RandomTensor):
        return unnormalized_logs(param) if param is probs else unnormalized(param)
    if isinstance(probs, RandomTensor) and logits is None:
        return unnormalized_logs(probs)
    return unnormalized(logits) if isinstance(logits, RandomTensor) else None


def expected_normaliser(distribution: Distribution, value: Tensor, logits: Tensor) -> Tensor:
    """E log sum_k exp(l_k): two categories, three, or functions of few discrete scalars.

    :raises IntractableError: for more categories with Gaussian logits: no closed form is known, and
        Jensen's inequality gives a bound on the wrong side of an ELBO.
    """
    count = logits.shape[-1]
    first = logits[..., 0]
    if count == 1:
        return mean(first)
    gaps = [logits[..., k] - first for k in range(1, count)]
    if count == 2:
        return mean(first) + mean(F.softplus(gaps[0]))
    try:
        sizes = [torch.zeros_like(first) if not isinstance(gap, Tensor) else gap for gap in gaps]
        return mean(first) + mean(elementwise(_log_sum, *sizes))
    except IntractableError as error:
        raise no_closed_form(
            distribution,
            value,
            f"log sum exp of {count} random logits has none, except for two or three categories, or "
            f"logits that depend on two scalars at most ({error})",
        ) from None


def _log_sum(*gaps: Tensor) -> Tensor:
    """log(1 + sum_k exp(g_k))."""
    gaps = torch.broadcast_tensors(*gaps)
    return torch.logsumexp(torch.stack([torch.zeros_like(gaps[0]), *gaps]), 0)


def _weighted(probabilities: Tensor, logits: Tensor) -> Tensor:
    """sum_k p_k log_k, where an impossible category (log -inf) that is never taken counts 0."""
    never = (probabilities == 0) & (logits == -torch.inf)
    return (probabilities * logits.masked_fill(never, 0.0)).sum(-1)


def _expected_choice(code: Tensor, logits: Tensor) -> Tensor:
    """E sum_k x_k l_k for a one-hot code or counts x."""
    if independent(code, logits):
        return (mean(code) * mean(logits)).sum(-1)
    return mean(code * logits).sum(-1)


@closed_form(
    dist.OneHotCategorical,
    dist.OneHotCategoricalStraightThrough,
    torch.distributions.OneHotCategorical,
    torch.distributions.OneHotCategoricalStraightThrough,
)
def one_hot_categorical(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """sum_k E[x_k l_k] - E log sum_k exp(l_k), l the logits."""
    logits = random_logits(distribution._categorical)
    if logits is None:
        return sum_rightmost(_weighted(mean(value), distribution.logits), num_summed)
    choice = _expected_choice(value, logits)
    normaliser = expected_normaliser(distribution, value, logits)
    return total(distribution, value, num_summed, choice, -normaliser)


@closed_form(torch.distributions.relaxed_categorical.ExpRelaxedCategorical)
def exp_relaxed_categorical(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """lgamma(K) + (K - 1) log t + sum_k E d_k - K E log sum_k exp(d_k), d = l - t x."""
    logits = random_logits(distribution._categorical)
    if logits is None:
        logits = distribution.logits
    size, temperature = logits.shape[-1], distribution.temperature
    score = logits - value * temperature
    normaliser = size * expected_normaliser(distribution, value, score)
    log_scale = math.lgamma(size) + (size - 1) * mean(temperature.log())
    return total(distribution, value, num_summed, log_scale, mean(score).sum(-1), -normaliser)


@closed_form(dist.Categorical, torch.distributions.Categorical)
def categorical(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """E l_x - E log sum_k exp(l_k), l the logits."""
    logits = random_logits(distribution)
    if logits is None:
        probabilities = mean(_indicators(distribution, value, distribution.logits.size(-1)))
        return sum_rightmost(_weighted(probabilities, distribution.logits), num_summed)
    normaliser = expected_normaliser(distribution, value, logits)
    if isinstance(value, RandomTensor):
        code = _indicators(distribution, value, logits.size(-1))
        choice = _expected_choice(code, logits)
    else:
        shape = torch.broadcast_shapes(value.shape, logits.shape[:-1])
        index = value.long().expand(shape).unsqueeze(-1)
        averages = mean(logits).expand(shape + logits.shape[-1:])
        choice = averages.gather(-1, index).squeeze(-1)
    return total(distribution, value, num_summed, choice, -normaliser)


def _indicators(distribution: Distribution, value: Tensor, count: int) -> Tensor:
    """The one-hot code of a random index."""
    code = F.one_hot(value, count)
    if isinstance(code, RandomTensor) and code._form is None:
        raise no_closed_form(distribution, value, "the index is not a categorical latent")
    return code.to(distribution._param.dtype)


@closed_form(dist.Multinomial, torch.distributions.Multinomial)
def multinomial(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """log n! - sum_k log x_k! + sum_k x_k E l_k - n E log sum_k exp(l_k)."""
    logits = random_logits(distribution._categorical)
    if isinstance(value, RandomTensor):
        raise no_closed_form(distribution, value, "its counts are random")
    trials = value.sum(-1)
    choices = torch.lgamma(trials + 1) - torch.lgamma(value + 1).sum(-1)
    if logits is None:
        return sum_rightmost(distribution.log_prob(value), num_summed)
    choice = _expected_choice(value, logits)
    normaliser = trials * expected_normaliser(distribution, value, logits)
    return total(distribution, value, num_summed, choices, choice, -normaliser)


def _ordered_logistic(
    distribution: Any, predictor: Tensor, cutpoints: Tensor, validate_args: bool | None = None
) -> None:
    """Keep the parameters; Pyro's own way to the probabilities writes into a buffer."""
    shape = torch.broadcast_shapes(predictor.shape, cutpoints.shape[:-1])
    distribution.predictor = predictor.expand(shape)
    distribution.cutpoints = cutpoints.expand(shape + cutpoints.shape[-1:])
    below = torch.sigmoid(distribution.cutpoints - distribution.predictor.unsqueeze(-1))
    steps = below[..., 1:] - below[..., :-1]
    distribution.probs = torch.cat((below[..., :1], steps, 1 - below[..., -1:]), -1)
    distribution._num_events = cutpoints.shape[-1] + 1
    Distribution.__init__(distribution, shape, validate_args=False)


CONSTRUCTORS[dist.OrderedLogistic] = _ordered_logistic


@closed_form(dist.OrderedLogistic)
def ordered_logistic(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """log(sigmoid(u) - sigmoid(l)) = -softplus(-u) - softplus(l) + log(1 - exp(l - u)), u and l the
    cutpoints around the category less the predictor; one softplus at either end.
    """
    if isinstance(value, RandomTensor):
        raise no_closed_form(distribution, value, "the value is random")
    cuts = [compacted(cut) for cut in pieces(distribution.cutpoints, distribution.batch_shape)]
    zero = torch.zeros_like(mean(distribution.predictor))
    categories = [zero] * (len(cuts) + 1)
    for k, cut in enumerate(cuts):
        gap = cut - distribution.predictor
        categories[k] = categories[k] - mean(F.softplus(-gap))
        categories[k + 1] = categories[k + 1] - mean(F.softplus(gap))
    for k, (low, high) in enumerate(zip(cuts[:-1], cuts[1:])):
        step = high - low
        if isinstance(step, RandomTensor) and not within(step, 0.0, math.inf):
            raise no_closed_form(distribution, value, "the cutpoints may be out of order")
        categories[k + 1] = categories[k + 1] + mean(torch.log(-torch.expm1(-step)))
    by_category = torch.stack(torch.broadcast_tensors(*categories), -1)
    shape = torch.broadcast_shapes(value.shape, by_category.shape[:-1])
    index = value.long().expand(shape).unsqueeze(-1)
    chosen = by_category.expand(shape + by_category.shape[-1:]).gather(-1, index).squeeze(-1)
    return total(distribution, value, num_summed, chosen)
