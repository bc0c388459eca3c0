"""-ELBO of any pair with few Gaussian scalars in the guide, by dense quadrature over plain traces.

Guide and model run once, in an outermost plate of nodes as Pyro's vectorized particles do: each
Gaussian site of the guide takes its Gauss-Hermite nodes, each discrete one all its values. Knows
nothing of random tensors; differentiable.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch import distributions as td

from tests.expectation.dense import hermite

POINTS = {0: 1, 1: 80, 2: 40, 3: 26, 4: 12}
Axis = tuple[Tensor, Tensor]


class _Nodes(Messenger):
    """Puts nodes into the latent sites of a guide; without a grid it only counts them."""

    def __init__(self, node_dim: int, grid: Tensor | None = None) -> None:
        super().__init__()
        self.node_dim = node_dim
        self.grid = grid
        self.gaussian: list[bool] = []
        self.log_weight: Tensor | float = 0.0

    def _take(self, count: int, gaussian: bool) -> Tensor:
        at = len(self.gaussian)
        self.gaussian += [gaussian] * count
        return torch.zeros(1, count) if self.grid is None else self.grid[:, at : at + count]

    def _pyro_sample(self, msg: dict) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or type(fn).__name__ in ("_Subsample", "Delta"):
            return
        base = fn
        while isinstance(base, td.Independent):
            if type(base.base_dist).__name__ == "Delta":
                return
            base = base.base_dist
        shape = list(base.batch_shape + base.event_shape)
        at = len(fn.batch_shape) + self.node_dim
        shape[at] = 1
        count = torch.Size(shape).numel()
        gaussian = not isinstance(base, td.Bernoulli)
        noise = self._take(count, gaussian)
        noise = noise.reshape(len(noise), *shape[:at], *shape[at + 1 :])
        if not gaussian:
            value = noise.expand(base.batch_shape)
            log_prob = base.log_prob(value)
            self.log_weight = self.log_weight + log_prob.reshape(len(noise), -1).sum(-1)
        elif isinstance(base, td.Normal):
            value = base.loc + base.scale * noise
        else:
            root = torch.linalg.cholesky(base.covariance_matrix)
            value = base.loc + (root @ noise.unsqueeze(-1)).squeeze(-1)
        msg["value"] = value
        msg["done"] = True


def _grid(gaussian: list[bool]) -> tuple[Tensor, Tensor]:
    """Nodes [N, scalars] and weights [N] (1 along discrete scalars)."""
    rule = hermite(POINTS[sum(gaussian)])
    binary = (torch.tensor([0.0, 1.0]), torch.ones(2))
    axes = [rule if x else binary for x in gaussian]
    nodes = torch.cartesian_prod(*(x for x, _ in axes)).reshape(-1, len(axes))
    weights = torch.cartesian_prod(*(w for _, w in axes)).reshape(-1, len(axes))
    return nodes, weights.prod(-1)


def negative_elbo(model: Callable, guide: Callable, max_plate_nesting: int) -> Tensor:
    """-ELBO; the sites' plates lie at dims ``-max_plate_nesting`` and inside.

    :raises KeyError: for more Gaussian scalars than can be integrated densely.
    """
    node_dim = -max_plate_nesting - 1

    def run(grid: Tensor | None) -> tuple[_Nodes, poutine.Trace, poutine.Trace]:
        nodes = _Nodes(node_dim, grid)
        size = 1 if grid is None else len(grid)
        with nodes, pyro.plate("nodes", size, dim=node_dim):
            guide_trace = poutine.trace(guide).get_trace()
        with pyro.plate("nodes", size, dim=node_dim):
            model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace()
        return nodes, guide_trace, model_trace

    with torch.no_grad():
        count = run(None)[0]
    grid, weight = _grid(count.gaussian)
    nodes, guide_trace, model_trace = run(grid)
    total: Tensor | float = 0.0
    for trace, sign in ((model_trace, 1.0), (guide_trace, -1.0)):
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
                total = total + sign * site["log_prob"].reshape(len(grid), -1).sum(-1)
    if isinstance(nodes.log_weight, Tensor):
        weight = weight * nodes.log_weight.exp()
    return -(weight * total).sum()
