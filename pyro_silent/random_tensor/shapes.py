"""Small helpers for shapes and broadcasting, cheap enough for every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """As ``torch.broadcast_shapes``, which is slow enough to matter in every step."""
    result = [1] * max(map(len, shapes))
    for shape in shapes:
        for i, size in enumerate(shape, len(result) - len(shape)):
            if size != 1 and result[i] != size:
                if result[i] != 1:
                    return torch.broadcast_shapes(*shapes)  # raises, with torch's message
                result[i] = size
    return torch.Size(result)


def expanded_to(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """``expand`` where it is needed: each is a node for autograd to walk."""
    return tensor if tensor.shape == tuple(shape) else tensor.expand(tuple(shape))


def sum_rightmost(tensor: Tensor, num_dims: int) -> Tensor:
    """The sum over the last dims. Pyro's own cannot take an empty batch."""
    return tensor.sum(list(range(-num_dims, 0))) if num_dims else tensor


def compact(tensor: Tensor) -> Tensor:
    """Undo ``expand``: dims along which a tensor was merely repeated get size 1."""
    base = tensor._base
    if base is not None and _repeats(tensor, base):
        # What it was expanded from: narrowing would make autograd fill and sum the whole shape.
        return pad_dims(base, 0, tensor.dim() - base.dim())
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride())):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _repeats(tensor: Tensor, base: Tensor) -> bool:
    """Whether a view shows the very elements of its base, repeated along new dims or dims of size 1."""
    num_new = tensor.dim() - base.dim()
    if num_new < 0 or base.requires_grad != tensor.requires_grad or base.dtype != tensor.dtype:
        return False
    strides = tensor.stride()
    return (
        tensor.storage_offset() == base.storage_offset()
        and not any(strides[:num_new])
        and all(
            (size == full and own == stride) or (size == 1 and (stride == 0 or full == 1))
            for size, full, own, stride in zip(
                base.shape, tensor.shape[num_new:], base.stride(), strides[num_new:]
            )
        )
    )


def pad_dims(tensor: Tensor, num_leading: int, num_new: int) -> Tensor:
    """Insert ``num_new`` dims of size 1 between the leading dims and the dims of y."""
    if num_new == 0:
        return tensor
    shape = tensor.shape
    return tensor.reshape(shape[:num_leading] + (1,) * num_new + shape[num_leading:])
