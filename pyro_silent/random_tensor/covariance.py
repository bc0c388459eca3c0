"""Second moments of affine forms: contractions of coefficients with the covariances of their sources.

The covariance of a source is ``diag(D) + sign F F'`` along its last axis and zero between different
positions of its other axes. For y and y' that read one source,

    Cov(y, y') = sum_{i, i'} C_i C'_i' Cov(z_i, z_i'),

is an einsum over labelled operands: y's dims are labelled -1, -2, ..., contracted axes 1, 2, ....
A ``weight`` and the dims to be summed are part of the einsum, and coefficients meet the weight before
they meet anything that has the batch: sum_m w_m sum_k C_km^2 V_bk = V (C^2 w) costs one matrix-vector
product, and the ``[batch, data]`` variance is never built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_silent.random_tensor.affine import (
    Affine,
    NoForm,
    Term,
    pad_terms,
    positions,
    same_position,
)
from pyro_silent.random_tensor.contraction import Operand, fold, labelled
from pyro_silent.random_tensor.shapes import broadcast_shapes, expanded_to, pad_dims


class _Side:
    """One of the two terms while its axes are being matched with the other's."""

    def __init__(self, term: Term, num_dims: int, dtype: torch.dtype) -> None:
        self.term = term
        self.num_dims = num_dims
        self.axes = list(term.axes)
        self.coefficient = None if term.coefficient is None else term.coefficient.to(dtype)
        self.labels: dict[int, int] = {}

    def gather(self, k: int, index: Tensor) -> None:
        """Read the contracted axis ``k`` at the positions ``index``: its leading dim goes."""
        contracted = [axis for axis, state in enumerate(self.axes) if state is None]
        lead = contracted.index(k)
        assert self.coefficient is not None  # an axis is contracted
        coefficient = self.coefficient.movedim(lead, 0)
        others = coefficient.shape[1 : len(contracted)]
        dims = broadcast_shapes(coefficient.shape[len(contracted) :], index.shape)
        coefficient = coefficient.expand((-1, *others, *dims))
        index = index.view((1,) * len(contracted) + index.shape).expand((1, *others, *dims))
        self.coefficient = coefficient.gather(0, index).squeeze(0)
        self.axes[k] = index

    def operands(self) -> list[Operand]:
        """The coefficient, labelled; nothing where it is 1."""
        if self.coefficient is None:
            return []
        leading = [self.labels[k] for k, axis in enumerate(self.axes) if axis is None]
        return [labelled(self.coefficient, leading, self.num_dims)]


def _coefficients(left: _Side, right: _Side) -> list[Operand]:
    """Both coefficients; the very same operand twice where they are one tensor read alike."""
    a, b = left.operands(), right.operands()
    if a and b and left.coefficient is right.coefficient and a[0].labels == b[0].labels:
        return [a[0], a[0]]
    return a + b


def _match(
    left: _Side, right: _Side, k: int, label: int, masks: list[Operand], dtype: torch.dtype
) -> int | Tensor:
    """Restrict both sides to equal positions on axis ``k``; returns where those positions are."""
    a, b = left.term.axes[k], right.term.axes[k]
    if a is None and b is None:
        left.labels[k] = right.labels[k] = label
        return label
    if a is None:
        left, right, a, b = right, left, b, a
    assert a is not None  # one of the two has positions
    if b is None:
        if isinstance(a, int):
            right.labels[k] = a
        else:
            right.gather(k, a)
        return a
    if not same_position(a, b):
        num_dims = left.num_dims
        same = positions(left.term, k, num_dims) == positions(right.term, k, num_dims)
        masks.append(labelled(same.to(dtype), (), num_dims))
    return a


def _moment(tensor: Tensor, axes: Sequence[int | Tensor], num_dims: int) -> Operand:
    """A source's moment tensor read at ``axes``: labels, or positions for each element of y."""
    gathered = [k for k, axis in enumerate(axes) if isinstance(axis, Tensor)]
    index = tuple(axis for axis in axes if isinstance(axis, Tensor))
    labels = tuple(axis for axis in axes if not isinstance(axis, Tensor))
    if index and num_dims == 0:
        # A 0-dim index would be read as a number, which waits for the device.
        tensor = tensor.movedim(gathered, list(range(len(gathered))))
        return Operand(tensor[tuple(axis.view(1) for axis in index)].squeeze(0), labels)
    if not gathered:
        return Operand(tensor, labels)
    tensor = tensor.movedim(gathered, list(range(len(gathered))))
    if 0 in tensor.shape:
        dims = broadcast_shapes(*(axis.shape for axis in index))
        tensor = tensor.new_zeros(dims + tensor.shape[len(index) :])
    else:
        tensor = tensor[index]
    keep = [dim for dim in range(num_dims) if tensor.size(dim) != 1]
    shape = [tensor.size(dim) for dim in keep] + list(tensor.shape[num_dims:])
    return Operand(tensor.reshape(shape), tuple(dim - num_dims for dim in keep) + labels)


