"""Rules for linear maps along dims: matrix products, sums, differences, Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor.affine import (
    Affine,
    Axis,
    NoForm,
    Term,
    _move_axes,
    apply_linear,
    contract_dims,
    depends_on,
    merge_terms,
    pad_dims,
    pad_terms,
    positions,
    scale_terms,
)
from pyro_silent.random_tensor.rules.structural import (
    negative,
    permuted,
    selected,
    unsqueezed,
)
from pyro_silent.random_tensor.rules.table import rule
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of


def _lying_on(term: Term, dim: int) -> list[int] | None:
    """The axes whose position changes along ``dim``; None if one changes along another dim as well."""
    found = [k for k, axis in enumerate(term.axes) if depends_on(axis, [dim])]
    for k in found:
        axis = term.axes[k]
        if isinstance(axis, Tensor) and axis.numel() != axis.size(dim):
            return None
    return found


def _scattered(term: Term, lying: Sequence[int], rows: Tensor, num_dims: int) -> Tensor:
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


def _without_axes(term: Term, lying: Sequence[int]) -> tuple[Axis, ...]:
    return tuple(None if k in lying else axis for k, axis in enumerate(term.axes))


def multiplied(form: Affine, offset: Tensor, weight: Tensor) -> Affine:
    """``x @ weight`` for a plain ``weight[..., k, m]`` and x of at least two dims."""

    def compute() -> tuple[Term, ...]:
        num_dims = offset.dim()
        terms = []
        for term in pad_terms(form, num_dims):
            lying = _lying_on(term, -1)
            if lying:
                terms.append(_rows_times(term, lying, weight, num_dims))
            else:
                shape = (1,) * (num_dims - form.offset.dim()) + tuple(form.shape)
                term = contract_dims(term, shape, [-1])
                coefficient = term.dense_coefficient(num_dims) @ weight
                terms.append(Term(term.source, term.axes, coefficient))
        return tuple(terms)

    return Affine.deferred(offset, compute, (form,))


def _rows_times(term: Term, lying: Sequence[int], weight: Tensor, num_dims: int) -> Term:
    """A product along a dim on which source axes lie only picks and adds rows of the weight."""
    # weight[..., k, m] -> [k, leading 1.., batch dims, 1 (row), m]
    rows = weight.movedim(-2, 0).unsqueeze(-2)
    rows = pad_dims(rows, 1, num_dims - (rows.dim() - 1) + term.num_contracted)
    if term.coefficient is not None:
        rows = rows * term.coefficient.movedim(-1, 0).unsqueeze(-1)
    coefficient = _scattered(term, lying, rows, num_dims)
    return Term(term.source, _without_axes(term, lying), coefficient)


def matrix_product(input: Any, other: Any) -> Affine:
    """``input @ other`` with one plain operand, by torch's shape rules."""
    if isinstance(input, RandomTensor) and isinstance(other, RandomTensor):
        raise NoForm("the product of two random tensors is not affine")
    if isinstance(other, RandomTensor):
        return _left_product(input, affine_of(other))
    form = affine_of(input)
    vector, column = form.offset.dim() == 1, other.dim() == 1
    if vector:
        form = unsqueezed(form, -2)
    weight = other.unsqueeze(-1) if column else other
    result = multiplied(form, form.offset @ weight, weight)
    if column:
        result = selected(result, -1, 0)
    if vector:
        result = selected(result, -1 if column else -2, 0)
    return result


def _left_product(weight: Tensor, form: Affine) -> Affine:
    """``weight @ x`` as ``(x' @ weight')'``."""
    vector, row = form.offset.dim() == 1, weight.dim() == 1
    form = unsqueezed(form, -2) if vector else permuted(form, _swapped(form.offset.dim()))
    weight = weight.unsqueeze(-1) if row else weight.mT
    result = multiplied(form, form.offset @ weight, weight)
    result = permuted(result, _swapped(result.offset.dim()))
    if row:
        result = selected(result, -2, 0)
    if vector:
        result = selected(result, -1, 0)
    return result


def _swapped(num_dims: int) -> list[int]:
    return [*range(-num_dims, -2), -1, -2]


@rule("matmul", "mm", "bmm", "mv", "__matmul__", "linalg.matmul")
def matmul(input: Any, other: Any) -> Affine:
    """A matrix product with one plain operand."""
    return matrix_product(input, other)


@rule("__rmatmul__")
def rmatmul(input: Any, other: Any) -> Affine:
    """``other @ input``."""
    return matrix_product(other, input)


