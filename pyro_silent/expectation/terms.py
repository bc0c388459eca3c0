"""Pieces that the rules of many families of distributions are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.expectation.gaussian_moments import widened
from pyro_silent.expectation.moments import mean
from pyro_silent.random_tensor.pointwise import Sum
from pyro_silent.random_tensor.program import Call, Lost, random_tensors, sources_of
from pyro_silent.random_tensor.readings.table import READINGS, function_of, read_elementwise
from pyro_silent.random_tensor.shapes import broadcast_shapes, compact, expanded_to
from pyro_silent.random_tensor.tensor import RandomTensor, opaque

REPEATING = frozenset(
    (
        torch.Tensor.expand,
        torch.Tensor.expand_as,
        torch.Tensor.broadcast_to,
        torch.broadcast_to,
        torch.broadcast_tensors,
        torch.Tensor.clone,
        torch.clone,
        torch.Tensor.type_as,
    )
)

"""torch functions whose result shows the elements of an argument, perhaps repeated."""


def original(tensor: Tensor) -> Tensor:
    """The tensor that one was expanded from."""
    while (
        type(tensor) is RandomTensor
        and tensor._call is not None
        and tensor._call.function in REPEATING
    ):
        args: Sequence[Any] = tensor._call.args
        if tensor._index is not None and len(args) == 1 and isinstance(args[0], (tuple, list)):
            args = args[0]
        before = args[tensor._index or 0]
        if not isinstance(before, Tensor) or before.dtype is not tensor.dtype:
            break
        tensor = before
    return tensor


def compacted(tensor: Tensor) -> Tensor:
    """A parameter, plain or random, without the dims it was merely repeated along."""
    return original(tensor) if isinstance(tensor, RandomTensor) else widened(compact(tensor))


def shape_of(distribution: Distribution, value: Tensor) -> torch.Size:
    """The shape of ``log_prob``."""
    event_dim = len(distribution.event_shape)
    return broadcast_shapes(distribution.batch_shape, value.shape[: value.dim() - event_dim])


def summed_over(tensor: Tensor, shape: torch.Size, num_summed: int) -> Tensor:
    """``sum_rightmost(tensor.expand(shape), num_summed)`` without spreading the tensor out."""
    kept = len(shape) - num_summed
    repeats = 1
    for dim in range(-num_summed, 0):
        if tensor.dim() < -dim or tensor.size(dim) == 1:
            repeats *= shape[dim]
    width = min(num_summed, tensor.dim())
    if width:
        tensor = tensor.sum(list(range(-width, 0)))
    if repeats != 1:
        tensor = tensor * repeats
    return expanded_to(tensor, shape[:kept])


def total(distribution: Distribution, value: Tensor, num_summed: int, *terms: Tensor) -> Tensor:
    """The sum of terms that are each no larger than they need to be, on the shape of ``log_prob``."""
    shape = shape_of(distribution, value)
    result: Tensor | None = None
    for term in terms:
        term = summed_over(term, shape, num_summed)
        result = term if result is None else result + term
    if result is None:
        raise ValueError("a log density of no terms")
    return result


def product(a: Tensor | float, b: Tensor | float) -> Tensor:
    """E[a b]: where one factor is plain, the other's mean is all that is needed."""
    if isinstance(a, float) and a == 1.0 and isinstance(b, Tensor):
        return mean(b)
    if isinstance(a, RandomTensor) and isinstance(b, RandomTensor):
        return mean(a * b)
    if isinstance(a, RandomTensor):
        return mean(a) * b
    if isinstance(b, RandomTensor):
        return a * mean(b)
    return torch.as_tensor(a * b)


def log_term(a: Tensor, b: Tensor) -> Tensor:
    """E[a log b], 0 where a plain ``a`` is."""
    if not isinstance(a, RandomTensor) and not isinstance(b, RandomTensor):
        return torch.xlogy(a, b)
    return product(a, b.log())


def lgamma(tensor: Tensor) -> Tensor:
    """E[lgamma(x)]."""
    return mean(torch.lgamma(tensor))


def pieces(joined: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """What ``stack(tensors, -1)``, perhaps expanded, was made of."""
    if isinstance(joined, RandomTensor) and joined._call is not None:
        function, args = joined._call.function, joined._call.args
        if function is torch.stack and isinstance(args[0], (tuple, list)):
            return tuple(args[0])
        if function is Tensor.expand:
            return tuple(t.expand(shape) for t in pieces(args[0], args[0].shape[:-1]))
    return joined.unbind(-1)


def latent_keys(*tensors: Tensor) -> set[int]:
    """Which latents tensors are functions of, by identity."""
    return {id(source.key) for source in sources_of(*random_tensors(tensors))}


def independent(a: Tensor, b: Tensor | tuple[Tensor, ...]) -> bool:
    """Whether a tensor shares no latent with another, or with several."""
    others = b if isinstance(b, tuple) else (b,)
    if not isinstance(a, RandomTensor) or not random_tensors(others):
        return True
    return latent_keys(a).isdisjoint(latent_keys(*others))


def evaluate(function: Callable[..., Tensor], like: Tensor, *args: Tensor) -> Tensor:
    """Marks the node of a function that is elementwise by promise; see :func:`elementwise`."""
    return function(*args)


def _reading(function: Callable[..., Tensor], like: Tensor, *args: Tensor) -> Sum:
    def handler(like: Tensor, *forms: Sum) -> Sum:
        return function_of(partial(evaluate, function), like, *forms)

    return read_elementwise(handler, (like, *args), {})


READINGS[evaluate] = _reading


def elementwise(
    function: Callable[..., Tensor], *args: Tensor, shape: Sequence[int] = ()
) -> Tensor:
    """A Python function of plain tensors applied to random ones.

    :param function: elementwise up to broadcasting: it is run with nodes in a new leading dim.
    :param shape: of the plain tensors that ``function`` holds itself, if these have more dims than the
        arguments; the nodes' dim is put in front of them.
    """
    random = [arg for arg in args if isinstance(arg, RandomTensor)]
    if not random:
        return function(*args)
    shape = broadcast_shapes(shape, *(arg.shape for arg in args))
    name = getattr(function, "__qualname__", repr(function))
    lost = Lost(name, "", f"{name} is not affine")
    for tensor in random:
        lost = tensor._lost or lost
    like = torch.zeros((), dtype=random[0].dtype, device=random[0].device).expand(shape)
    call = Call(evaluate, (function, like, *args), {})
    return opaque(call, random[0], shape, lost)
