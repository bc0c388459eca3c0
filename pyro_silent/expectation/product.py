"""E of a product of powers, exponentials and functions of affine tensors, element by element.

Factors that share no latent are independent and taken apart. What is left is tilted by its exponential,
and then a polynomial (Stein's recursion), a closed form from the table, or an integral over one or two
Gaussian scalars; discrete scalars inside functions are enumerated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.expectation.enumeration import Enumerated, enumerate_discrete
from pyro_silent.expectation.functions import CLOSED, NUMERIC
from pyro_silent.expectation.gaussian_moments import Moments, product_moment, source_keys
from pyro_silent.expectation.kinks import MOST_BREAKS, breaks_of, check_integrable, integrate_pieces
from pyro_silent.expectation.method import note
from pyro_silent.expectation.quadrature import integrate
from pyro_silent.expectation.settings import current_points
from pyro_silent.expectation.tilting import Tilted
from pyro_silent.random_tensor.affine import Affine, NoForm, pad_terms
from pyro_silent.random_tensor.pointwise import (
    Function,
    NotPointwise,
    Product,
    Sum,
    affine_tensor,
    collapsed,
)
from pyro_silent.random_tensor.rounding import STEPS, snapped
from pyro_silent.random_tensor.shapes import broadcast_shapes
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of


class Part:
    """Factors of one product that depend on each other."""

    def __init__(self) -> None:
        self.powers: list[RandomTensor] = []
        self.exponent: RandomTensor | None = None
        self.functions: list[Function] = []

    def atoms(self) -> list[RandomTensor]:
        """The affine tensors in the part, each once."""
        found = {id(power): power for power in self.powers}
        if self.exponent is not None:
            found[id(self.exponent)] = self.exponent
        for function in self.functions:
            found.update((id(atom), atom) for atom in function.atoms())
        return list(found.values())


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
    result: Any = product.coefficient
    for part in _independent_parts(product):
        value = _expected_part(part)
        result = value if isinstance(result, (int, float)) and result == 1 else result * value
    if product.reduced:
        count = len(product.reduced)
        if not isinstance(result, Tensor):
            result = torch.as_tensor(result)
        shape = broadcast_shapes(product.reduced + (1,) * num_dims, result.shape)
        result = result.expand(shape).sum(list(range(count)))
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
        value = _integral(part, moments)
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
    given = Product(
        1.0,
        tuple(replaced[id(power)] for power in part.powers),
        None if part.exponent is None else replaced[id(part.exponent)],
        tuple(
            _given(function.map(lambda t: replaced.get(id(t), t))) for function in part.functions
        ),
    )
    plain, rest = _plain_factors(given)
    value = joint.weights * plain
    if not rest.is_constant:
        value = value * expected_product(rest, num_dims + 1)
    return value.sum(0)


def _given(function: Function) -> Function:
    """A function whose arguments may have become plain, or affine."""
    args = [_argument(arg) if isinstance(arg, Sum) else arg for arg in function.args]
    return Function(function.function, args, function.kwargs)


def _argument(form: Sum) -> Any:
    if not any(isinstance(atom, RandomTensor) for atom in form.atoms()):
        return _evaluated(form)
    products = []
    for product in form.products:
        plain, rest = _plain_factors(product)
        functions = tuple(_given(function) for function in rest.functions)
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


def _plain_factors(product: Product) -> tuple[Any, Product]:
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


def _root(tensor: RandomTensor) -> RandomTensor:
    """The tensor that one is an elementwise affine function of, so that they vary together."""
    while tensor._call is not None and tensor._index is None:
        call = tensor._call
        if getattr(call.function, "__name__", "") not in _TOGETHER:
            return tensor
        random = [arg for arg in call.args if type(arg) is RandomTensor]
        if len(random) != 1 or random[0]._form is None or call.kwargs:
            return tensor
        tensor = random[0]
    return tensor


def _vary_together(a: RandomTensor, b: RandomTensor) -> bool:
    """Whether two affine tensors are known to be affine functions of one scalar per element."""
    a, b = _root(a), _root(b)
    if a is b:
        return True
    left, right = affine_of(a).terms, affine_of(b).terms
    return (
        a.dim() == b.dim()
        and len(left) == len(right)
        and all(s.matches(t) and s.coefficient is t.coefficient for s, t in zip(left, right))
    )


_TOGETHER = frozenset(
    ("add", "sub", "rsub", "mul", "div", "neg", "true_divide", "negative", "subtract", "multiply",
     "divide", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__",
     "__neg__", "expand", "broadcast_to", "expand_as", "clone", "contiguous", "positive", "__pos__")
)  # fmt: skip


def _integral(part: Part, moments: Moments) -> Tensor:
    """Functions of one or two Gaussian scalars, times a polynomial."""
    groups: list[list[RandomTensor]] = []
    for function in part.functions:
        for atom in function.atoms():
            members = next((group for group in groups if _vary_together(group[0], atom)), None)
            if members is None:
                groups.append([atom])
            elif all(atom is not member for member in members):
                members.append(atom)
    if len(groups) == 1:
        closed = _from_table(part, moments)
        if closed is not None:
            return closed
    if len(groups) > 2:
        raise NotPointwise(f"a function of {len(groups)} Gaussian scalars per element")
    return _by_nodes(part, moments, groups)


def _from_table(part: Part, moments: Moments) -> Tensor | None:
    """A single tabled function of an affine tensor."""
    if len(part.functions) != 1 or part.powers:
        return None
    (function,) = part.functions
    formula = CLOSED.get(function.function)
    if formula is None or not function.args or not isinstance(function.args[0], Sum):
        return None
    if any(isinstance(arg, Sum) for arg in function.args[1:]):
        return None
    argument = function.args[0]
    if len(argument.products) != 1:
        return None
    (product,) = argument.products
    if len(product.powers) != 1 or product.exponent is not None or product.functions:
        return None
    if isinstance(product.coefficient, Tensor) or product.coefficient != 1:
        return None
    (atom,) = product.powers
    value = formula(
        moments.mean(atom), deviation(moments.variance(atom)), *function.args[1:], **function.kwargs
    )
    if value is NotImplemented:
        return None
    if function.function in NUMERIC:
        note(f"quadrature({current_points()})")
    return value


def deviation(variance: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)


def _ratio(numerator: Tensor | None, denominator: Tensor) -> Tensor | None:
    """Cov(a, r) / sd(r), 0 where r does not vary."""
    if numerator is None:
        return None
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), 0.0)


def _by_nodes(part: Part, moments: Moments, groups: Sequence[list[RandomTensor]]) -> Tensor:
    """The integral of functions times a polynomial over one or two standard normal axes."""
    num_dims = max(
        [atom.dim() for atom in part.atoms()] + [function.num_dims for function in part.functions]
    )
    plane = Axes(moments, [group[0] for group in groups])
    inside: list[RandomTensor] = []
    outside: list[RandomTensor] = []
    for power in part.powers:
        known = any(_vary_together(group[0], power) for group in groups)
        (inside if known else outside).append(power)

    def at(axes: Sequence[Tensor]) -> Tensor:
        values: dict[int, Tensor] = {}

        def lookup(atom: RandomTensor) -> Tensor:
            if id(atom) not in values:
                values[id(atom)] = plane.given(atom, axes)
            return values[id(atom)]

        result: Any = None
        for function in part.functions:
            value = function.evaluate(lookup)
            result = value if result is None else result * value
        for power in inside:
            result = result * lookup(power)
        if outside:
            # Given the axes the others are Gaussian still, with smaller covariances.
            result = result * product_moment(
                [lookup(power) for power in outside],
                lambda i, j: plane.remaining(outside[i], outside[j]),
            )
        return result.to(axes[0].dtype)

    check_integrable(part.functions)
    breaks = breaks_of(part.functions)
    if breaks and (len(groups) > 1 or len(breaks) > MOST_BREAKS):
        raise NotPointwise("a function with kinks of more than one Gaussian scalar")
    if breaks:
        places = [plane.place(atom, threshold) for atom, threshold in breaks]
        return integrate_pieces(at, places, num_dims)
    like = moments.mean(groups[0][0])
    return integrate(at, len(groups), like, num_dims, current_points())


class Axes:
    """One or two Gaussian scalars as functions of as many standard normal ones, by Cholesky's rows.

    :param scalars: the scalars; everything else is regressed on them.
    """

    def __init__(self, moments: Moments, scalars: Sequence[RandomTensor]) -> None:
        self.moments = moments
        self.scalars = scalars
        self.std = deviation(moments.variance(scalars[0]))
        self.shared: Tensor | None = None
        self.own: Tensor | None = None
        if len(scalars) == 2:
            self.shared = _ratio(moments.covariance(scalars[0], scalars[1]), self.std)
            variance = moments.variance(scalars[1])
            left = variance
            if self.shared is not None:
                # A full correlation is taken for one just below: gradients stay finite.
                least = torch.finfo(variance.dtype).eps ** 0.75 * variance
                left = torch.maximum(variance - self.shared.square(), least)
            self.own = deviation(left)
        self._loadings: dict[int, list[Tensor | None]] = {}

    def loadings(self, atom: RandomTensor) -> list[Tensor | None]:
        """How an affine tensor hangs on each axis: Cov(atom, axis); None where it does not."""
        if id(atom) not in self._loadings:
            self._loadings[id(atom)] = self._regress(atom)
        return self._loadings[id(atom)]

    def _regress(self, atom: RandomTensor) -> list[Tensor | None]:
        first = self.scalars[0]
        if len(self.scalars) == 1:
            along = self.std if atom is first else self.moments.covariance(atom, first)
            return [along if atom is first else _ratio(along, self.std)]
        if atom is first:
            return [self.std, None]
        if atom is self.scalars[1]:
            return [self.shared, self.own]
        along = _ratio(self.moments.covariance(atom, first), self.std)
        across = self.moments.covariance(atom, self.scalars[1])
        if along is not None and self.shared is not None:
            explained = along * self.shared
            across = -explained if across is None else across - explained
        assert self.own is not None  # there are two scalars
        return [along, _ratio(across, self.own)]

    def given(self, atom: RandomTensor, axes: Sequence[Tensor]) -> Tensor:
        """E[atom | axes]."""
        value = self.moments.mean(atom)
        for axis, loading in zip(axes, self.loadings(atom)):
            if loading is not None:
                value = value + loading * axis
        return value

    def place(self, atom: RandomTensor, threshold: Any) -> Tensor:
        """Where on the one axis an affine tensor crosses a threshold."""
        (loading,) = self.loadings(atom)
        distance = threshold - self.moments.mean(atom)
        if loading is None:
            return distance.sign() * torch.inf
        known = loading != 0
        place = distance / torch.where(known, loading, 1.0)
        return torch.where(known, place, distance.sign() * 1e3)

    def remaining(self, a: RandomTensor, b: RandomTensor) -> Tensor | None:
        """Cov(a, b | axes)."""
        total = self.moments.covariance(a, b)
        for left, right in zip(self.loadings(a), self.loadings(b)):
            if left is not None and right is not None:
                total = -left * right if total is None else total - left * right
        return total


def closed(form: Sum) -> Tensor:
    """E of a pointwise form; a combination no rule covers is NotPointwise.

    :raises NotPointwise: naming what is missing.
    """
    try:
        return expected_sum(form)
    except NoForm as reason:
        raise NotPointwise(str(reason)) from None
