"""Arithmetic of pointwise forms: sums, products multiplied out, sums over dims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyro_silent.random_tensor.pointwise import (
    MAX_PRODUCTS,
    NotPointwise,
    Product,
    Sum,
    inserted,
    is_one,
    moved_sum,
    once,
)
from pyro_silent.random_tensor.shapes import broadcast_shapes
from pyro_silent.random_tensor.tensor import RandomTensor


def padded(product: Product, num_dims: int, num_new: int) -> Product:
    """The product for a y that has ``num_new`` dims more on the left."""
    if num_new == 0 or not product.reduced:
        return product
    return product.map(lambda tensor: inserted(tensor, num_dims, num_new))


def widened(form: Sum, shape: Sequence[int]) -> Sum:
    """The same sum on a larger broadcast shape."""
    num_dims, num_new = len(form.shape), len(shape) - len(form.shape)
    if num_new == 0 or not form.is_reduced:
        return Sum(form.products, shape)
    return moved_sum(form, lambda tensor: inserted(tensor, num_dims, num_new), shape)


def plus(a: Sum, b: Sum) -> Sum:
    """a + b; affine summands of equal kind are added up by :func:`collapsed`."""
    shape = broadcast_shapes(a.shape, b.shape)
    return Sum([*widened(a, shape).products, *widened(b, shape).products], shape)


def times_plain(form: Sum, factor: Tensor | float) -> Sum:
    """The sum multiplied by something plain."""
    shape = form.shape
    if isinstance(factor, Tensor):
        shape = broadcast_shapes(shape, factor.shape)
    elif factor == 0:
        return Sum([Product(0.0)], shape)
    return Sum([product.times(factor) for product in widened(form, shape).products], shape)


def multiply(a: Sum, b: Sum) -> Sum:
    """a * b, multiplied out."""
    for form, other in ((a, b), (b, a)):
        if form.is_constant and len(form.products) == 1:
            return times_plain(other, form.products[0].coefficient)
    shape = broadcast_shapes(a.shape, b.shape)
    if len(a.products) * len(b.products) > MAX_PRODUCTS:
        raise NotPointwise(f"it multiplies out to more than {MAX_PRODUCTS} products")
    a, b = widened(a, shape), widened(b, shape)
    return Sum([_product(p, q, len(shape)) for p in a.products for q in b.products], shape)


MAX_DEGREE = 8
MAX_REDUCED = 10**6
MAX_ELEMENTS = 2**24
"""How many factors one product may have, how many pairs it may sum, how large its coefficient may be."""


def _product(p: Product, q: Product, num_dims: int) -> Product:
    if len(p.powers) + len(q.powers) > MAX_DEGREE:
        raise NotPointwise(f"a polynomial of a degree above {MAX_DEGREE}")
    if math.prod(p.reduced) * math.prod(q.reduced) > MAX_REDUCED:
        raise NotPointwise(f"a product of sums of more than {MAX_REDUCED} pairs")
    # p's reduced dims go to the left of q's
    p = padded(p, num_dims, len(q.reduced))
    shapes = [c.shape for c in (p.coefficient, q.coefficient) if isinstance(c, Tensor)]
    if p.reduced and q.reduced and math.prod(broadcast_shapes(*shapes, ())) > MAX_ELEMENTS:
        raise NotPointwise(f"a product of sums of more than {MAX_ELEMENTS} elements")
    exponent = p.exponent
    if q.exponent is not None:
        exponent = q.exponent if exponent is None else exponent + q.exponent
    coefficient = q.coefficient if is_one(p.coefficient) else p.coefficient
    if not is_one(p.coefficient) and not is_one(q.coefficient):
        coefficient = p.coefficient * q.coefficient
    return Product(
        coefficient,
        p.powers + q.powers,
        exponent if isinstance(exponent, RandomTensor) else None,
        p.functions + q.functions,
        p.reduced + q.reduced,
    ).times(1.0 if exponent is None or isinstance(exponent, RandomTensor) else exponent.exp())


def collapsed(form: Sum) -> Sum:
    """Affine summands added up to one affine tensor; products of the same factors to one product."""
    form = _merged(form)
    linear = [p for p in form.products if p.is_linear and not p.reduced]
    if len(linear) < 2:
        return form
    total: Any = None
    for product in linear:
        value: Any = product.coefficient
        if product.powers:
            value = product.powers[0] if is_one(value) else value * product.powers[0]
        total = value if total is None else total + value
    rest = [p for p in form.products if not p.is_linear or p.reduced]
    merged = (
        Product(1.0, (total,)) if isinstance(total, RandomTensor) else Product(coefficient=total)
    )
    return Sum([merged, *rest], form.shape)


def _merged(form: Sum) -> Sum:
    """``a e^b + c e^b = (a + c) e^b``: what cancels must not meet as two infinities."""
    if len(form.products) < 2:
        return form
    merged: dict[tuple, Product] = {}
    for product in form.products:
        key = (
            tuple(map(id, product.powers)),
            id(product.exponent),
            tuple(map(id, product.functions)),
            product.reduced,
        )
        other = merged.get(key)
        if other is not None:
            product = Product(
                other.coefficient + product.coefficient,
                product.powers,
                product.exponent,
                product.functions,
                product.reduced,
            )
        merged[key] = product
    kept = [p for p in merged.values() if not _is_zero(p.coefficient)] or [Product(0.0)]
    return Sum(kept, form.shape) if len(kept) < len(form.products) else form


def _is_zero(value: Tensor | float) -> bool:
    return not isinstance(value, Tensor) and value == 0


def affine_tensor(form: Sum) -> Tensor | float | None:
    """The affine (or plain) tensor a sum is, or None."""
    if not form.is_linear:
        return None
    form = collapsed(form)
    if len(form.products) != 1:
        return None
    (product,) = form.products
    if not product.powers:
        return product.coefficient
    (power,) = product.powers
    return power if is_one(product.coefficient) else product.coefficient * power


def summed(form: Sum, dims: Sequence[int], keepdim: bool) -> Sum:
    """The sum over dims (negative) of y."""
    shape = form.shape
    num_dims = len(shape)
    sizes = tuple(shape[dim] for dim in dims)
    kept = [dim for dim in range(-num_dims, 0) if dim not in dims]
    order = [*dims, *kept]
    new_shape = [1 if d in dims else shape[d] for d in range(-num_dims, 0)]
    if not keepdim:
        new_shape = [shape[dim] for dim in kept]

    def move(tensor: Tensor) -> Tensor:
        for _ in range(num_dims - tensor.dim()):
            tensor = tensor.unsqueeze(0)
        num_reduced = tensor.dim() - num_dims
        tensor = tensor.permute(
            *range(num_reduced), *(num_reduced + num_dims + dim for dim in order)
        )
        if keepdim:
            for dim in sorted(d + num_dims for d in dims):
                tensor = tensor.unsqueeze(num_reduced + len(dims) + dim)
        return tensor

    moved = once(move)
    products = [product.map(moved, product.reduced + sizes) for product in form.products]
    return Sum(products, new_shape)
