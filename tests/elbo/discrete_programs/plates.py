"""Scales, masks, plates and subsamples."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, sigmoid

from tests.elbo.discrete_oracle import (
    Draws,
    kl_bits,
    kl_one_hot,
    log_normal,
)
from tests.elbo.discrete_programs.program import GRID, THREE, P, logit, observe, program

MASK = torch.tensor([True, False, True])
OTHER = torch.tensor([False, True, True])


@program(plates=1, logits=(3, 3), w=3)
class MaskedPlate:
    """One mask for prior and entropy, so that their divergence is closed."""

    def model() -> None:
        with pyro.plate("data", 3), poutine.mask(mask=MASK):
            c = pyro.sample("c", dist.OneHotCategorical(logits=THREE))
            observe("x", (c @ P("w")).exp(), THREE)

    def guide() -> None:
        with pyro.plate("data", 3), poutine.mask(mask=MASK):
            pyro.sample("c", dist.OneHotCategorical(logits=P("logits")))

    def plain(draw: Draws) -> Tensor:
        c = draw.one_hot(P("logits"))
        likelihood = log_normal(THREE - (c @ P("w")).exp(), 0.7)
        return (MASK * (kl_one_hot(P("logits"), THREE.expand(3, 3)) - likelihood)).sum()


@program(plates=1, logits=(3, 3), w=3)
class MasksApart:
    """Prior and entropy are masked each on its own."""

    def model() -> None:
        with pyro.plate("data", 3), poutine.mask(mask=MASK):
            c = pyro.sample("c", dist.OneHotCategorical(logits=THREE))
            observe("x", (c @ P("w")).exp(), THREE)

    def guide() -> None:
        with pyro.plate("data", 3), poutine.mask(mask=OTHER):
            pyro.sample("c", dist.OneHotCategorical(logits=P("logits")))

    def plain(draw: Draws) -> Tensor:
        c = draw.one_hot(P("logits"))
        q = torch.log_softmax(P("logits"), -1)
        prior = c @ torch.log_softmax(THREE, -1)
        likelihood = log_normal(THREE - (c @ P("w")).exp(), 0.7)
        entropy = OTHER * (q.exp() * q).sum(-1)
        return (entropy - MASK * (prior + likelihood)).sum()


@program(plates=1, logits=3, w=(2, 3))
class ObservedInPart:
    """``obs_mask``: a latent for each position, and the data where there are any."""

    def model() -> None:
        with pyro.plate("data", 3):
            fn, data = dist.Bernoulli(0.3), torch.tensor([1.0, 0.0, 0.0])
            b = pyro.sample("b", fn, obs=data, obs_mask=MASK)
            observe("x", P("w")[0] * b + P("w")[1], THREE)

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("b_unobserved", dist.Bernoulli(logits=P("logits")))

    def plain(draw: Draws) -> Tensor:
        b = draw.bernoulli(P("logits"))
        data = torch.tensor([1.0, 0.0, 0.0])
        seen = torch.where(MASK, data, b)
        observed = sigmoid(logit(0.3)).log() * data + sigmoid(-logit(0.3)).log() * (1 - data)
        likelihood = log_normal(THREE - P("w")[0] * seen - P("w")[1], 0.7) + MASK * observed
        prior = sigmoid(logit(0.3)).log() * b + sigmoid(-logit(0.3)).log() * (1 - b)
        entropy = -kl_bits(P("logits"), torch.zeros(3)) + torch.tensor(2.0).log()
        return -(likelihood + ~MASK * prior + entropy).sum()


@program(plates=1, logits=(2, 3), w=3)
class ScaledApart:
    """Different scales in model and guide."""

    def model() -> None:
        with poutine.scale(scale=2.5), pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(logits=THREE))
            observe("x", P("w")[z].sin(), GRID[0])

    def guide() -> None:
        with poutine.scale(scale=0.5), pyro.plate("data", 2):
            pyro.sample("z", dist.Categorical(logits=P("logits")))

    def plain(draw: Draws) -> Tensor:
        z = draw.one_hot(P("logits"))
        q = torch.log_softmax(P("logits"), -1)
        joint = z @ torch.log_softmax(THREE, -1) + log_normal(GRID[0] - (z @ P("w")).sin(), 0.7)
        return (0.5 * (q.exp() * q).sum(-1) - 2.5 * joint).sum()


@program(q_a=(), q_b=(), w=2)
class MaskedBySample:
    """A bit decides whether a datum counts, another how much."""

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.3))
        b = pyro.sample("b", dist.Bernoulli(0.6))
        with poutine.mask(mask=a > 0):
            observe("x", P("w")[0], 0.8)
        with poutine.scale(scale=1.0 + b):
            observe("y", P("w")[1] * a, 0.8)

    def guide() -> None:
        pyro.sample("a", dist.Bernoulli(logits=P("q_a")))
        pyro.sample("b", dist.Bernoulli(logits=P("q_b")))

    def plain(draw: Draws) -> Tensor:
        a, b = draw.bernoulli(P("q_a")), draw.bernoulli(P("q_b"))
        kl = kl_bits(P("q_a"), logit(0.3)) + kl_bits(P("q_b"), logit(0.6))
        first = a * log_normal(0.8 - P("w")[0], 0.7)
        return kl - first - (1 + b) * log_normal(0.8 - P("w")[1] * a, 0.7)


@program(plates=1, q_a=(), logits=(4, 2), w=2)
class Subsampled:
    """A global bit and one latent for each datum of a subsampled plate."""

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.4))
        with pyro.plate("data", 4, subsample_size=2) as rows:
            c = pyro.sample("c", dist.OneHotCategorical(logits=torch.zeros(2)))
            observe("x", (c @ P("w")) * (1 + a), GRID.flatten()[rows])

    def guide() -> None:
        pyro.sample("a", dist.Bernoulli(logits=P("q_a")))
        with pyro.plate("data", 4, subsample_size=2) as rows:
            pyro.sample("c", dist.OneHotCategorical(logits=P("logits")[rows]))

    def plain(draw: Draws) -> Tensor:
        a = draw.bernoulli(P("q_a"))
        rows = draw.subsample(4, 2)
        logits = P("logits")[rows]
        c = draw.one_hot(logits)
        likelihood = log_normal(GRID.flatten()[rows] - (c @ P("w")) * (1 + a), 0.7)
        terms = kl_one_hot(logits, torch.zeros(2, 2)) - likelihood
        return kl_bits(P("q_a"), logit(0.4)) + 2 * terms.sum()


@program(plates=2, q_a=2, q_b=(2, 2), w=2)
class NestedPlates:
    """Bits of an outer plate in an inner one."""

    def model() -> None:
        with pyro.plate("outer", 2, dim=-2):
            a = pyro.sample("a", dist.Bernoulli(0.4))
            with pyro.plate("inner", 2, dim=-1):
                b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
                observe("x", (P("w")[0] * a + P("w")[1] * b).exp(), GRID)

    def guide() -> None:
        with pyro.plate("outer", 2, dim=-2):
            a = pyro.sample("a", dist.Bernoulli(logits=P("q_a")[:, None]))
            with pyro.plate("inner", 2, dim=-1):
                pyro.sample("b", dist.Bernoulli(logits=P("q_b") * (1 + a)))

    def plain(draw: Draws) -> Tensor:
        a = draw.bernoulli(P("q_a")[:, None])
        logits = P("q_b") * (1 + a)
        b = draw.bernoulli(logits)
        kl = kl_bits(logits, (0.2 + 0.5 * a).logit().expand(2, 2)).sum()
        kl = kl + kl_bits(P("q_a"), logit(0.4).expand(2)).sum()
        return kl - log_normal(GRID - (P("w")[0] * a + P("w")[1] * b).exp(), 0.7).sum()
