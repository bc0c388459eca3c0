"""The arguments of a step: tensors, which are inputs of a graph, and what else tells graphs apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ATOMS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size)


class Arguments(NamedTuple):
    """The arguments of one call, flattened.

    :ivar tensors: each once, in the order they are met.
    :ivar others: objects that are neither tensors, containers nor plain values.
    :ivar signature: equal for two calls that one graph may serve.
    """

    tensors: list[Tensor]
    others: list[Any]
    signature: Hashable


def flatten(args: tuple, kwargs: dict) -> Arguments:
    """Take the arguments of a step apart.

    Tensors differ by shape, strides, dtype, device and whether they are one object; plain values by
    type and value; other objects by identity.
    """
    tensors: list[Tensor] = []
    others: list[Any] = []
    places: dict[int, int] = {}
    parts = [_part(value, tensors, others, places) for value in args]
    if kwargs:
        for name in sorted(kwargs):
            parts += [name, _part(kwargs[name], tensors, others, places)]
    return Arguments(tensors, others, tuple(parts))


def _part(value: Any, tensors: list[Tensor], others: list[Any], places: dict[int, int]) -> Hashable:
    if isinstance(value, Tensor):
        place = places.setdefault(id(value), len(places))
        if place < len(tensors):
            return place
        tensors.append(value)
        return (type(value), kind_of(value))
    if isinstance(value, _ATOMS):
        return (type(value), value if value == value else "nan")
    if isinstance(value, (list, tuple)):
        return (type(value), *[_part(item, tensors, others, places) for item in value])
    if isinstance(value, dict):
        items = value.items()
        return (type(value), *[(key, _part(v, tensors, others, places)) for key, v in items])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return (type(value), *[_part(item, tensors, others, places) for item in fields])
    others.append(value)
    return (type(value), id(value))


def kind_of(tensor: Tensor) -> Hashable:
    """What a graph takes for granted of an input besides its values."""
    strides = tensor.stride() if tensor.layout == torch.strided else None
    return tensor.shape, strides, tensor.dtype, tensor.device, tensor.requires_grad
