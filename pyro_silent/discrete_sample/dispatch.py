"""Which rule a torch function gets: its own, torch's function on plain tensors, or a refusal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.refusals import in_place, leak, no_rule, operation_name
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    carries_gradient,
    is_float,
    latents_in,
    opaque,
)
from pyro_silent.discrete_sample.table import INTEGRAL_RULES, RULES
from pyro_silent.errors import MODES


def samples_in(arguments: Any) -> Iterator[DiscreteSample]:
    """The samples among the arguments of a function, also inside lists, tuples and dicts."""
    kind = type(arguments)
    if kind is DiscreteSample:
        yield arguments
    elif kind is list or isinstance(arguments, tuple):
        for item in arguments:
            yield from samples_in(item)
    elif kind is dict:
        for item in arguments.values():
            yield from samples_in(item)


def has_samples(arguments: Any) -> bool:
    """Whether a sample is among the arguments; ``any`` would ask for its truth."""
    return next(samples_in(arguments), None) is not None


def plain_values(arguments: Any) -> Any:
    """Arguments with the plain values of their samples."""
    kind = type(arguments)
    if kind is DiscreteSample:
        return arguments._value
    if kind is tuple or (isinstance(arguments, tuple) and kind is not torch.Size):
        return tuple([plain_values(arg) for arg in arguments])
    if kind is list:
        return [plain_values(arg) for arg in arguments]
    if kind is dict:
        return {key: plain_values(arg) for key, arg in arguments.items()}
    return arguments


# ---------------------------------------------------------------------------------------------------
# Functions without a rule
# ---------------------------------------------------------------------------------------------------


def run_plain(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """torch's own function on plain tensors, if nothing of the gradient is lost by that.

    A float result that comes from samples and constants alone remembers so: a step or a cast that
    follows would lose the gradient. One that parameters went into is an ordinary tensor.
    """
    result = run_torch(func, args, kwargs)
    if type(result) is Tensor and result.requires_grad and not _has_parameters((args, kwargs)):
        return opaque(result, list(samples_in((args, kwargs))), operation_name(func), result)
    return result


def _has_parameters(arguments: Any) -> bool:
    """Whether a plain tensor with a gradient is among the arguments."""
    kind = type(arguments)
    if kind is DiscreteSample:
        return False
    if isinstance(arguments, Tensor):
        return arguments.requires_grad
    if kind is dict:
        return any(_has_parameters(item) for item in arguments.values())
    if kind is list or isinstance(arguments, tuple):
        return any(_has_parameters(item) for item in arguments)
    return False


def run_torch(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """torch's own function on plain tensors; only what has no gradient of its own is looked at."""
    plain: list[Any] = []
    for arg in args:
        kind = type(arg)
        if kind is DiscreteSample:
            arg = arg._value
            if not arg.is_floating_point():
                return INTEGRAL_RULES[func](func, args, kwargs)
        elif kind is list or kind is tuple:
            if any(not is_float(sample) for sample in samples_in(arg)):
                return INTEGRAL_RULES[func](func, args, kwargs)
            arg = plain_values(arg)
        plain.append(arg)
    if kwargs:
        if any(not is_float(sample) for sample in samples_in(kwargs)):
            return INTEGRAL_RULES[func](func, args, kwargs)
        result = func(*plain, **plain_values(kwargs))
    else:
        result = func(*plain)
    if type(result) is Tensor and result.requires_grad and result is not plain[0]:
        return result
    return _checked(func, result, args, kwargs)


def refuse(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The fallback for integer and bool samples, whose gradient torch's function does not know of."""
    raise refused(func, args, kwargs)


def refused(func: Callable, *arguments: Any) -> Exception:
    """The error for a function without a rule for the samples among its arguments."""
    samples = list(samples_in(arguments))
    lost = next((sample._lost for sample in samples if sample._lost is not None), None)
    return no_rule(func, latents_in(samples), lost)


def _checked(func: Callable, result: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A result that is no tensor with a gradient: refused, or handed on with what was lost noted."""
    samples = list(samples_in((args, kwargs)))
    for sample in samples:
        if sample._value._version != sample._version_made:
            raise in_place(func, latents_in(samples))
        if result is sample._value:
            return sample
    if not torch.is_grad_enabled() or not any(map(carries_gradient, samples)):
        return result
    if isinstance(result, (list, tuple)) and all(
        item is None or isinstance(item, Tensor) for item in result
    ):
        name = operation_name(func)
        items = [
            item if item is None or item.requires_grad else opaque(item, samples, name)
            for item in result
        ]
        return type(result)(items)
    if isinstance(result, Tensor):
        if result.requires_grad or type(result) is not Tensor:  # other subclasses mind themselves
            return result
        raise refused(func, samples)
    raise leak(func, latents_in(samples))


def without_gradient(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Under ``no_grad`` hard samples are plain tensors; soft ones keep the values that they have."""
    is_soft = False
    for sample in samples_in((args, kwargs)):
        is_soft = is_soft or sample._soft
        if not is_float(sample) and _inside_autograd_function():
            remedy = "Write the function with torch operations"
            raise leak(torch.autograd.Function.apply, sample._latents, remedy)
    if is_soft:
        return RULES[func](func, args, kwargs)
    return func(*plain_values(args), **plain_values(kwargs))


def below(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A call below the level of torch functions (vmap, C++ code that reads a number)."""
    for sample in samples_in((args, kwargs)):
        if not torch.is_grad_enabled():
            break
        if not is_float(sample) or "_local_scalar_dense" in func.__name__:
            raise leak(func, sample._latents)
    return func(*plain_values(args), **plain_values(kwargs))


_CHECKERS = ("torch.distributions.", "pyro.")


def in_validation() -> bool:
    """Whether torch.distributions or Pyro asks, as they do to validate values."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(
            ("pyro_silent.discrete_sample", "torch._tensor", "torch.functional", *MODES)
        ):
            return name.startswith(_CHECKERS)
        frame = frame.f_back
    return False


_FUNCTION_FILE = os.path.join("torch", "autograd", "function.py")


def _inside_autograd_function() -> bool:
    """Whether the code that runs was called by ``torch.autograd.Function.apply``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "apply" and code.co_filename.endswith(_FUNCTION_FILE):
            return True
        frame = frame.f_back
    return False


RULES.fallback = run_plain
RULES.without_gradient = without_gradient
RULES.below = below
INTEGRAL_RULES.fallback = refuse
