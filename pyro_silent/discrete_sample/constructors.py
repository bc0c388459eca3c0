"""Discrete samples made from the tensors that carry a surrogate gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.factor import Factor
from pyro_silent.discrete_sample.sample import counting, discrete, pure
from pyro_silent.errors import ConfigurationError


def bernoulli_sample(value: Tensor, name: str, *, soft: bool = False) -> Tensor:
    """A discrete sample of 0/1 floats that carry a gradient.

    :param value: hard 0/1 values, or soft ones in [0, 1].
    :param name: name of the latent, for error messages.
    :param soft: whether the values lie between 0 and 1.
    :returns: a tensor of the same shape and dtype; ``value`` itself if hard and without gradient.
    :raises ConfigurationError: if ``value`` is not a floating point tensor.

    Example::

        >>> b = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> z = bernoulli_sample(b, "z")
        >>> torch.where(z == 1, torch.tensor([5.0, 6.0]), 2.0).sum().backward()
        >>> b.grad
        tensor([3., 4.])
    """
    _check("value", value, 0)
    if _is_plain(value, soft):
        return value
    return pure(value, (name,), value, soft)


def one_hot_sample(value: Tensor, name: str, *, soft: bool = False) -> Tensor:
    """A discrete sample of one-hot floats that carry a gradient, categories along the last dim.

    ``argmax(-1)`` and ``max(-1).indices`` give an index sample with the value as its code.

    :param value: one-hot vectors, or soft ones on the simplex, shape ``[*, n]``.
    :param name: name of the latent, for error messages.
    :param soft: whether the values lie between 0 and 1.
    :returns: a tensor of the same shape and dtype; ``value`` itself if hard and without gradient.
    :raises ConfigurationError: if ``value`` is not a floating point tensor with a dim.

    Example::

        >>> d = torch.tensor([0.0, 0.0, 1.0], requires_grad=True)
        >>> torch.tensor([3.0, 4.0, 5.0])[one_hot_sample(d, "d").argmax(-1)].backward()
        >>> d.grad
        tensor([3., 4., 5.])
    """
    _check("value", value, 1)
    if _is_plain(value, soft):
        return value
    return pure(value, (name,), value, soft, Factor(value, value, binary=False, soft=soft))


def index_sample(one_hot: Tensor, name: str, *, soft: bool = False) -> Tensor:
    """A discrete sample of integers ``0 .. n - 1`` with a one-hot code that carries a gradient.

    :param one_hot: one-hot vectors, or soft ones on the simplex, shape ``[*, n]``.
    :param name: name of the latent, for error messages.
    :param soft: whether the code lies between 0 and 1: the values are then those of the largest entry,
        and float results the soft contraction.
    :returns: an int64 tensor of shape ``[*]``; a plain one if hard and without gradient.
    :raises ConfigurationError: if ``one_hot`` is not a floating point tensor with a dim.

    Example::

        >>> code = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)
        >>> z = index_sample(code, "z")
        >>> (torch.tensor([10.0, 20.0])[z] * torch.tensor([1.0, 2.0])).sum().backward()
        >>> code.grad
        tensor([[10., 20.],
                [20., 40.]])
    """
    _check("one_hot", one_hot, 1)
    value = one_hot.detach().argmax(-1)
    if _is_plain(one_hot, soft):
        return value
    factor = Factor(one_hot, one_hot, binary=False, soft=soft)
    return discrete(value, (name,), (factor,), counting(one_hot.shape[-1], one_hot.device))


def _check(argument: str, value: Any, num_dims: int) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ConfigurationError(f"{argument}: got {got}, expected a floating point tensor")
    if value.dim() < num_dims:
        raise ConfigurationError(f"{argument}: got a scalar, expected one-hot vectors [*, n]")


def _is_plain(value: Tensor, soft: bool) -> bool:
    return not soft and not (value.requires_grad and torch.is_grad_enabled())
