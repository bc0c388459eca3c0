"""Which values a random tensor can take, by interval arithmetic along its program.

A density that ends at a bound has expectation -inf where the latent can pass it; torch's formula would
give NaN at best. So supports are checked against ranges before an expectation is taken.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_silent.expectation.coercion import constraints_of
from pyro_silent.expectation.terms import original
from pyro_silent.looking import Decision
from pyro_silent.random_tensor import discrete
from pyro_silent.random_tensor.affine import NoForm
from pyro_silent.random_tensor.algebra import collapsed
from pyro_silent.random_tensor.pointwise import NotPointwise
from pyro_silent.random_tensor.readings import read
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.source import Source
from pyro_silent.random_tensor.tensor import RandomTensor

Interval = tuple[Tensor, Tensor]

_RULES: dict[Callable, Callable[..., Interval]] = {}


def _everything(like: Tensor) -> Interval:
    low = torch.full((), -math.inf, dtype=_float(like), device=like.device)
    return low, -low


def _float(like: Tensor) -> torch.dtype:
    return like.dtype if like.dtype.is_floating_point else torch.get_default_dtype()


def is_gaussian(tensor: Tensor) -> bool:
    """Whether a tensor is an affine image of a Gaussian latent, and so takes every real value."""
    if not isinstance(tensor, RandomTensor) or tensor._form is None:
        return False
    return any(
        not term.source.is_discrete and not _is_point(term.source) for term in tensor._form.terms
    )


def _is_point(source: Source) -> bool:
    fn: Any = source.distribution
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def interval_of(value: Any) -> Interval:
    """Bounds of each element, perhaps not the tightest; infinite where nothing is known."""
    if not isinstance(value, RandomTensor):
        if not isinstance(value, Tensor):
            value = torch.tensor(value, device="cpu")  # a number fits everywhere
        return value, value
    value = original(value)
    if not isinstance(value, RandomTensor):
        return value, value
    if value._form is not None:
        return _of_form(value)
    known = vars(value).get("_range")
    if known is None:
        known = vars(value)["_range"] = _of_call(value)
    return known


def _of_call(tensor: RandomTensor) -> Interval:
    call = tensor._call
    rule = None if call is None else _RULES.get(call.function)
    if call is None or rule is None:
        return _everything(tensor)
    with torch.no_grad():
        try:
            return rule(*call.args, **call.kwargs)
        except (TypeError, ValueError, RuntimeError):  # an unusual signature, too long a program
            return _everything(tensor)


def _of_form(tensor: RandomTensor) -> Interval:
    if is_gaussian(tensor):
        return _everything(tensor)
    assert tensor._form is not None  # asked by the caller
    if all(not term.source.is_discrete for term in tensor._form.terms):
        return tensor._form.offset, tensor._form.offset
    try:
        found = discrete.levels(tensor)
    except NoForm:
        found = None
    if found is None:
        return _everything(tensor)
    return found.values.amin(0), found.values.amax(0)


def _register(*names: str) -> Callable[[Callable[..., Interval]], Callable[..., Interval]]:
    def decorate(rule: Callable[..., Interval]) -> Callable[..., Interval]:
        for function in functions(*names):
            _RULES[function] = rule
        return rule

    return decorate


_INCREASING = (
    "exp", "expm1", "log", "log1p", "sqrt", "sigmoid", "special.expit", "softplus", "tanh", "atan",
    "erf", "relu", "special.ndtr", "special.log_ndtr", "logsigmoid", "clamp", "clip", "clamp_min",
    "clamp_max", "elu", "celu", "leaky_relu", "hardtanh", "sinh", "asinh",
)  # fmt: skip

_MOVING = (
    "expand", "broadcast_to", "__getitem__", "unsqueeze", "squeeze", "reshape", "view", "flatten",
    "permute", "transpose", "clone", "contiguous", "select", "narrow", "index_select", "flip",
    "double", "float", "to", "sum", "mean", "cumsum", "detach",
)  # fmt: skip


def _register_monotone() -> None:
    for name in _INCREASING:
        for function in functions(name):

            def increasing(x: Any, *args: Any, function: Any = function, **kwargs: Any) -> Interval:
                low, high = interval_of(x)
                return function(low, *args, **kwargs), function(high, *args, **kwargs)

            _RULES[function] = increasing
    for name in _MOVING:
        for function in functions(name):

            def moving(x: Any, *args: Any, function: Any = function, **kwargs: Any) -> Interval:
                low, high = (end.expand(x.shape) for end in interval_of(x))
                return function(low, *args, **kwargs), function(high, *args, **kwargs)

            _RULES[function] = moving
    for function in functions("stack", "cat"):

        def joining(tensors: Any, *args: Any, function: Any = function, **kwargs: Any) -> Interval:
            ends = [(end.expand(t.shape) for end in interval_of(t)) for t in tensors]
            lows, highs = zip(*ends)
            return function(lows, *args, **kwargs), function(highs, *args, **kwargs)

        _RULES[function] = joining


_register_monotone()


@_register("neg", "negative", "__neg__")
def _neg(x: Any) -> Interval:
    low, high = interval_of(x)
    return -high, -low


@_register("add", "__add__", "__radd__")
def _add(x: Any, y: Any) -> Interval:
    (a, b), (c, d) = interval_of(x), interval_of(y)
    return a + c, b + d


@_register("sub", "subtract", "__sub__")
def _sub(x: Any, y: Any) -> Interval:
    (a, b), (c, d) = interval_of(x), interval_of(y)
    return a - d, b - c


@_register("rsub", "__rsub__")
def _rsub(x: Any, y: Any) -> Interval:
    return _sub(y, x)


@_register("mul", "multiply", "__mul__", "__rmul__")
def _mul(x: Any, y: Any) -> Interval:
    return _times(interval_of(x), interval_of(y))


def _times(x: Interval, y: Interval) -> Interval:
    (a, b), (c, d) = x, y
    corners = torch.stack(torch.broadcast_tensors(a * c, a * d, b * c, b * d))
    corners = corners.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)  # 0 * inf
    return corners.amin(0), corners.amax(0)


@_register("reciprocal")
def _reciprocal(x: Any) -> Interval:
    low, high = interval_of(x)
    one_sided = (low >= 0) | (high <= 0)
    # the end that is 0 is met from inside
    least = torch.where(one_sided, torch.where(high == 0, -math.inf, 1 / high), -math.inf)
    most = torch.where(one_sided, torch.where(low == 0, math.inf, 1 / low), math.inf)
    return least, most


@_register("div", "divide", "true_divide", "__truediv__")
def _div(x: Any, y: Any) -> Interval:
    return _times(interval_of(x), _reciprocal(y))


@_register("square", "abs", "absolute", "__abs__")
def _nonnegative(x: Any) -> Interval:
    low, _ = _everything(x)
    return torch.zeros_like(low), -low


@_register("pow", "__pow__")
def _pow(x: Any, exponent: Any) -> Interval:
    low, high = interval_of(x)
    if isinstance(exponent, (int, float)) and exponent % 2 == 0 and exponent > 0:
        return _nonnegative(x)
    positive = low >= 0
    if isinstance(exponent, RandomTensor):
        return torch.zeros_like(low).masked_fill(~positive, -math.inf), torch.full_like(
            low, math.inf
        )
    ends = torch.stack(torch.broadcast_tensors(low**exponent, high**exponent))
    least = torch.where(positive, ends.amin(0), -math.inf)
    return least, torch.where(positive, ends.amax(0), math.inf)


def _weights_of_exponentials(value: Tensor) -> list[Tensor | float] | None:
    """The coefficients of a random tensor that multiplies out to exponentials and constants."""
    if not isinstance(value, RandomTensor):
        return None
    try:
        products = collapsed(read(value)).products
    except (NotPointwise, NoForm):
        return None
    if all(product.is_exponential or product.is_constant for product in products):
        return [product.coefficient for product in products]
    return None


def _by_interval(value: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    above, below, _ = _bounded(value, lower, upper)
    return above & below


def _by_exponentials(value: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    """Whether exponentials whose weights are not negative stay above something negative."""
    weights = _weights_of_exponentials(value)
    if weights is None or not all(w >= 0 for w in weights if not isinstance(w, Tensor)):
        return torch.zeros((), dtype=torch.bool, device=value.device)
    _, below, floor = _bounded(value, lower, upper)
    signs = [(weight >= 0).all() for weight in weights if isinstance(weight, Tensor)]
    return functools.reduce(torch.logical_and, signs, below & (floor <= 0).all())


def _bounded(
    value: Tensor, lower: Tensor | float, upper: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """Whether it stays above the one, whether below the other, and the highest of the lower bounds."""
    low, high = interval_of(value)
    floor, ceiling = interval_of(lower)[1], interval_of(upper)[0]
    # rounding of a + (b - a) s may pass b by a few units in the last place
    slack = 4 * torch.finfo(_float(value)).eps
    slack_low = slack * floor.abs().nan_to_num(posinf=0.0)
    slack_high = slack * ceiling.abs().nan_to_num(posinf=0.0)
    return (low >= floor - slack_low).all(), (high <= ceiling + slack_high).all(), floor


_WAYS = {"interval": _by_interval, "exponentials": _by_exponentials}


def within(
    value: Tensor, lower: Tensor | float, upper: Tensor | float, *, trusted: bool = True
) -> bool:
    """Whether a random tensor is known to stay between two others, random or plain.

    :param trusted: the answer where values cannot be looked at and never were.
    """
    decision = Decision("range", value)
    if decision.looks:
        answer = next((way for way in _WAYS if bool(_WAYS[way](value, lower, upper))), "")
        decision.keep(answer)
    else:
        unseen = "interval" if trusted else ""
        answer = unseen if decision.answer is None else decision.answer
        if answer and decision.can_be_verified:
            decision.verify(_WAYS[answer](value, lower, upper))
    return bool(answer)


def _half_line(constraint: Any) -> bool:
    """Whether a constraint bounds a real number on some side."""
    return isinstance(
        constraint,
        (
            type(constraints.positive),
            type(constraints.nonnegative),
            type(constraints.unit_interval),
            type(constraints.half_open_interval(0.0, 1.0)),
        ),
    )


def out_of_range(distribution: Distribution, value: Tensor) -> str | None:
    """Which argument is Gaussian although it is bounded, so that the density is not defined at it."""
    held = vars(distribution)
    for name, constraint in constraints_of(distribution).items():
        parameter = held.get(name)
        if type(parameter) is RandomTensor and _half_line(constraint) and is_gaussian(parameter):
            return f"{name} is Gaussian and takes values outside of {constraint}"
    if type(value) is RandomTensor:
        try:
            support = distribution.support
        except NotImplementedError:
            return None
        if _half_line(support) and is_gaussian(value):
            return f"the value is Gaussian and takes values outside of {support}"
    return None
