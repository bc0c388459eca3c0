"""Pushforwards: a transformed latent is its base's random tensor under the transforms' own code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.random_tensor.shapes import sum_rightmost

_TRANSFORMED = torch.distributions.TransformedDistribution


def is_image(fn: Distribution) -> bool:
    """Whether a distribution is drawn as its base under its transforms."""
    return isinstance(fn, _TRANSFORMED) and all(
        getattr(type(fn), name) is getattr(_TRANSFORMED, name) for name in ("sample", "rsample")
    )


def is_pushforward(fn: Distribution) -> bool:
    """Whether an image also has torch's density for one: its transforms are invertible.

    A HalfNormal, whose class derives from them, has another density: its transform folds.
    """
    return (
        is_image(fn)
        and type(fn).log_prob is _TRANSFORMED.log_prob
        and all(transform.bijective for transform in fn.transforms)
    )


def images(fn: Distribution, value: Tensor) -> list[Any]:
    """A base value and what each transform of the distribution makes of it; the last is the latent's."""
    values = [value]
    for transform in fn.transforms:
        values.append(transform(values[-1]))
    return values


def log_abs_det(fn: Distribution, values: Sequence[Tensor]) -> Tensor:
    """``sum log |det J|`` along the images, of the batch shape up to broadcasting.

    ``log q(y) = log q_base(x) - log |det J|``, summed over event dims as torch does it.
    """
    total: Any = None
    event_dim = len(fn.event_shape)
    pairs = zip(values, values[1:])
    for transform, (x, y) in reversed(list(zip(fn.transforms, pairs))):
        event_dim += transform.domain.event_dim - transform.codomain.event_dim
        log_det = transform.log_abs_det_jacobian(x, y)
        log_det = sum_rightmost(log_det, event_dim - transform.domain.event_dim)
        total = log_det if total is None else total + log_det
    if total is None:
        total = 0.0  # no transforms
    return total
