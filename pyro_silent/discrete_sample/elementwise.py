"""Elementwise functions: applied to every level of the scalars, beside the hard values.

Steps have no derivative in torch, so every sample among their arguments goes by its levels. Smooth
functions have one: float samples go through torch, and only integer and bool ones by their levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.factor import Factor, merged
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    discrete,
    factors_of,
    hard,
    in_place,
    is_float,
    is_opaque,
    latents_in,
    levels_of,
    operation_name,
    outcome,
    refusal,
    run_plain,
    samples_in,
)
from pyro_silent.discrete_sample.surrogates import linear
from pyro_silent.discrete_sample.table import register
from pyro_silent.errors import IntractableError, user_location

STEPS = """
    eq ne lt le gt ge greater greater_equal less less_equal not_equal __eq__ __ne__ __lt__ __le__
    __gt__ __ge__ isclose isnan isinf isfinite isposinf isneginf isreal isin
    logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not
    bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ __rand__ __ror__ __rxor__ __invert__
    __lshift__ __rshift__ __rlshift__ __rrshift__ gcd lcm signbit
    floor ceil round trunc fix sign sgn heaviside floor_divide __floordiv__ __rfloordiv__
    remainder fmod __mod__ __rmod__ nextafter
""".split()

SMOOTH = """
    add sub subtract rsub mul multiply div divide true_divide neg negative positive pow float_power abs
    absolute square reciprocal clamp clip clamp_min clamp_max minimum maximum fmin fmax
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __div__ __rdiv__ __truediv__ __rtruediv__ __pow__
    __rpow__ __neg__ __pos__ __abs__
    exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh
    atanh arcsin arccos arctan arctan2 atan2 hypot sigmoid expit logit erf erfc erfinv lgamma gammaln
    digamma psi mvlgamma polygamma i0 i0e i1 i1e ndtr ndtri log_ndtr sinc frac deg2rad rad2deg
    xlogy xlog1py logaddexp logaddexp2 copysign ldexp nan_to_num entr
    where masked_fill lerp addcmul addcdiv softplus relu softsign logsigmoid hardtanh elu gelu silu
""".split()

_MAX_LEVELS = 4096


def steps(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A function without a derivative."""
    return elementwise(func, args, kwargs, list(samples_in((args, kwargs))))


