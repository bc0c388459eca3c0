"""Structural functions: the same elements in another order or shape.

A rule moves the values, the codes and the levels alike. Codes keep size 1 along dims they were expanded
over. A function without a rule of its own moves the positions 0, 1, ... and gathers by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.dispatch import plain_values, refused, run_plain, samples_in
from pyro_silent.discrete_sample.factor import Move
from pyro_silent.discrete_sample.refusals import leak
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    discrete,
    is_opaque,
    is_pure,
    latents_in,
    opaque,
    pure,
)
from pyro_silent.discrete_sample.table import RULES, properties, register, rule

Shape = Sequence[int]
Plan = Callable[..., tuple[Move, bool]]  # how to move, and whether the last dim is left alone


def structural(plan: Plan) -> Callable:
    """The rule for a function, from the plan of its moves."""

    def apply(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        sample = args[0] if args else kwargs.get("input")
        if type(sample) is not DiscreteSample:
            return run_plain(func, args, kwargs)
        rest, named = plain_values(args[1:]), plain_values(kwargs)
        value = func(sample._value, *rest, **named)
        if isinstance(value, Tensor) and value.dtype != sample._value.dtype:
            raise refused(func, sample)  # view(dtype) reads the bits
        if type(value) is not Tensor:
            return _several(func, sample, value, rest, named)
        if is_pure(sample) and sample._rows is None:
            return pure(value, sample._latents, sample._root, sample._soft, None)
        if is_opaque(sample):
            return _moved_opaque(func, sample, value, rest, named)
        move, keeps_last = plan(sample._value.shape, value.shape, *rest, **named)
        return moved(sample, value, move, keeps_last)

    return apply


def moved(sample: DiscreteSample, value: Tensor, move: Move, keeps_last: bool) -> DiscreteSample:
    """The sample whose plain values were moved to ``value``."""
    rows = sample._rows if keeps_last else None
    if is_pure(sample):
        if rows is not None:
            rows = rows.moved(lambda origin, trailing: value)
        return pure(value, sample._latents, sample._root, sample._soft, rows)
    if rows is not None:
        shape = sample._value.shape
        rows = rows.moved(lambda origin, trailing: move(origin.expand(shape), 0))
    before = sample.factors
    num_dims = sample._value.dim()
    factors = tuple(factor.padded(num_dims).moved(move) for factor in before)
    levels = sample.levels
    if levels.dim() > len(before):
        missing = num_dims - (levels.dim() - len(before))
        levels = move(levels[(None,) * missing], len(before))
    return discrete(value, sample._latents, factors, levels, rows)


def _moved_opaque(
    func: Callable, sample: DiscreteSample, value: Tensor, rest: tuple, named: dict[str, Any]
) -> DiscreteSample:
    surrogate = sample._surrogate
    if surrogate is not None:
        surrogate = func(surrogate, *rest, **named)
    return opaque(value, [sample], sample._lost, surrogate)


def _several(
    func: Callable, sample: DiscreteSample, values: Any, rest: tuple, named: dict[str, Any]
) -> Any:
    """A function that returns several tensors."""
    if is_pure(sample) and sample._rows is None:
        items = [pure(value, sample._latents, sample._root, sample._soft, None) for value in values]
        return type(values)(items)
    if is_opaque(sample):
        surrogates: Sequence[Tensor | None] = [None] * len(values)
        if sample._surrogate is not None:
            surrogates = func(sample._surrogate, *rest, **named)
        return type(values)(
            opaque(value, [sample], sample._lost, surrogate)
            for value, surrogate in zip(values, surrogates)
        )
    shape = sample._value.shape
    positions = func(_positions(shape, sample._value.device), *rest, **named)
    return type(values)(
        moved(sample, value, *_by_positions(sample, shape, position))
        for value, position in zip(values, positions)
    )


def _positions(shape: Shape, device: torch.device) -> Tensor:
    return torch.arange(math.prod(shape), device=device).reshape(tuple(shape))


def _by_positions(sample: DiscreteSample, shape: Shape, positions: Tensor) -> tuple[Move, bool]:
    def move(tensor: Tensor, trailing: int) -> Tensor:
        tail = tensor.shape[tensor.dim() - trailing :]
        return tensor.expand(*shape, *tail).reshape(math.prod(shape), *tail)[positions]

    keeps_last = False
    if sample._rows is not None and positions.dim() and positions.shape[-1] == shape[-1]:
        steps = torch.arange(shape[-1], device=positions.device)
        keeps_last = bool((positions % shape[-1] == steps).all())
    return move, keeps_last


def by_positions(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Any function that moves elements, by what it does to their positions."""
    sample = args[0] if args else None
    others = list(samples_in((args[1:], kwargs)))
    if others:
        raise leak(func, latents_in(others))
    if type(sample) is not DiscreteSample:
        return run_plain(func, args, kwargs)

    def plan(shape: Shape, new_shape: Shape, *rest: Any, **named: Any) -> tuple[Move, bool]:
        positions = func(_positions(shape, sample._value.device), *rest, **named)
        return _by_positions(sample, shape, positions)

    return structural(plan)(func, args, kwargs)


# ---------------------------------------------------------------------------------------------------
# Functions with a rule of their own, which codes with dims of size 1 pass as they are
# ---------------------------------------------------------------------------------------------------


def _dim(dim: int, num_dims: int) -> int:
    return dim + num_dims if dim < 0 else dim


def _dims(args: Sequence[Any]) -> Sequence[int]:
    if len(args) == 1 and isinstance(args[0], (list, tuple, torch.Size)):
        return args[0]
    return args


