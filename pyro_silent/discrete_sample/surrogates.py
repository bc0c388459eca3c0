"""Integer results linear in many codes, such as counts: a float surrogate carries the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    factors_of,
    is_float,
    is_opaque,
    latents_in,
    levels_of,
    no_rule,
    opaque,
    operation_name,
    outcome,
    samples_in,
)

_LINEAR = {
    *("add", "sub", "subtract", "rsub", "neg", "negative", "positive", "sum", "nansum", "cumsum"),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__neg__", "__pos__", "diff"),
}
_PRODUCTS = {"mul", "multiply", "__mul__", "__rmul__", "matmul", "__matmul__", "__rmatmul__"} | {
    *("mm", "mv", "bmm", "dot", "inner", "outer", "tensordot", "einsum", "linear", "kron", "vdot")
}


def surrogate_of(sample: DiscreteSample) -> Tensor:
    """The value as a float tensor that carries the gradient, in the dtype of the codes."""
    if is_float(sample):
        return sample._value
    if is_opaque(sample):
        if sample._surrogate is None:
            raise no_rule(torch.Tensor.float, sample)
        return sample._surrogate
    factors = factors_of(sample)
    levels = levels_of(sample)
    dtype = factors[0].origin.dtype
    padded = tuple(factor.padded(sample._value.dim()) for factor in factors)
    value = sample._value.to(dtype)
    return outcome(value, sample._latents, padded, lambda: levels.to(dtype), ())


def linear(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A function that is linear in its samples, or has a float result, on their surrogates."""
    samples = list(samples_in((args, kwargs)))
    value = func(*plain_values(args), **plain_values(kwargs))
    if not isinstance(value, Tensor):
        raise no_rule(func, *samples)
    name = getattr(func, "__name__", "")
    is_linear = name in _LINEAR or (name in _PRODUCTS and len(samples) == 1)
    if not value.is_floating_point() and not is_linear:
        raise no_rule(func, *samples)
    if any(sample._lost is not None and sample._surrogate is None for sample in samples):
        raise no_rule(func, *samples)
    floats = _as_floats(args, surrogate_of(samples[0]).dtype)
    surrogate = func(*floats, **{key: _as_floats(arg, None) for key, arg in kwargs.items()})
    if value.is_floating_point():
        return surrogate.to(value.dtype)
    return opaque(value, latents_in(samples), operation_name(func), surrogate)


def plain_values(arguments: Any) -> Any:
    """Arguments with the plain values of their samples."""
    if type(arguments) is DiscreteSample:
        return arguments._value
    if isinstance(arguments, dict):
        return {key: plain_values(arg) for key, arg in arguments.items()}
    if type(arguments) in (list, tuple):
        return type(arguments)(plain_values(arg) for arg in arguments)
    return arguments


def _as_floats(arguments: Any, dtype: torch.dtype | None) -> Any:
    if type(arguments) is DiscreteSample:
        return surrogate_of(arguments)
    if type(arguments) in (list, tuple):
        return type(arguments)(_as_floats(arg, dtype) for arg in arguments)
    if isinstance(arguments, Tensor) and not arguments.is_floating_point() and dtype is not None:
        return arguments.to(dtype)
    return arguments
