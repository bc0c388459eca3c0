"""E[log p] by summing plain ``log_prob`` over nodes: never a random tensor in sight.

Discrete laws are enumerated. Gaussian ones get Gauss-Hermite nodes, two per element: exact for
polynomials of degree up to three, and Gaussian log densities are quadratic.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution

from tests.formulas import gauss_hermite

Program = Callable[..., tuple[Distribution, Tensor]]


def _gaussian_nodes(law: Distribution) -> Iterator[tuple[Tensor, Tensor]]:
    nodes, weights = gauss_hermite(2)
    count = law.loc.numel()
    for picks in itertools.product(range(len(nodes)), repeat=count):
        noise = nodes[list(picks)].reshape(law.loc.shape)
        if isinstance(law, td.Normal):
            value = law.loc + law.scale * noise
        else:
            value = (
                law.loc + (torch.linalg.cholesky(law.covariance_matrix) @ noise[..., None])[..., 0]
            )
        yield value, weights[list(picks)].prod()


def _discrete_nodes(law: Distribution) -> Iterator[tuple[Tensor, Tensor]]:
    support = law.enumerate_support(expand=False)
    batch = law.batch_shape
    for picks in itertools.product(range(len(support)), repeat=batch.numel()):
        chosen = support[list(picks)].reshape(batch + law.event_shape)
        yield chosen, law.log_prob(chosen).exp().prod()


def nodes_of(law: Distribution) -> list[tuple[Tensor, Tensor]]:
    """Every node of a law (as a whole tensor) with its probability."""
    while isinstance(law, td.Independent):
        law = law.base_dist
    discrete = isinstance(law, (td.Bernoulli, td.Categorical, td.OneHotCategorical))
    return list(_discrete_nodes(law) if discrete else _gaussian_nodes(law))


def expected_log_prob_by_nodes(program: Program, *laws: Distribution) -> Tensor:
    """The sum over joint nodes of probability x ``log_prob``; impossible values count nothing."""
    total: Tensor | float = 0.0
    for joint in itertools.product(*(nodes_of(law) for law in laws)):
        weight = torch.stack([probability for _, probability in joint]).prod()
        distribution, value = program(*(value for value, _ in joint))
        if weight > 0:
            total = total + weight * distribution.log_prob(value)
    return total
