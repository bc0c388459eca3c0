"""Rules for ops that move, repeat, drop or zero-fill elements."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor.affine import Affine, NoForm, Plan, pad_terms, restructure
from pyro_silent.random_tensor.program import DIRECT
from pyro_silent.random_tensor.rules.table import functions, rule
from pyro_silent.random_tensor.shapes import broadcast_shapes
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of, constant


def as_tuple(dims: tuple) -> tuple:
    """Dims or sizes given one by one or as one sequence."""
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        return tuple(dims[0])
    return dims


def negative(dim: int, num_dims: int) -> int:
    """A dim counted from the right."""
    if not -max(num_dims, 1) <= dim < max(num_dims, 1):
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-num_dims}, {num_dims - 1}], "
            f"but got {dim})"
        )
    return dim - max(num_dims, 1) if dim >= 0 else dim


def permuted(form: Affine, order: Sequence[int]) -> Affine:
    """Dims rearranged: new dim i is old dim ``order[i]`` (negative)."""
    num_dims = form.offset.dim()
    dim_map = {old: new - num_dims for new, old in enumerate(order)}

    def move(tensor: Tensor, leading: int) -> Tensor:
        return tensor.permute((*range(leading), *(dim + num_dims + leading for dim in order)))

    return restructure(form, form.offset.permute(tuple(order)), lambda: Plan(move, dim_map))


@rule("permute")
def permute(input: RandomTensor, *dims: Any, **kwargs: Any) -> Affine:
    """Dims in a new order."""
    form = affine_of(input)
    order = as_tuple(dims) if dims else as_tuple((kwargs["dims"],))
    return permuted(form, [negative(dim, form.offset.dim()) for dim in order])


@rule("transpose", "swapaxes", "swapdims")
def transpose(input: RandomTensor, dim0: int, dim1: int) -> Affine:
    """Two dims exchanged."""
    form = affine_of(input)
    num_dims = form.offset.dim()
    order = list(range(-num_dims, 0))
    a, b = negative(dim0, num_dims), negative(dim1, num_dims)
    order[a], order[b] = order[b], order[a]
    return permuted(form, order)


@rule(
    "t", "Tensor.T.__get__", "Tensor.mT.__get__", "adjoint", "Tensor.mH.__get__", "Tensor.H.__get__"
)
def matrix_transpose(input: RandomTensor) -> Affine:
    """The matrix transposed; as in torch, a vector stays."""
    form = affine_of(input)
    if form.offset.is_complex():
        raise NoForm("adjoint of a complex tensor; write .conj().mT")
    return form if form.offset.dim() < 2 else transpose(input, -2, -1)


@rule("movedim", "moveaxis")
def movedim(input: RandomTensor, source: Any, destination: Any) -> Affine:
    """Dims moved to new places."""
    form = affine_of(input)
    num_dims = form.offset.dim()
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    placed = {negative(t, num_dims): negative(s, num_dims) for s, t in zip(sources, targets)}
    rest = iter([dim for dim in range(-num_dims, 0) if dim not in placed.values()])
    return permuted(form, [placed[d] if d in placed else next(rest) for d in range(-num_dims, 0)])


@functools.lru_cache(maxsize=1024)
def _reshape_plan(
    old: torch.Size, new: torch.Size
) -> tuple[list[tuple[list[int], list[int]]], dict[int, int]]:
    """Which runs of dims mix, and which dims come through whole."""
    groups = _groups(old, new)
    dim_map: dict[int, int] = {}
    for inputs, outputs in groups:
        wide_in = [d for d in inputs if old[d] != 1]
        wide_out = [d for d in outputs if new[d] != 1]
        if len(wide_in) == 1 and len(wide_out) == 1:
            dim_map[wide_in[0] - len(old)] = wide_out[0] - len(new)
    return groups, dim_map


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest runs of dims that only mix among themselves."""
    if math.prod(old) == 0:
        return [(list(range(len(old))), list(range(len(new))))]
    groups = []
    i = j = 0
    while i < len(old) or j < len(new):
        first_i, first_j = i, j
        a = old[i] if i < len(old) else 1
        b = new[j] if j < len(new) else 1
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while a != b:
            if a < b:
                a *= old[i]
                i += 1
            else:
                b *= new[j]
                j += 1
        groups.append((list(range(first_i, i)), list(range(first_j, j))))
    return groups


def reshaped(form: Affine, offset: Tensor) -> Affine:
    """The form in its mean's new shape; runs of dims that are not mixed stay aligned and compact."""

    def plan() -> Plan:
        old, shape = form.shape, offset.shape
        groups, dim_map = _reshape_plan(old, shape)

        def move(tensor: Tensor, leading: int) -> Tensor:
            lead = tensor.shape[:leading]
            dims = tensor.shape[leading:]
            full, out = list(dims), [1] * len(shape)
            for inputs, outputs in groups:
                if all(dims[d] == 1 for d in inputs):
                    continue
                for d in inputs:
                    full[d] = old[d]
                for d in outputs:
                    out[d] = shape[d]
            return tensor.expand((*lead, *full)).reshape((*lead, *out))

        return Plan(move, dim_map)

    return restructure(form, offset, plan)


