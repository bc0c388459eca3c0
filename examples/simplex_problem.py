"""A quadratic on the simplex as an expectation over one-hot draws, and the moments of its gradients.

The problem is (p - c)' Q (p - c) over the probabilities p of three categories, Q_ij = exp(-2 |i - j|) and
c = 1/3; as an expectation over a one-hot draw D ~ p it is E[(D - c)' A(p) (D - c)] with

    A_ii = (p_i - c_i)^2 Q_ii / (p_i - 2 p_i c_i + c_i^2)
    A_ij = (p_i - c_i) (p_j - c_j) Q_ij / (c_i c_j - p_i c_j - c_i p_j),

held constant in the gradient with respect to the logits log p. A is singular where some p_k is 2/3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_silent.estimators import Estimator

TARGET = 1 / 3  # c, in every coordinate
INDEX = torch.arange(3, dtype=torch.float64)
Q = torch.exp(-2 * (INDEX[:, None] - INDEX).abs())
VERTICES = torch.eye(3, dtype=torch.float64)


class Moments(NamedTuple):
    """Mean ``[points, 3]`` of a gradient estimate and the trace of its covariance ``[points]``."""

    mean: Tensor
    variance: Tensor

    def bias(self, exact: Tensor) -> Tensor:
        """Norm of the difference to the exact gradient."""
        return (self.mean - exact).norm(dim=-1)

    def mean_squared_error(self, exact: Tensor) -> Tensor:
        """Squared bias plus variance."""
        return self.bias(exact).square() + self.variance


def lattice(steps: int) -> Tensor:
    """Centroids of a triangulation of the simplex, ``steps`` triangles along a side, one way up.

    :param steps: 1 more than a multiple of 3, which keeps the points off the singular lines.
    """
    if steps % 3 != 1:
        raise ValueError(f"steps: got {steps}, expected 1 more than a multiple of 3")
    corners = [(i, j, steps - 1 - i - j) for i in range(steps) for j in range(steps - i)]
    return (torch.tensor(corners, dtype=torch.float64) + 1 / 3) / steps


def coefficients(p: Tensor) -> Tensor:
    """A(p): ``[..., 3]`` to ``[..., 3, 3]``."""
    error = p - TARGET
    mixed = TARGET**2 - TARGET * (p.unsqueeze(-1) + p.unsqueeze(-2))
    off_diagonal = error.unsqueeze(-1) * error.unsqueeze(-2) * Q / mixed
    diagonal = error.square() * Q.diagonal() / (p - 2 * TARGET * p + TARGET**2)
    return torch.where(VERTICES.bool(), torch.diag_embed(diagonal), off_diagonal)


def quadratic(value: Tensor, a: Tensor) -> Tensor:
    """(value - c)' A (value - c): values ``[points, draws, 3]``, A ``[points, 3, 3]``."""
    error = value - TARGET
    return ((error @ a) * error).sum(-1)


def exact_gradient(p: Tensor) -> Tensor:
    """The gradient of E[(D - c)' A (D - c)] in the logits: a sum over three draws, ``[points, 3]``."""
    values = quadratic(VERTICES.expand(*p.shape, 3), coefficients(p))
    return p * (values - (p * values).sum(-1, keepdim=True))


def sampled_moments(estimator: Estimator, p: Tensor, num_gradients: int) -> Moments:
    """The moments of an estimator's gradient, from independent draws at every point ``[points, 3]``.

    The draws are post-stratified: moments are averaged within each of the three outcomes and combined
    by the outcomes' known probabilities, so that how often an outcome happened to come up is no
    source of error. What is left is the noise within an outcome.

    :raises ValueError: if an outcome never came up at some point.
    """
    logits = p.log().unsqueeze(-2).expand(-1, num_gradients, -1).clone().requires_grad_()
    hard = estimator.one_hot(logits)
    (gradient,) = torch.autograd.grad(quadratic(hard, coefficients(p)).sum(), logits)
    outcome = hard.detach().mT  # [points, 3, draws]
    counts = outcome.sum(-1, keepdim=True)
    if not counts.all():
        raise ValueError(f"an outcome never came up in {num_gradients} draws; take more")
    means = outcome @ gradient / counts
    squares = outcome @ gradient.square().sum(-1, keepdim=True) / counts
    mean = (p.unsqueeze(-1) * means).sum(-2)
    return Moments(mean, (p * squares.squeeze(-1)).sum(-1) - mean.square().sum(-1))


def integrated_moments(p: Tensor, temperature: float, num_gumbels: int) -> tuple[Moments, Moments]:
    """The moments of ST-GS and of Gumbel-Rao at every point, by quadrature, without an estimator.

    Given D = k, the softmax of the perturbed logits depends on two ratios E_j / E_k of unit
    exponentials alone, whose logarithms u, w have density 2 e^(u + w) / (1 + e^u + e^w)^3: a smooth
    integrand on the plane, on which the trapezoid rule converges geometrically. Gumbel-Rao divides the
    variance within an outcome by ``num_gumbels`` and leaves that between outcomes.
    """
    axis = torch.arange(-28.0, 28.0, 0.4, dtype=p.dtype)
    u, w = (ratio.flatten() for ratio in torch.meshgrid(axis, axis, indexing="ij"))
    log_density = u + w - 3 * torch.stack([u, w, torch.zeros_like(u)]).logsumexp(0)
    density = 2 * log_density.exp() * (axis[1] - axis[0]) ** 2
    kept = density > 1e-13
    density, ratios = density[kept], torch.stack([u[kept], w[kept]], -1)
    plain, rao = [], []
    for point, a in zip(p, coefficients(p), strict=True):
        slopes = 2 * (VERTICES - TARGET) @ a
        means, squares = torch.empty_like(a), torch.empty_like(point)
        for k, slope in enumerate(slopes):
            others = [j for j in range(3) if j != k]
            # Arrival times T_j / T_k = 1 + E_j / (p_j E_k): the softmax weighs them by -log / tau.
            log_weights = ratios.new_zeros(len(ratios), 3)
            log_weights[:, others] = -softplus(ratios - point[others].log()) / temperature
            soft = log_weights.softmax(-1)
            gradient = soft * (slope - (soft @ slope).unsqueeze(-1)) / temperature
            means[k] = density @ gradient
            squares[k] = density @ gradient.square().sum(-1)
        mean = point @ means
        total = point @ squares - mean.square().sum()
        within = point @ (squares - means.square().sum(-1))
        plain.append((mean, total))
        rao.append((mean, total - within * (1 - 1 / num_gumbels)))
    return _stack(plain), _stack(rao)


def _stack(moments: list[tuple[Tensor, Tensor]]) -> Moments:
    means, variances = zip(*moments, strict=True)
    return Moments(torch.stack(means), torch.stack(variances))
