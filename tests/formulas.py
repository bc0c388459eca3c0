"""Closed forms written out by hand, and quadrature: the truths the losses are held against.

Nothing here knows random tensors or Pyro. Every function is differentiable, so autograd through a
formula is the truth of a gradient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def expected_normal(residual: Tensor, variance: Tensor | float, scale: Tensor | float) -> Tensor:
    """``E log N(r; 0, scale)`` for an ``r`` with mean ``residual`` and this variance."""
    scale = torch.as_tensor(scale, dtype=residual.dtype)
    return -0.5 * (LOG_2PI + 2 * scale.log() + (residual**2 + variance) / scale**2)


def expected_multivariate_normal(residual: Tensor, spread: Tensor, covariance: Tensor) -> Tensor:
    """``E log N(r; 0, C)`` for an ``r`` with mean [..., d] and covariance [..., d, d]."""
    precision = torch.linalg.inv(covariance)
    second_moment = spread + residual[..., :, None] * residual[..., None, :]
    trace = (precision * second_moment).sum((-1, -2))
    return -0.5 * (residual.shape[-1] * LOG_2PI + torch.logdet(covariance) + trace)


def quadratic_form(rows: Tensor, covariance: Tensor) -> Tensor:
    """``w_d' S w_d`` for every row: rows [d, k] and covariance [..., k, k] give [..., d]."""
    return torch.einsum("dk,...kl,dl->...d", rows, covariance, rows)


def normal_entropy(scale: Tensor) -> Tensor:
    """Entropy of N(., scale), elementwise."""
    return 0.5 * (LOG_2PI + 1) + scale.log()


def kl_normal(
    mean: Tensor, scale: Tensor, prior_mean: Tensor | float = 0.0, prior_scale: Tensor | float = 1.0
) -> Tensor:
    """KL(N(mean, scale) || N(prior_mean, prior_scale)), elementwise."""
    prior_scale = torch.as_tensor(prior_scale, dtype=mean.dtype)
    ratio = (scale / prior_scale) ** 2
    return 0.5 * (ratio + ((mean - prior_mean) / prior_scale) ** 2 - 1 - ratio.log())


def kl_multivariate_normal(mean: Tensor, covariance: Tensor) -> Tensor:
    """KL(N(mean, covariance) || N(0, I)) over the last dim."""
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 0.5 * (trace + (mean**2).sum(-1) - mean.shape[-1] - torch.logdet(covariance))


def kl_bernoulli(p: Tensor, prior: Tensor | float) -> Tensor:
    """KL(Bernoulli(p) || Bernoulli(prior)), elementwise."""
    prior = torch.as_tensor(prior, dtype=p.dtype)
    return p * (p.log() - prior.log()) + (1 - p) * ((1 - p).log() - (1 - prior).log())


def kl_categorical(p: Tensor, prior: Tensor) -> Tensor:
    """KL(Categorical(p) || Categorical(prior)) over the last dim."""
    return (p * (p.log() - prior.log())).sum(-1)


def categorical_covariance(p: Tensor) -> Tensor:
    """``diag(p) - p p'`` of a one-hot code with probabilities on the last dim."""
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def block_diagonal(blocks: Tensor) -> Tensor:
    """Covariance of independent blocks laid side by side: [..., n, k, k] gives [..., n k, n k]."""
    n, k = blocks.shape[-3:-1]
    out = blocks.new_zeros(*blocks.shape[:-3], n * k, n * k)
    for i in range(n):
        out[..., i * k : (i + 1) * k, i * k : (i + 1) * k] = blocks[..., i, :, :]
    return out


def dense_linear(function: Callable[[Tensor], Tensor], num_inputs: int) -> tuple[Tensor, Tensor]:
    """Matrix [d, k] and offset [d] of an affine function of a batch, read at the unit vectors."""
    probes = torch.cat([torch.zeros(1, num_inputs), torch.eye(num_inputs)]).double()
    values = function(probes).reshape(num_inputs + 1, -1)
    return (values[1:] - values[0]).T, values[0]


def gauss_hermite(num_nodes: int = 60) -> tuple[Tensor, Tensor]:
    """Nodes and weights with ``E f(e) = sum_i w_i f(x_i)`` for a standard normal ``e``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return torch.as_tensor(nodes), torch.as_tensor(weights / weights.sum())


def gauss_hermite_grid(num_dims: int, num_nodes: int = 40) -> tuple[Tensor, Tensor]:
    """Product rule for independent standard normals: nodes [n, num_dims], weights [n]."""
    nodes, weights = gauss_hermite(num_nodes)
    grid = torch.cartesian_prod(*[nodes] * num_dims).reshape(-1, num_dims)
    products = torch.cartesian_prod(*[weights] * num_dims).reshape(-1, num_dims)
    return grid, products.prod(-1)


def standard_normal_grid(num_nodes: int = 20001) -> tuple[Tensor, Tensor]:
    """Trapezoidal nodes and weights for a standard normal and a function with a kink."""
    nodes = torch.linspace(-9.0, 9.0, num_nodes, dtype=torch.float64)
    weights = torch.exp(-0.5 * nodes**2)
    return nodes, weights / weights.sum()


def binary_codes(p: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every value of independent bits with probabilities ``p`` [..., k], and its probability."""
    for bits in itertools.product((0.0, 1.0), repeat=p.shape[-1]):
        z = torch.tensor(bits, dtype=p.dtype)
        yield z, torch.where(z > 0, p, 1 - p).prod(-1)


def z_scores(samples: Sequence[Tensor] | Tensor, truth: Tensor) -> Tensor:
    """(mean - truth) / standard error, elementwise over the first dim of independent samples."""
    stacked = samples if isinstance(samples, Tensor) else torch.stack(list(samples))
    error = stacked.std(0) / math.sqrt(len(stacked))
    return (stacked.mean(0) - truth) / error
