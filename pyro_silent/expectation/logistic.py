r"""Expectations of softplus and the sigmoid of a Gaussian scalar, accurate for every mean and std.

Neither has a closed form. But the logistic law is a scale mixture of normal laws, so

    sigmoid(x) ~ sum_k w_k Phi(x / c_k),    softplus(x) ~ sum_k w_k (x Phi(x / c_k) + c_k phi(x / c_k)),

and under x ~ N(mean, std^2) each component keeps its form, with ``v_k = sqrt(c_k^2 + std^2)`` for ``c_k``
and ``mean`` for ``x``. The error of the sum is therefore the same for every std, from 0 to infinity,
where Gauss-Hermite quadrature of a fixed order fails as soon as std reaches a few units, the
distance of the poles of the sigmoid. The mixture is fitted, relative to softplus and its first two
derivatives, for x above -16; further down, softplus is a sum of exponentials.

Error of softplus and the sigmoid in double precision: 2e-12 absolute, and 1e-8 relative where they are
above 1e-7 (a wide law with nearly all its mass below -16 is what loses digits). Single precision: 1e-6.
The cost is that of 20 (14) values of erfc and exp per element, for the value and the gradients together.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import _disable_current_modes

from pyro_silent.constants import constant
from pyro_silent.looking import is_free

# number of components, least and largest scale: searched for once
_DOUBLE, _SINGLE = (20, 0.54, 6.5), (14, 0.73, 5.9)
_CHUNK = 2048  # elements whose components fit into the cache of a core
_FITTED = 16.0  # softplus(x) is fitted for x above minus this
_FAR = -14.0  # where the exponentials take over, before the fit ends


@lru_cache(maxsize=2)
def _mixture(components: int, least: float, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Scales ``c_k``, geometric, and weights ``w_k``, by least squares of the relative errors."""
    ends = math.log10(least), math.log10(most)
    scales = np.logspace(*ends, components)
    # Chebyshev points: least squares there is near to the smallest largest error
    x = 0.5 * _FITTED * (1 - np.cos(np.linspace(0, math.pi, 400)))
    z = x[:, None] / scales
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    with _disable_current_modes():  # whatever traces the program has no part in this
        places = torch.from_numpy(z)
        probability = torch.special.ndtr(-places).numpy()
        mills = math.sqrt(math.pi / 2) * torch.special.erfcx(places / math.sqrt(2)).numpy()
    y = np.exp(-x)[:, None]
    rows = [
        scales * density * (1 - z * mills) / np.log1p(y),
        probability * (1 + y) / y,
        density / scales * (1 + y) ** 2 / y,
    ]
    design = np.concatenate(rows)
    weights = np.linalg.lstsq(design, np.ones(len(design)), rcond=1e-16)[0]
    return scales, weights / weights.sum()


def _squared_scales(components: int, least: float, most: float) -> np.ndarray:
    return _mixture(components, least, most)[0] ** 2


def _mixture_weights(components: int, least: float, most: float) -> np.ndarray:
    return _mixture(components, least, most)[1]


def _hermite(z: Tensor, degree: int) -> Tensor:
    """The probabilists' polynomial, of d^n/dz^n exp(-z^2 / 2) = (-1)^n He_n(z) exp(-z^2 / 2)."""
    before, now = torch.zeros_like(z), torch.ones_like(z)
    for n in range(degree):
        before, now = now, z * now - n * before
    return now


def _components(mean: Tensor, variance: Tensor, orders: tuple[int, ...]) -> list[Tensor]:
    """``E[f(x)]`` under the mixture for the derivatives ``f`` of softplus of these orders."""
    accuracy = _DOUBLE if mean.dtype == torch.float64 else _SINGLE
    squares = constant(mean, _squared_scales, *accuracy)[:, None]
    weight = constant(mean, _mixture_weights, *accuracy)
    total = variance + squares
    inverse = total.rsqrt()
    z = mean * inverse
    density = torch.exp(-0.5 * z * z) * (inverse / math.sqrt(2 * math.pi))
    results = []
    if orders[0] <= 1:
        probability = 0.5 * (weight @ torch.erfc(z * -math.sqrt(0.5)))
    for order in orders:
        if order == 0:
            results.append(mean * probability + weight @ (density * total))
        elif order == 1:
            results.append(probability)
        else:
            shape = 1.0 if order == 2 else _hermite(-z, order - 2) * inverse ** (order - 2)
            results.append(weight @ (density * shape))
    return results


def _far_below(
    mean: Tensor, variance: Tensor, orders: tuple[int, ...]
) -> tuple[Tensor, list[Tensor]]:
    """Where x is far below 0 for all that matters, and there exp(x) - exp(2x) / 2 differentiated."""
    tilted = mean + variance  # the mean of x where exp(x) weighs it
    far = (tilted < _FAR) & (tilted + variance < -4.0)
    first = torch.exp((mean + 0.5 * variance).clamp_max(0.0))
    second = torch.exp((2 * tilted).clamp_max(0.0))
    return far, [first - 2.0 ** (order - 1) * second for order in orders]


def _expectations(mean: Tensor, std: Tensor, orders: tuple[int, ...]) -> list[Tensor]:
    """``E[f(x)]`` for the derivatives ``f`` of softplus of these orders, in one pass."""
    shape = mean.shape
    mean, std = mean.reshape(-1), std.reshape(-1)
    size = _CHUNK if is_free(mean) else max(mean.numel(), 1)
    chunks = []
    for m, s in zip(mean.split(size), std.split(size)):
        variance = s * s
        far, there = _far_below(m, variance, orders)
        here = _components(m, variance, orders)
        chunks.append([torch.where(far, a, b) for a, b in zip(there, here)])
    if len(chunks) == 1:
        return [value.reshape(shape) for value in chunks[0]]
    return [torch.cat(values).reshape(shape) for values in zip(*chunks)]


class _Derivative(Function):
    """``E[f(x)]``, ``f`` the derivative of softplus of one order.

    The heat equation gives both gradients: in the mean ``E[f']``, in the std ``std * E[f'']``. They
    are found in the forward pass, so a backward pass is two products; where it is itself to be
    differentiated, it applies this function to the next orders.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, std: Tensor, order: int) -> tuple[Tensor, ...]:
        return tuple(_expectations(mean, std, (order, order + 1, order + 2)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        mean, std, ctx.order = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(mean, std, *output[1:])
        ctx.save_for_forward(mean, std, *output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        mean, std, slope, curvature = ctx.saved_tensors
        if torch.is_grad_enabled():
            slope = _derivative(mean, std, ctx.order + 1)
            curvature = _derivative(mean, std, ctx.order + 2)
        return gradients[0] * slope, gradients[0] * (std * curvature), None

    @staticmethod
    def jvp(ctx: Any, mean_tangent: Tensor, std_tangent: Tensor, _: None) -> tuple:
        _, std, slope, curvature = ctx.saved_tensors
        return slope * mean_tangent + std * curvature * std_tangent, None, None


def _derivative(mean: Tensor, std: Tensor, order: int) -> Tensor:
    mean, std = torch.broadcast_tensors(mean, std)
    return _Derivative.apply(mean, std, order)[0]


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
