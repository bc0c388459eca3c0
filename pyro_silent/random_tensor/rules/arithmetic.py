"""Elementwise rules: sums of random tensors, products with plain ones, masks, dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor import discrete
from pyro_silent.random_tensor.affine import (
    Affine,
    NoForm,
    Term,
    mask_terms,
    merge_terms,
    pad_terms,
    scale_terms,
)
from pyro_silent.random_tensor.rules.table import rule
from pyro_silent.random_tensor.tensor import (
    RandomTensor,
    affine_of,
    constant,
    detach_form,
    map_values,
)

_NUMBERS = (int, float, bool, complex)


def as_form(value: Any) -> Affine:
    """A random tensor's form; a plain tensor as a constant."""
    return affine_of(value) if isinstance(value, RandomTensor) else constant(value)


def _refuse_bools(input: RandomTensor, other: Any) -> None:
    """torch adds bools as a logical or, which is not affine."""
    if isinstance(other, Tensor) and other.dtype is torch.bool and input.dtype is torch.bool:
        raise NoForm("arithmetic between bool tensors is not affine")


def _near(operand: Any, form: Affine) -> Any:
    """A plain 0-dim operand, which torch takes from any device, on the form's own."""
    if isinstance(operand, Tensor) and operand.dim() == 0:
        return operand.to(form.offset.device)
    return operand


@rule("add", "__add__", "__radd__")
def add(input: Any, other: Any, *, alpha: float = 1) -> Affine:
    """x + alpha y: terms add up; a plain operand moves the mean only."""
    if alpha != 1:
        other = other * alpha
    if not isinstance(other, RandomTensor):
        form = affine_of(input)
        _refuse_bools(input, other)
        offset = form.offset + other
        return Affine.deferred(offset, lambda: pad_terms(form, offset.dim()), (form,))
    if not isinstance(input, RandomTensor):
        return add(other, input)
    _refuse_bools(input, other)
    return plus(affine_of(input), affine_of(other))


def plus(a: Affine, b: Affine, weight: float = 1.0) -> Affine:
    """The form of ``a + weight * b``."""
    offset = a.offset + b.offset if weight == 1.0 else a.offset + weight * b.offset

    def compute() -> tuple[Term, ...]:
        num_dims = offset.dim()
        other = pad_terms(b, num_dims) if weight == 1.0 else scale_terms(b, weight, num_dims)
        return merge_terms(pad_terms(a, num_dims) + other, num_dims)

    return Affine.deferred(offset, compute, (a, b))


def scaled(form: Affine, factor: Tensor | float, offset: Tensor) -> Affine:
    """The form of ``x * factor`` for a plain factor; ``offset`` is its mean."""
    return Affine.deferred(offset, lambda: scale_terms(form, factor, offset.dim()), (form,))


@rule("sub", "subtract", "__sub__")
def sub(input: Any, other: Any, *, alpha: float = 1) -> Affine:
    """x - alpha y."""
    if alpha == 1 and not isinstance(other, RandomTensor):
        form = affine_of(input)
        _refuse_bools(input, other)
        offset = form.offset - other
        return Affine.deferred(offset, lambda: pad_terms(form, offset.dim()), (form,))
    if alpha != 1:
        return add(input, other, alpha=-alpha)
    form = affine_of(other)
    if not isinstance(input, RandomTensor):
        return scaled(form, -1.0, input - form.offset)
    return plus(affine_of(input), form, -1.0)


@rule("rsub", "__rsub__")
def rsub(input: Any, other: Any, *, alpha: float = 1) -> Affine:
    """y - alpha x."""
    return sub(other, input, alpha=alpha)


@rule("mul", "multiply", "__mul__", "__rmul__")
def mul(input: Any, other: Any) -> Affine:
    """x * c for a plain c: the coefficients are scaled."""
    if not isinstance(input, RandomTensor):
        input, other = other, input
    if isinstance(other, RandomTensor):
        merged = discrete.pointwise(torch.mul, (input, other), {})
        if merged is not None:
            return merged
        raise NoForm("the product of two random tensors is not affine")
    form = affine_of(input)
    return scaled(form, _near(other, form), form.offset * other)


