"""The exact Gumbel-Rao derivative of a binary variable: quadrature instead of draws."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_NUM_NODES = 32
_REACH = 36.0  # the law of t has mass 2e-16 beyond
_CPU_CHUNK = 2**16
_GPU_CHUNK = 2**24


def binary_derivative(log_odds: Tensor, temperature: float) -> Tensor:
    r"""E[s (1 - s) / tau given the value that was drawn], elementwise, without draws.

    With theta the log odds of the value that was drawn, and tau t the logistic difference of the two
    perturbed logits, the expectation is an integral over t > 0, which partial integration turns into a
    mixture of sigmoids in theta:

    .. math::
        c(\theta) &= \frac{1}{\sigma(\theta)} \int \sigma'(t) \, \sigma'(\tau t - \theta) \, dt \\
        &= \int \sigma(\tau t - \theta) \, \sigma'(t) \tanh(t / 2) \frac{1 - e^{-\tau t}}{\tau} \, dt

    The nodes are the same for every theta, so that none costs an exponential. t is the sinh of a variable
    on an interval of Gauss-Legendre nodes: 32 for temperatures up to 1, 32 more for each 1 above.

    In float64 the absolute error, measured for temperatures from .001 to 100 and log odds from -1e4 to
    1e4, is below 1e-9 (1e-12 for temperatures up to .5). For temperatures up to 1 the relative error is
    below 1e-6 for log odds up to 10; at 30, where c is below 3e-12, it reaches 4e-4.

    :param Tensor log_odds: of the value that was drawn, any shape; ``inf`` gives 0.
    """
    build = _nodes
    decay, weights = (build.__wrapped__ if isinstance(log_odds, FakeTensor) else build)(
        temperature, log_odds.dtype, log_odds.device
    )
    flat = log_odds.reshape(-1)
    derivative = torch.empty_like(flat)
    limit = _CPU_CHUNK if flat.device.type == "cpu" else _GPU_CHUNK
    size = max(1, limit // len(weights))
    for start in range(0, len(flat), size):
        odds = flat[start : start + size]
        if temperature <= 1:
            ratio = (-decay).exp().unsqueeze(-1) * odds.exp()
        else:  # the product could be infinity times zero
            ratio = (odds - decay.unsqueeze(-1)).exp_()
        derivative[start : start + size] = weights @ ratio.add_(1).reciprocal_()
    return derivative.view(log_odds.shape)


@lru_cache(maxsize=128)
def _nodes(temperature: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """tau t at the nodes, and what the sigmoids there are multiplied with."""
    panels = max(1, math.ceil(temperature))
    node, weight = np.polynomial.legendre.leggauss(_NUM_NODES)
    x = ((np.arange(panels)[:, None] + (node + 1) / 2) / panels).ravel()
    weight = np.tile(weight / 2 / panels, panels)
    t = _REACH * np.sinh(2 * x) / np.sinh(2)
    weight = weight * _REACH * 2 * np.cosh(2 * x) / np.sinh(2)
    density = np.exp(-t) / (1 + np.exp(-t)) ** 2
    weight = weight * density * np.tanh(t / 2) * -np.expm1(-temperature * t) / temperature
    return (
        torch.tensor(temperature * t, dtype=dtype, device=device),
        torch.tensor(weight, dtype=dtype, device=device),
    )
