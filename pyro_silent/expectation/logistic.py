"""Expectations of softplus and the sigmoid of a Gaussian scalar, accurate for every mean and std.

Neither has a closed form. Here is what stands in for one. With ``y = exp(-|x|)`` in (0, 1],

    softplus(x) = max(x, 0) + log(1 + y),

and ``log(1 + y)`` is a polynomial in ``y`` to any accuracy asked for: its only singularity, at -1,
is so far from [0, 1] that each Chebyshev term gains a factor 5.8. The powers are exponentials of
``-k|x|``, whose Gaussian expectations are closed forms (of the Mills ratio). So the error relative
to softplus is uniform in ``x`` and therefore in mean and std, where Gauss-Hermite quadrature of a
fixed order fails as soon as std reaches a few units, the distance of the poles of the sigmoid.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Polynomial
from numpy.polynomial.chebyshev import Chebyshev
from torch import Tensor
from torch.autograd import Function

# relative errors of softplus, the sigmoid and its slope: 3e-12, 4e-11, 8e-10 (single: 4e-8, 3e-7, 4e-6)
_TERMS = {torch.float64: 14, torch.float32: 9}


@lru_cache(maxsize=64)
def _coefficients(order: int, terms: int) -> tuple[float, ...]:
    """``a_k``, k = 1..terms: the derivative of softplus at x > 0, less its line, is sum a_k y^k.

    In ``u = 1 / (1 + y) = sigmoid(x)`` the derivatives are polynomials: ``d/dx = u (1 - u) d/du``.
    """
    if order == 0:

        def ratio(y: np.ndarray) -> np.ndarray:
            return np.log1p(y) / y
    else:
        polynomial = Polynomial([-1.0, 1.0])
        for _ in range(order - 1):
            polynomial = Polynomial([0.0, 1.0, -1.0]) * polynomial.deriv()
        # a factor 1 - u = y u is in every order; the rest is free of cancellation at small y
        rest, _ = divmod(polynomial, Polynomial([1.0, -1.0]))

        def ratio(y: np.ndarray) -> np.ndarray:
            return rest(1 / (1 + y)) / (1 + y)

    fit = Chebyshev.interpolate(ratio, terms - 1, domain=[0, 1])
    return tuple(
        float(a) for a in fit.convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1]).coef
    )


def _exponential_moments(
    z: Tensor, mean: Tensor, std: Tensor, rate: int, density: Tensor
) -> Tensor:
    """``E[exp(-rate x) 1(x > 0)]``; ``density`` is ``exp(-z^2 / 2) / 2``."""
    gap = (rate * std - z) / math.sqrt(2)
    # one of the two forms is free of overflow: the Mills ratio where the tilted mean is negative,
    # and the tilted probability where it is positive
    return torch.where(
        gap >= 0,
        density * torch.special.erfcx(gap.clamp_min(0.0)),
        0.5 * torch.exp(rate * (0.5 * rate * std * std - mean).clamp_max(0.0)) * torch.erfc(gap),
    )


def _expectations(mean: Tensor, std: Tensor, orders: tuple[int, ...]) -> list[Tensor]:
    """``E[f(x)]`` for the derivatives ``f`` of softplus of these orders, in one pass."""
    z = mean / std.clamp_min(torch.finfo(std.dtype).tiny)
    # at mean = std = 0 both half-lines count a half, as they should
    half = 0.5 * torch.exp(-0.5 * z * z)
    terms = _TERMS.get(mean.dtype, _TERMS[torch.float32])
    tables = [_coefficients(order, terms) for order in orders]
    totals = [torch.zeros_like(z) for _ in orders]
    for k in range(1, terms + 1):
        right = _exponential_moments(z, mean, std, k, half)
        left = _exponential_moments(-z, -mean, std, k, half)
        even, odd = right + left, right - left
        for order, table, total in zip(orders, tables, totals):
            total.add_(odd if order % 2 else even, alpha=table[k - 1])
    for order, total in zip(orders, totals):
        if order == 0:
            mills = math.sqrt(math.pi / 2) * torch.special.erfcx(z.abs() / math.sqrt(2))
            spread = std * half * (1 - (z.abs() * mills).nan_to_num(1.0)) * math.sqrt(2 / math.pi)
            total.add_(spread).add_(mean.clamp_min(0.0))
        elif order == 1:
            total.add_(torch.erfc(z / -math.sqrt(2)), alpha=0.5)
    return totals


class _Derivative(Function):
    """``E[f(x)]``, ``f`` the derivative of softplus of one order.

    The heat equation gives both gradients: in the mean ``E[f']``, in the std ``std * E[f'']``. They
    are found in the forward pass, so a backward pass is two products; asked for a graph, it
    applies this function to the next orders.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, std: Tensor, order: int) -> Tensor:
        needed = any(ctx.needs_input_grad[:2])
        orders = (order, order + 1, order + 2) if needed else (order,)
        value, *slopes = _expectations(mean, std, orders)
        if needed:
            ctx.order = order
            ctx.save_for_backward(mean, std, slopes[0], slopes[1])
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        mean, std, slope, curvature = ctx.saved_tensors
        if torch.is_grad_enabled():
            slope = _Derivative.apply(mean, std, ctx.order + 1)
            curvature = _Derivative.apply(mean, std, ctx.order + 2)
        return gradient * slope, gradient * (std * curvature), None


def _derivative(mean: Tensor, std: Tensor, order: int) -> Tensor:
    mean, std = torch.broadcast_tensors(mean, std)
    return _Derivative.apply(mean, std, order)


def softplus(mean: Tensor, std: Tensor, beta: float = 1.0) -> Tensor:
    """``E[log(1 + exp(beta x))] / beta``."""
    return _derivative(beta * mean, abs(beta) * std, 0) / beta


def log_sigmoid(mean: Tensor, std: Tensor) -> Tensor:
    """``E[log sigmoid(x)]``."""
    return -_derivative(-mean, std, 0)


def sigmoid(mean: Tensor, std: Tensor) -> Tensor:
    """``E[1 / (1 + exp(-x))]``."""
    return _derivative(mean, std, 1)


def tanh(mean: Tensor, std: Tensor) -> Tensor:
    """``E[tanh x] = 2 E[sigmoid(2 x)] - 1``."""
    return 2 * _derivative(2 * mean, 2 * std, 1) - 1


def silu(mean: Tensor, std: Tensor) -> Tensor:
    """``E[x sigmoid(x)] = mean E[sigmoid] + std^2 E[sigmoid']``, by Stein's identity."""
    return mean * _derivative(mean, std, 1) + std * std * _derivative(mean, std, 2)


def log_add_exp(mean: Tensor, std: Tensor, other: Tensor) -> Tensor:
    """``E[log(exp(x) + exp(other))]``."""
    return other + _derivative(mean - other, std, 0)