@rule("div", "divide", "true_divide", "__truediv__", "__div__")
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Affine:
    """x / c for a plain c."""
    if rounding_mode is not None:
        raise NoForm("rounding is not affine")
    if isinstance(other, RandomTensor):
        raise NoForm("dividing by a random tensor is not affine")
    form = affine_of(input)
    return scaled(form, 1 / _near(other, form), form.offset / other)


@rule("neg", "negative", "__neg__")
def neg(input: RandomTensor) -> Affine:
    """-x."""
    form = affine_of(input)
    return scaled(form, -1.0, -form.offset)


@rule("positive", "__pos__", "clone", "contiguous", "alias", "resolve_conj", "resolve_neg")
def identity(input: RandomTensor, **ignored: Any) -> Affine:
    """x itself."""
    return affine_of(input)


@rule("conj", "conj_physical")
def conj(input: RandomTensor) -> Affine:
    """The complex conjugate."""
    form = affine_of(input)
    return map_values(form, torch.conj)


@rule("real", "Tensor.real.__get__")
def real(input: RandomTensor) -> Affine:
    """The real part: linear over real sources."""
    form = affine_of(input)
    return map_values(form, torch.real) if form.offset.is_complex() else form


@rule("imag", "Tensor.imag.__get__")
def imag(input: RandomTensor) -> Affine:
    """The imaginary part: linear over real sources."""
    return map_values(affine_of(input), torch.imag)


@rule("detach")
def detach(input: RandomTensor) -> Affine:
    """The same law without gradients, into coefficients and moments alike."""
    return detach_form(affine_of(input))


@rule("lerp")
def lerp(input: Any, end: Any, weight: Any) -> Affine:
    """x + w (end - x) for a plain w."""
    if isinstance(weight, RandomTensor):
        raise NoForm("interpolating by a random weight is not affine")
    a, b = as_form(input), as_form(end)
    offset = torch.lerp(a.offset, b.offset, weight)
    num_dims = offset.dim()
    terms = scale_terms(a, 1 - weight, num_dims) + scale_terms(b, weight, num_dims)
    return Affine(offset, merge_terms(terms, num_dims))


@rule("addcmul")
def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Affine:
    """x + value * a * b with at most one of a and b random."""
    product = tensor1 * tensor2 * value
    return add(product, input) if isinstance(product, RandomTensor) else add(input, product)


@rule("addcdiv")
def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Affine:
    """x + value * a / b for a plain b."""
    quotient = tensor1 / tensor2 * value
    return add(quotient, input) if isinstance(quotient, RandomTensor) else add(input, quotient)


@rule("Tensor.where")
def where_method(input: Any, condition: Any, other: Any) -> Affine:
    """``x.where(mask, y)``."""
    return where(condition, input, other)


def where(condition: Any, input: Any = None, other: Any = None) -> Affine:
    """Choose by a plain mask; or by a random bool between two plain tensors."""
    if isinstance(condition, RandomTensor):
        if isinstance(input, RandomTensor) or isinstance(other, RandomTensor):
            merged = discrete.pointwise(torch.where, (condition, input, other), {})
            if merged is not None:
                return merged
            raise NoForm("choosing between random tensors by a random mask is not affine")
        form = affine_of(condition)
        offset = form.offset * (input - other) + other
        return Affine(offset, scale_terms(form, input - other, offset.dim()))
    if input is None:
        raise NoForm("torch.where with one argument returns positions")
    choice = torch.where(condition, _mean_of(input), _mean_of(other))
    num_dims = choice.dim()
    terms: tuple[Term, ...] = ()
    for value, mask in ((input, condition), (other, ~condition)):
        if isinstance(value, RandomTensor):
            terms += mask_terms(affine_of(value), mask, num_dims)
    return Affine(choice, merge_terms(terms, num_dims))


rule("torch.where")(where)


def _mean_of(value: Any) -> Any:
    return affine_of(value).offset if isinstance(value, RandomTensor) else value


