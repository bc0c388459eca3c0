"""Expectations of functions with kinks or jumps at known places: each smooth piece is integrated alone.

Where ``relu(x)``, ``x > t`` or ``clamp(x)`` stands inside a larger function of one Gaussian scalar,
equally spaced nodes converge slowly. In units of the standard deviation the break is at
``(t - mean) / std``; Gauss-Legendre nodes on both sides of it see smooth functions only.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_silent.constants import constant
from pyro_silent.errors import QuadratureWarning
from pyro_silent.expectation.method import note
from pyro_silent.looking import Decision
from pyro_silent.random_tensor.pointwise import Function, NotPointwise, Sum
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.tensor import RandomTensor

BREAKS: dict[Callable, Callable[..., tuple]] = {}
"""torch function -> where it breaks, from its plain arguments."""

_REACH = 9.0
_POINTS = 32
_MOST_POINTS = 512
MOST_BREAKS = 6


def _breaks(*names: str) -> Callable[[Callable[..., tuple]], Callable[..., tuple]]:
    def decorate(places: Callable[..., tuple]) -> Callable[..., tuple]:
        for function in functions(*names):
            BREAKS[function] = places
        return places

    return decorate


@_breaks(
    "abs", "absolute", "__abs__", "relu", "elu", "celu", "selu", "leaky_relu", "sign", "sgn", "softsign",
    "heaviside",
)  # fmt: skip
def _at_zero(*args: Any, **kwargs: Any) -> tuple:
    return (0.0,)


@_breaks("relu6")
def _at_zero_and_six(*args: Any, **kwargs: Any) -> tuple:
    return (0.0, 6.0)


@_breaks("hardsigmoid", "hardswish")
def _at_three(*args: Any, **kwargs: Any) -> tuple:
    return (-3.0, 3.0)


@_breaks("hardtanh")
def _hardtanh(min_val: float = -1.0, max_val: float = 1.0, **kwargs: Any) -> tuple:
    return (min_val, max_val)


@_breaks("softshrink", "hardshrink")
def _shrink(lambd: float = 0.5) -> tuple:
    return (-lambd, lambd)


@_breaks("threshold")
def _threshold(threshold: float, value: float) -> tuple:
    return (threshold,)


@_breaks("clamp", "clip")
def _clamp(min: Any = None, max: Any = None) -> tuple:
    return tuple(limit for limit in (min, max) if limit is not None)


@_breaks(
    "clamp_min", "clamp_max", "gt", "ge", "lt", "le", "__gt__", "__ge__", "__lt__", "__le__", "greater",
    "greater_equal", "less", "less_equal", "maximum", "minimum", "fmax", "fmin", "max", "min",
)  # fmt: skip
def _at_other(other: Any) -> tuple:
    return (other,)


_JUMPS = frozenset(
    functions(
        "round", "floor", "ceil", "trunc", "fix", "frac", "fmod", "remainder", "__mod__", "floor_divide",
        "__floordiv__", "int", "long", "short", "bool", "eq", "ne", "__eq__", "__ne__", "not_equal",
        "sign", "sgn", "heaviside", "threshold", "hardshrink", "gt", "ge", "lt", "le", "__gt__", "__ge__",
        "__lt__", "__le__", "greater", "greater_equal", "less", "less_equal",
    )
)  # fmt: skip
_RECIPROCAL = frozenset(functions("reciprocal"))
_POWER = frozenset(functions("pow", "__pow__", "float_power"))


def check_integrable(parts: Sequence[Function]) -> None:
    """Refuse functions of a Gaussian that no sum over nodes stands for.

    A jump at an unknown place costs the sum its gradient; a pole on the line leaves no expectation.

    :raises NotPointwise: naming the function.
    """
    for function in _walk(parts):
        if function.function in _JUMPS and not _places(function):
            name = getattr(function.function, "__name__", "it")
            raise NotPointwise(f"{name} jumps where a Gaussian scalar may be")
    for function in parts:
        if isinstance(function.args[0], Sum) and _has_pole(function):
            if _only_atom(function.args[0]) is not None:
                raise NotPointwise("1 / x of a Gaussian x has no expectation: x may be next to 0")


def _has_pole(function: Function) -> bool:
    if function.function in _RECIPROCAL:
        return True
    exponent = function.args[1] if len(function.args) > 1 else function.kwargs.get("exponent")
    return function.function in _POWER and isinstance(exponent, (int, float)) and exponent <= -1


def breaks_of(parts: Sequence[Function]) -> list[tuple[RandomTensor, Any]]:
    """The affine tensors at which functions break, each with its threshold."""
    found: list[tuple[RandomTensor, Any]] = []
    for function in _walk(parts):
        found += _places(function)
    return found


def _places(function: Function) -> list[tuple[RandomTensor, Any]]:
    """The one affine tensor a function breaks at, with each threshold."""
    places = BREAKS.get(function.function)
    if places is None or not isinstance(function.args[0], Sum):
        return []
    if any(isinstance(arg, Sum) for arg in function.args[1:]):
        return []
    atom = _only_atom(function.args[0])
    if atom is None:
        return []
    return [(atom, place) for place in places(*function.args[1:], **function.kwargs)]


def _walk(parts: Sequence[Function]) -> Iterator[Function]:
    for function in parts:
        yield function
        for arg in function.args:
            if isinstance(arg, Sum):
                for product in arg.products:
                    yield from _walk(product.functions)


def _only_atom(form: Sum) -> RandomTensor | None:
    if len(form.products) != 1:
        return None
    (product,) = form.products
    plain = not isinstance(product.coefficient, Tensor) and product.coefficient == 1
    if plain and len(product.powers) == 1 and product.is_linear:
        return product.powers[0]
    return None


def integrate_pieces(
    at: Callable[[Sequence[Tensor]], Tensor], breaks: Sequence[Tensor], num_dims: int
) -> Tensor:
    """``E[at(e)]``, e ~ N(0, 1), for a function that is smooth between ``breaks``.

    :param at: maps ``[nodes]`` of shape ``[n, *shape]`` to values of that leading size.
    :param breaks: in units of the standard deviation, each of ``num_dims`` dims or fewer.
    """
    edges = torch.stack(torch.broadcast_tensors(*breaks)).clamp(-_REACH, _REACH)
    if len(breaks) > 1:
        edges = edges.sort(0).values
    end = torch.full_like(edges[:1], _REACH)
    edges = torch.cat((-end, edges, end))
    edges = edges.reshape(edges.shape[:1] + (1,) * (num_dims - edges.dim() + 1) + edges.shape[1:])
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    before: Tensor | None = None
    points = _POINTS
    decision = Decision("points", half)
    if not decision.looks:
        points = decision.answer or points
    while True:
        total = _sum_pieces(at, middle, half, points, num_dims)
        if not decision.looks:
            break
        if before is not None:
            error = float(_relative(total, before))
            exact = 1e-9 if total.dtype == torch.float64 else 2e-6
            if error <= exact or 2 * points > _MOST_POINTS:
                if not error <= 1e3 * exact:
                    warnings.warn(
                        f"an expectation found by quadrature with {points} nodes for each of "
                        f"{len(half)} pieces has a relative error of about {error:.0e}.",
                        QuadratureWarning,
                        stacklevel=2,
                    )
                decision.keep(points)
                break
        before, points = total.detach(), 2 * points
    note(f"quadrature({points * len(half)})")
    return total


def _relative(value: Tensor, before: Tensor) -> Tensor:
    if value.numel() == 0:
        return value.new_zeros(())
    value = value.detach()
    scale = torch.maximum(value.abs(), 1e-3 * value.abs().mean() + 1e-30)
    return ((value - before).abs() / scale).max()


def _sum_pieces(
    at: Callable[[Sequence[Tensor]], Tensor],
    middle: Tensor,
    half: Tensor,
    points: int,
    num_dims: int,
) -> Tensor:
    nodes, weights = (
        constant(half, _legendre, points, i).reshape((-1, 1) + (1,) * num_dims) for i in range(2)
    )
    places = (middle + half * nodes).flatten(0, 1)
    density = (-0.5 * places.square()).exp() / math.sqrt(2 * math.pi)
    mass = (half * weights).flatten(0, 1) * density
    return (at([places]) * mass).sum(0)


@lru_cache(maxsize=16)
def _legendre(points: int, which: int) -> np.ndarray:
    """Nodes (0) or weights (1)."""
    return np.polynomial.legendre.leggauss(points)[which]


__all__ = ["breaks_of", "check_integrable", "integrate_pieces"]
