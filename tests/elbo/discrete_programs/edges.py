"""Probabilities of 0 and 1, priors of one's own."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, sigmoid

from tests.elbo.discrete_oracle import (
    Draws,
    kl_bits,
    kl_one_hot,
    log_normal,
)
from tests.elbo.discrete_programs.program import THREE, P, logit, observe, program


def _masked_logits() -> Tensor:
    return P("logits").masked_fill(torch.tensor([True, False, False]), -torch.inf)


def _probs_with_ends() -> Tensor:
    return torch.stack([torch.zeros(()), sigmoid(P("q_a")), torch.ones(())])


@program(logits=3, q_a=(), w=3)
class Impossible:
    """A logit of -inf, probabilities of exactly 0 and 1."""

    def model() -> None:
        c = pyro.sample("c", dist.OneHotCategorical(logits=THREE))
        b = pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.3)).to_event(1))
        observe("x", ((c + b) @ P("w")).exp(), 0.8)

    def guide() -> None:
        pyro.sample("c", dist.OneHotCategorical(logits=_masked_logits()))
        pyro.sample("b", dist.Bernoulli(_probs_with_ends()).to_event(1))

    def plain(draw: Draws) -> Tensor:
        c = draw.one_hot(_masked_logits())
        largest = torch.tensor(torch.finfo(torch.float64).max)
        logits = torch.stack([-largest, P("q_a"), largest])
        b = draw.bernoulli(logits)
        kl = kl_one_hot(_masked_logits(), THREE) + kl_bits(logits, logit(0.3).expand(3)).sum()
        return kl - log_normal(0.8 - ((c + b) @ P("w")).exp(), 0.7)


class Coin(dist.TorchDistribution):
    """A law of one's own over {0, 1}: log p is quadratic in the value."""

    support = torch.distributions.constraints.boolean
    arg_constraints = {}

    def __init__(self, slope: Tensor) -> None:
        self.slope = slope
        super().__init__(slope.shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Coin:
        return Coin(self.slope.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.slope * value**2 - torch.log1p(self.slope.exp())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.bernoulli(
            sigmoid(self.slope).expand(torch.Size(sample_shape) + self.batch_shape)
        )


@program(q_a=(), slope=(), w=())
class OwnPrior:
    """A prior of the user's own class has no closed divergence."""

    def model() -> None:
        b = pyro.sample("b", Coin(P("slope")))
        observe("x", (P("w") * b).exp(), 0.8)

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=P("q_a")))

    def plain(draw: Draws) -> Tensor:
        b = draw.bernoulli(P("q_a"))
        prior = P("slope") * b**2 - torch.log1p(P("slope").exp())
        entropy = -kl_bits(P("q_a"), torch.zeros(())) + torch.tensor(2.0).log()
        return -prior - entropy - log_normal(0.8 - (P("w") * b).exp(), 0.7)
