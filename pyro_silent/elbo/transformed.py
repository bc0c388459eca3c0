"""Pushforwards: a transformed latent is its base's random tensor under the transforms' own code."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.random_tensor.shapes import sum_rightmost

_METHODS = ("log_prob", "sample", "rsample")


class Pushforward(NamedTuple):
    """The image of a base value, and ``log |det J|`` of the way there by position of the batch.

    :ivar value: random wherever the base is, or the transforms are.
    :ivar log_det: of the distribution's batch shape, up to broadcasting.
    """

    value: Tensor
    log_det: Tensor


def is_pushforward(fn: Distribution) -> bool:
    """Whether a distribution is its base under invertible transforms, with torch's own formulas.

    A HalfNormal, whose class derives from them, has another density: its transform folds.
    """
    transformed = torch.distributions.TransformedDistribution
    return (
        isinstance(fn, transformed)
        and all(getattr(type(fn), name) is getattr(transformed, name) for name in _METHODS)
        and all(transform.bijective for transform in fn.transforms)
    )


def push(fn: Distribution, value: Tensor) -> Pushforward:
    """Carry a base value through the transforms of a distribution.

    ``log q(y) = log q_base(x) - sum log |det J|``, summed over event dims as torch does it.
    """
    values = [value]
    for transform in fn.transforms:
        values.append(transform(values[-1]))
    total: Any = 0.0
    event_dim = len(fn.event_shape)
    pairs = zip(values, values[1:])
    for transform, (x, y) in reversed(list(zip(fn.transforms, pairs))):
        event_dim += transform.domain.event_dim - transform.codomain.event_dim
        log_det = transform.log_abs_det_jacobian(x, y)
        total = total + sum_rightmost(log_det, event_dim - transform.domain.event_dim)
    return Pushforward(values[-1], total)