def smooth(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A function with a derivative, of which float samples need no more."""
    integral = [arg for arg in args if type(arg) is DiscreteSample and not is_float(arg)]
    if kwargs:
        integral += [arg for arg in samples_in(kwargs) if not is_float(arg)]
    if integral:
        return elementwise(func, args, kwargs, integral)
    result = run_plain(func, args, kwargs)
    if type(args[0]) is DiscreteSample and _only_numbers(args[1:], kwargs) and _has_levels(args[0]):
        return _transformed(func, args, kwargs, result)
    if len(args) == 2 and type(args[1]) is DiscreteSample and _only_numbers(args[:1], kwargs):
        if _has_levels(args[1]):
            return _transformed(func, args, kwargs, result)
    return result


def _has_levels(sample: DiscreteSample) -> bool:
    return not is_opaque(sample)


def _only_numbers(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    for arg in args:
        if isinstance(arg, Tensor):
            return False
    return not any(isinstance(arg, Tensor) for arg in kwargs.values())


def _transformed(func: Callable, args: tuple, kwargs: dict[str, Any], value: Tensor) -> Tensor:
    """A float sample under a function of numbers: still a function of its scalars."""
    (sample,) = (arg for arg in args if type(arg) is DiscreteSample)
    if type(value) is not Tensor or value.shape != sample._value.shape:
        return value

    def levels() -> Tensor:
        with torch.no_grad():
            plain = [levels_of(arg) if arg is sample else arg for arg in args]
            return func(*plain, **kwargs)

    return discrete(value, sample._latents, factors_of(sample), levels)


def elementwise(
    func: Callable, args: tuple, kwargs: dict[str, Any], by_levels: Sequence[DiscreteSample]
) -> Any:
    """``func`` at every combination of levels of the given samples."""
    if any(is_opaque(sample) for sample in by_levels):
        return linear(func, args, kwargs)
    latents = latents_in(by_levels)
    if kwargs.get("out") is not None:
        raise in_place(func, latents)
    chosen = {id(sample) for sample in by_levels}

    def plain(arg: Any) -> Any:
        if type(arg) is DiscreteSample:
            return hard(arg) if id(arg) in chosen else arg._value
        return arg

    value = func(*map(plain, args), **{key: plain(arg) for key, arg in kwargs.items()})
    num_dims = value.dim()
    distinct = list({id(sample): sample for sample in by_levels}.values())
    factors, places = merged(
        [[factor.padded(num_dims) for factor in factors_of(sample)] for sample in distinct]
    )
    if math.prod(factor.num_levels for factor in factors) > _MAX_LEVELS:
        return _too_many(func, args, kwargs, factors, latents)
    num_factors = len(factors)
    levels = {
        id(sample): spread(levels_of(sample), place, num_factors)
        for sample, place in zip(distinct, places)
    }
    operands: list[Tensor] = []

    def slot(arg: Any) -> Any:
        """Where ``levels_at`` finds the argument: an operand by its number, or the argument itself."""
        if type(arg) is DiscreteSample:
            if id(arg) in chosen:
                return _Slot(None, levels[id(arg)])
            arg = arg._value
        if isinstance(arg, Tensor):
            operands.append(arg)
            return _Slot(len(operands) - 1, None)
        return arg

    slots = [slot(arg) for arg in args]
    named = {key: slot(arg) for key, arg in kwargs.items()}
    trailing = (...,) + (None,) * num_factors

    def levels_at(*tensors: Tensor) -> Tensor:
        def fill(item: Any) -> Any:
            if type(item) is not _Slot:
                return item
            if item.number is None:
                return item.levels
            tensor = tensors[item.number]
            return tensor[trailing] if tensor.dim() else tensor

        result = func(*map(fill, slots), **{key: fill(item) for key, item in named.items()})
        return result.to(value.dtype)

    try:
        result = outcome(value, latents, factors, levels_at, operands)
    except RuntimeError as error:
        if "ZeroDivisionError" not in str(error):
            raise
        raise refusal(operation_name(func), latents) from error
    if value.is_floating_point() and not operands:
        return discrete(result, latents, factors, levels_at)
    return result


class _Slot:
    """An argument that ``levels_at`` fills in."""

    __slots__ = ("levels", "number")

    def __init__(self, number: int | None, levels: Tensor | None) -> None:
        self.number = number
        self.levels = levels


def spread(levels: Tensor, places: Sequence[int], num_factors: int) -> Tensor:
    """Levels over some factors as levels over all factors, with size 1 where they do not vary."""
    own = len(places)
    if places == list(range(num_factors)):
        return levels
    lead = levels.dim() - own
    order = sorted(range(own), key=lambda i: places[i])
    levels = levels.permute(*range(lead), *(lead + i for i in order))
    sizes = [1] * num_factors
    for i, place in zip(range(own), sorted(places)):
        sizes[place] = levels.shape[lead + i]
    return levels.reshape(*levels.shape[:lead], *sizes)


_ADDITIVE = {"add", "sub", "subtract", "rsub", "__add__", "__radd__", "__sub__", "__rsub__"}


def _too_many(
    func: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    factors: Sequence[Factor],
    latents: tuple[str, ...],
) -> Tensor:
    """A sum of many scalars keeps a float surrogate; another function of them is refused."""
    if getattr(func, "__name__", "") in _ADDITIVE:
        return linear(func, args, kwargs)
    location = user_location()
    name = operation_name(func)
    raise IntractableError(
        f"{name} at {location} is a function of {len(factors)} discrete scalars per element with more "
        f"than {_MAX_LEVELS} joint levels, of latents {', '.join(map(repr, latents))}. Combine fewer of "
        'them in one operation, or mark a guide site with infer={"silent": False} to have it sampled '
        "with a score-function term.",
        operation=name,
        latents=latents,
        location=location,
    )


register(steps, *STEPS)
register(smooth, *SMOOTH)
