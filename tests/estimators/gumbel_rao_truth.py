"""Independent truths about Gumbel-Rao: rejection sampling, dense quadrature, autograd, the mistakes.

Nothing here uses the arrival-time weights or the lattice of the package.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor


def rejection_draws(theta: np.ndarray, d: int, count: int, seed: int) -> np.ndarray:
    """Perturbed logits ``[about count * p_d, n]``: those of ``count`` free draws that d wins."""
    perturbed = theta + np.random.default_rng(seed).gumbel(size=(count, len(theta)))
    return perturbed[perturbed.argmax(-1) == d]


@functools.cache
def log_ratio_grid(num_dims: int, step: float = 0.25, reach: float = 36.0) -> tuple:
    """Nodes and weights of E[f(rho_1, ..., rho_m)], rho_j = E_j / E_0 for m + 1 exponential variables.

    Their density is m! / (1 + sum rho)^(m + 1): the trapezoidal rule in log rho converges faster than
    any power of the step, and beyond the reach is less than e^-reach.
    """
    axis = np.arange(-reach, reach + step / 2, step)
    logs = np.stack([side.ravel() for side in np.meshgrid(*[axis] * num_dims, indexing="ij")], -1)
    rho = np.exp(logs)
    factorial = float(np.prod(np.arange(1, num_dims + 1)))
    weights = factorial * rho.prod(-1) / (1 + rho.sum(-1)) ** (num_dims + 1) * step**num_dims
    return rho, weights


def conditional_moments(
    theta: np.ndarray, d: int, tau: float, v: np.ndarray, step: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and second moment of the straight-through Gumbel-softmax gradient given category d."""
    p = np.exp(theta - np.logaddexp.reduce(theta))
    others = [j for j in range(len(p)) if j != d]
    rho, weights = log_ratio_grid(len(others), step)
    log_weights = np.zeros((len(rho), len(p)))
    log_weights[:, others] = -np.log1p(rho / p[others]) / tau
    s = np.exp(log_weights)
    s /= s.sum(-1, keepdims=True)
    gradients = s * (v - (s @ v)[:, None]) / tau
    return weights @ gradients, (gradients * weights[:, None]).T @ gradients


def covariances(theta: np.ndarray, tau: float, v: np.ndarray) -> tuple[float, float]:
    """Trace of E[var(gradient of ST-GS | D)] and of the variance of the exact Gumbel-Rao gradient."""
    p = np.exp(theta - np.logaddexp.reduce(theta))
    moments = [conditional_moments(theta, d, tau, v) for d in range(len(p))]
    means = np.stack([mean for mean, _ in moments])
    within = sum(q * np.trace(second - np.outer(m, m)) for q, (m, second) in zip(p, moments))
    between = (p @ means**2 - (p @ means) ** 2).sum()
    return within, between


def materialised(
    theta: Tensor,
    drawn: Tensor,
    v: Tensor,
    tau: float,
    exponential: Tensor,
    mistake: str | None = None,
) -> Tensor:
    """The estimator by autograd through all draws at once, from given exponentials ``[K, rows, n]``.

    :param mistake: ``"total derivative"`` differentiates the conditional draws as well, ``"double
        theta"`` adds theta to them once more.
    """
    theta = theta.detach().requires_grad_()
    hard = torch.nn.functional.one_hot(drawn, theta.shape[-1]).to(theta.dtype)
    log_z = theta.logsumexp(-1, keepdim=True)
    winner = (exponential * hard).sum(-1, keepdim=True)
    x = torch.where(
        hard > 0,
        log_z - winner.log(),
        -(exponential * (-theta).exp() + winner * (-log_z).exp()).log(),
    )
    if mistake != "total derivative":
        shift = theta.detach() if mistake == "double theta" else 0
        x = (x + shift).detach() + theta - theta.detach()
    relaxed = torch.softmax(x / tau, -1).mean(0)
    return torch.autograd.grad(relaxed, theta, v)[0]
