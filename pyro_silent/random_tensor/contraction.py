"""Products of tensors with labelled dims, summed as early as possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_silent.random_tensor.shapes import pad_dims
from pyro_silent.random_tensor.squares import weighted_squares

_SYMBOLS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Operand(NamedTuple):
    """A tensor whose dims are labelled; dims of size 1 that only broadcast have been dropped."""

    tensor: Tensor
    labels: tuple[int, ...]


def labelled(tensor: Tensor, leading: Sequence[int], num_dims: int) -> Operand:
    """Label ``[*leading, *y dims]`` and drop the y dims of size 1."""
    labels = list(leading)
    shape = list(tensor.shape[: len(labels)])
    for dim in range(-num_dims, 0):
        if tensor.size(dim) != 1:
            labels.append(dim)
            shape.append(tensor.size(dim))
    return Operand(tensor if list(tensor.shape) == shape else tensor.reshape(shape), tuple(labels))


def fold(operands: Sequence[Operand], out: frozenset[int]) -> Operand:
    """Multiply operands from left to right, summing a label as soon as nothing later needs it."""
    result = operands[0]
    first = 1
    squares = _weighted_squares(operands, out)
    if squares is not None:
        result, first = squares, 3
    for i, operand in enumerate(operands[first:], first):
        needed = out.union(*(later.labels for later in operands[i + 1 :]))
        result = _product(result, operand, needed)
    if len(set(result.labels)) < len(result.labels) or not out.issuperset(result.labels):
        result = _product(result, None, out)
    return result


def _weighted_squares(operands: Sequence[Operand], out: frozenset[int]) -> Operand | None:
    """A coefficient times itself times a vector that is summed with it: no square is kept."""
    if len(operands) < 3 or operands[0].tensor is not operands[1].tensor:
        return None
    (tensor, labels), vector = operands[0], operands[2]
    if labels != operands[1].labels or len(set(labels)) < len(labels) or len(vector.labels) != 1:
        return None
    (over,) = vector.labels
    needed = out.union(*(later.labels for later in operands[3:]))
    if over not in labels or over in needed or 0 in tensor.shape:
        return None
    moved = tensor.movedim(labels.index(over), -1)
    kept = tuple(label for label in labels if label != over)
    return Operand(weighted_squares(moved, vector.tensor), kept)


def _product(left: Operand, right: Operand | None, needed: frozenset[int]) -> Operand:
    short = None if right is None else _elementwise(left, right, needed)
    if short is None and right is not None:
        short = _matrix_vector(left, right, needed) or _matrix_vector(right, left, needed)
    if short is not None:
        return short
    operands = (left,) if right is None else (left, right)
    labels = dict.fromkeys(label for op in operands for label in op.labels)
    symbol = {label: _SYMBOLS[i] for i, label in enumerate(labels)}
    kept = tuple(label for label in symbol if label in needed)
    sizes = {label: n for op in operands for label, n in zip(op.labels, op.tensor.shape)}
    if 0 in sizes.values():
        return Operand(left.tensor.new_zeros([sizes[label] for label in kept]), kept)
    inputs = ",".join("".join(symbol[label] for label in op.labels) for op in operands)
    equation = inputs + "->" + "".join(symbol[label] for label in kept)
    return Operand(torch.einsum(equation, *(op.tensor for op in operands)), kept)


def _elementwise(left: Operand, right: Operand, needed: frozenset[int]) -> Operand | None:
    """Equal labels: a product (or square) and a sum, cheaper than an einsum in both directions."""
    if left.labels != right.labels or len(set(left.labels)) < len(left.labels):
        return None
    same = left.tensor is right.tensor
    product = left.tensor.square() if same else left.tensor * right.tensor
    dims = [i for i, label in enumerate(left.labels) if label not in needed]
    kept = tuple(label for label in left.labels if label in needed)
    return Operand(product.sum(dims) if dims else product, kept)


def _matrix_vector(matrix: Operand, vector: Operand, needed: frozenset[int]) -> Operand | None:
    """A matrix and a vector over one of its labels, by ``mm``.

    Its gradient has the layout of the matrix, so adding it to that of a transposed weight is not strided.
    """
    if len(matrix.labels) != 2 or len(vector.labels) != 1 or matrix.labels[0] == matrix.labels[1]:
        return None
    over = vector.labels[0]
    if over in needed or over not in matrix.labels:
        return None
    last = matrix.labels[1] == over
    kept = matrix.labels[0 if last else 1]
    if kept not in needed:
        return None
    tensor = matrix.tensor if last else matrix.tensor.t()
    return Operand(torch.mm(tensor, vector.tensor.unsqueeze(-1)).squeeze(-1), (kept,))


def summed_product(tensors: Sequence[Tensor], sizes: Sequence[int], num_dims: int) -> Tensor:
    """The product of right-aligned tensors, summed over the leading dims in front of y's.

    :param sizes: of the summed dims, along which a tensor may have size 1 or be missing.
    :param num_dims: how many dims y has.
    """
    total = len(sizes) + num_dims
    operands = [labelled(pad_dims(t, 0, total - t.dim()), (), total) for t in tensors]
    out = frozenset(range(-num_dims, 0))
    varies = {label for operand in operands for label in operand.labels}
    result = fold(operands, out)
    order = sorted(result.labels)
    tensor = result.tensor.permute([result.labels.index(label) for label in order])
    found = dict(zip(order, tensor.shape))
    tensor = tensor.reshape([found.get(dim, 1) for dim in range(-num_dims, 0)])
    repeats = math.prod(n for k, n in enumerate(sizes) if k - total not in varies)
    return tensor if repeats == 1 else tensor * repeats
