"""Local latents behind a deep decoder: guide, prior, and the truth by quadrature or enumeration."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from torch import Tensor

from pyro_silent import SilentELBO
from tests.elbo.agreement import (
    new_parameters,
)
from tests.formulas import (
    binary_codes,
    expected_normal,
    gauss_hermite_grid,
    kl_bernoulli,
    kl_categorical,
    kl_normal,
)

P = pyro.param
BATCH, CODE, DATA, STATES = 2, 2, 3, 4


def sampling(num_particles: int = 1) -> SilentELBO:
    """Without an estimator: gradients are held to be unbiased, by the score function if need be."""
    return SilentELBO(
        intractable="sample",
        estimator=None,
        num_particles=num_particles,
        vectorize_particles=num_particles > 1,
    )


class Family(NamedTuple):
    """A local latent: its guide, its nodes and probabilities (a truth), its KL to a prior."""

    width: int
    new_parameters: Callable[[], None]
    fn: Callable[[], dist.Distribution]
    prior: Callable[[float], dist.Distribution]
    code: Callable[[Tensor], Tensor]
    nodes: Callable[[], tuple[Tensor, Tensor]]
    kl: Callable[[float], Tensor]
    infer: dict | None = None

    def guide(self, *_) -> None:
        with pyro.plate("data", BATCH):
            pyro.sample("z", self.fn(), infer=self.infer)


def deep(code: Tensor) -> Tensor:
    """Never exact: a softmax over a hidden layer is a function of many scalars."""
    hidden = torch.tanh(2.0 * code @ P("w1"))
    return torch.tanh(6.0 * (hidden * hidden.softmax(-1)) @ P("w2"))


def opaque(x: Tensor) -> Tensor:
    """x cos(x), written so that nobody sees an expectation."""
    return torch.stack([x, x.cos()]).cumprod(0)[1]


def _gaussian_nodes() -> tuple[Tensor, Tensor]:
    grid, probabilities = gauss_hermite_grid(CODE, 80)
    return P("loc") + P("log_scale").exp() * grid[:, None, :], probabilities[:, None]


def _binary_nodes() -> tuple[Tensor, Tensor]:
    values, probabilities = zip(*binary_codes(torch.sigmoid(P("logits"))), strict=True)
    return torch.stack(values)[:, None, :], torch.stack(probabilities)


def _state_nodes() -> tuple[Tensor, Tensor]:
    return torch.eye(STATES)[:, None, :], torch.softmax(P("logits"), -1).T


def _state_prior(first: float) -> Tensor:
    return torch.tensor([first] + [(1 - first) / (STATES - 1)] * (STATES - 1))


def _block_prior(first: float) -> Tensor:
    return torch.tensor([first, (1 - first) / 2, (1 - first) / 2])


def _state_kl(first: float) -> Tensor:
    return kl_categorical(torch.softmax(P("logits"), -1), _state_prior(first))


GAUSSIAN = Family(
    CODE,
    lambda: new_parameters(loc=(BATCH, CODE), log_scale=(BATCH, CODE)),
    lambda: dist.Normal(P("loc"), P("log_scale").exp()).to_event(1),
    lambda scale: dist.Normal(torch.zeros(CODE), scale).to_event(1),
    lambda z: z,
    _gaussian_nodes,
    lambda scale: kl_normal(P("loc"), P("log_scale").exp(), 0.0, scale),
)
BERNOULLI = Family(
    CODE,
    lambda: new_parameters(logits=(BATCH, CODE)),
    lambda: dist.Bernoulli(logits=P("logits")).to_event(1),
    lambda p: dist.Bernoulli(torch.tensor([p] * CODE)).to_event(1),
    lambda z: z,
    _binary_nodes,
    lambda p: kl_bernoulli(torch.sigmoid(P("logits")), p),
)
ONE_HOT = Family(
    STATES,
    lambda: new_parameters(logits=(BATCH, STATES)),
    lambda: dist.OneHotCategorical(logits=P("logits")),
    lambda first: dist.OneHotCategorical(_state_prior(first)),
    lambda z: z,
    _state_nodes,
    _state_kl,
)
CATEGORICAL = ONE_HOT._replace(
    fn=lambda: dist.Categorical(logits=P("logits")),
    prior=lambda first: dist.Categorical(_state_prior(first)),
    code=lambda z: torch.eye(STATES)[z],
)


def _block_nodes() -> tuple[Tensor, Tensor]:
    p = torch.softmax(P("logits"), -1)
    pairs = [(i, j) for i in range(3) for j in range(3)]
    nodes = torch.stack([torch.eye(3)[[i, j]].flatten() for i, j in pairs])
    return nodes[:, None, :], torch.stack([p[:, 0, i] * p[:, 1, j] for i, j in pairs])


BLOCKS = Family(
    6,
    lambda: new_parameters(logits=(BATCH, 2, 3)),
    lambda: dist.OneHotCategorical(logits=P("logits")).to_event(1),
    lambda first: dist.OneHotCategorical(_block_prior(first).expand(2, 3)).to_event(1),
    lambda z: z.flatten(-2),
    _block_nodes,
    lambda first: kl_categorical(torch.softmax(P("logits"), -1), _block_prior(first)),
)
OPTED_OUT = {"silent": False}


FAMILIES = {
    "normal": GAUSSIAN,
    "normal_opted_out": GAUSSIAN._replace(infer=OPTED_OUT),
    "normal_opted_out_scored": GAUSSIAN._replace(
        fn=lambda: NonreparameterizedNormal(P("loc"), P("log_scale").exp()).to_event(1),
        infer=OPTED_OUT,
    ),
    "bernoulli": BERNOULLI,
    "bernoulli_opted_out": BERNOULLI._replace(infer=OPTED_OUT),
    "one_hot": ONE_HOT,
    "one_hot_opted_out": ONE_HOT._replace(infer=OPTED_OUT),
    "one_hot_blocks": BLOCKS,
    "categorical": CATEGORICAL,
    "categorical_opted_out": CATEGORICAL._replace(infer=OPTED_OUT),
}


def deep_pair(latent: Family) -> tuple[Callable, Callable[[], Tensor], Tensor]:
    """A deep decoder of a family, and its negative ELBO by quadrature or enumeration."""
    latent.new_parameters()
    new_parameters(w1=(latent.width, 4), w2=(4, DATA))
    x = torch.randn(BATCH, DATA)

    def model(x: Tensor) -> None:
        with pyro.plate("data", BATCH):
            z = pyro.sample("z", latent.prior(0.5))
            loc = deep(latent.code(z))
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def formula() -> Tensor:
        nodes, probabilities = latent.nodes()
        likelihood = expected_normal(x - deep(nodes), 0.0, 0.5).sum(-1)
        return latent.kl(0.5).sum() - (probabilities * likelihood).sum()

    return model, formula, x