def _unsqueeze(shape: Shape, new_shape: Shape, dim: int) -> tuple[Move, bool]:
    d = _dim(dim, len(new_shape))
    return lambda tensor, trailing: tensor.unsqueeze(d), d != len(shape)


def _squeeze(shape: Shape, new_shape: Shape, *dim: Any, **named: Any) -> tuple[Move, bool]:
    chosen = _dims(dim) or _dims(tuple(named.values()))
    dims = {_dim(d, len(shape)) for d in chosen} if chosen else set(range(len(shape)))
    dims = {d for d in dims if shape[d] == 1}
    return lambda tensor, trailing: tensor.squeeze(tuple(dims)), len(shape) - 1 not in dims


def _permutation(order: Sequence[int]) -> tuple[Move, bool]:
    n = len(order)

    def move(tensor: Tensor, trailing: int) -> Tensor:
        return tensor.permute(*order, *range(n, n + trailing))

    return move, bool(order) and order[-1] == n - 1


def _permute(shape: Shape, new_shape: Shape, *dims: Any, **named: Any) -> tuple[Move, bool]:
    return _permutation([_dim(d, len(shape)) for d in _dims(dims or tuple(named.values()))])


def _transpose(shape: Shape, new_shape: Shape, dim0: int, dim1: int) -> tuple[Move, bool]:
    order = list(range(len(shape)))
    a, b = _dim(dim0, len(shape)), _dim(dim1, len(shape))
    order[a], order[b] = b, a
    return _permutation(order)


def _last_two(shape: Shape, new_shape: Shape) -> tuple[Move, bool]:
    return _transpose(shape, new_shape, -1, -2)


def _reversed(shape: Shape, new_shape: Shape) -> tuple[Move, bool]:
    return _permutation(list(range(len(shape)))[::-1])


def _expand(shape: Shape, new_shape: Shape, *args: Any, **named: Any) -> tuple[Move, bool]:
    missing = len(new_shape) - len(shape)
    return (
        lambda tensor, trailing: tensor[(None,) * missing],
        bool(shape) and shape[-1] == new_shape[-1],
    )


def _reshape(shape: Shape, new_shape: Shape, *args: Any, **named: Any) -> tuple[Move, bool]:
    def move(tensor: Tensor, trailing: int) -> Tensor:
        tail = tensor.shape[tensor.dim() - trailing :]
        return tensor.expand(*shape, *tail).reshape(*new_shape, *tail)

    return move, bool(shape and new_shape) and shape[-1] == new_shape[-1]


def sliced(shape: Shape, new_shape: Shape, index: Any) -> tuple[Move, bool]:
    """``z[index]`` for integers, slices, ``None`` and ``...``."""
    entries = list(index) if isinstance(index, tuple) else [index]
    used = sum(entry is not None and entry is not Ellipsis for entry in entries)
    rest = [slice(None)] * (len(shape) - used)
    at = next((i for i, entry in enumerate(entries) if entry is Ellipsis), len(entries))
    entries[at : at + 1] = rest

    def move(tensor: Tensor, trailing: int) -> Tensor:
        compact: list[Any] = []
        d = 0
        for entry in entries:
            if entry is None:
                compact.append(entry)
                continue
            if tensor.shape[d] != shape[d]:
                entry = slice(None) if isinstance(entry, slice) else 0
            compact.append(entry)
            d += 1
        return tensor[tuple(compact)]

    return move, bool(shape) and entries[-1] == slice(None)


_PLANS: dict[str, Plan] = {
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "swapdims": _transpose,
    "t": _reversed,
    "adjoint": _last_two,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(
        ("reshape", "reshape_as", "view", "view_as", "flatten", "unflatten", "ravel"), _reshape
    ),
}
for _name, _plan in _PLANS.items():
    register(structural(_plan), _name)
for _name, _plan in {"mT": _last_two, "mH": _last_two, "T": _reversed, "H": _reversed}.items():
    RULES[properties(_name)[0]] = structural(_plan)
register(
    by_positions,
    *("flip", "fliplr", "flipud", "roll", "rot90", "repeat", "tile", "repeat_interleave", "narrow"),
    *("select", "diagonal", "unfold", "movedim", "moveaxis", "unbind", "split", "chunk", "hsplit"),
    *("split_with_sizes", "vsplit", "dsplit", "tensor_split", "masked_select"),
    *("__reversed__", "narrow_copy", "unsafe_chunk"),
)


@rule("atleast_1d", "atleast_2d", "atleast_3d")
def widened(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """At least so many dims, of one tensor or of each of several."""
    tensors = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
    if len(tensors) == 1:
        return by_positions(func, tuple(tensors), kwargs)
    return tuple(func(tensor) for tensor in tensors)


def iterate(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``for element in z``."""
    return iter(by_positions(Tensor.unbind, args, kwargs))


RULES[Tensor.__iter__] = iterate


@rule("broadcast_tensors")
def broadcast_tensors(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Each tensor expanded to the common shape."""
    tensors = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
    return tuple(
        tensor.expand(wide.shape) if type(tensor) is DiscreteSample else wide
        for tensor, wide in zip(tensors, func(*plain_values(tuple(tensors))))
    )


@rule("meshgrid")
def meshgrid(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Vectors, each along a dim of its own."""
    tensors = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
    grid = [tensor.reshape(-1) for tensor in tensors]
    shape = [tensor.shape[0] for tensor in grid]
    last = len(grid) - 1
    result = [tensor[(...,) + (None,) * (last - i)].expand(shape) for i, tensor in enumerate(grid)]
    if kwargs.get("indexing") == "xy" and last > 0:
        result = [tensor.transpose(0, 1) for tensor in result]
    return tuple(result)
