"""Pointwise functions: affine where their argument is a function of one discrete scalar."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor import discrete
from pyro_silent.random_tensor.affine import Affine, NoForm
from pyro_silent.random_tensor.program import RULES
from pyro_silent.random_tensor.rules.table import functions

_COMPARISONS = (
    "eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__",
    "greater", "greater_equal", "less", "less_equal", "not_equal", "logical_and", "logical_or",
    "logical_xor", "__and__", "__or__", "__xor__",
)  # fmt: skip

_FUNCTIONS = (
    "abs", "__abs__", "acos", "asin", "atan", "ceil", "clamp", "clamp_min", "clamp_max", "cos", "cosh",
    "celu", "elu", "erf", "erfc", "exp", "exp2", "expm1", "floor", "frac", "gelu", "hardtanh",
    "leaky_relu", "lgamma", "log", "log10", "log1p", "log2", "logit", "logsigmoid", "maximum",
    "minimum", "pow", "__pow__", "reciprocal", "relu", "relu6", "remainder", "__mod__", "round",
    "rsqrt", "selu", "sigmoid", "sign", "silu", "sin", "sinh", "softplus", "sqrt", "square", "tan",
    "tanh", "trunc", "xlogy", "floor_divide", "__floordiv__",
)  # fmt: skip


def _register() -> None:
    for name in (*_COMPARISONS, *_FUNCTIONS):
        for function in functions(name):

            def pointwise(
                *args: Any, inplace: bool = False, function: Any = function, **kwargs: Any
            ) -> Affine:
                form = None if inplace else discrete.pointwise(function, args, kwargs)
                if form is None:
                    raise NoForm("")
                return form

            RULES[function] = pointwise
    RULES[Tensor.__rpow__] = lambda x, base: discrete_power(base, x)


def discrete_power(base: Any, exponent: Any) -> Affine:
    """``base ** x`` for x a function of one discrete scalar."""
    form = discrete.pointwise(torch.pow, (base, exponent), {})
    if form is None:
        raise NoForm("")
    return form


_register()
