"""Readings of sums over dims and of products of matrices: summed dims become reduced dims."""

from __future__ import annotations

import math
from typing import Any

import torch

from pyro_silent.random_tensor.algebra import multiply, plus, summed, times_plain
from pyro_silent.random_tensor.pointwise import NotPointwise, Sum, inserted, moved_sum
from pyro_silent.random_tensor.readings.table import read, reads
from pyro_silent.random_tensor.rules.sums import normalized_dims


@reads("sum")
def sum_(input: Any, *dims: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Sum:
    """Sums over dims: they become reduced dims."""
    given = list(dims)
    if len(given) == 2 and isinstance(given[1], bool):
        keepdim = given.pop()
    if given:
        dim = given[0] if len(given) == 1 else given
    form = read(input)
    over = normalized_dims(dim, len(form.shape))
    return summed(form, over, keepdim) if form.shape else form


@reads("mean")
def mean(input: Any, *dims: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Sum:
    """Averages over dims."""
    total = sum_(input, *dims, dim=dim, keepdim=keepdim)
    count = math.prod(input.shape) / max(math.prod(total.shape), 1)
    return times_plain(total, 1.0 / count)


@reads("cumsum")
def cumsum(input: Any, dim: int, *, dtype: Any = None) -> Sum:
    """Running sums: each element sums those before it."""
    form = read(input)
    if not form.shape:
        return form
    size, right = form.shape[dim], len(form.shape) - 1 - dim % len(form.shape)
    # [.., 1, size, right dims] meets the lower triangle [size, size, 1..]
    wide = moved_sum(
        form,
        lambda tensor: inserted(tensor, right + 1, 1),
        (*form.shape[: -right - 1], 1, *form.shape[-right - 1 :]),
    )
    triangle = torch.ones(size, size, dtype=input.dtype, device=input.device).tril()
    return summed(
        times_plain(wide, triangle.reshape(size, size, *[1] * right)), [-right - 1], False
    )


@reads("matmul", "mm", "bmm", "mv", "__matmul__", "linalg.matmul")
def matmul(input: Any, other: Any) -> Sum:
    """A matrix product: products of elements, summed."""
    a, b = read(input), read(other)
    if len(b.shape) == 1:
        return summed(multiply(a, b), [-1], False)
    a = moved_sum(a, lambda tensor: tensor.unsqueeze(-1), (*a.shape, 1))
    if len(a.shape) > 2:
        # [.., n, k, 1] meets [.., 1, k, m]
        b = moved_sum(b, lambda tensor: inserted(tensor, 2, 1), (*b.shape[:-2], 1, *b.shape[-2:]))
    return summed(multiply(a, b), [-2], False)


@reads("__rmatmul__")
def rmatmul(input: Any, other: Any) -> Sum:
    """A matrix product, the other way round."""
    return matmul(other, input)


@reads("dot", "inner", "vdot")
def dot(input: Any, other: Any) -> Sum:
    """The inner product of two vectors."""
    if input.dim() != 1 or other.dim() != 1:
        raise NotPointwise("")
    return matmul(input, other)


@reads("outer", "ger")
def outer(input: Any, other: Any) -> Sum:
    """All products of two vectors' elements."""
    a = read(input)
    column = moved_sum(a, lambda tensor: tensor.unsqueeze(-1), (*a.shape, 1))
    return multiply(column, read(other))


@reads("linear")
def linear(input: Any, weight: Any, bias: Any = None) -> Sum:
    """``x W' + b``."""
    total = matmul(input, weight.t() if weight.dim() == 2 else weight)
    return total if bias is None else plus(total, read(bias))
