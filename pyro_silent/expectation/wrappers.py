"""E[log p] of distributions that wrap others, and of points and factors."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.expectation.moments import mean_of
from pyro_silent.expectation.registry import closed_form, expectation_of, no_closed_form
from pyro_silent.expectation.terms import original
from pyro_silent.random_tensor.program import random_tensors
from pyro_silent.random_tensor.shapes import sum_rightmost
from pyro_silent.random_tensor.tensor import RandomTensor


@closed_form(torch.distributions.Independent)
def independent(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """The sum over the dims turned into event dims."""
    width = distribution.reinterpreted_batch_ndims
    return expectation_of(distribution.base_dist, value, num_summed + width)


@closed_form(dist.MaskedDistribution)
def masked(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """The base's expectation where the mask is True, 0 elsewhere; P[mask] log p for a random mask."""
    base, mask = distribution.base_dist, distribution._mask
    if mask is False:
        event_dim = len(base.event_shape)
        shape = torch.broadcast_shapes(base.batch_shape, value.shape[: value.dim() - event_dim])
        return torch.zeros((), device=value.device).expand(shape[: len(shape) - num_summed])
    if mask is True:
        return expectation_of(base, value, num_summed)
    if isinstance(mask, RandomTensor):
        if isinstance(value, RandomTensor) or random_tensors(base):
            raise no_closed_form(distribution, value, "a random mask meets a random density")
        probability = mean_of(mask, "the mean of a mask")
        return sum_rightmost(probability * base.log_prob(value), num_summed)
    log_prob = scale_and_mask(expectation_of(base, value, 0), mask=mask)
    return sum_rightmost(log_prob, num_summed)


@closed_form(dist.ExpandedDistribution)
def expanded_distribution(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """The base's expectation, repeated."""
    event_dim = len(distribution.event_shape)
    shape = torch.broadcast_shapes(distribution.batch_shape, value.shape[: value.dim() - event_dim])
    log_prob = expectation_of(distribution.base_dist, value, 0)
    return sum_rightmost(log_prob.expand(shape), num_summed)


@closed_form(dist.Delta)
def delta(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """E[log_density] at the point itself; anywhere else is refused, not guessed."""
    if original(value) is not original(distribution.v):
        raise no_closed_form(distribution, value, "a point mass is scored away from its point")
    log_density = mean_of(distribution.log_density, "the mean of a Delta's log_density")
    return sum_rightmost(log_density.expand(distribution.batch_shape), num_summed)


@closed_form(dist.Unit)
def unit(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """E[log_factor] of ``pyro.factor``."""
    log_factor = mean_of(distribution.log_factor, "the mean of a log_factor")
    shape = torch.broadcast_shapes(distribution.batch_shape, value.shape[:-1])
    return sum_rightmost(log_factor.expand(shape), num_summed)