@rule("linear")
def linear(input: Any, weight: Any, bias: Any = None) -> Affine:
    """``x @ weight.T + bias``; random weights on plain inputs too."""
    if isinstance(weight, RandomTensor):
        result = matrix_product(input, weight.mT if weight.dim() > 1 else weight)
    elif not isinstance(input, RandomTensor):
        return _plus(Affine(torch.nn.functional.linear(input, weight), ()), bias)
    else:
        form = affine_of(input)
        if weight.dim() == 1 or form.offset.dim() == 1:
            result = matrix_product(input, weight.mT if weight.dim() > 1 else weight)
        else:
            offset = torch.nn.functional.linear(
                form.offset, weight, None if isinstance(bias, RandomTensor) else bias
            )
            result = multiplied(form, offset, weight.mT)
            if not isinstance(bias, RandomTensor):
                return result
    return result if bias is None else _plus(result, bias)


def _plus(form: Affine, other: Any) -> Affine:
    if not isinstance(other, RandomTensor):
        return Affine(form.offset + other, form.terms)
    b = affine_of(other)
    offset = form.offset + b.offset
    terms = pad_terms(form, offset.dim()) + pad_terms(b, offset.dim())
    return Affine(offset, merge_terms(terms, offset.dim()))


def _is_random(*values: Any) -> bool:
    return any(isinstance(value, RandomTensor) for value in values)


@rule("dot", "inner", "vdot")
def dot(input: Any, other: Any) -> Affine:
    """The inner product along the last dim, one operand plain."""
    if input.dim() > 1 or other.dim() > 1:
        return matrix_product(input, other.mT if other.dim() > 1 else other)
    return matrix_product(input, other)


@rule("linalg.vecdot")
def vecdot(input: Any, other: Any, *, dim: int = -1) -> Affine:
    """Inner products along one dim, one operand plain."""
    return affine_of((input * other).sum(dim))


@rule("outer", "ger")
def outer(input: Any, vec2: Any) -> Affine:
    """``x_i c_j``, one operand plain."""
    return affine_of(input.unsqueeze(-1) * vec2)


@rule("kron")
def kron(input: Any, other: Any) -> Affine:
    """The Kronecker product of two matrices, one operand plain."""
    if input.dim() != 2 or other.dim() != 2:
        raise NoForm("kron of other than two matrices")
    product = input[:, None, :, None] * other[None, :, None, :]
    return affine_of(product.reshape(input.size(0) * other.size(0), -1))


def _added_product(product: Callable[[Any, Any], Any]) -> Callable:
    """The rule of ``beta x + alpha product(a, b)``."""

    def added(input: Any, *factors: Any, beta: float = 1, alpha: float = 1, **named: Any) -> Affine:
        a, b = (*factors, *named.values())  # mat1, mat2, batch1, vec: each has names of its own
        return affine_of(beta * input + alpha * product(a, b))

    return added


rule("addmm", "addmv", "baddbmm")(_added_product(torch.matmul))
rule("addbmm")(_added_product(lambda a, b: torch.matmul(a, b).sum(0)))
rule("addr")(_added_product(torch.outer))


@rule("bilinear")
def bilinear(input1: Any, input2: Any, weight: Tensor, bias: Any = None) -> Affine:
    """``x' W_o y + b_o`` with one of x, y plain."""
    if _is_random(input1) and _is_random(input2):
        raise NoForm("the product of two random tensors is not affine")
    if _is_random(input1):
        result = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    else:
        result = torch.einsum("...j,oij,...i->...o", input2, weight, input1)
    return affine_of(result if bias is None else result + bias)


@rule("tensordot")
def tensordot(a: Any, b: Any, dims: Any = 2, out: Any = None) -> Affine:
    """Sums of products over chosen dims, one operand plain."""
    if isinstance(dims, int):
        first, second = list(range(a.dim() - dims, a.dim())), list(range(dims))
    else:
        first, second = ([d] if isinstance(d, int) else list(d) for d in dims)
    first = [d % a.dim() for d in first]
    second = [d % b.dim() for d in second]
    free_a = [d for d in range(a.dim()) if d not in first]
    free_b = [d for d in range(b.dim()) if d not in second]
    n = math.prod(a.size(d) for d in first)
    left = a.permute(free_a + first).reshape(math.prod(a.size(d) for d in free_a), n)
    right = b.permute(second + free_b).reshape(n, math.prod(b.size(d) for d in free_b))
    product = left @ right
    return affine_of(product.reshape([a.size(d) for d in free_a] + [b.size(d) for d in free_b]))


