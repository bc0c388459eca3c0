"""Shapes and dtypes of what a call returns, found without running it on data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_silent.random_tensor.program import RULES, Node, map_tensors
from pyro_silent.random_tensor.shapes import broadcast_shapes

ARITHMETIC: set[Callable] = set()
"""Elementwise functions whose result has the dtype of their floating operands."""

ELEMENTWISE: set[Callable] = {torch.where}
"""All elementwise functions that are known as such, each of one output."""

_OUTPUTS: dict[tuple, Any] = {}

_MAX_OUTPUTS = 4096


class Blank(NamedTuple):
    """What is known of a tensor before there is one."""

    shape: torch.Size
    dtype: torch.dtype


def blank_outputs(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Shapes and dtypes of a call's outputs, remembered where the arguments' shapes decide them."""
    if not kwargs and function in ARITHMETIC:
        blank = _blank_of_arithmetic(args)
        if blank is not None:
            return blank
    run = _on_nothing if function in ELEMENTWISE else on_meta
    key = _signature((function, args, kwargs))
    if key is None:
        return run(function, args, kwargs)
    outputs = _OUTPUTS.get(key)
    if outputs is None:
        outputs = run(function, args, kwargs)
        if len(_OUTPUTS) >= _MAX_OUTPUTS:
            _OUTPUTS.clear()
        _OUTPUTS[key] = outputs
    return outputs


def _blank_of_arithmetic(args: tuple) -> Blank | None:
    """Shape and dtype of an elementwise function of numbers and tensors of one floating dtype."""
    dtype = None
    shapes = []
    for arg in args:
        if isinstance(arg, Tensor):
            if dtype is not None and arg.dtype is not dtype:
                return None
            dtype = arg.dtype
            shapes.append(arg.shape)
        elif type(arg) is not float and type(arg) is not int:
            return None
    if dtype is None or not dtype.is_floating_point:
        return None
    return Blank(shapes[0] if len(shapes) == 1 else broadcast_shapes(*shapes), dtype)


def _on_nothing(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Blank:
    """Of an elementwise function, from a run on empty tensors.

    On meta tensors torch runs some of these (comparisons, where) through code that imports its
    compiler, which takes seconds, once a process.
    """
    shapes = []

    def empty(tensor: Tensor) -> Tensor:
        shapes.append(tensor.shape)
        return torch.ones((0,) * tensor.dim(), dtype=tensor.dtype)

    with torch.no_grad():
        output = function(*map_tensors(empty, args), **map_tensors(empty, kwargs))
    return Blank(broadcast_shapes(*shapes), output.dtype)


def _signature(value: Any) -> Any:
    """Shapes, dtypes and plain arguments as a key; None where values may matter."""
    if isinstance(value, Tensor):
        if value.dtype is torch.bool and not isinstance(value, Node):
            return None  # a mask decides the shape of what it selects
        return (Tensor, value.shape, value.dtype)
    if isinstance(value, (tuple, list)):
        items = [_signature(item) for item in value]
        return None if None in items else (type(value), *items)
    if isinstance(value, dict):
        items = [(key, _signature(item)) for key, item in value.items()]
        return None if any(item[1] is None for item in items) else (dict, *items)
    if value is None or isinstance(value, (int, float, str, torch.dtype, torch.device)):
        return (type(value), value)
    if callable(value) and value in RULES:
        return (id(value),)  # the table keeps it alive
    return None


def on_meta(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The outputs' shapes and dtypes, from a run without data."""

    def blank(tensor: Tensor) -> Tensor:
        if isinstance(tensor, Node):
            if tensor.dim() == 0 and not tensor.dtype.is_floating_point:
                return torch.zeros((), dtype=tensor.dtype)  # read as a number by indexing
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        return tensor.detach().to("meta")

    kwargs = {k: v for k, v in kwargs.items() if k != "device"}
    with torch.no_grad():
        return function(*map_tensors(blank, args), **map_tensors(blank, kwargs))


def type_of_outputs(func: Callable) -> type:
    """torch returns a tuple of tensors almost everywhere."""
    return list if func in (torch.meshgrid,) else tuple
