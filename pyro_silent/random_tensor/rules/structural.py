"""Rules for ops that move, repeat, drop or zero-fill elements."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.random_tensor.affine import (
    Affine,
    NoForm,
    Term,
    broadcast_shapes,
    depends_on,
    merge_terms,
    pad_terms,
    positions,
    restructure,
    same_position,
)
from pyro_silent.random_tensor.rules.table import rule
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

    return restructure(form, form.offset.permute(tuple(order)), move, dim_map)


@rule("permute")
def permute(input: RandomTensor, *dims: Any) -> Affine:
    """Dims in a new order."""
    form = affine_of(input)
    return permuted(form, [negative(dim, form.offset.dim()) for dim in as_tuple(dims)])


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


def reshaped(form: Affine, shape: torch.Size) -> Affine:
    """The form in another shape; runs of dims that are not mixed stay aligned and compact."""
    old = form.shape
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

    return restructure(form, form.offset.reshape(shape), move, dim_map)


def _register_reshapes() -> None:
    for name in ("reshape", "view", "reshape_as", "view_as", "flatten", "ravel", "unflatten"):

        def reshape(input: RandomTensor, *args: Any, name: str = name, **kwargs: Any) -> Affine:
            if any(isinstance(arg, torch.dtype) for arg in args):
                raise NoForm("viewing the bits as another dtype is not affine")
            form = affine_of(input)
            blank = torch.empty(form.shape, device="meta")
            args = tuple(
                torch.empty(arg.shape, device="meta") if isinstance(arg, Tensor) else arg
                for arg in args
            )
            return reshaped(form, getattr(blank, name)(*args, **kwargs).shape)

        rule(name)(reshape)


_register_reshapes()


def unsqueezed(form: Affine, dim: int) -> Affine:
    """A new dim of size 1 at ``dim`` (negative, in the result)."""

    def move(tensor: Tensor, leading: int) -> Tensor:
        return tensor.unsqueeze(dim)

    num_dims = form.offset.dim()
    dim_map = {d: d - 1 if d <= dim else d for d in range(-num_dims, 0)}
    return restructure(form, form.offset.unsqueeze(dim), move, dim_map)


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
    return reshaped(form, offset.shape)


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


@rule("broadcast_tensors")
def broadcast_tensors(*tensors: Any) -> list[Affine]:
    """All expanded to their common shape."""
    items = as_tuple(tensors)
    shape = broadcast_shapes(*(item.shape for item in items))
    return [
        expanded(affine_of(t) if isinstance(t, RandomTensor) else constant(t), shape) for t in items
    ]


def along(form: Affine, dim: int, index: Tensor) -> Affine:
    """``index_select`` along one dim (negative): other dims stay as they are."""

    def move(tensor: Tensor, leading: int) -> Tensor:
        return tensor if tensor.size(dim) == 1 else tensor.index_select(dim, index)

    dim_map = {d: d for d in range(-form.offset.dim(), 0) if d != dim}
    return restructure(form, form.offset.index_select(dim, index), move, dim_map)


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
    return restructure(form, form.offset[tuple(index)], move, dim_map)


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
    return restructure(form, form.offset.select(dim, position), move, dim_map)


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


def _reordered(name: str, function: Any) -> None:
    """flip, roll, repeat_interleave ...: index_select with positions the function makes itself."""

    def reorder(input: RandomTensor, *args: Any, **kwargs: Any) -> Affine:
        return function(affine_of(input), *args, **kwargs)

    rule(name)(reorder)


def flip(form: Affine, *dims: Any) -> Affine:
    """Dims read backwards."""
    for dim in as_tuple(dims):
        d = negative(dim, form.offset.dim())
        form = along(form, d, torch.arange(form.shape[d], device=form.offset.device).flip(0))
    return form


def roll(form: Affine, shifts: Any, dims: Any = None) -> Affine:
    """Dims rotated."""
    if dims is None or (isinstance(dims, (tuple, list)) and not dims):
        flat = reshaped(form, torch.Size([math.prod(form.shape)]))
        return reshaped(roll(flat, shifts, 0), form.shape)
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims)
    for shift, dim in zip(shifts, dims):
        d = negative(dim, form.offset.dim())
        index = torch.arange(form.shape[d], device=form.offset.device).roll(shift)
        form = along(form, d, index)
    return form


def repeat(form: Affine, *sizes: Any) -> Affine:
    """Whole copies along each dim."""
    sizes = as_tuple(sizes)
    form = expanded(form, (1,) * (len(sizes) - form.offset.dim()) + tuple(form.shape))
    for i, size in enumerate(sizes):
        if size != 1:
            d = i - len(sizes)
            grid = torch.arange(form.shape[d], device=form.offset.device)
            form = _repeat_dim(form, d, grid.repeat(size))
    return form


def _repeat_dim(form: Affine, dim: int, index: Tensor) -> Affine:
    if form.shape[dim] != 1:
        return along(form, dim, index)
    shape = list(form.shape)
    shape[dim] = index.numel()
    return expanded(form, shape)


def tile(form: Affine, *dims: Any) -> Affine:
    """As :func:`repeat`, with missing sizes 1."""
    sizes = as_tuple(dims)
    return repeat(form, *(1,) * (form.offset.dim() - len(sizes)), *sizes)


def repeat_interleave(form: Affine, repeats: Any, dim: Any = None, **ignored: Any) -> Affine:
    """Each element repeated."""
    if dim is None:
        form, dim = reshaped(form, torch.Size([math.prod(form.shape)])), -1
    d = negative(dim, form.offset.dim())
    grid = torch.arange(form.shape[d], device=form.offset.device)
    return _repeat_dim(form, d, grid.repeat_interleave(repeats))


def index_select(form: Affine, dim: int, index: Any) -> Affine:
    """Positions of one dim picked by an integer tensor."""
    if isinstance(index, RandomTensor):
        raise NoForm("a random tensor read at a random index is not affine")
    d = negative(dim, form.offset.dim())
    return _repeat_dim(form, d, index.reshape(-1))


for _name in ("flip", "roll", "repeat", "tile", "repeat_interleave"):
    _reordered(_name, globals()[_name])


def _spelled_out(form: Affine) -> Affine:
    """The form with no coefficient left as an unwritten 1."""
    num_dims = form.offset.dim()
    terms = tuple(
        Term(term.source, term.axes, term.dense_coefficient(num_dims)) for term in form.terms
    )
    return Affine(form.offset, terms, form.dtype, form.base)


def zero_filled(form: Affine, offset: Tensor, dim: int, before: int, after: int) -> Affine:
    """The terms with zeros put before and after along one dim (negative)."""
    size = form.shape[dim]

    def move(tensor: Tensor, leading: int) -> Tensor:
        full = list(tensor.shape)
        full[dim] = size
        return F.pad(tensor.expand(full), [0, 0] * (-dim - 1) + [before, after])

    dim_map = {d: d for d in range(-form.offset.dim(), 0) if d != dim}
    form = _spelled_out(form)
    form.base = None
    return restructure(form, offset, move, dim_map)


@rule("pad")
def pad(
    input: RandomTensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Affine:
    """Constant padding moves the mean only; reflect, replicate and circular padding repeat elements."""
    form = affine_of(input)
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        dim, size = -1 - i, form.shape[-1 - i]
        if before < 0 or after < 0:
            form = sliced(form, dim, max(0, -before), size + min(0, after))
            before, after, size = max(0, before), max(0, after), form.shape[dim]
        if (before, after) == (0, 0):
            continue
        if mode == "constant":
            offset = F.pad(form.offset, [0, 0] * i + [before, after], value=value)
            form = zero_filled(form, offset, dim, before, after)
        else:
            grid = torch.arange(size, dtype=torch.float64, device=form.offset.device)
            index = F.pad(grid.view(1, 1, -1), [before, after], mode=mode).view(-1).long()
            form = _repeat_dim(form, dim, index)
    return form


def concatenated(forms: Sequence[Affine], dim: int) -> Affine:
    """Forms side by side along one dim (negative).

    Pieces that read one source at different positions become one gathered term.
    """
    offset = torch.cat([form.offset for form in forms], dim)
    return Affine.deferred(offset, lambda: _concatenated_terms(forms, dim, offset), forms)


def _concatenated_terms(forms: Sequence[Affine], dim: int, offset: Tensor) -> tuple[Term, ...]:
    num_dims = offset.dim()
    sizes = [form.shape[dim] for form in forms]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    pieces: list[list[tuple[int, Term]]] = []
    for i, form in enumerate(forms):
        for term in form.terms:
            for group in pieces:
                if all(j != i for j, _ in group) and _fits(group[0][1], term):
                    group.append((i, term))
                    break
            else:
                pieces.append([(i, term)])
    terms: list[Term] = []
    for group in pieces:
        if len(group) == 1:
            i, term = group[0]
            after = offset.size(dim) - starts[i] - sizes[i]
            single = Affine(forms[i].offset, (term,))
            terms.extend(zero_filled(single, offset, dim, starts[i], after).terms)
        else:
            terms.append(_join(dict(group), sizes, dim, num_dims))
    return merge_terms(terms, num_dims)


def _fits(a: Term, b: Term) -> bool:
    """Whether two terms read one source with the same axes contracted, so that they can be joined."""
    return a.source is b.source and all((x is None) == (y is None) for x, y in zip(a.axes, b.axes))


def _join(group: dict[int, Term], sizes: Sequence[int], dim: int, num_dims: int) -> Term:
    """One term for pieces that fit; its coefficient is zero where an input has no piece."""
    first = next(iter(group.values()))

    def cat(tensors: dict[int, Tensor]) -> Tensor:
        shape = broadcast_shapes(
            *(
                [*t.shape[:dim], 1, *t.shape[dim + 1 :]] if dim < -1 else [*t.shape[:-1], 1]
                for t in tensors.values()
            )
        )
        parts = []
        for i, size in enumerate(sizes):
            full = list(shape)
            full[dim] = size
            tensor = tensors.get(i)
            if tensor is None:
                tensor = next(iter(tensors.values())).new_zeros(())
            parts.append(tensor.expand(full))
        return torch.cat(parts, dim)

    axes: list[Any] = []
    for k, axis in enumerate(first.axes):
        same = all(same_position(term.axes[k], axis) for term in group.values())
        if axis is None or (same and not depends_on(axis, [dim])):
            axes.append(axis)
        else:
            axes.append(cat({i: positions(term, k, num_dims) for i, term in group.items()}))
    coefficient = cat({i: term.dense_coefficient(num_dims) for i, term in group.items()})
    return Term(first.source, tuple(axes), coefficient)


def _forms(tensors: Sequence[Any]) -> list[Affine]:
    return [affine_of(t) if isinstance(t, RandomTensor) else constant(t) for t in tensors]


@rule("cat", "concat", "concatenate")
def cat(tensors: Sequence[Any], dim: int = 0) -> Affine:
    """Tensors side by side."""
    forms = _forms(tensors)
    if any(form.offset.dim() != 1 for form in forms):
        # torch lets empty vectors stand beside anything
        forms = [form for form in forms if form.shape != (0,)]
    return concatenated(forms, negative(dim, forms[0].offset.dim()))


@rule("stack")
def stack(tensors: Sequence[Any], dim: int = 0) -> Affine:
    """Tensors along a new dim."""
    forms = _forms(tensors)
    dim = negative(dim, forms[0].offset.dim() + 1)
    return concatenated([unsqueezed(form, dim) for form in forms], dim)


@rule("hstack")
def hstack(tensors: Sequence[Any]) -> Affine:
    """Tensors side by side along dim 1, vectors along dim 0."""
    items = [torch.atleast_1d(t) for t in tensors]
    return cat(items, 0 if items[0].dim() == 1 else 1)


@rule("vstack", "row_stack")
def vstack(tensors: Sequence[Any]) -> Affine:
    """Tensors on top of each other; vectors are rows."""
    return cat([torch.atleast_2d(t) for t in tensors], 0)


@rule("dstack")
def dstack(tensors: Sequence[Any]) -> Affine:
    """Tensors along dim 2."""
    return cat([torch.atleast_3d(t) for t in tensors], 2)


@rule("column_stack")
def column_stack(tensors: Sequence[Any]) -> Affine:
    """Vectors as columns, matrices side by side."""
    return cat([t if t.dim() > 1 else t.reshape(-1, 1) for t in tensors], 1)


@rule("split", "split_with_sizes")
def split(tensor: RandomTensor, split_size_or_sections: Any, dim: int = 0) -> list[Affine]:
    """Runs of positions of a dim."""
    form = affine_of(tensor)
    dim = negative(dim, form.offset.dim())
    sizes = [part.size(dim) for part in form.offset.split(split_size_or_sections, dim)]
    return _runs(form, dim, sizes)


def _runs(form: Affine, dim: int, sizes: Sequence[int]) -> list[Affine]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [sliced(form, dim, end - size, end) for end, size in zip(ends, sizes)]


@rule("chunk")
def chunk(input: RandomTensor, chunks: Any, dim: int = 0) -> list[Affine]:
    """Even runs of positions of a dim."""
    form = affine_of(input)
    dim = negative(dim, form.offset.dim())
    return _runs(form, dim, [part.size(dim) for part in form.offset.chunk(chunks, dim)])


@rule("tensor_split")
def tensor_split(input: RandomTensor, indices_or_sections: Any, dim: int = 0) -> list[Affine]:
    """Runs of positions of a dim, given by their ends."""
    form = affine_of(input)
    dim = negative(dim, form.offset.dim())
    parts = form.offset.tensor_split(indices_or_sections, dim)
    return _runs(form, dim, [part.size(dim) for part in parts])


@rule("unbind")
def unbind(input: RandomTensor, dim: int = 0) -> list[Affine]:
    """All positions of a dim, one by one."""
    form = affine_of(input)
    dim = negative(dim, form.offset.dim())
    return [selected(form, dim, i) for i in range(form.shape[dim])]


def moved_elements(input: RandomTensor, function: Any) -> Affine:
    """Any op that only moves elements, on positions spelled out in full: correct, not compact."""
    form = affine_of(input)
    offset = function(form.offset)
    shape = form.shape

    def move(tensor: Tensor, leading: int) -> Tensor:
        full = tensor.expand(*tensor.shape[:leading], *shape)
        if leading == 0:
            return function(full)
        flat = full.reshape(-1, *shape)
        moved = torch.stack([function(row) for row in flat])
        return moved.reshape(*tensor.shape[:leading], *moved.shape[1:])

    return restructure(_spelled_out(form), offset, move, {})


def _register_movers() -> None:
    names = (
        "rot90",
        "fliplr",
        "flipud",
        "diagonal",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "Tensor.unfold",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
    )
    for name in names:
        function = getattr(torch, name, None) or getattr(Tensor, name.rpartition(".")[2])

        def move(
            input: RandomTensor, *args: Any, function: Any = function, **kwargs: Any
        ) -> Affine:
            return moved_elements(input, lambda tensor: function(tensor, *args, **kwargs))

        rule(name)(move)


_register_movers()
