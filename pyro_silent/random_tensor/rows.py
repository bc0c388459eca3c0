"""Linear maps along a dim on which source axes lie: rows are picked and added, no identity is built."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_silent.random_tensor.affine import (
    Affine,
    Axis,
    Term,
    contract_dims,
    depends_on,
    pad_terms,
    positions,
)
from pyro_silent.random_tensor.shapes import pad_dims


def lying_on(term: Term, dim: int) -> list[int] | None:
    """The axes whose position changes along ``dim``; None if one changes along another dim as well."""
    found = [k for k, axis in enumerate(term.axes) if depends_on(axis, [dim])]
    for k in found:
        axis = term.axes[k]
        if isinstance(axis, Tensor) and axis.numel() != axis.size(dim):
            return None
    return found


def scattered(term: Term, lying: Sequence[int], rows: Tensor, num_dims: int) -> Tensor:
    """Add up rows by the positions they are read at: the axes become leading dims.

    :param rows: ``[size of the dim, leading dims.., y]``, a row for each element of the dim.
    :return: ``[leading dims with the new ones in their places.., y]``.
    """
    sizes = [term.source.shape[k] for k in lying]
    if len(lying) == 1 and isinstance(term.axes[lying[0]], int):
        total = rows
    else:
        index = rows.new_zeros((), dtype=torch.long)
        for k, size in zip(lying, sizes):
            index = index * size + positions(term, k, num_dims).reshape(-1)
        total = rows.new_zeros((math.prod(sizes), *rows.shape[1:])).index_add(0, index, rows)
        total = total.reshape(*sizes, *rows.shape[1:])
    order = sorted([k for k, axis in enumerate(term.axes) if axis is None or k in lying])
    places = [order.index(k) for k in lying]
    return total.movedim(list(range(len(lying))), places)


def without_axes(term: Term, lying: Sequence[int]) -> tuple[Axis, ...]:
    """The axes of a term after those that lie on a dim have become leading dims."""
    return tuple(None if k in lying else axis for k, axis in enumerate(term.axes))


def multiplied(form: Affine, offset: Tensor, weight: Tensor) -> Affine:
    """``x @ weight`` for a plain ``weight[..., k, m]`` and x of at least two dims."""
    return Affine.deferred(offset, lambda: product_terms(form, offset, weight), (form,))


def product_terms(form: Affine, offset: Tensor, weight: Tensor) -> tuple[Term, ...]:
    """The terms of ``x @ weight``, whose mean is ``offset``."""
    num_dims = offset.dim()
    terms = []
    for term in pad_terms(form, num_dims):
        lying = lying_on(term, -1)
        if lying:
            terms.append(_rows_times(term, lying, weight, num_dims))
        else:
            shape = (1,) * (num_dims - form.offset.dim()) + tuple(form.shape)
            term = contract_dims(term, shape, [-1])
            coefficient = term.dense_coefficient(num_dims) @ weight
            terms.append(Term(term.source, term.axes, coefficient))
    return tuple(terms)


def _rows_times(term: Term, lying: Sequence[int], weight: Tensor, num_dims: int) -> Term:
    """A product along a dim on which source axes lie only picks and adds rows of the weight."""
    # weight[..., k, m] -> [k, leading 1.., batch dims, 1 (row), m]
    rows = weight.movedim(-2, 0).unsqueeze(-2)
    rows = pad_dims(rows, 1, num_dims - (rows.dim() - 1) + term.num_contracted)
    if term.coefficient is not None:
        rows = rows * term.coefficient.movedim(-1, 0).unsqueeze(-1)
    coefficient = scattered(term, lying, rows, num_dims)
    return Term(term.source, without_axes(term, lying), coefficient)