def _without_repeats(tensor: Tensor, subscript: str) -> tuple[Affine, str]:
    """Take diagonals until no letter of the subscript occurs twice."""
    for letter in dict.fromkeys(subscript):
        while subscript.count(letter) > 1:
            first = subscript.index(letter)
            second = subscript.index(letter, first + 1)
            tensor = tensor.diagonal(0, first, second)
            rest = subscript[:first] + subscript[first + 1 : second] + subscript[second + 1 :]
            subscript = rest + letter
    return affine_of(tensor), subscript


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _parse(equation: str, operands: Sequence[Any]) -> tuple[list[str], str]:
    """Subscripts of inputs and output with every ellipsis spelled out in fresh letters."""
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    inputs = left.split(",")
    unused = [c for c in _LETTERS if c not in equation]
    width = max(
        (
            op.dim() - len(sub.replace("...", ""))
            for sub, op in zip(inputs, operands)
            if "..." in sub
        ),
        default=0,
    )
    dots = "".join(unused[:width])
    spelled = []
    for sub, operand in zip(inputs, operands):
        if "..." in sub:
            own = operand.dim() - len(sub.replace("...", ""))
            sub = sub.replace("...", dots[width - own :])
        spelled.append(sub)
    if arrow:
        return spelled, right.replace("...", dots)
    letters = "".join(spelled)
    once = sorted(c for c in set(letters) if letters.count(c) == 1 and c not in dots)
    return spelled, dots + "".join(once)


@rule("einsum")
def einsum(equation: Any, *operands: Any) -> Affine:
    """An einsum with one random operand."""
    if not isinstance(equation, str):
        raise NoForm("einsum with sublists; write a subscripts string")
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    inputs, output = _parse(equation, operands)
    random = [i for i, op in enumerate(operands) if isinstance(op, RandomTensor)]
    if len(random) != 1:
        raise NoForm("the product of two random tensors is not affine")
    at = random[0]
    form, subscript = affine_of(operands[at]), inputs[at]
    form, subscript = _without_repeats(operands[at], subscript)
    rest = [op for i, op in enumerate(operands) if i != at]
    others = [sub for i, sub in enumerate(inputs) if i != at]
    lead = [c for c in _LETTERS if c not in "".join(inputs)]

    def apply(tensor: Tensor, leading: int) -> Tensor:
        extra = "".join(lead[:leading])
        inner = ",".join([extra + subscript, *others])
        return torch.einsum(f"{inner}->{extra}{output}", tensor, *rest)

    width = len(subscript)
    summed = [i - width for i, c in enumerate(subscript) if c not in output]
    dim_map = {
        i - width: output.index(c) - len(output) for i, c in enumerate(subscript) if c in output
    }
    # A dim of size 1 that another operand broadcasts is no longer aligned with anything: as ever.
    return apply_linear(form, apply(form.offset, 0), summed, apply, dim_map)


def _dims(dim: Any, num_dims: int) -> list[int]:
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return list(range(-num_dims, 0))
    return [negative(d, num_dims) for d in ([dim] if isinstance(dim, int) else dim)]


def summed(form: Affine, dims: Sequence[int], keepdim: bool, offset: Tensor) -> Affine:
    """Sum over dims (negative), one at a time; ``offset`` is the sum of the mean."""
    if not dims:
        return form
    num_dims = form.offset.dim()
    kept = [dim for dim in range(-num_dims, 0) if dim not in dims]

    def compute() -> tuple[Term, ...]:
        terms = form.terms
        for dim in dims:
            terms = merge_terms([_sum_term(term, dim, form.shape) for term in terms], num_dims)
        if keepdim:
            return terms
        dim_map = {dim: place - len(kept) for place, dim in enumerate(kept)}
        return tuple(
            Term(
                term.source,
                _move_axes(term, num_dims, len(kept), dim_map),
                term.dense_coefficient(num_dims).squeeze(tuple(dims)),
            )
            for term in terms
        )

    return Affine.deferred(offset, compute, (form,))


def _sum_term(term: Term, dim: int, shape: torch.Size) -> Term:
    """The sum along one dim, which stays with size 1."""
    num_dims = len(shape)
    lying = _lying_on(term, dim)
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
    axes = _without_axes(term, lying)
    if term.coefficient is None and len(lying) == 1 and isinstance(term.axes[lying[0]], int):
        before = sum(axis is None for axis in axes[: lying[0]])
        size = [1] * (sum(axis is None for axis in axes) + num_dims)
        size[before] = shape[dim]
        return Term(term.source, axes, term.source.mean.new_ones(size))
    coefficient = term.dense_coefficient(num_dims)
    full = list(coefficient.shape)
    full[dim] = shape[dim]
    rows = coefficient.expand(full).unsqueeze(0).transpose(0, dim).contiguous()
    return Term(term.source, axes, _scattered(term, lying, rows, num_dims))


