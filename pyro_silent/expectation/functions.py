"""Expectations of elementwise functions of one Gaussian scalar: the table.

``CLOSED[function](mean, std, *arguments, **keywords)`` is ``E[function(x, *arguments, **keywords)]`` for
``x ~ N(mean, std^2)``, elementwise, with all operands broadcast. The arguments are plain numbers or
tensors. ``std`` may be 0: the result is then the function at the mean. A function whose options have no
entry (``gelu(approximate="tanh")``) gives ``NotImplemented``.

Entries in ``NUMERIC`` are not closed forms in the strict sense but accurate for every mean and std all
the same (see :mod:`pyro_silent.expectation.logistic`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from pyro_silent.expectation import logistic, piecewise
from pyro_silent.random_tensor.rules.table import functions

_Expectation = TypeVar("_Expectation", bound=Callable)

CLOSED: dict[Callable, Callable[..., Tensor]] = {}
_numeric: set[Callable] = set()


def _entry(expectation: _Expectation, *names: str, numeric: bool = False) -> _Expectation:
    # an operator is looked up on tensors only: modules have comparisons of their own
    operators = [getattr(Tensor, name) for name in names if name.startswith("__")]
    named = functions(*(name for name in names if not name.startswith("__")))
    for function in operators + named:
        CLOSED[function] = expectation
        if numeric:
            _numeric.add(function)
    return expectation


def _defines(*names: str) -> Callable[[_Expectation], _Expectation]:
    return lambda expectation: _entry(expectation, *names)


# Kinks and jumps.
_entry(piecewise.absolute, "abs", "absolute", "__abs__")
_entry(piecewise.clamped, "clamp", "clip")
_entry(piecewise.larger, "maximum", "fmax")
_entry(piecewise.smaller, "minimum", "fmin")
_entry(piecewise.above, "gt", "greater", "__gt__")
_entry(piecewise.at_least, "ge", "greater_equal", "__ge__")
_entry(piecewise.below, "lt", "less", "__lt__")
_entry(piecewise.at_most, "le", "less_equal", "__le__")
_entry(piecewise.step, "heaviside")
_entry(piecewise.sign, "sign", "sgn")

# Smooth, but not elementary: series that converge for every mean and std.
_entry(logistic.sigmoid, "sigmoid", "expit", numeric=True)
_entry(logistic.tanh, "tanh", numeric=True)


@_defines("clamp_min")
def _clamp_min(mean: Tensor, std: Tensor, min: Tensor | float) -> Tensor:
    return piecewise.clamped(mean, std, min=min)


@_defines("clamp_max")
def _clamp_max(mean: Tensor, std: Tensor, max: Tensor | float) -> Tensor:
    return piecewise.clamped(mean, std, max=max)


@_defines("relu")
def _relu(mean: Tensor, std: Tensor, inplace: bool = False) -> Tensor:
    return piecewise.ramp(mean, std)


@_defines("relu6")
def _relu6(mean: Tensor, std: Tensor, inplace: bool = False) -> Tensor:
    return piecewise.clamped(mean, std, 0.0, 6.0)


@_defines("hardtanh")
def _hardtanh(
    mean: Tensor, std: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    return piecewise.clamped(mean, std, min_val, max_val)


@_defines("hardsigmoid")
def _hardsigmoid(mean: Tensor, std: Tensor, inplace: bool = False) -> Tensor:
    return piecewise.clamped(mean / 6 + 0.5, std / 6, 0.0, 1.0)


@_defines("leaky_relu")
def _leaky_relu(
    mean: Tensor, std: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    return piecewise.leaky(mean, std, negative_slope)


@_defines("softshrink")
def _softshrink(mean: Tensor, std: Tensor, lambd: float = 0.5) -> Tensor:
    return piecewise.shrunk(mean, std, lambd)


# The normal distribution function and its relatives: a Gaussian scalar more, added to the argument.


@_defines("erf")
def _erf(mean: Tensor, std: Tensor) -> Tensor:
    return torch.erf(mean / torch.sqrt(1 + 2 * std * std))


@_defines("erfc")
def _erfc(mean: Tensor, std: Tensor) -> Tensor:
    return torch.erfc(mean / torch.sqrt(1 + 2 * std * std))


@_defines("ndtr")
def _ndtr(mean: Tensor, std: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-mean / torch.sqrt(2 * (1 + std * std)))


@_defines("gelu")
def _gelu(mean: Tensor, std: Tensor, approximate: str = "none") -> Tensor:
    if approximate != "none":
        return NotImplemented
    variance = std * std
    total = torch.sqrt(1 + variance)
    z = mean / total
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return mean * 0.5 * torch.erfc(z / -math.sqrt(2)) + variance / total * density


# Exponentials: of the mean plus half the variance, where exp(large) is infinity as in torch.


@_defines("exp")
def _exp(mean: Tensor, std: Tensor) -> Tensor:
    return torch.exp(mean + 0.5 * std * std)


@_defines("exp2")
def _exp2(mean: Tensor, std: Tensor) -> Tensor:
    return torch.exp2(mean + 0.5 * math.log(2) * std * std)


@_defines("expm1")
def _expm1(mean: Tensor, std: Tensor) -> Tensor:
    return torch.expm1(mean + 0.5 * std * std)


@_defines("sinh")
def _sinh(mean: Tensor, std: Tensor) -> Tensor:
    # kept finite: 0 times infinity is not the 0 of a symmetric law
    most = 0.999 * math.log(torch.finfo(std.dtype).max)
    return torch.sinh(mean) * torch.exp((0.5 * std * std).clamp_max(most))


@_defines("cosh")
def _cosh(mean: Tensor, std: Tensor) -> Tensor:
    return torch.cosh(mean) * torch.exp(0.5 * std * std)


@_defines("sin")
def _sin(mean: Tensor, std: Tensor) -> Tensor:
    return torch.sin(mean) * torch.exp(-0.5 * std * std)


@_defines("cos")
def _cos(mean: Tensor, std: Tensor) -> Tensor:
    return torch.cos(mean) * torch.exp(-0.5 * std * std)


@_defines("square")
def _square(mean: Tensor, std: Tensor) -> Tensor:
    return mean * mean + std * std


# Logistic functions.


def _softplus(mean: Tensor, std: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    # torch's threshold only guards its own overflow
    return logistic.softplus(mean, std, beta)


def _silu(mean: Tensor, std: Tensor, inplace: bool = False) -> Tensor:
    return logistic.silu(mean, std)


_entry(_softplus, "softplus", numeric=True)
_entry(_silu, "silu", numeric=True)
_entry(logistic.log_sigmoid, "logsigmoid", numeric=True)
_entry(logistic.log_add_exp, "logaddexp", numeric=True)

NUMERIC: frozenset[Callable] = frozenset(_numeric)
