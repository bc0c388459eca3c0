"""log p and log(1 - p) of a random probability, from the link function it was made by.

torch forms logits from clamped probabilities, which loses digits near 0 and 1 and hides the link. A
probability that came from a sigmoid, a normal cdf, an exponential or a complement of these is taken
back to its argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.utils import clamp_probs

from pyro_silent.expectation.terms import product
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.tensor import RandomTensor


class Odds(NamedTuple):
    """What is known of a probability: its logits, or the logarithms of p and 1 - p."""

    logits: Tensor | None
    log_p: Tensor | None = None
    log_q: Tensor | None = None

    def logarithms(self) -> tuple[Tensor, Tensor]:
        """log p and log(1 - p)."""
        if self.logits is not None:
            return -F.softplus(-self.logits), -F.softplus(self.logits)
        assert self.log_p is not None and self.log_q is not None  # one of the two pairs is there
        return self.log_p, self.log_q


_SIGMOID = frozenset(functions("sigmoid", "special.expit"))
_NDTR = frozenset(functions("special.ndtr"))
_EXP = frozenset(functions("exp"))
_EXPM1 = frozenset(functions("expm1"))
_ERF = frozenset(functions("erf", "special.erf"))
_ERFC = frozenset(functions("erfc", "special.erfc"))
_NEG = frozenset(functions("neg", "negative", "__neg__"))
_ADD = frozenset(functions("add", "__add__", "__radd__"))
_MUL = frozenset(functions("mul", "multiply", "__mul__", "__rmul__"))
_RSUB = frozenset(functions("rsub", "__rsub__"))
_SUB = frozenset(functions("sub", "subtract", "__sub__"))
_CLAMP = frozenset(functions("clamp", "clip"))
_MOVES = frozenset(
    functions(
        "expand", "expand_as", "broadcast_to", "__getitem__", "unsqueeze", "squeeze", "reshape", "view",
        "flatten", "permute", "transpose", "clone", "contiguous", "select", "narrow", "index_select",
    )
)  # fmt: skip


def odds_of_probability(p: Tensor) -> Odds:
    """What the program of a random probability says of log p and log(1 - p)."""
    if type(p) is RandomTensor and p._form is None and p._call is not None:
        found = _recognised(p)
        if found is not None:
            return found
    clamped = clamp_probs(p)
    return Odds(None, clamped.log(), (-clamped).log1p())


def _recognised(p: RandomTensor) -> Odds | None:
    call = p._call
    if call is None:
        return None
    function, args = call.function, call.args
    if p._index is not None:
        if function is torch.broadcast_tensors:
            tensors = args[0] if isinstance(args[0], (tuple, list)) else args
            return _mapped(tensors[p._index], lambda t: t.expand(p.shape))
        return None
    if function in _SIGMOID:
        return Odds(args[0])
    if function in _NDTR:
        return _of_normal_cdf(args[0])
    if function in _EXP:
        return Odds(None, args[0], torch.log(-torch.expm1(args[0])))
    if function in _CLAMP:
        return _clamped(p)
    if function in _MOVES:
        rest = args[1:]
        return _mapped(args[0], lambda t: function(t, *rest, **call.kwargs))
    complement = _complement(function, args)
    if complement is not None:
        odds = _recognised(complement) if type(complement) is RandomTensor else None
        if odds is None:
            return None
        if odds.logits is not None:
            return Odds(-odds.logits)
        return Odds(None, odds.log_q, odds.log_p)
    if function in _NEG and type(args[0]) is RandomTensor and args[0]._call is not None:
        inner = args[0]._call
        if inner.function in _EXPM1:
            exponent = inner.args[0]
            return Odds(None, torch.log(-torch.expm1(exponent)), exponent)
    if function in _MUL:
        return _half(args)
    return None


def _complement(function: Callable, args: tuple) -> Any:
    """x where the call is 1 - x."""
    if function in _RSUB and _is(args[1], 1):
        return args[0]
    if function in _SUB and _is(args[0], 1):
        return args[1]
    return None


def _is(value: Any, number: float) -> bool:
    return isinstance(value, (int, float)) and value == number


def _half(args: tuple) -> Odds | None:
    """``0.5 * (1 + erf(x))`` and ``0.5 * erfc(-x)``: the normal cdf, as torch and its users write it."""
    first, second = args
    if _is(second, 0.5):
        first, second = second, first
    if not _is(first, 0.5) or type(second) is not RandomTensor or second._call is None:
        return None
    inner = second._call
    if inner.function in _ERFC:
        return _of_normal_cdf(-math.sqrt(2) * inner.args[0])
    if inner.function in _ADD:
        one, erf = inner.args
        if _is(erf, 1):
            one, erf = erf, one
        if _is(one, 1) and type(erf) is RandomTensor and erf._call is not None:
            if erf._call.function in _ERF:
                return _of_normal_cdf(math.sqrt(2) * erf._call.args[0])
    return None


def _of_normal_cdf(x: Tensor) -> Odds:
    return Odds(None, torch.special.log_ndtr(x), torch.special.log_ndtr(-x))


def _clamped(p: RandomTensor) -> Odds | None:
    """A clamp to the open unit interval of floating point only guards against rounding: seen through."""
    assert p._call is not None  # asked by the caller
    low, high = (*p._call.args[1:], None, None)[:2]
    low, high = p._call.kwargs.get("min", low), p._call.kwargs.get("max", high)
    eps = torch.finfo(p.dtype).eps
    inner = p._call.args[0]
    if isinstance(low, (int, float)) and 0 <= low <= eps and type(inner) is RandomTensor:
        if isinstance(high, (int, float)) and 1 - eps <= high <= 1:
            return _recognised(inner)
    return None


def _mapped(tensor: Any, move: Callable[[Tensor], Tensor]) -> Odds | None:
    """The odds of a tensor, moved as the tensor was."""
    odds = _recognised(tensor) if type(tensor) is RandomTensor else None
    if odds is None:
        return None
    return Odds(*(None if item is None else move(item) for item in odds))


def odds_of(distribution: Distribution) -> Odds:
    """The odds of a distribution that is built from ``probs`` or ``logits``."""
    held = vars(distribution)
    probs = held.get("probs")
    if probs is not None and held.get("_param", probs) is probs and isinstance(probs, RandomTensor):
        return odds_of_probability(probs)
    return Odds(distribution.logits)


def expected_trials(odds: Odds, successes: Tensor, trials: Tensor | float) -> Tensor:
    """E[k log p + (n - k) log(1 - p)]; with logits, ``E[k l] - E[n softplus(l)]``."""
    if odds.logits is not None:
        return product(successes, odds.logits) - product(trials, F.softplus(odds.logits))
    log_p, log_q = odds.logarithms()
    return product(successes, log_p) + product(trials - successes, log_q)


def log_of(value: Tensor) -> Tensor:
    """log x for an x in (0, 1) or (0, inf), from the function that made it where that is known."""
    if isinstance(value, RandomTensor):
        odds = _recognised(value)
        if odds is not None:
            return odds.logarithms()[0]
    return value.log()
