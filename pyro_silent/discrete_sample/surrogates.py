"""Integer results linear in many codes, such as counts: a float surrogate carries the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.dispatch import plain_values, refused, samples_in
from pyro_silent.discrete_sample.outcome import outcome
from pyro_silent.discrete_sample.refusals import operation_name
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    is_float,
    is_opaque,
    opaque,
)
from pyro_silent.discrete_sample.table import INTEGRAL_RULES, rule

_LINEAR = {
    *("add", "sub", "subtract", "rsub", "neg", "negative", "positive", "sum", "nansum", "cumsum"),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__neg__", "__pos__", "diff"),
}
_PRODUCTS = {
    *("mul", "multiply", "__mul__", "__rmul__", "matmul", "__matmul__", "__rmatmul__", "mm", "mv"),
    *("bmm", "dot", "inner", "outer", "ger", "tensordot", "einsum", "linear", "kron", "vdot"),
}
_BY_CONDITION = {"where", "masked_fill"}


def surrogate_of(sample: DiscreteSample) -> Tensor:
    """The value as a float tensor that carries the gradient, in the dtype of the codes."""
    if is_float(sample):
        return sample._value
    if is_opaque(sample):
        if sample._surrogate is None:
            raise refused(torch.Tensor.float, sample)
        return sample._surrogate
    levels = sample.levels
    dtype = sample.factors[0].origin.dtype
    factors = tuple(factor.padded(sample._value.dim()) for factor in sample.factors)
    value = sample._value.to(dtype)
    return outcome(value, sample._latents, factors, lambda: levels.to(dtype), ())


@rule(
    *("sum", "nansum", "cumsum", "diff", "mean", "matmul", "__matmul__", "__rmatmul__", "mm", "mv"),
    *("bmm", "dot", "inner", "outer", "ger", "tensordot", "einsum", "linear", "kron", "vdot"),
    table=INTEGRAL_RULES,
)
def linear(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A function that is linear in its samples, or has a float result, on their surrogates."""
    samples = list(samples_in((args, kwargs)))
    if any(is_opaque(sample) and sample._surrogate is None for sample in samples):
        raise refused(func, samples)
    value = func(*plain_values(args), **plain_values(kwargs))
    name = getattr(func, "__name__", "")
    is_linear = name in _LINEAR or (name in _PRODUCTS and len(samples) == 1)
    if not isinstance(value, Tensor):
        return value  # NotImplemented
    if name in _BY_CONDITION or not (is_linear or value.is_floating_point()):
        raise refused(func, samples)
    dtype = next(surrogate_of(sample).dtype for sample in samples if not is_float(sample))
    surrogate = func(*_as_floats(args, dtype), **_as_floats(kwargs, dtype))
    if value.is_floating_point():
        return surrogate.to(value.dtype)
    return opaque(value, samples, operation_name(func), surrogate)


def _as_floats(arguments: Any, dtype: torch.dtype) -> Any:
    """Samples as surrogates, and plain integer tensors as floats."""
    kind = type(arguments)
    if kind is DiscreteSample:
        return surrogate_of(arguments)
    if kind is tuple or kind is list:
        return kind(_as_floats(arg, dtype) for arg in arguments)
    if kind is dict:
        return {key: _as_floats(arg, dtype) for key, arg in arguments.items()}
    if isinstance(arguments, Tensor) and not arguments.is_floating_point():
        return arguments.to(dtype)
    return arguments