@rule("masked_fill")
def masked_fill(input: RandomTensor, mask: Tensor, value: Any) -> Affine:
    """x where the plain mask is False, a plain value elsewhere."""
    if isinstance(mask, RandomTensor) or isinstance(value, RandomTensor):
        raise NoForm("masked_fill by a random mask or value is not affine")
    form = affine_of(input)
    offset = form.offset.masked_fill(mask, value)
    return Affine(offset, mask_terms(form, ~mask, offset.dim()))


def _register_triangles() -> None:
    for name in ("tril", "triu"):
        function = getattr(torch, name)

        def triangle(input: RandomTensor, diagonal: int = 0, function: Any = function) -> Affine:
            mask = function(
                torch.ones(input.shape[-2:], dtype=torch.bool, device=input.device), diagonal
            )
            return mul(input, mask)

        rule(name)(triangle)


_register_triangles()


@rule("logical_not", "bitwise_not", "__invert__")
def logical_not(input: RandomTensor) -> Affine:
    """1 - x for a bool tensor."""
    if input.dtype is not torch.bool:
        raise NoForm("bitwise not of integers is not affine")
    form = affine_of(input)
    return Affine(1 - form.offset, scale_terms(form, -1.0, form.offset.dim()))


def _target_dtype(input: RandomTensor, args: tuple, kwargs: dict) -> torch.dtype:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.dtype):
            return value
        if isinstance(value, Tensor):
            return value.dtype
    return input.dtype


def cast(input: RandomTensor, dtype: torch.dtype, device: Any = None) -> Affine:
    """Change dtype and device. Between floats, and from integers, nothing is lost."""
    if dtype.is_floating_point or dtype.is_complex:
        form = affine_of(input)
        return map_values(form, lambda t: t.to(dtype=dtype, device=device or t.device))
    if input.dtype.is_floating_point or dtype is torch.bool:
        rounded = discrete.pointwise(Tensor.to, (input, dtype), {})
        if rounded is None:
            raise NoForm(f"rounding to {dtype} is not affine")
        form = rounded
    else:
        form = affine_of(input)
    moved = map_values(form, lambda t: t.to(device=device or t.device))
    moved.dtype = dtype
    return moved


@rule("to", "type_as")
def to(input: Any, *args: Any, **kwargs: Any) -> Affine:
    """x in another dtype or on another device."""
    if not isinstance(input, RandomTensor):
        # plain.to(random): only its dtype and device are asked for
        other = next(v for v in (*args, *kwargs.values()) if isinstance(v, RandomTensor))
        return constant(input.to(dtype=other.dtype, device=other.device))
    device = kwargs.get("device")
    for value in args:
        if isinstance(value, (str, torch.device)):
            device = value
        elif isinstance(value, Tensor):
            device = value.device
    return cast(input, _target_dtype(input, args, kwargs), device)


@rule("type")
def type_(input: RandomTensor, dtype: Any, non_blocking: bool = False) -> Affine:
    """x in another dtype."""
    if not isinstance(dtype, torch.dtype):
        dtype = torch.empty(0).type(dtype).dtype
    return cast(input, dtype)


_CASTS = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "long": torch.int64,
    "int": torch.int32,
    "short": torch.int16,
    "bool": torch.bool,
    "cfloat": torch.complex64,
    "cdouble": torch.complex128,
}


@rule("Tensor.cpu")
def cpu(input: RandomTensor, **ignored: Any) -> Affine:
    """x on the CPU."""
    return cast(input, input.dtype, "cpu")


@rule("Tensor.cuda")
def cuda(input: RandomTensor, device: Any = None, **ignored: Any) -> Affine:
    """x on a GPU."""
    return cast(input, input.dtype, "cuda" if device is None else device)


def _register_casts() -> None:
    for name, dtype in _CASTS.items():

        def cast_to(input: RandomTensor, dtype: torch.dtype = dtype, **ignored: Any) -> Affine:
            return cast(input, dtype)

        rule(f"Tensor.{name}")(cast_to)


_register_casts()
