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

from pyro_silent.discrete_sample.dispatch import (
    has_samples,
    in_validation,
    plain_values,
    refused,
    run_plain,
    run_torch,
    samples_in,
)
from pyro_silent.discrete_sample.factor import Factor, merged
from pyro_silent.discrete_sample.outcome import hard, outcome
from pyro_silent.discrete_sample.refusals import in_place, leak, operation_name, too_many_levels
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    discrete,
    is_float,
    is_opaque,
    is_pure,
    latents_in,
    opaque,
)
from pyro_silent.discrete_sample.surrogates import linear
from pyro_silent.discrete_sample.table import INTEGRAL_RULES, register, rule

STEPS = """
    eq ne lt le gt ge greater greater_equal less less_equal not_equal __eq__ __ne__ __lt__ __le__
    __gt__ __ge__ isclose isnan isinf isfinite isposinf isneginf isreal
    logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not
    bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ __rand__ __ror__ __rxor__ __invert__
    __lshift__ __rshift__ __rlshift__ __rrshift__ gcd lcm signbit
    floor ceil round trunc fix sign sgn heaviside floor_divide __floordiv__ __rfloordiv__
    remainder fmod __mod__ __rmod__ nextafter
""".split()

SMOOTH = """
    add sub subtract rsub mul multiply div divide true_divide neg negative positive pow abs absolute
    square reciprocal clamp clip clamp_min clamp_max
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __div__ __rdiv__ __truediv__ __rtruediv__ __pow__
    __rpow__ __neg__ __pos__ __abs__
    exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sigmoid logit tanh relu
""".split()

POINTWISE = """
    minimum maximum fmin fmax float_power sin cos tan asin acos atan sinh cosh asinh acosh atanh arcsin
    arccos arctan arctan2 atan2 hypot expit erf erfc erfinv lgamma gammaln digamma psi mvlgamma polygamma
    i0 i0e i1 i1e ndtr ndtri log_ndtr sinc frac deg2rad rad2deg xlogy xlog1py logaddexp logaddexp2
    copysign ldexp nan_to_num entr where masked_fill lerp addcmul addcdiv softplus logsigmoid
""".split()

MAX_LEVELS = 4096
_DIVISIONS = {
    *("floor_divide", "remainder", "fmod", "__floordiv__", "__rfloordiv__", "__mod__", "__rmod__")
}
_ADDITIVE = {"add", "sub", "subtract", "rsub", "__add__", "__radd__", "__sub__", "__rsub__"}


