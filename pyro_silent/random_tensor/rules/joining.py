"""Rules for ops that put tensors together and take them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.random_tensor.affine import (
    Affine,
    Plan,
    Term,
    depends_on,
    merge_terms,
    positions,
    restructure,
    same_position,
)
from pyro_silent.random_tensor.rules.structural import negative, selected, sliced, unsqueezed
from pyro_silent.random_tensor.rules.table import rule
from pyro_silent.random_tensor.shapes import broadcast_shapes
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of, constant


def spelled_out(form: Affine) -> Affine:
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
    form = spelled_out(form)
    form.base = None
    return restructure(form, offset, lambda: Plan(move, dim_map))


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
    return runs(form, dim, sizes)


def runs(form: Affine, dim: int, sizes: Sequence[int]) -> list[Affine]:
    """Pieces of the given sizes, one after the other, along one dim (negative)."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [sliced(form, dim, end - size, end) for end, size in zip(ends, sizes)]


@rule("chunk")
def chunk(input: RandomTensor, chunks: Any, dim: int = 0) -> list[Affine]:
    """Even runs of positions of a dim."""
    form = affine_of(input)
    dim = negative(dim, form.offset.dim())
    return runs(form, dim, [part.size(dim) for part in form.offset.chunk(chunks, dim)])


@rule("tensor_split")
def tensor_split(input: RandomTensor, indices_or_sections: Any, dim: int = 0) -> list[Affine]:
    """Runs of positions of a dim, given by their ends."""
    form = affine_of(input)
    dim = negative(dim, form.offset.dim())
    parts = form.offset.tensor_split(indices_or_sections, dim)
    return runs(form, dim, [part.size(dim) for part in parts])


@rule("unbind")
def unbind(input: RandomTensor, dim: int = 0) -> list[Affine]:
    """All positions of a dim, one by one."""
    form = affine_of(input)
    dim = negative(dim, form.offset.dim())
    return [selected(form, dim, i) for i in range(form.shape[dim])]
