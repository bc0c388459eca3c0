"""Readings of masks and limits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor.algebra import collapsed, plus
from pyro_silent.random_tensor.pointwise import NotPointwise, Product, Sum
from pyro_silent.random_tensor.readings.arithmetic import sigmoid_argument
from pyro_silent.random_tensor.readings.table import as_sum, function_of, reading
from pyro_silent.random_tensor.shapes import broadcast_shapes


@reading("abs", "absolute", "__abs__")
def absolute(input: Sum) -> Sum:
    """|c exp(b)| = |c| exp(b)."""
    if len(input.products) == 1 and input.products[0].is_exponential and not input.is_reduced:
        (product,) = input.products
        size: Any = abs(product.coefficient)
        return Sum([Product(size, (), product.exponent)], input.shape)
    return function_of(torch.abs, input)


@reading("clamp", "clip")
def clamp(input: Sum, min: Any = None, max: Any = None) -> Sum:
    """A probability that is clamped to the numbers next to 0 and 1, as transforms write it, is itself."""
    (product, *others) = input.products
    if not others and not isinstance(min, (Tensor, Sum)) and not isinstance(max, (Tensor, Sum)):
        if sigmoid_argument(product, 1.0) is not None:
            dtype = next(product.atoms()).dtype
            limits = torch.finfo(dtype)
            low_enough = min is None or min <= limits.tiny
            if low_enough and (max is None or max >= 1.0 - limits.eps):
                return input
    return function_of(torch.clamp, input, min, max)


def _where(condition: Any, input: Any, other: Any) -> Sum:
    """A plain mask multiplies, and drops what it hides; a random one is a function like any other."""
    if isinstance(condition, Sum):
        return function_of(torch.where, condition, input, other)
    a, b = as_sum(input), as_sum(other)
    # case by case both may be plain: the rows of a table
    parts = [
        part for form in (a, b) for part in (*form.atoms(), *(p.coefficient for p in form.products))
    ]
    dtypes = [part.dtype for part in parts if isinstance(part, Tensor)]
    dtype = dtypes[0] if dtypes else torch.get_default_dtype()
    chosen, hidden = masked(a, condition, dtype), masked(b, ~condition, dtype)
    return collapsed(plus(chosen, hidden))


def masked(form: Sum, mask: Tensor, dtype: torch.dtype) -> Sum:
    """The form where the mask is True, 0 elsewhere. Atoms are hidden too: nothing there may overflow."""
    shape = broadcast_shapes(form.shape, mask.shape)
    products = []
    for product in form.products:
        if product.reduced:
            raise NotPointwise("a mask over a sum")
        coefficient = product.coefficient
        if isinstance(coefficient, Tensor):
            coefficient = torch.where(mask, coefficient, torch.zeros_like(coefficient))
        else:
            coefficient = mask.to(dtype) * coefficient
        exponent = product.exponent
        if exponent is not None:
            exponent = torch.where(mask, exponent, torch.zeros_like(exponent))
        products.append(Product(coefficient, product.powers, exponent, product.functions))
    return Sum(products, shape)


@reading("torch.where")
def where(condition: Any, input: Any, other: Any) -> Sum:
    """Choose between two."""
    return _where(condition, input, other)


@reading("Tensor.where")
def where_method(input: Any, condition: Any, other: Any) -> Sum:
    """Choose between two."""
    return _where(condition, input, other)


@reading("masked_fill")
def masked_fill(input: Any, mask: Any, value: Any) -> Sum:
    """A value where the mask is True."""
    if isinstance(mask, Sum):
        return function_of(torch.where, mask, value, input)
    return _where(~mask, input, torch.as_tensor(value))
