"""Rules for linear maps along dims: matrix products, sums, differences, Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.random_tensor.affine import Affine, NoForm, apply_linear, merge_terms, pad_terms
from pyro_silent.random_tensor.rows import multiplied, product_terms
from pyro_silent.random_tensor.rules.structural import permuted, selected, unsqueezed
from pyro_silent.random_tensor.rules.table import rule
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of, constant


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
def matmul(input: Any, other: Any = None, **named: Any) -> Affine:
    """A matrix product with one plain operand, which each function has another name for."""
    return matrix_product(input, other if other is not None else named.popitem()[1])


@rule("__rmatmul__")
def rmatmul(input: Any, other: Any) -> Affine:
    """``other @ input``."""
    return matrix_product(other, input)


@rule("linear")
def linear(input: Any, weight: Any, bias: Any = None) -> Affine:
    """``x @ weight.T + bias``, at most one of x and weight random."""
    if isinstance(weight, RandomTensor):
        result = matrix_product(input, weight.mT if weight.dim() > 1 else weight)
        return result if bias is None else _plus(result, bias)
    plain_bias = None if isinstance(bias, RandomTensor) else bias
    if not isinstance(input, RandomTensor):
        return _plus(constant(F.linear(input, weight)), bias)
    form = affine_of(input)
    offset = F.linear(form.offset, weight, plain_bias)
    if form.offset.dim() == 1 or weight.dim() == 1:
        result = matrix_product(input, weight.mT if weight.dim() > 1 else weight)
        return result if bias is None else _plus(result, bias)
    result = Affine.deferred(offset, lambda: product_terms(form, offset, weight.mT), (form,))
    return result if plain_bias is bias else _plus(result, bias)


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
def dot(input: Any, other: Any = None, *, tensor: Any = None) -> Affine:
    """The inner product along the last dim, one operand plain."""
    other = tensor if other is None else other
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
