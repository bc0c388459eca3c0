"""E of a product of powers, exponentials and functions of affine tensors, element by element.

Factors that share no latent are independent and taken apart. What is left is tilted by its exponential,
and then a polynomial (Stein's recursion), a closed form from the table, or an integral over one or two
Gaussian scalars; discrete scalars inside functions are enumerated.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.expectation.conditioning import given, plain_factors
from pyro_silent.expectation.enumeration import Enumerated, enumerate_discrete
from pyro_silent.expectation.gaussian_moments import Moments, product_moment, source_keys
from pyro_silent.expectation.integral import integral
from pyro_silent.expectation.method import note
from pyro_silent.expectation.part import Part
from pyro_silent.expectation.tilting import Tilted
from pyro_silent.random_tensor.affine import Affine, pad_terms
from pyro_silent.random_tensor.contraction import summed_product
from pyro_silent.random_tensor.pointwise import Product, Sum
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of


def expected_sum(form: Sum) -> Tensor:
    """E of a pointwise form, on its shape."""
    total: Any = None
    for product in form.products:
        value = expected_product(product, len(form.shape))
        total = value if total is None else total + value
    if not isinstance(total, Tensor):
        total = torch.as_tensor(0.0 if total is None else total)
    return total.expand(form.shape) if total.shape != form.shape else total


def expected_product(product: Product, num_dims: int) -> Tensor | float:
    """E of one product on y's ``num_dims`` dims, summed over its reduced dims."""
    values = [_expected_part(part) for part in _independent_parts(product)]
    coefficient = product.coefficient
    if product.reduced:
        factors = [factor for factor in (coefficient, *values) if isinstance(factor, Tensor)]
        dtype = torch.get_default_dtype()
        if factors:
            dtype = functools.reduce(torch.promote_types, (factor.dtype for factor in factors))
        if not isinstance(coefficient, Tensor) and (coefficient != 1 or not factors):
            factors.append(torch.tensor(coefficient, dtype=dtype))
        factors = [factor.to(dtype) for factor in factors]
        return summed_product(factors, product.reduced, num_dims)
    result: Any = coefficient
    for value in values:
        result = value if isinstance(result, (int, float)) and result == 1 else result * value
    return result


def _independent_parts(product: Product) -> list[Part]:
    items: list[tuple[str, Any, set[int]]] = []
    for power in product.powers:
        items.append(("power", power, source_keys(affine_of(power))))
    if product.exponent is not None:
        items.append(("exponent", product.exponent, source_keys(affine_of(product.exponent))))
    for function in product.functions:
        keys: set[int] = set()
        for atom in function.atoms():
            keys |= source_keys(affine_of(atom))
        items.append(("function", function, keys))
    groups: list[tuple[set[int], list[tuple[str, Any, set[int]]]]] = []
    for item in items:
        keys, members = set(item[2]), [item]
        rest = []
        for group in groups:
            if group[0].isdisjoint(keys):
                rest.append(group)
            else:
                keys |= group[0]
                members = group[1] + members
        groups = [*rest, (keys, members)]
    parts = []
    for _, members in groups:
        part = Part()
        for kind, item, _ in members:
            if kind == "power":
                part.powers.append(item)
            elif kind == "exponent":
                part.exponent = item
            else:
                part.functions.append(item)
        parts.append(part)
    return parts


def _expected_part(part: Part) -> Tensor:
    if len(part.powers) == 1 and part.exponent is None and not part.functions:
        return affine_of(part.powers[0]).offset
    atoms = part.atoms()
    forms = [affine_of(atom) for atom in atoms]
    discrete = any(term.source.is_discrete for form in forms for term in form.terms)
    if discrete:
        if not part.functions and len(part.powers) <= 2:
            return _tilted_discrete(part)
        return _enumerated(part, atoms)
    moments = Moments(atoms)
    log_mean = None
    if part.exponent is not None:
        log_mean = moments.mean(part.exponent) + 0.5 * moments.variance(part.exponent)
        for atom in atoms:  # the exponent too: it may be a factor as well
            moments.shift(atom, moments.covariance(atom, part.exponent))
    value: Any
    if part.functions:
        value = integral(part, moments)
    else:
        means = [moments.mean(power) for power in part.powers]
        value = product_moment(
            means, lambda i, j: moments.covariance(part.powers[i], part.powers[j])
        )
    if log_mean is None:
        return value
    return log_mean.exp() if isinstance(value, float) else log_mean.exp() * value


def _tilted_discrete(part: Part) -> Tensor:
    """At most two affine factors and an exponential, of any sources: two moments are enough."""
    forms = [affine_of(power) for power in part.powers]
    if part.exponent is None:
        moments = Moments(part.powers)
        return product_moment(  # type: ignore[return-value]
            [moments.mean(power) for power in part.powers],
            lambda i, j: moments.covariance(part.powers[i], part.powers[j]),
        )
    exponent = affine_of(part.exponent)
    num_dims = max([exponent.offset.dim(), *(form.offset.dim() for form in forms)])
    law = Tilted(_padded(exponent, num_dims), num_dims)
    forms = [_padded(form, num_dims) for form in forms]
    value = law.log_mean.exp()
    if len(forms) == 1:
        return value * law.mean(forms[0])
    if len(forms) == 2:
        a, b = forms
        return value * (law.mean(a) * law.mean(b) + law.covariance(a, b))
    return value


def _padded(form: Affine, num_dims: int) -> Affine:
    offset = form.offset
    offset = offset.reshape((1,) * (num_dims - offset.dim()) + offset.shape)
    return Affine(offset, pad_terms(form, num_dims))


def _enumerated(part: Part, atoms: Sequence[RandomTensor]) -> Tensor:
    """Discrete scalars take all their joint values; what is Gaussian is expected given each."""
    num_dims = max([atom.dim() for atom in atoms] + [f.num_dims for f in part.functions])
    joint: Enumerated = enumerate_discrete(atoms, num_dims)
    note("enumerated")
    replaced = joint.given
    conditional = Product(
        1.0,
        tuple(replaced[id(power)] for power in part.powers),
        None if part.exponent is None else replaced[id(part.exponent)],
        tuple(given(function.map(lambda t: replaced.get(id(t), t))) for function in part.functions),
    )
    plain, rest = plain_factors(conditional)
    value = joint.weights * plain
    if not rest.is_constant:
        value = value * expected_product(rest, num_dims + 1)
    return value.sum(0)
