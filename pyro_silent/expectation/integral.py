"""Functions of one or two Gaussian scalars, times a polynomial: from the table, or by quadrature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.expectation.functions import CLOSED, NUMERIC
from pyro_silent.expectation.gaussian_moments import Moments, product_moment
from pyro_silent.expectation.kinks import MOST_BREAKS, breaks_of, check_integrable, integrate_pieces
from pyro_silent.expectation.method import note
from pyro_silent.expectation.part import Part
from pyro_silent.expectation.quadrature import integrate
from pyro_silent.expectation.settings import current_points
from pyro_silent.random_tensor.pointwise import NotPointwise, Sum
from pyro_silent.random_tensor.shapes import broadcast_shapes
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of


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


MAX_PAIRS = 2**17
"""At how many places an integral over a grid of two scalars, of a thousand nodes and more, is taken."""


def integral(part: Part, moments: Moments) -> Tensor:
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
    if len(groups) == 2:
        size = math.prod(broadcast_shapes(*(atom.shape for group in groups for atom in group)))
        if size > MAX_PAIRS:
            raise NotPointwise(f"functions of two Gaussian scalars at more than {MAX_PAIRS} places")
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
