"""Rules for sums, averages and differences along dims."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor.affine import (
    Affine,
    Term,
    apply_linear,
    contract_dims,
    merge_terms,
    move_axes,
    scale_terms,
)
from pyro_silent.random_tensor.rows import lying_on, scattered, without_axes
from pyro_silent.random_tensor.rules.structural import negative
from pyro_silent.random_tensor.rules.table import rule
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of


def normalized_dims(dim: Any, num_dims: int) -> list[int]:
    """Dims counted from the right; all of them where none is named."""
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return list(range(-num_dims, 0))
    return [negative(d, num_dims) for d in ([dim] if isinstance(dim, int) else dim)]


def summed(form: Affine, dims: Sequence[int], keepdim: bool, offset: Tensor) -> Affine:
    """Sum over dims (negative), one at a time; ``offset`` is the sum of the mean."""
    if not dims:
        return form

    def compute() -> tuple[Term, ...]:
        num_dims = form.offset.dim()
        kept = [dim for dim in range(-num_dims, 0) if dim not in dims]
        terms = form.terms
        for dim in dims:
            terms = merge_terms([_sum_term(term, dim, form.shape) for term in terms], num_dims)
        if keepdim:
            return terms
        dim_map = {dim: place - len(kept) for place, dim in enumerate(kept)}
        return tuple(
            Term(
                term.source,
                move_axes(term, num_dims, len(kept), dim_map),
                term.dense_coefficient(num_dims).squeeze(tuple(dims)),
            )
            for term in terms
        )

    return Affine.deferred(offset, compute, (form,))


def _sum_term(term: Term, dim: int, shape: torch.Size) -> Term:
    """The sum along one dim, which stays with size 1."""
    num_dims = len(shape)
    lying = lying_on(term, dim)
    if lying:
        return _sum_rows(term, lying, dim, shape)
    if lying is None:
        term = contract_dims(term, shape, [dim])
    coefficient = term.dense_coefficient(num_dims)
    if coefficient.size(dim) == 1:
        coefficient = coefficient * shape[dim]
    else:
        coefficient = coefficient.sum(dim, keepdim=True)
    return Term(term.source, term.axes, coefficient)


def _sum_rows(term: Term, lying: Sequence[int], dim: int, shape: torch.Size) -> Term:
    """Sum along a dim on which source axes lie: the dim becomes their leading dims."""
    num_dims = len(shape)
    axes = without_axes(term, lying)
    if term.coefficient is None and len(lying) == 1 and isinstance(term.axes[lying[0]], int):
        before = sum(axis is None for axis in axes[: lying[0]])
        size = [1] * (sum(axis is None for axis in axes) + num_dims)
        size[before] = shape[dim]
        return Term(term.source, axes, term.source.mean.new_ones(size))
    coefficient = term.dense_coefficient(num_dims)
    full = list(coefficient.shape)
    full[dim] = shape[dim]
    rows = coefficient.expand(full).unsqueeze(0).transpose(0, dim).contiguous()
    return Term(term.source, axes, scattered(term, lying, rows, num_dims))


def _reduction(
    input: RandomTensor, dims: tuple, dim: Any, keepdim: bool, dtype: Any
) -> tuple[Affine, list[int], bool]:
    """The form and the dims, given one by one, as a sequence or by name; keepdim may be positional."""
    form = affine_of(input if dtype is None else input.to(dtype))
    given = list(dims)
    if len(given) == 2 and isinstance(given[1], bool):
        keepdim = given.pop()
    if given:
        dim = given[0] if len(given) == 1 else given
    return form, normalized_dims(dim, form.offset.dim()), keepdim


@rule("sum")
def sum_(
    input: RandomTensor, *dims: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Affine:
    """Sums over dims."""
    form, over, keepdim = _reduction(input, dims, dim, keepdim, dtype)
    if not over:
        return form
    return summed(form, over, keepdim, form.offset.sum(over, keepdim=keepdim))


@rule("mean")
def mean(
    input: RandomTensor, *dims: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Affine:
    """Averages over dims."""
    form, over, keepdim = _reduction(input, dims, dim, keepdim, dtype)
    if not over:
        return form
    count = math.prod(form.shape[d] for d in over)
    total = summed(form, over, keepdim, form.offset.mean(over, keepdim=keepdim))
    scale = 1.0 / count if count else math.nan

    def compute() -> tuple[Term, ...]:
        return scale_terms(total, scale, total.offset.dim())

    return Affine.deferred(total.offset, compute, (total,))


def along_dim(form: Affine, dim: int, function: Callable[[Tensor], Tensor]) -> Affine:
    """A linear function of the values along one dim (negative), which stays in place."""
    dim_map = {d: d for d in range(-form.offset.dim(), 0) if d != dim}
    return apply_linear(
        form, function(form.offset), [dim], lambda tensor, leading: function(tensor), dim_map
    )


@rule("cumsum")
def cumsum(input: RandomTensor, dim: int, *, dtype: Any = None) -> Affine:
    """Running sums along a dim."""
    form = affine_of(input if dtype is None else input.to(dtype))
    if form.offset.dim() == 0:
        return form
    d = negative(dim, form.offset.dim())
    return along_dim(form, d, lambda tensor: tensor.cumsum(d))


@rule("diff")
def diff(input: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Affine:
    """Differences of neighbours along a dim."""
    pieces = [piece for piece in (prepend, input, append) if piece is not None]
    tensor = torch.cat(pieces, dim) if len(pieces) > 1 else input
    for _ in range(n):
        size = tensor.size(dim)
        tensor = tensor.narrow(dim, 1, size - 1) - tensor.narrow(dim, 0, size - 1)
    return affine_of(tensor)


@rule("trace")
def trace(input: RandomTensor) -> Affine:
    """The sum of a matrix's diagonal."""
    return affine_of(input.diagonal().sum())
