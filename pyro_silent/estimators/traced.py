"""The products that draw, as operators of their own: a graph that is traced holds each as one node.

Within such an operator a generator is seeded with a number that the graph has drawn, so that a run of
the graph draws what the program would draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_silent.estimators.conditional_gumbels import bernoulli_derivative, one_hot_product


def is_traced() -> bool:
    """Whether a graph is being traced that can hold the operators of this file."""
    return get_proxy_mode() is not None and _HAS_OPERATORS


def _generator(like: Tensor, seed: Tensor) -> torch.Generator:
    return torch.Generator(device=like.device).manual_seed(int(seed))


def _one_hot_product(
    log_probs: Tensor,
    hard: Tensor,
    gradient: Tensor,
    temperature: float,
    num_gumbels: int,
    points: str,
    seed: Tensor,
) -> Tensor:
    generator = _generator(hard, seed)
    return one_hot_product(
        log_probs, hard, gradient, temperature, num_gumbels, points, generator
    ).contiguous()


def _bernoulli_derivative(
    log_odds: Tensor, temperature: float, num_gumbels: int, points: str, seed: Tensor
) -> Tensor:
    generator = _generator(log_odds, seed)
    return bernoulli_derivative(log_odds, temperature, num_gumbels, points, generator).clone(
        memory_format=torch.contiguous_format
    )


def _contiguous_like(like: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


_HAS_OPERATORS = hasattr(torch.library, "custom_op")  # from torch 2.4 on


def _operator(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function as an operator, whose result is shaped like its first argument."""
    if not _HAS_OPERATORS:
        return function  # never called, see is_traced
    operator = torch.library.custom_op(f"pyro_silent::{name}", function, mutates_args=())
    operator.register_fake(_contiguous_like)
    return operator


traced_one_hot_product = _operator("one_hot_product", _one_hot_product)
traced_bernoulli_derivative = _operator("bernoulli_derivative", _bernoulli_derivative)
