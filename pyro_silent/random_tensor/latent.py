"""Fresh random tensors: latents with the law of a distribution."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import Distribution, Independent

from pyro_silent.errors import IntractableError
from pyro_silent.random_tensor.affine import Affine, Term
from pyro_silent.random_tensor.source import Source, find_source
from pyro_silent.random_tensor.tensor import RandomTensor, blank_tensor
from pyro_silent.random_tensor.transformed import images, is_image


def from_source(source: Source, dtype: torch.dtype | None = None) -> RandomTensor:
    """A fresh random tensor, aligned with its source on every axis."""
    num_dims = len(source.shape)
    axes = tuple(k - num_dims if size != 1 else None for k, size in enumerate(source.shape))
    num_contracted = sum(axis is None for axis in axes)
    coefficient = None
    if num_contracted:
        coefficient = source.mean.new_ones((1,) * (num_contracted + num_dims))
    form = Affine(source.mean, (Term(source, axes, coefficient),))
    tensor = blank_tensor(source.shape, dtype or source.mean.dtype, source.mean.device)
    tensor._form = form
    tensor._source = source
    return tensor


def index_from_source(source: Source) -> RandomTensor:
    """The integer tensor of a categorical source: ``sum_k k [z = k]``."""
    size = source.shape[-1]
    num_dims = len(source.shape) - 1
    axes = tuple(k - num_dims if n != 1 else None for k, n in enumerate(source.shape[:-1]))
    grid = torch.arange(size, device=source.mean.device, dtype=source.mean.dtype)
    num_contracted = sum(axis is None for axis in axes)
    coefficient = grid.view((1,) * num_contracted + (size,) + (1,) * num_dims)
    offset = source.mean @ grid
    tensor = blank_tensor(offset.shape, torch.int64, offset.device)
    base = offset.new_zeros((1,) * num_dims)
    tensor._form = Affine(offset, (Term(source, (*axes, None), coefficient),), torch.int64, base)
    tensor._integral = True
    tensor._source = source
    return tensor


def random_tensor(distribution: Distribution, name: str = "z") -> RandomTensor:
    """A random tensor with the law of a distribution: a source outside any ELBO.

    The result has shape ``batch_shape + event_shape``. Positions of the batch, and of the event where
    it was made by ``to_event``, are independent.

    :param distribution: Normal, MultivariateNormal, LowRankMultivariateNormal, Bernoulli,
        OneHotCategorical or Categorical (an index tensor), or a LogNormal, HalfNormal or any
        ``TransformedDistribution`` of these; also under ``to_event``, ``expand``, ``mask``.
    :param name: shown in messages.
    :raises IntractableError: for a distribution whose moments are not in the table.

    Cost: none; the moments are those of the distribution.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_silent import mean, random_tensor, variance
        >>> z = random_tensor(dist.Normal(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])))
        >>> y = 2 * z[0] - z[1] + 5
        >>> float(mean(y)), float(variance(y))
        (5.0, 37.0)
    """
    transformed: Any = distribution
    while isinstance(transformed, (Independent, dist.MaskedDistribution)):
        transformed = transformed.base_dist
    if is_image(transformed):
        return images(transformed, random_tensor(transformed.base_dist, name))[-1]
    source = find_source(distribution, name)
    if source is None:
        raise IntractableError(
            f"random_tensor: the moments of {type(distribution).__name__} are not known; expected "
            "Normal, MultivariateNormal, LowRankMultivariateNormal, Bernoulli, OneHotCategorical or "
            "Categorical, or a TransformedDistribution of one, possibly under to_event, expand or mask.",
            latents=(name,),
        )
    return tensor_of(source)


def tensor_of(source: Source) -> RandomTensor:
    """A source's random tensor, in the dtype its distribution has."""
    if not source.under_grad:
        source = source.detached()
    if source.is_index:
        return index_from_source(source)
    return from_source(source)
