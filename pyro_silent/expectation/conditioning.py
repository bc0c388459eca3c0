"""What is left of a product once the values of discrete latents are given."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_silent.random_tensor.algebra import affine_tensor, collapsed
from pyro_silent.random_tensor.pointwise import Function, Product, Sum
from pyro_silent.random_tensor.rounding import STEPS, snapped
from pyro_silent.random_tensor.tensor import RandomTensor


def given(function: Function) -> Function:
    """A function whose arguments may have become plain, or affine."""
    args = [_argument(arg) if isinstance(arg, Sum) else arg for arg in function.args]
    return Function(function.function, args, function.kwargs)


def _argument(form: Sum) -> Any:
    if not any(isinstance(atom, RandomTensor) for atom in form.atoms()):
        return _evaluated(form)
    products = []
    for product in form.products:
        plain, rest = plain_factors(product)
        functions = tuple(given(function) for function in rest.functions)
        products.append(Product(plain, rest.powers, rest.exponent, functions))
    form = collapsed(Sum(products, form.shape))
    linear = affine_tensor(form)
    return Sum([Product(1.0, (linear,))], form.shape) if isinstance(linear, RandomTensor) else form


def _evaluated(form: Sum) -> Any:
    total: Any = None
    for product in form.products:
        plain = product.coefficient
        for factor in (*product.powers, *(_at_levels(f) for f in product.functions)):
            one = not isinstance(plain, Tensor) and plain == 1
            plain = factor if one else plain * factor
        if product.exponent is not None:
            plain = plain * product.exponent.exp()
        total = plain if total is None else total + plain
    return total


def _at_levels(function: Function) -> Tensor:
    """A function of plain arguments: values of discrete latents, known up to rounding."""
    args = [_argument(arg) if isinstance(arg, Sum) else arg for arg in function.args]
    if function.function in STEPS:
        args = snapped(args)
    return function.function(*args, **function.kwargs)


def plain_factors(product: Product) -> tuple[Any, Product]:
    """What is plain once discrete latents are given, and the rest."""
    plain: Any = product.coefficient
    powers = []
    for power in product.powers:
        if isinstance(power, RandomTensor):
            powers.append(power)
        else:
            plain = plain * power
    exponent = product.exponent
    if exponent is not None and not isinstance(exponent, RandomTensor):
        plain, exponent = plain * exponent.exp(), None
    functions = []
    for function in product.functions:
        if any(isinstance(atom, RandomTensor) for atom in function.atoms()):
            functions.append(function)
        else:
            plain = plain * _at_levels(function)
    return plain, Product(1.0, tuple(powers), exponent, tuple(functions))