def steps(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A function without a derivative."""
    by_levels = list(samples_in((args, kwargs)))
    if any(is_opaque(sample) for sample in by_levels):
        if all(is_float(sample) for sample in by_levels) and in_validation():
            return func(*plain_values(args), **plain_values(kwargs))
        raise refused(func, by_levels)
    return elementwise(func, args, kwargs, by_levels)


def integral(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A function with a derivative, of some integer or bool samples."""
    samples = list(samples_in((args, kwargs)))
    by_levels = [sample for sample in samples if not is_float(sample)]
    if len(by_levels) < len(samples):
        # z / (z + 1.0) is a function of z: its float part goes by the same levels
        known = [factor for sample in by_levels for factor in sample.factors]
        by_levels += [sample for sample in samples if is_float(sample) and _is_of(sample, known)]
    return elementwise(func, args, kwargs, by_levels)


def _is_of(sample: DiscreteSample, known: Sequence[Factor]) -> bool:
    """Whether a float sample with levels is a function of some scalars alone."""
    if is_opaque(sample) or is_pure(sample):
        return False
    return all(any(factor.is_same(other) for other in known) for factor in sample.factors)


def smooth(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A function with a derivative: float samples run as plain tensors.

    With samples and numbers as its only arguments it leaves a function of their scalars.
    """
    for arg in args:
        if isinstance(arg, Tensor) and (type(arg) is not DiscreteSample or is_opaque(arg)):
            return run_plain(func, args, kwargs)
    if kwargs and any(isinstance(arg, Tensor) for arg in kwargs.values()):
        return run_plain(func, args, kwargs)
    value = run_torch(func, args, kwargs)
    if type(value) is not Tensor:
        return value
    samples = list({id(arg): arg for arg in args if type(arg) is DiscreteSample}.values())
    if len(samples) == 1 and value.shape == samples[0]._value.shape:
        factors, places = samples[0].factors, None
    else:
        num_dims = value.dim()
        factors, places = merged(
            [[factor.padded(num_dims) for factor in sample.factors] for sample in samples]
        )
        if math.prod(factor.num_levels for factor in factors) > MAX_LEVELS:
            return opaque(value, samples, operation_name(func), value)

    def levels() -> Tensor:
        found = {
            id(sample): sample.levels
            if places is None
            else spread(sample.levels, places[i], len(factors))
            for i, sample in enumerate(samples)
        }
        with torch.no_grad():
            return func(*[found.get(id(arg), arg) for arg in args], **kwargs)

    return discrete(value, latents_in(samples), factors, levels)


@rule("isin")
def isin(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Elementwise in its first argument only."""
    if has_samples((args[1:], kwargs)):
        raise refused(func, args, kwargs)
    return steps(func, args, kwargs)


@rule("where")
def where(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``where(condition, a, b)``; with the condition alone it asks for positions."""
    if len(args) + len(kwargs) == 1:
        raise leak(func, latents_in(list(samples_in((args, kwargs)))))
    return run_plain(func, args, kwargs)


def elementwise(
    func: Callable, args: tuple, kwargs: dict[str, Any], by_levels: Sequence[DiscreteSample]
) -> Any:
    """``func`` at every combination of levels of the given samples."""
    if any(is_opaque(sample) for sample in by_levels):
        return linear(func, args, kwargs)
    if not kwargs and _same_scalars(args, by_levels):
        return _of_same_scalars(func, args, by_levels[0])
    latents = latents_in(by_levels)
    if kwargs.get("out") is not None or kwargs.get("inplace"):
        raise in_place(func, latents)
    chosen = {id(sample) for sample in by_levels}

    def plain(arg: Any) -> Any:
        if type(arg) is DiscreteSample:
            return hard(arg) if id(arg) in chosen else arg._value
        return arg

    value = func(*map(plain, args), **{key: plain(arg) for key, arg in kwargs.items()})
    if not isinstance(value, Tensor):
        return value  # NotImplemented
    dtype = value.dtype
    num_dims = value.dim()
    distinct = list({id(sample): sample for sample in by_levels}.values())
    factors, places = merged(
        [[factor.padded(num_dims) for factor in sample.factors] for sample in distinct]
    )
    if math.prod(factor.num_levels for factor in factors) > MAX_LEVELS:
        if getattr(func, "__name__", "") in _ADDITIVE:
            return linear(func, args, kwargs)
        raise too_many_levels(func, latents, len(factors), MAX_LEVELS)
    num_factors = len(factors)
    levels = {
        id(sample): spread(sample.levels, place, num_factors)
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
        return result.to(dtype)

    try:
        result = outcome(value, latents, factors, levels_at, operands)
    except RuntimeError as error:
        if "ZeroDivisionError" not in str(error):
            raise
        raise refused(func, args, kwargs) from error
    if value.is_floating_point() and not operands:
        return discrete(result, latents, factors, levels_at)
    return result


def _same_scalars(args: tuple, by_levels: Sequence[DiscreteSample]) -> bool:
    """Whether all arguments are numbers or samples of the same scalars; the usual case."""
    first = by_levels[0]
    chosen = 0
    for arg in args:
        if type(arg) is DiscreteSample:
            if arg.factors is not first.factors or arg._value.shape != first._value.shape:
                return False
            chosen += 1
        elif isinstance(arg, Tensor):
            return False
    return chosen == len(by_levels)


def _of_same_scalars(func: Callable, args: tuple, first: DiscreteSample) -> Any:
    value = func(*[hard(arg) if type(arg) is DiscreteSample else arg for arg in args])
    if not isinstance(value, Tensor):
        return value  # NotImplemented
    dtype = value.dtype

    def levels_at() -> Tensor:
        found = [arg.levels if type(arg) is DiscreteSample else arg for arg in args]
        with torch.no_grad():
            try:
                return func(*found).to(dtype)
            except RuntimeError as error:
                raise refused(func, args) from error

    result = value
    if value.is_floating_point():
        result = outcome(value, first._latents, first.factors, levels_at, ())
    sample = discrete(result, first._latents, first.factors, levels_at)
    if getattr(func, "__name__", "") in _DIVISIONS:
        sample.make_levels()  # an integer divided by 0 is refused here, not in backward
    return sample


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


register(steps, *STEPS)
register(integral, *SMOOTH, *POINTWISE, table=INTEGRAL_RULES)
register(smooth, *SMOOTH)