def _shape_by_name(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    for name in ("size", "shape", "other", "dtype"):
        if name in kwargs:
            return (kwargs[name],), {}
    return args, kwargs


def _reshape(method: Callable) -> Callable:
    """The rule of a method that only changes the shape."""

    def reshape(input: Any, *args: Any, **kwargs: Any) -> Affine:
        if not isinstance(input, RandomTensor):
            # plain.view_as(random): only a shape is asked for
            return constant(input.reshape(args[0].shape))
        form = affine_of(input)
        if kwargs:
            args, kwargs = _shape_by_name(args, kwargs)
        if args and not isinstance(args[0], (int, tuple, list)):
            if isinstance(args[0], torch.dtype):
                raise NoForm("viewing the bits as another dtype is not affine")
            args = (args[0].shape,)
        return reshaped(form, method(form.offset, *args, **kwargs))

    return reshape


# view and the like by reshape: the mean may be laid out otherwise than a sample would be.
for _name in ("reshape", "view", "reshape_as", "view_as"):
    rule(_name)(_reshape(Tensor.reshape))
for _name in ("flatten", "ravel", "unflatten"):
    rule(_name)(_reshape(getattr(Tensor, _name)))


def unsqueezed(form: Affine, dim: int) -> Affine:
    """A new dim of size 1 at ``dim`` (negative, in the result)."""

    def move(tensor: Tensor, leading: int) -> Tensor:
        return tensor.unsqueeze(dim)

    num_dims = form.offset.dim()
    dim_map = {d: d - 1 if d <= dim else d for d in range(-num_dims, 0)}
    return restructure(form, form.offset.unsqueeze(dim), lambda: Plan(move, dim_map))


@rule("unsqueeze")
def unsqueeze(input: RandomTensor, dim: int) -> Affine:
    """A new dim of size 1."""
    form = affine_of(input)
    return unsqueezed(form, negative(dim, form.offset.dim() + 1))


@rule("squeeze")
def squeeze(input: RandomTensor, dim: Any = None) -> Affine:
    """Dims of size 1 dropped."""
    form = affine_of(input)
    offset = form.offset.squeeze() if dim is None else form.offset.squeeze(dim)
    return reshaped(form, offset)


def expanded(form: Affine, shape: Sequence[int]) -> Affine:
    """Dims of size 1 repeated, new dims on the left: nothing to compute."""
    offset = form.offset.expand(tuple(shape))
    base = form.base
    if base is not None:
        base = base.reshape((1,) * (offset.dim() - base.dim()) + base.shape)
    return Affine.deferred(offset, lambda: pad_terms(form, offset.dim()), (form,), form.dtype, base)


@rule("expand", "broadcast_to")
def expand(input: RandomTensor, *sizes: Any, implicit: bool = False, size: Any = None) -> Affine:
    """Dims of size 1 repeated."""
    return expanded(affine_of(input), as_tuple(sizes) if size is None else size)


@rule("expand_as")
def expand_as(input: Any, other: Tensor) -> Affine:
    """Expanded to another tensor's shape."""
    if not isinstance(input, RandomTensor):
        return constant(input.expand(other.shape))
    return expanded(affine_of(input), other.shape)


def broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    """All expanded to their common shape, each by itself: what is plain stays plain."""
    items = as_tuple(tensors)
    shape = broadcast_shapes(*(item.shape for item in items))
    return tuple(item if item.shape == shape else item.expand(shape) for item in items)


for _function in functions("broadcast_tensors"):
    DIRECT[_function] = broadcast_tensors


def sliced(form: Affine, dim: int, start: int, stop: int, step: int = 1) -> Affine:
    """``x[start:stop:step]`` along one dim (negative)."""
    size = form.shape[dim]
    if (start, stop, step) == (0, size, 1):
        return form
    piece = slice(start, stop, step)
    length = len(range(*piece.indices(size)))

    def move(tensor: Tensor, leading: int) -> Tensor:
        if tensor.size(dim) == 1 and length > 0:
            return tensor
        if tensor.size(dim) == 1:
            return tensor.narrow(dim, 0, 0)
        index = [slice(None)] * tensor.dim()
        index[dim] = piece
        return tensor[tuple(index)]

    index = [slice(None)] * form.offset.dim()
    index[dim] = piece
    dim_map = {d: d for d in range(-form.offset.dim(), 0) if d != dim}
    return restructure(form, form.offset[tuple(index)], lambda: Plan(move, dim_map))


def selected(form: Affine, dim: int, position: int) -> Affine:
    """``x[position]`` along one dim (negative), which goes."""
    size = form.shape[dim]
    if not -size <= position < size:
        raise IndexError(f"index {position} is out of bounds for dimension with size {size}")
    position %= size

    def move(tensor: Tensor, leading: int) -> Tensor:
        return tensor.select(dim, 0 if tensor.size(dim) == 1 else position)

    num_dims = form.offset.dim()
    dim_map = {d: d if d > dim else d + 1 for d in range(-num_dims, 0) if d != dim}
    return restructure(form, form.offset.select(dim, position), lambda: Plan(move, dim_map))


@rule("select")
def select(input: RandomTensor, dim: int, index: int) -> Affine:
    """One position of a dim."""
    form = affine_of(input)
    return selected(form, negative(dim, form.offset.dim()), index)


@rule("narrow")
def narrow(input: RandomTensor, dim: int, start: int, length: int) -> Affine:
    """A run of positions of a dim."""
    form = affine_of(input)
    dim = negative(dim, form.offset.dim())
    form.offset.narrow(dim, start, length)
    start %= max(form.shape[dim], 1)
    return sliced(form, dim, start, start + length)