def _size(operands: Sequence[Operand], dropped: Sequence[int]) -> int:
    sizes = {label: n for op in operands for label, n in zip(op.labels, op.tensor.shape)}
    return math.prod(n for label, n in sizes.items() if label not in dropped)


def _matched(
    a: Term, b: Term, count: int, num_dims: int, dtype: torch.dtype, weight: Operand | None
) -> tuple[_Side, _Side, list[int | Tensor], list[Operand]]:
    """Both sides at equal positions on the first ``count`` axes, and what weights their product."""
    left, right = _Side(a, num_dims, dtype), _Side(b, num_dims, dtype)
    masks: list[Operand] = []
    axes = [_match(left, right, k, k + 1, masks, dtype) for k in range(count)]
    return left, right, axes, ([weight] if weight else []) + masks


def _pair(
    a: Term,
    b: Term,
    num_dims: int,
    dtype: torch.dtype,
    weight: Operand | None,
    out: frozenset[int],
) -> list[Operand]:
    """Weighted covariance of two terms that read the same source, as operands to be summed."""
    source = a.source
    results = []
    if source.diagonal is not None:
        left, right, axes, rest = _matched(a, b, len(source.shape), num_dims, dtype, weight)
        diagonal = _moment(source.diagonal.to(dtype), axes, num_dims)
        results.append(fold([*_coefficients(left, right), *rest, diagonal], out))
    if source.factor is not None:
        results.append(_factor_pair(a, b, num_dims, dtype, weight, out))
    return results


def _factor_pair(
    a: Term,
    b: Term,
    num_dims: int,
    dtype: torch.dtype,
    weight: Operand | None,
    out: frozenset[int],
) -> Operand:
    """The part of :func:`_pair` that comes from ``sign F F'`` along the source's last axis."""
    source = a.source
    assert source.factor is not None  # the caller's condition
    block = len(source.shape) - 1
    left, right, axes, rest = _matched(a, b, block, num_dims, dtype, weight)
    factors = []
    for side, label in ((left, block + 1), (right, block + 2)):
        axis = side.term.axes[block]
        if axis is None:
            side.labels[block] = axis = label
        rank = [block + 3]
        factors.append(_moment(source.factor.to(dtype), [*axes, axis, *rank], num_dims))
    first = _coefficients(left, right) + rest
    rank_label = block + 3
    outer = _size([*first, *factors], [rank_label, *_summed(first, factors, out)])
    inner = _size([*left.operands(), factors[0]], [block + 1])
    if outer <= inner or not first:
        # Coefficients first: sum_m w_m C_im C_jm is small, whatever the batch.
        moments = fold(factors, frozenset(factors[0].labels + factors[1].labels) - {rank_label})
        result = fold([*first, moments], out) if first else fold([moments], out)
    else:
        sides = (*left.operands(), *right.operands(), *factors)
        keep = frozenset(label for op in sides for label in op.labels)
        projected = [
            fold([*side.operands(), factor], keep - {label})
            for side, factor, label in (
                (left, factors[0], block + 1),
                (right, factors[1], block + 2),
            )
        ]
        result = fold([*projected, *rest], out)
    return result if source.sign > 0 else Operand(-result.tensor, result.labels)


def _summed(
    first: Sequence[Operand], factors: Sequence[Operand], out: frozenset[int]
) -> frozenset[int]:
    """Labels that only the coefficients have and that are summed before the factors are met."""
    own = frozenset(label for op in first for label in op.labels)
    met = frozenset(label for op in factors for label in op.labels)
    return own - met - out


