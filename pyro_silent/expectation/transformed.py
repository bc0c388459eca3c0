"""E[log p] of transformed distributions: log p(y) = log base(x) - log |dy / dx|, x the inverse image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import transforms as tt

from pyro_silent.errors import LeakError
from pyro_silent.expectation.links import log_of, odds_of_probability
from pyro_silent.expectation.moments import mean
from pyro_silent.expectation.ranges import within
from pyro_silent.expectation.registry import closed_form, expectation_of, no_closed_form
from pyro_silent.expectation.terms import shape_of
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.shapes import sum_rightmost
from pyro_silent.random_tensor.tensor import RandomTensor

_SOFTPLUS = frozenset(functions("softplus"))
_TANH = frozenset(functions("tanh"))


@closed_form(
    dist.TransformedDistribution,
    torch.distributions.TransformedDistribution,
    dist.LogNormal,
    torch.distributions.LogNormal,
)
def transformed(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """The base's expectation at the inverse image, less the means of the log Jacobians.

    Whatever is random stays so on the way back: the value, the parameters of transforms, the base.
    """
    event_dim = len(distribution.event_shape)
    y, jacobians = value, []
    try:
        for transform in reversed(distribution.transforms):
            x = inverse(transform, y)
            event_dim += transform.domain.event_dim - transform.codomain.event_dim
            jacobian = log_jacobian(transform, x, y)
            jacobians.append(sum_rightmost(mean(jacobian), event_dim - transform.domain.event_dim))
            y = x
    except (LeakError, NotImplementedError) as error:
        raise no_closed_form(
            distribution, value, f"{type(transform).__name__} cannot be undone: {error}"
        ) from None
    base = distribution.base_dist
    result = expectation_of(base, y, event_dim - len(base.event_shape))
    for jacobian in jacobians:
        result = result - jacobian
    return sum_rightmost(result.expand(shape_of(distribution, value)), num_summed)


@closed_form(dist.RelaxedBernoulliStraightThrough, dist.RelaxedOneHotCategoricalStraightThrough)
def straight_through(distribution: Any, value: Tensor, num_summed: int) -> Tensor:
    """The relaxed density at the soft value behind a hard one."""
    return transformed(distribution, getattr(value, "_unquantize", value), num_summed)


def _made_by(y: Tensor, names: frozenset[Callable]) -> Tensor | None:
    """The argument of the function that made a random tensor, if it is one of these."""
    if type(y) is RandomTensor and y._form is None and y._call is not None:
        if y._call.function in names and len(y._call.args) == 1 and not y._call.kwargs:
            return y._call.args[0]
    return None


def inverse(transform: Any, y: Tensor) -> Tensor:
    """``transform.inv(y)``; a random y that the transform's function made is taken back exactly."""
    if isinstance(transform, tt.ComposeTransform):
        for part in reversed(transform.parts):
            y = inverse(part, y)
        return y
    if isinstance(transform, tt.IndependentTransform):
        return inverse(transform.base_transform, y)
    if isinstance(y, RandomTensor):
        if isinstance(transform, tt.ExpTransform):
            return log_of(y)
        if isinstance(transform, tt.SigmoidTransform):
            odds = odds_of_probability(y)
            if odds.logits is not None:
                return odds.logits
            log_p, log_q = odds.logarithms()
            return log_p - log_q
        if isinstance(transform, tt.SoftplusTransform):
            x = _made_by(y, _SOFTPLUS)
            return torch.log(-torch.expm1(-y)) + y if x is None else x
        if isinstance(transform, tt.TanhTransform):
            x = _made_by(y, _TANH)
            return torch.atanh(y) if x is None else x
    return transform.inv(y)


def log_jacobian(transform: Any, x: Tensor, y: Tensor) -> Tensor:
    """``transform.log_abs_det_jacobian(x, y)``, in a form whose expectation is known."""
    if isinstance(transform, tt.ComposeTransform) and transform.parts:
        return _of_parts(transform, x, y)
    if isinstance(transform, tt.IndependentTransform):
        inner = log_jacobian(transform.base_transform, x, y)
        return _sum_of(inner, transform.reinterpreted_batch_ndims)
    if isinstance(transform, tt.AffineTransform) and isinstance(transform.scale, RandomTensor):
        scale = transform.scale
        size = log_of(scale) if within(scale, 0.0, math.inf, trusted=False) else scale.abs().log()
        shape = torch.broadcast_shapes(x.shape, scale.shape)
        return _sum_of(size.expand(shape), transform.event_dim)
    if isinstance(transform, tt.PowerTransform):
        exponent = transform.exponent
        return exponent.abs().log() + log_of(y) - log_of(x)
    if isinstance(transform, tt.TanhTransform):
        return 2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))
    return transform.log_abs_det_jacobian(x, y)


def _sum_of(tensor: Tensor, num_dims: int) -> Tensor:
    return tensor.sum(list(range(-num_dims, 0))) if num_dims else tensor


def _of_parts(transform: Any, x: Tensor, y: Tensor) -> Tensor:
    points = [y]
    for part in reversed(transform.parts[1:]):
        points.insert(0, inverse(part, points[0]))
    points.insert(0, x)
    event_dim = transform.domain.event_dim
    result: Any = 0.0
    for part, before, after in zip(transform.parts, points[:-1], points[1:]):
        jacobian = log_jacobian(part, before, after)
        result = result + _sum_of(jacobian, event_dim - part.domain.event_dim)
        event_dim += part.codomain.event_dim - part.domain.event_dim
    return result
