"""Independent truths about the estimators, in float64 and one row at a time.

``theta`` are the logits of n categories and ``d`` the category that was drawn.
"""

from __future__ import annotations

import numpy as np
import torch


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def covariance(p: np.ndarray) -> np.ndarray:
    """Of a one-hot variable with probabilities p."""
    return np.diag(p) - np.outer(p, p)


def straight_through(theta: np.ndarray, d: int, tau: float) -> np.ndarray:
    return covariance(softmax(theta / tau)) / tau


def zgr(theta: np.ndarray, d: int) -> np.ndarray:
    p = softmax(theta)
    away = np.eye(len(p))[d] - p
    return (covariance(p) + np.outer(away, away)) / 2


def reinmax(theta: np.ndarray, d: int, tau: float) -> np.ndarray:
    midpoint = (softmax(theta / tau) + np.eye(len(theta))[d]) / 2
    return 2 * covariance(midpoint) - covariance(softmax(theta)) / 2


def gapped(theta: np.ndarray, d: int, tau: float, gap: float) -> np.ndarray:
    """By autograd, through the shifted softmax with the shifts held fixed."""
    x = torch.tensor(theta, requires_grad=True)
    drawn = torch.nn.functional.one_hot(torch.tensor(d), len(theta)).double()
    lift = drawn * (x.max() - x[d])
    push = (1 - drawn) * torch.relu(x - (x.max() - gap))
    shifted = x + (lift - push).detach()
    s = torch.softmax(shifted / tau, -1)
    rows = [torch.autograd.grad(entry, x, retain_graph=True)[0] for entry in s]
    return torch.stack(rows).numpy()


def gumbel_softmax_draws(
    theta: np.ndarray, tau: float, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Categories drawn [count] and the Jacobians that share their noise [count, n, n]."""
    noise = np.random.default_rng(seed).gumbel(size=(count, len(theta)))
    s = softmax((theta + noise) / tau)
    jacobians = (s[:, :, None] * np.eye(len(theta)) - s[:, :, None] * s[:, None, :]) / tau
    return (theta + noise).argmax(-1), jacobians


def true_gradient(theta: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of E[f(D)], from the values of f at the n categories."""
    return covariance(softmax(theta)) @ values


def moments(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the first axis, and its standard error."""
    return samples.mean(0), samples.std(0, ddof=1) / np.sqrt(len(samples))


def assert_same_mean(one: np.ndarray, other: np.ndarray) -> None:
    """Two sets of samples have the same mean: z < 5 per entry, or equal up to rounding."""
    (mean, error), (other_mean, other_error) = moments(one), moments(other)
    bound = 5 * np.hypot(error, other_error) + 1e-12 * (1 + np.abs(other_mean))
    assert (np.abs(mean - other_mean) <= bound).all(), (mean, other_mean, bound)
