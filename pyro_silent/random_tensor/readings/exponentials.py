"""Readings of powers, exponentials and logarithms, with the rewrites torch's formulas need."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.random_tensor.affine import Affine, NoForm
from pyro_silent.random_tensor.algebra import affine_tensor, collapsed, multiply, plus, times_plain
from pyro_silent.random_tensor.pointwise import NotPointwise, Product, Sum, atom, constant
from pyro_silent.random_tensor.program import RULES
from pyro_silent.random_tensor.readings.table import (
    as_sum,
    function_of,
    function_of_sums,
    read,
    reading,
)
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of


@reading("reciprocal")
def reciprocal(input: Sum) -> Sum:
    """1 / x."""
    return power(input, -1.0)


@reading("square")
def square(input: Sum) -> Sum:
    """x * x."""
    return multiply(input, input)


@reading("sqrt")
def sqrt(input: Sum) -> Sum:
    """x ** 0.5."""
    return power(input, 0.5)


@reading("rsqrt")
def rsqrt(input: Sum) -> Sum:
    """x ** -0.5."""
    return power(input, -0.5)


_MAX_POWER = 6


@reading("pow", "__pow__", "float_power")
def power(input: Any, exponent: Any) -> Sum:
    """x ** p: multiplied out for small whole p; exp(p b) for exp(b); p may be plain of any shape."""
    if isinstance(exponent, Sum):
        base = as_sum(input)
        if base.is_constant and len(base.products) == 1:
            return exp(times_plain(exponent, _log(base.products[0].coefficient)))
        return exp(multiply(exponent, log(base)))
    input = as_sum(input)
    number = exponent
    if isinstance(number, Tensor) and number.dim() == 0 and not number.requires_grad:
        if number.device.type == "cpu":
            number = number.item()
    if isinstance(number, (int, float)):
        if number == 0:
            return Sum([Product(1.0)], input.shape)
        if number == 1:
            return input
        if number == int(number) and 2 <= number <= _MAX_POWER:
            result = input
            for _ in range(int(number) - 1):
                result = multiply(result, input)
            return result
    if len(input.products) != 1 or input.is_reduced:
        return function_of(torch.pow, input, number)
    (product,) = input.products
    if product.is_constant:
        return constant(_power(product.coefficient, number))
    square = len(product.powers) == 2 and product.powers[0] is product.powers[1]
    if square and _is_number(number, 0.5):
        rest = Product(product.coefficient, (), product.exponent, product.functions)
        root = power(Sum([rest], input.shape), 0.5)
        return multiply(function_of(torch.abs, atom(product.powers[0])), root)
    if product.exponent is None:
        if _is_number(number, -1.0) and len(product.powers) + len(product.functions) == 1:
            inverse = function_of(torch.reciprocal, Sum([_bare(product)], input.shape))
            return times_plain(inverse, _power(product.coefficient, -1.0))
        return function_of(torch.pow, input, number)
    exponential = exp(times_plain(atom(product.exponent), number))
    if product.is_exponential:
        return multiply(constant(_power(product.coefficient, number)), exponential)
    rest = Product(product.coefficient, product.powers, None, product.functions)
    return multiply(power(Sum([rest], input.shape), number), exponential)


@reading("__rpow__")
def rpow(input: Any, base: Any) -> Sum:
    """base ** x = exp(x log base)."""
    return power(base, input)


def _bare(product: Product) -> Product:
    return Product(1.0, product.powers, product.exponent, product.functions, product.reduced)


def _is_number(value: Any, number: float) -> bool:
    return not isinstance(value, Tensor) and value == number


# As torch has them, also of numbers: NaN for roots and logarithms of negative ones.


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, Tensor) or isinstance(exponent, Tensor):
        return base**exponent
    with np.errstate(all="ignore"):
        return float(np.float64(base) ** exponent)


def _log(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.log()
    return math.log(value) if value > 0 else math.nan if value else -math.inf


@reading("exp")
def exp(input: Sum) -> Sum:
    """An exponential of something affine is kept as such; logarithms added to it become factors."""
    input = collapsed(as_sum(input))
    linear = Sum([p for p in input.products if p.is_linear and not p.reduced], input.shape)
    if not linear.products or input.is_reduced:
        return function_of(torch.exp, input)
    exponent: Any = affine_tensor(linear)
    if isinstance(exponent, RandomTensor):
        factor = Sum([Product(1.0, (), exponent)], input.shape)
    else:
        factor = constant(exponent.exp() if isinstance(exponent, Tensor) else math.exp(exponent))
    rest = [p for p in input.products if not p.is_linear]
    for product in rest:
        factor = multiply(factor, _exp_of_product(Sum([product], input.shape)))
    return factor


def _exp_of_product(form: Sum) -> Sum:
    (product,) = form.products
    plain = isinstance(product.coefficient, (int, float)) and product.coefficient in (1, -1)
    if plain and len(product.functions) == 1 and not product.powers and product.exponent is None:
        (function,) = product.functions
        if function.function is torch.log:
            return power(function.args[0], product.coefficient)
    return function_of(torch.exp, form)


@reading("log")
def log(input: Sum) -> Sum:
    """Of a product the sum of its logarithms: ``log c + log f + b``."""
    input = as_sum(input)
    if len(input.products) != 1 or input.is_reduced:
        return function_of(torch.log, input)
    (product,) = input.products
    if product.is_constant:
        return constant(_log(product.coefficient))
    if product.exponent is None:
        return _log_of_function(product, input)
    result = atom(product.exponent)
    if product.is_exponential:
        if isinstance(product.coefficient, Tensor) or product.coefficient != 1:
            result = plus(result, constant(_log(product.coefficient)))
    else:
        rest = Product(product.coefficient, product.powers, None, product.functions)
        result = plus(result, log(Sum([rest], input.shape)))
    return collapsed(Sum(result.products, input.shape))


_LOG_OF: dict[Callable, Callable] = {}


def _log_of_function(product: Product, form: Sum) -> Sum:
    """log of a function whose logarithm torch has as a function of its own, which cannot underflow."""
    one = not isinstance(product.coefficient, Tensor) and product.coefficient == 1
    if one and len(product.functions) == 1 and not product.powers:
        (function,) = product.functions
        stable = _LOG_OF.get(function.function)
        if stable is not None:
            return function_of_sums(stable, function.args, {}, form.shape)
    return function_of(torch.log, form)


def _register_logs() -> None:
    for names, stable in (
        (("sigmoid", "special.expit"), F.logsigmoid),
        (("special.ndtr",), torch.special.log_ndtr),
    ):
        for function in functions(*names):
            _LOG_OF[function] = stable


_register_logs()


@reading("log2")
def log2(input: Sum) -> Sum:
    """log(x) / log 2."""
    return times_plain(log(input), 1.0 / math.log(2.0))


@reading("log10")
def log10(input: Sum) -> Sum:
    """log(x) / log 10."""
    return times_plain(log(input), 1.0 / math.log(10.0))


@reading("exp2")
def exp2(input: Sum) -> Sum:
    """exp(x log 2)."""
    return exp(times_plain(as_sum(input), math.log(2.0)))


@reading("expm1")
def expm1(input: Sum) -> Sum:
    """exp(x) - 1."""
    if affine_tensor(as_sum(input)) is None:
        return function_of(torch.expm1, input)
    return plus(exp(input), constant(-1.0))


@reading("log1p")
def log1p(input: Sum) -> Sum:
    """log(1 + exp(b)) is softplus(b), which does not overflow."""
    if len(input.products) == 1 and not input.is_reduced:
        (product,) = input.products
        coefficient = product.coefficient
        if product.is_exponential and not isinstance(coefficient, Tensor) and coefficient > 0:
            shifted = plus(atom(product.exponent), constant(math.log(coefficient)))
            return function_of(F.softplus, Sum(collapsed(shifted).products, input.shape))
    return function_of(torch.log1p, input)


@reading("xlogy", "special.xlogy")
def xlogy(input: Any, other: Any) -> Sum:
    """x log(y); a random y is positive almost surely."""
    if not isinstance(other, Sum):
        if isinstance(other, Tensor):
            return function_of(torch.xlogy, input, other)
        return times_plain(as_sum(input), math.log(other) if other > 0 else math.nan)
    return multiply(as_sum(input), log(other))


def _log_rules() -> None:
    """A logarithm that undoes an exponential is affine again, for all that follows."""
    for name, of_sum in (("log", log), ("log2", log2), ("log10", log10)):
        for function in functions(name):

            def affine_log(
                input: RandomTensor,
                usual: Callable = RULES[function],
                of_sum: Callable[[Sum], Sum] = of_sum,
            ) -> Affine:
                if input._form is not None:
                    return usual(input)
                try:
                    tensor = affine_tensor(of_sum(read(input)))
                except NotPointwise as reason:
                    raise NoForm(str(reason)) from None
                if not isinstance(tensor, RandomTensor):
                    raise NoForm("")
                return affine_of(tensor.expand(input.shape))

            RULES[function] = affine_log


_log_rules()
