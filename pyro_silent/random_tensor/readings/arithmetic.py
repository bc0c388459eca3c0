"""Readings of sums, differences, products and quotients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor.algebra import collapsed, multiply, plus, times_plain
from pyro_silent.random_tensor.pointwise import NotPointwise, Product, Sum
from pyro_silent.random_tensor.readings.exponentials import power
from pyro_silent.random_tensor.readings.table import as_sum, function_of, reading
from pyro_silent.random_tensor.rules.table import functions


@reading("add", "__add__", "__radd__")
def add(input: Any, other: Any, *, alpha: float = 1) -> Sum:
    """A sum."""
    return collapsed(plus(as_sum(input), times_plain(as_sum(other), alpha)))


@reading("sub", "subtract", "__sub__")
def sub(input: Any, other: Any, *, alpha: float = 1) -> Sum:
    """A difference."""
    return _complement(collapsed(plus(as_sum(input), times_plain(as_sum(other), -alpha))))


@reading("rsub", "__rsub__")
def rsub(input: Any, other: Any, *, alpha: float = 1) -> Sum:
    """A difference, the other way round."""
    return _complement(collapsed(plus(as_sum(other), times_plain(as_sum(input), -alpha))))


def _complement(form: Sum) -> Sum:
    """1 - sigmoid(u) is sigmoid(-u), which keeps its digits."""
    if len(form.products) != 2:
        return form
    one, product = form.products
    if not one.is_constant or isinstance(one.coefficient, Tensor) or one.coefficient != 1:
        return form
    argument = sigmoid_argument(product, -1.0)
    return form if argument is None else function_of(torch.sigmoid, times_plain(argument, -1.0))


_SIGMOID = frozenset(functions("sigmoid", "special.expit"))


def sigmoid_argument(product: Product, coefficient: float) -> Sum | None:
    """u, where a product is ``coefficient * sigmoid(u)``."""
    if isinstance(product.coefficient, Tensor) or product.coefficient != coefficient:
        return None
    if product.powers or product.exponent is not None or len(product.functions) != 1:
        return None
    (function,) = product.functions
    return function.args[0] if function.function in _SIGMOID else None


@reading("neg", "negative", "__neg__")
def neg(input: Sum) -> Sum:
    """The negative."""
    return times_plain(input, -1.0)


@reading("positive", "__pos__", "clone", "contiguous", "alias", "resolve_conj", "resolve_neg")
def identity(input: Sum, **ignored: Any) -> Sum:
    """The same."""
    return input


@reading("mul", "multiply", "__mul__", "__rmul__")
def mul(input: Any, other: Any) -> Sum:
    """A product, multiplied out."""
    return multiply(as_sum(input), as_sum(other))


@reading("div", "divide", "true_divide", "__truediv__", "__div__")
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Sum:
    """A quotient: multiplied by the reciprocal."""
    if rounding_mode is not None:
        raise NotPointwise("division is rounded")
    if not isinstance(other, Sum):
        return times_plain(input, 1.0 / other)
    return multiply(as_sum(input), power(other, -1.0))


@reading("__rdiv__", "__rtruediv__")
def rdiv(input: Sum, other: Any) -> Sum:
    """A quotient, the other way round."""
    return div(other, input)


@reading("lerp")
def lerp(input: Any, end: Any, weight: Any) -> Sum:
    """x + w (end - x)."""
    return add(input, mul(weight, sub(end, input)))


@reading("addcmul")
def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Sum:
    """x + value a b."""
    return add(input, times_plain(multiply(as_sum(tensor1), as_sum(tensor2)), value))


@reading("addcdiv")
def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Sum:
    """x + value a / b."""
    return add(input, times_plain(div(as_sum(tensor1), as_sum(tensor2)), value))
