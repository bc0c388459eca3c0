"""E[log p] of discrete distributions with plain parameters: linear in the value."""

from __future__ import annotations

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.expectation.registry import closed_form, no_closed_form, require_plain
from pyro_silent.random_tensor.affine import NoForm
from pyro_silent.random_tensor.rules.indexing import one_hot
from pyro_silent.random_tensor.shapes import sum_rightmost
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of


def _mean(distribution: Distribution, value: Tensor) -> Tensor:
    if not isinstance(value, RandomTensor):
        return value
    try:
        return affine_of(value).offset
    except NoForm:
        raise no_closed_form(distribution, value, "") from None


@closed_form(dist.Bernoulli, torch.distributions.Bernoulli)
def bernoulli(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """E[x] log p + (1 - E[x]) log(1 - p)."""
    require_plain(distribution, value, "probs", "logits")
    mean = _mean(distribution, value)
    logits, mean = torch.broadcast_tensors(distribution.logits, mean)
    return sum_rightmost(
        -F.binary_cross_entropy_with_logits(logits, mean, reduction="none"), num_summed
    )


def _weighted(probabilities: Tensor, logits: Tensor) -> Tensor:
    """sum_k p_k log_k, where an impossible category (log -inf) that is never taken counts 0."""
    never = (probabilities == 0) & (logits == -torch.inf)
    return (probabilities * logits.masked_fill(never, 0.0)).sum(-1)


@closed_form(
    dist.OneHotCategorical,
    dist.OneHotCategoricalStraightThrough,
    torch.distributions.OneHotCategorical,
    torch.distributions.OneHotCategoricalStraightThrough,
)
def one_hot_categorical(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """sum_k E[x_k] log p_k."""
    require_plain(distribution._categorical, value, "probs", "logits")
    mean = _mean(distribution, value)
    return sum_rightmost(_weighted(mean, distribution.logits), num_summed)


@closed_form(dist.Categorical, torch.distributions.Categorical)
def categorical(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """sum_k P[x = k] log p_k."""
    require_plain(distribution, value, "probs", "logits")
    if not isinstance(value, RandomTensor):
        raise no_closed_form(distribution, value, "its probabilities are random")
    try:
        probabilities = one_hot(value, distribution.logits.size(-1)).offset
    except NoForm as reason:
        raise no_closed_form(distribution, value, str(reason)) from None
    return sum_rightmost(_weighted(probabilities, distribution.logits), num_summed)