def variance_of_source(form: Affine) -> Tensor | None:
    """The variance of a fresh latent of independent elements: known without any contraction."""
    if len(form.terms) != 1:
        return None
    (term,) = form.terms
    source = term.source
    if term.coefficient is not None or source.factor is not None or source.shape != form.shape:
        return None
    if source.diagonal is None or source.diagonal.dtype is not form.offset.dtype:
        return None
    num_dims = len(source.shape)
    if any(axis != k - num_dims for k, axis in enumerate(term.axes) if isinstance(axis, int)):
        return None
    return source.diagonal if all(isinstance(axis, int) for axis in term.axes) else None


def covariance(
    a: Affine, b: Affine, weight: Tensor | None = None, sum_dims: Sequence[int] = ()
) -> Tensor:
    """Elementwise ``Cov(a, b)`` on the broadcast shape, optionally ``sum(weight * Cov(a, b), sum_dims)``.

    :param weight: plain, broadcastable to the shape.
    :param sum_dims: negative dims to be summed; they are dropped from the result.
    :raises NoForm: for complex forms, and where a live and a detached reading of one source meet.
    """
    if a is b and weight is None and not sum_dims:
        variance = variance_of_source(a)
        if variance is not None:
            return variance
    shape = broadcast_shapes(a.shape, b.shape)
    num_dims = len(shape)
    if a.offset.is_complex() or b.offset.is_complex():
        raise NoForm("second moments of complex tensors are not defined here")
    dtype = torch.promote_types(a.offset.dtype, b.offset.dtype)
    if dtype in (torch.bfloat16, torch.float16):  # perhaps of autocast's making
        for term in (*a.terms, *b.terms):
            dtype = torch.promote_types(dtype, term.source.mean.dtype)
    out = frozenset(range(-num_dims, 0)) - frozenset(sum_dims)
    operand = None
    if weight is not None:
        weight = weight.to(dtype)
        operand = labelled(pad_dims(weight, 0, num_dims - weight.dim()), (), num_dims)
    terms = pad_terms(a, num_dims)
    others = terms if a is b else pad_terms(b, num_dims)
    total = None
    for i, term in enumerate(terms):
        for j, other in enumerate(others):
            if term.source.key is not other.source.key or (a is b and j < i):
                continue
            if term.source is not other.source:
                raise NoForm("a detached and a live reading of one latent are multiplied")
            for result in _pair(term, other, num_dims, dtype, operand, out):
                value = _spread(result, shape, sum_dims, (term, other), operand)
                value = value + value if a is b and j != i else value
                total = value if total is None else total + value
    kept = [shape[dim] for dim in range(-num_dims, 0) if dim in out]
    if total is None:
        return a.offset.new_zeros((), dtype=dtype).expand(kept)
    return expanded_to(total.to(dtype), kept)


def _spread(
    result: Operand,
    shape: Sequence[int],
    sum_dims: Sequence[int],
    terms: tuple[Term, Term],
    weight: Operand | None,
) -> Tensor:
    """Order the dims as in y, and account for summed dims along which nothing varied."""
    num_dims = len(shape)
    kept = [dim for dim in range(-num_dims, 0) if dim not in sum_dims]
    order = sorted(result.labels)
    tensor = result.tensor
    if order != list(result.labels):
        tensor = tensor.permute([result.labels.index(label) for label in order])
    if order != kept:
        tensor = tensor.reshape([shape[dim] if dim in order else 1 for dim in kept])
    repeats = math.prod(
        shape[dim]
        for dim in sum_dims
        if not any(_varies(term, dim) for term in terms)
        and not (weight is not None and dim in weight.labels)
    )
    return tensor * repeats if repeats != 1 else tensor


def _varies(term: Term, dim: int) -> bool:
    if term.coefficient is not None and term.coefficient.size(dim) != 1:
        return True
    return any(
        axis == dim if isinstance(axis, int) else isinstance(axis, Tensor) and axis.size(dim) != 1
        for axis in term.axes
    )


def expectation(term: Term, moment: Tensor, shape: Sequence[int]) -> Tensor:
    """``sum_i C_i moment_i`` on y's shape, for a tensor of the shape of the term's source."""
    num_dims = len(shape)
    dtype = moment.dtype if term.coefficient is None else term.coefficient.dtype
    side = _Side(term, num_dims, dtype)
    axes: list[int | Tensor] = []
    for k, axis in enumerate(term.axes):
        if axis is None:
            side.labels[k] = axis = k + 1
        axes.append(axis)
    out = frozenset(range(-num_dims, 0))
    result = fold([*side.operands(), _moment(moment.to(dtype), axes, num_dims)], out)
    return _spread(result, shape, (), (term, term), None).expand(tuple(shape))