def _reduction(dims: tuple, dim: Any, keepdim: bool, num_dims: int) -> tuple[list[int], bool]:
    """Dims given one by one, as a sequence, or by name; keepdim may come by position."""
    given = list(dims)
    if len(given) == 2 and isinstance(given[1], bool):
        keepdim = given.pop()
    if given:
        dim = given[0] if len(given) == 1 else given
    return _dims(dim, num_dims), keepdim


@rule("sum")
def sum_(
    input: RandomTensor, *dims: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Affine:
    """Sums over dims."""
    form = affine_of(input if dtype is None else input.to(dtype))
    over, keepdim = _reduction(dims, dim, keepdim, form.offset.dim())
    if not over:
        return form
    return summed(form, over, keepdim, form.offset.sum(over, keepdim=keepdim))


@rule("mean")
def mean(
    input: RandomTensor, *dims: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Affine:
    """Averages over dims."""
    form = affine_of(input if dtype is None else input.to(dtype))
    over, keepdim = _reduction(dims, dim, keepdim, form.offset.dim())
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


@rule("diag_embed")
def diag_embed(input: RandomTensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Affine:
    """A vector as the diagonal of a matrix of zeros."""
    if (dim1, dim2) != (-2, -1):
        raise NoForm("diag_embed into other dims than the last two")
    size = input.size(-1)
    eye = torch.diag_embed(torch.ones(size, device=input.device), offset)
    rows = torch.arange(eye.size(0), device=input.device) - max(-offset, 0)
    return affine_of(
        input.index_select(-1, rows.clamp(0, size - 1)).unsqueeze(-1) * eye.to(input.dtype)
    )


def _transform(function: Callable) -> Callable:
    """The rule of a Fourier transform along one dim."""

    def transform(input: RandomTensor, n: Any = None, dim: int = -1, norm: Any = None) -> Affine:
        form = affine_of(input)
        d = negative(dim, form.offset.dim())
        return along_dim(form, d, lambda tensor: function(tensor, n, d, norm))

    return transform


def _transform_all(function: Callable, default: Any) -> Callable:
    """The rule of a Fourier transform along several dims."""

    def transform(
        input: RandomTensor, s: Any = None, dim: Any = default, norm: Any = None
    ) -> Affine:
        form = affine_of(input)
        dims = _dims(dim, form.offset.dim())
        dim_map = {d: d for d in range(-form.offset.dim(), 0) if d not in dims}
        offset = function(form.offset, s, dims, norm)
        return apply_linear(
            form, offset, dims, lambda tensor, leading: function(tensor, s, dims, norm), dim_map
        )

    return transform


for _name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"):
    rule(f"fft.{_name}")(_transform(getattr(torch.fft, _name)))
for _name in ("fft", "ifft", "rfft", "irfft"):
    rule(f"fft.{_name}2")(_transform_all(getattr(torch.fft, f"{_name}2"), (-2, -1)))
    rule(f"fft.{_name}n")(_transform_all(getattr(torch.fft, f"{_name}n"), None))


@rule("fft.fftshift")
def fftshift(input: RandomTensor, dim: Any = None) -> Affine:
    """The zero frequency moved to the middle."""
    dims = _dims(dim, input.dim())
    return affine_of(torch.roll(input, [input.size(d) // 2 for d in dims], dims))


@rule("fft.ifftshift")
def ifftshift(input: RandomTensor, dim: Any = None) -> Affine:
    """The zero frequency moved back to the front."""
    dims = _dims(dim, input.dim())
    return affine_of(torch.roll(input, [-(input.size(d) // 2) for d in dims], dims))


@rule("linalg.solve_triangular")
def solve_triangular(
    input: Tensor, B: RandomTensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Affine:
    """``A^-1 x`` for a plain triangular A."""
    if isinstance(input, RandomTensor) or not left:
        raise NoForm("a random triangular matrix, or a solve from the right, is not affine here")
    eye = torch.eye(input.size(-1), dtype=input.dtype, device=input.device)
    inverse = torch.linalg.solve_triangular(input, eye, upper=upper, unitriangular=unitriangular)
    return _left_product(inverse, affine_of(B))
