"""Reading a random tensor's program as a pointwise form: the table, and how it is used.

The affine form is kept up to date while the program runs; this one is worked out when an expectation
is first asked of a tensor that is not affine. Each torch function has its reading in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor.algebra import affine_tensor, collapsed
from pyro_silent.random_tensor.pointwise import (
    Cases,
    Function,
    NotPointwise,
    Product,
    Sum,
    atom,
    constant,
    inserted,
    moved_sum,
)
from pyro_silent.random_tensor.program import Call, operation_name, random_tensors
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.shapes import broadcast_shapes
from pyro_silent.random_tensor.tensor import RandomTensor, blank_tensor, storage_of

READINGS: dict[Callable, Callable[..., Sum]] = {}

"""torch function -> its reading, which takes the function's arguments."""

MOVES: set[Callable] = set()

"""torch functions that only move, repeat or drop elements of one tensor: they go on to the atoms."""


def read(value: Any) -> Sum:
    """The pointwise form of a tensor; a plain one is a constant.

    :raises NotPointwise: if the program cannot be read so.
    """
    if type(value) is not RandomTensor:
        return constant(value)
    if value._reading is None:
        value._reading = _read_call(value) if value._form is None else atom(_as_it_was(value))
    return value._reading


def _as_it_was(tensor: RandomTensor) -> RandomTensor:
    """An affine operand; a copy where the name was rebound since, which is no concern of this call."""
    if storage_of(tensor)._written is None:
        return tensor
    copied = blank_tensor(tensor.shape, tensor.dtype, tensor.device)
    copied._form, copied._call, copied._index = tensor._form, tensor._call, tensor._index
    copied._source, copied._integral = tensor._source, tensor._integral
    return copied


def read_all(tensor: RandomTensor) -> list[RandomTensor]:
    """Read a deep program from its beginning, so that no reading has far to go; its tensors in order."""
    order: list[RandomTensor] = []
    seen: set[int] = set()
    stack: list[tuple[RandomTensor, bool]] = [(tensor, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if id(node) in seen or node._form is not None or node._call is None:
            continue
        seen.add(id(node))
        stack.append((node, True))
        stack.extend((t, False) for t in random_tensors((node._call.args, node._call.kwargs)))
    for node in order:
        try:
            read(node)
        except NotPointwise:
            continue
    return order


def _read_call(tensor: RandomTensor) -> Sum:
    call = tensor._call
    if call is None:
        raise NotPointwise("")
    call.check_unchanged()
    try:
        with torch.set_grad_enabled(call.grad_enabled):
            form = _form_of(call, tensor)
    except NotPointwise as reason:
        if reason.operation is None:
            reason.operation, reason.location = operation_name(call.function), call.location
        raise
    return form if call.grad_enabled else form.map(Tensor.detach)


def _form_of(call: Call, tensor: RandomTensor) -> Sum:
    reading = READINGS.get(call.function)
    if reading is not None:
        return reading(*call.args, **call.kwargs)
    if call.function in MOVES:
        return _moved(call, tensor)
    raise NotPointwise(f"{operation_name(call.function)} has no pointwise form")


def _moved(call: Call, tensor: RandomTensor) -> Sum:
    """An op that only moves elements is done to every tensor in the form of its argument."""
    index = tensor._index
    random = random_tensors((call.args, call.kwargs))
    if len(random) != 1 or call.args[0] is not random[0]:
        raise NotPointwise("")
    form = read(random[0])
    if form.is_reduced:
        raise NotPointwise("elements of a sum are moved")
    rest, kwargs = call.args[1:], call.kwargs

    def move(piece: Tensor) -> Tensor:
        moved = call.function(piece.expand(form.shape), *rest, **kwargs)
        return moved if index is None else moved[index]

    return moved_sum(form, move, tensor.shape)


# Elementwise readings. They take sums and plain values; cases are taken one by one.


def read_elementwise(handler: Callable[..., Sum], args: tuple, kwargs: dict[str, Any]) -> Sum:
    """Let a handler combine the forms of its arguments; case by case where a latent index chooses."""
    forms = [read(arg) if type(arg) is RandomTensor else arg for arg in args]
    chosen = next((form for form in forms if isinstance(form, Cases)), None)
    if chosen is None:
        return handler(*forms, **kwargs)
    if any(isinstance(f, Cases) and f.index is not chosen.index for f in forms):
        return handler(*(_plain_sum(form) for form in forms), **kwargs)
    shape = broadcast_shapes(*(f.shape for f in forms if isinstance(f, (Sum, Tensor))))
    num_new = len(shape) - len(chosen.shape)

    def pad(tensor: Tensor) -> Tensor:
        return inserted(tensor, len(chosen.shape), num_new)

    cases = [
        Sum(form.values.map(pad).products, (form.selector.shape[0], *shape))
        if isinstance(form, Cases)
        else form
        for form in forms
    ]
    values = handler(*cases, **kwargs)
    return Cases(pad(chosen.selector), values, chosen.index, shape)


def _plain_sum(form: Any) -> Any:
    return Sum(form.products, form.shape) if isinstance(form, Cases) else form


def reading(*names: str) -> Callable[[Callable[..., Sum]], Callable[..., Sum]]:
    """Decorator: the reading of elementwise torch functions of these names."""

    def decorate(handler: Callable[..., Sum]) -> Callable[..., Sum]:
        def of_arguments(*args: Any, **kwargs: Any) -> Sum:
            return read_elementwise(handler, args, kwargs)

        for function in functions(*names):
            READINGS[function] = of_arguments
        return handler

    return decorate


def as_sum(value: Any) -> Sum:
    """A reading's argument as a sum."""
    return value if isinstance(value, Sum) else constant(value)


def function_of(function: Callable, *args: Any, **kwargs: Any) -> Sum:
    """A torch function kept whole."""
    given = (*args, *kwargs.values())
    shapes = [arg.shape for arg in given if isinstance(arg, (Sum, Tensor))]
    return function_of_sums(function, args, kwargs, broadcast_shapes(*shapes))


def function_of_sums(
    function: Callable, args: Sequence[Any], kwargs: dict[str, Any], shape: Sequence[int]
) -> Sum:
    """A torch function of sums on a given shape; plain where nothing random is left."""
    args = [_settled(arg) if isinstance(arg, Sum) else arg for arg in args]
    if not any(isinstance(arg, Sum) for arg in args):
        args = [torch.as_tensor(a) if i == 0 else a for i, a in enumerate(args)]
        return constant(function(*args, **kwargs))
    return Sum([Product(1.0, (), None, (Function(function, args, kwargs),))], shape)


def _settled(form: Sum) -> Any:
    """A function's argument: affine summands added up; what is plain taken out of its sum."""
    if form.is_reduced:
        raise NotPointwise("a function of a sum over a dim is not elementwise")
    form = collapsed(form)
    if form.is_constant:
        return form.evaluate(lambda tensor: tensor)
    linear = affine_tensor(form)
    if isinstance(linear, RandomTensor):
        return Sum([Product(1.0, (linear,))], form.shape)
    return form


def reads(*names: str) -> Callable[[Callable[..., Sum]], Callable[..., Sum]]:
    """Decorator: the reading of functions that are not elementwise; it takes tensors as they came."""

    def decorate(handler: Callable[..., Sum]) -> Callable[..., Sum]:
        for function in functions(*names):
            READINGS[function] = handler
            MOVES.discard(function)
        return handler

    return decorate
