"""Elementwise functions that are kept whole, to be looked up in a table or evaluated at nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor.outputs import ARITHMETIC, ELEMENTWISE
from pyro_silent.random_tensor.pointwise import NotPointwise, Sum
from pyro_silent.random_tensor.readings.table import READINGS, function_of, read, read_elementwise
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.tensor import RandomTensor

_WHOLE = (
    "eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__",
    "greater", "greater_equal", "less", "less_equal", "not_equal", "logical_and", "logical_or",
    "logical_xor", "logical_not", "__and__", "__or__", "__xor__", "__invert__", "bitwise_not",
    "abs", "absolute", "__abs__", "acos", "asin", "atan", "acosh", "asinh", "atanh", "atan2", "ceil",
    "clamp", "clip", "clamp_min", "clamp_max", "cos", "cosh", "celu", "elu", "erf", "erfc", "erfinv",
    "floor", "fmax", "fmin", "frac", "gelu", "hardtanh", "hardsigmoid", "hardswish", "heaviside", "hypot",
    "leaky_relu", "lgamma", "digamma", "polygamma", "logit", "logsigmoid", "logaddexp", "logaddexp2",
    "log_sigmoid", "max", "min", "maximum", "minimum", "mish", "nan_to_num", "relu", "relu6", "remainder",
    "__mod__", "round", "selu", "sgn", "sigmoid", "sign", "silu", "sin", "sinc", "sinh", "softplus",
    "softsign", "tan", "tanh", "tanhshrink", "threshold", "trunc", "floor_divide", "__floordiv__",
    "isfinite", "isnan", "isinf", "softshrink", "hardshrink",
    "special.bessel_j0", "special.bessel_j1", "special.digamma", "special.entr", "special.erf",
    "special.erfc", "special.erfcx", "special.erfinv", "special.expit", "special.gammaln", "special.i0",
    "special.i0e", "special.i1", "special.i1e", "special.log_ndtr", "special.logit", "special.ndtr",
    "special.ndtri", "special.psi", "special.xlog1py", "special.zeta", "i0",
    "int", "long", "bool",
)  # fmt: skip


def _register_tables() -> None:
    for name in _WHOLE:
        for function in functions(name):
            if function in READINGS:
                continue

            def whole(
                *args: Any, inplace: bool = False, function: Any = function, **kwargs: Any
            ) -> Sum:
                if any(isinstance(value, RandomTensor) for value in kwargs.values()):
                    raise NotPointwise("an argument given by name is random")

                def handler(*forms: Any, **kwargs: Any) -> Sum:
                    return function_of(function, *forms, **kwargs)

                return read_elementwise(handler, args, kwargs)

            READINGS[function] = whole
            if name not in ("max", "min"):
                ELEMENTWISE.add(function)
    for function in functions("max", "min"):
        READINGS[function] = _two_arguments(READINGS[function], function)


def _two_arguments(elementwise: Callable[..., Sum], function: Callable) -> Callable[..., Sum]:
    """``torch.max(x, y)`` is elementwise; with one tensor it is a reduction."""

    def of_two(*args: Any, **kwargs: Any) -> Sum:
        if len(args) < 2 or not isinstance(args[1], Tensor) or kwargs:
            raise NotPointwise(f"{function.__name__} over a dim is not elementwise")
        return elementwise(*args)

    return of_two


_register_tables()


def _cast(*args: Any, function: Callable, **kwargs: Any) -> Sum:
    """A change of dtype goes on to the atoms; numbers made of bools are a function kept whole."""
    form = read(args[0])
    target = function(torch.empty((), dtype=args[0].dtype), *args[1:], **kwargs).dtype
    if args[0].dtype.is_floating_point and target.is_floating_point:
        return form.map(lambda tensor: function(tensor, *args[1:], **kwargs))
    return function_of(function, form, *args[1:], **kwargs)


def _register_casts() -> None:
    for function in functions("float", "double", "half", "bfloat16", "to", "type_as"):

        def cast(*args: Any, function: Callable = function, **kwargs: Any) -> Sum:
            return _cast(*args, function=function, **kwargs)

        READINGS[function] = cast


_register_casts()


ARITHMETIC.update(
    functions(
        "add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "mul", "__mul__", "__rmul__", "div",
        "__truediv__", "__rdiv__", "__rtruediv__", "pow", "__pow__", "__rpow__", "neg", "__neg__", "exp",
        "log", "log1p", "expm1", "square", "sqrt", "rsqrt", "reciprocal", "abs", "xlogy", "softplus",
        "sigmoid", "logsigmoid", "tanh", "sin", "cos", "erf", "lgamma",
    )
)  # fmt: skip
