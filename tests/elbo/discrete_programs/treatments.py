"""Sites that are auxiliary, opted out, enumerated, or functions of others."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, sigmoid

from tests.elbo.discrete_oracle import (
    ENUMERATED,
    SCORED,
    Draws,
    kl_bits,
    kl_one_hot,
    log_normal,
)
from tests.elbo.discrete_programs.program import GRID, THREE, P, logit, observe, program


@program(q_u=(), q_b=(), c=(), w=())
class Auxiliary:
    """A latent of the guide alone."""

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.3))
        observe("x", (P("w") * b).exp(), 0.8)

    def guide() -> None:
        u = pyro.sample("u", dist.Bernoulli(logits=P("q_u")), infer={"is_auxiliary": True})
        pyro.sample("b", dist.Bernoulli(logits=P("q_b") + P("c") * u))

    def plain(draw: Draws) -> Tensor:
        u = draw.bernoulli(P("q_u"))
        logits = P("q_b") + P("c") * u
        b = draw.bernoulli(logits)
        entropy = -kl_bits(P("q_u"), torch.zeros(())) + torch.tensor(2.0).log()
        kl = kl_bits(logits, logit(0.3)) - entropy
        return kl - log_normal(0.8 - (P("w") * b).exp(), 0.7)


@program(u=(), w=())
class PointMass:
    """A latent that is a function of an auxiliary one, as autoguides write it."""

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.3))
        observe("x", (P("w") * b).exp(), 0.8)

    def guide() -> None:
        b = pyro.sample("b_auxiliary", dist.Bernoulli(logits=P("u")), infer={"is_auxiliary": True})
        pyro.sample("b", dist.Delta(1 - b))

    def plain(draw: Draws) -> Tensor:
        b = 1 - draw.bernoulli(P("u"))
        entropy = -kl_bits(P("u"), torch.zeros(())) + torch.tensor(2.0).log()
        prior = b * torch.tensor(0.3).log() + (1 - b) * torch.tensor(0.7).log()
        return -prior - entropy - log_normal(0.8 - (P("w") * b).exp(), 0.7)


@program(q_a=(), q_s=2, q_b=2, w=3)
class Scored:
    """A bit, then one that is opted out, then a Binomial, which only the score function serves."""

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.3))
        s = pyro.sample("s", dist.Bernoulli(0.6))
        n = pyro.sample("n", dist.Binomial(2, torch.tensor(0.4)))
        b = pyro.sample("b", dist.Bernoulli(0.5))
        loc = P("w")[0] * a + P("w")[1] * s * b + P("w")[2] * n * a
        observe("x", loc.sin() + loc, 0.8)

    def guide() -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=P("q_a")))
        logits = P("q_s")[0] + P("q_s")[1] * a
        s = pyro.sample("s", dist.Bernoulli(logits=logits), infer={"silent": False})
        pyro.sample("n", dist.Binomial(2, sigmoid(P("q_s")[1] * a)))
        pyro.sample("b", dist.Bernoulli(logits=P("q_b")[0] + P("q_b")[1] * s))

    def plain(draw: Draws) -> Tensor:
        a = draw.bernoulli(P("q_a"))
        logits = P("q_s")[0] + P("q_s")[1] * a
        s = draw.bernoulli(logits, SCORED)
        counts = [dist.Binomial(2, p) for p in (sigmoid(P("q_s")[1] * a), torch.tensor(0.4))]
        q, p = (fn.log_prob(torch.arange(3.0)) for fn in counts)
        n = draw.one_hot(q, SCORED)
        of_b = P("q_b")[0] + P("q_b")[1] * s
        b = draw.bernoulli(of_b)
        kl = kl_bits(P("q_a"), logit(0.3)) + kl_bits(logits, logit(0.6)) + kl_bits(of_b, logit(0.5))
        kl = kl + kl_one_hot(q, p)
        loc = P("w")[0] * a + P("w")[1] * s * b + P("w")[2] * (n @ torch.arange(3.0)) * a
        return kl - log_normal(0.8 - loc.sin() - loc, 0.7)


@program(plates=1, q_a=(), q_e=(2, 3), q_b=3, w=3)
class Enumerated:
    """A site that is enumerated between two that are sampled."""

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.3))
        with pyro.plate("data", 2):
            e = pyro.sample("e", dist.Categorical(logits=THREE))
            b = pyro.sample("b", dist.Bernoulli(0.5))
            observe("x", (P("w")[e] * (1 + a + b)).sin(), GRID[0])

    def guide() -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=P("q_a")))
        fn = dist.Categorical(logits=P("q_e") * (1 + a.unsqueeze(-1)))
        with pyro.plate("data", 2):
            e = pyro.sample("e", fn, infer={"enumerate": "parallel"})
            pyro.sample("b", dist.Bernoulli(logits=P("q_b")[e]))

    def plain(draw: Draws) -> Tensor:
        a = draw.bernoulli(P("q_a"))
        logits = P("q_e") * (1 + a)
        e = draw.one_hot(logits, ENUMERATED)
        of_b = e @ P("q_b")
        b = draw.bernoulli(of_b)
        kl = kl_bits(P("q_a"), logit(0.3)) + kl_one_hot(logits, THREE.expand(2, 3)).sum()
        kl = kl + kl_bits(of_b, torch.zeros(2)).sum()
        return kl - log_normal(GRID[0] - ((e @ P("w")) * (1 + a + b)).sin(), 0.7).sum()


@program(logits=3, w=(3, 2))
class Factors:
    """``pyro.factor`` and ``pyro.deterministic`` of a latent."""

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(logits=THREE))
        row = pyro.deterministic("row", P("w")[z], event_dim=1)
        pyro.factor("f", torch.tanh(row).prod(-1))
        observe("x", row.sum(-1).sin(), 0.8)

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=P("logits")))

    def plain(draw: Draws) -> Tensor:
        row = draw.one_hot(P("logits")) @ P("w")
        terms = torch.tanh(row).prod(-1) + log_normal(0.8 - row.sum().sin(), 0.7)
        return kl_one_hot(P("logits"), THREE) - terms
