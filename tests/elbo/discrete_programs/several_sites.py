"""Sites whose laws depend on each other."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

from tests.elbo.discrete_oracle import (
    Draws,
    kl_bits,
    kl_one_hot,
    log_normal,
)
from tests.elbo.discrete_programs.program import GRID, THREE, P, logit, observe, program
from tests.formulas import kl_normal


@program(q_a=2, w=(2, 3), v=(2, 3), u=(2, 3))
class OneHotChain:
    """A child whose law depends on its parent, in the guide and in the model."""

    def model() -> None:
        a = pyro.sample("a", dist.OneHotCategorical(logits=torch.zeros(2)))
        b = pyro.sample("b", dist.OneHotCategorical(logits=a @ P("v")))
        observe("x", (b.unsqueeze(-2) @ (a @ P("u")).unsqueeze(-1)).squeeze((-1, -2)).sin(), 0.8)

    def guide() -> None:
        a = pyro.sample("a", dist.OneHotCategorical(logits=P("q_a")))
        pyro.sample("b", dist.OneHotCategorical(logits=torch.tanh(a @ P("w"))))

    def plain(draw: Draws) -> Tensor:
        a = draw.one_hot(P("q_a"))
        logits = torch.tanh(a @ P("w"))
        b = draw.one_hot(logits)
        kl = kl_one_hot(P("q_a"), torch.zeros(2)) + kl_one_hot(logits, a @ P("v"))
        return kl - log_normal(0.8 - (b @ (a @ P("u"))).sin(), 0.7)


@program(plates=1, q_a=3, w=(3, 2), v=(3, 2), u=(3, 2))
class IndexChain:
    """The same with integers: an index into tables of logits; the children are in a plate."""

    def model() -> None:
        a = pyro.sample("a", dist.Categorical(logits=THREE))
        with pyro.plate("data", 2):
            b = pyro.sample("b", dist.Categorical(logits=P("v")[a]))
            observe("x", Vindex(P("u"))[a, b], GRID[0])

    def guide() -> None:
        a = pyro.sample("a", dist.Categorical(logits=P("q_a")))
        with pyro.plate("data", 2):
            pyro.sample("b", dist.Categorical(logits=P("w")[a]))

    def plain(draw: Draws) -> Tensor:
        a = draw.one_hot(P("q_a"))
        logits = (a @ P("w")).expand(2, 2)
        b = draw.one_hot(logits)
        kl = kl_one_hot(P("q_a"), THREE) + kl_one_hot(logits, (a @ P("v")).expand(2, 2)).sum()
        return kl - log_normal(GRID[0] - b @ (a @ P("u")), 0.7).sum()


@program(plates=1, q_a=(), c=(), d=2)
class BitChain:
    """Bernoullis that depend on a Bernoulli; at c = 0 they depend on it all the same."""

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.4))
        with pyro.plate("data", 2):
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
            observe("x", (a + b) ** 2, GRID[0])

    def guide() -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=P("q_a")))
        with pyro.plate("data", 2):
            pyro.sample("b", dist.Bernoulli(logits=P("d") + P("c") * a))

    def plain(draw: Draws) -> Tensor:
        a = draw.bernoulli(P("q_a"))
        logits = P("d") + P("c") * a
        b = draw.bernoulli(logits)
        kl = (
            kl_bits(P("q_a"), logit(0.4)) + kl_bits(logits, (0.2 + 0.5 * a).logit().expand(2)).sum()
        )
        return kl - log_normal(GRID[0] - (a + b) ** 2, 0.7).sum()


@program(q_a=(), c=(), d=2)
class ChildFirst:
    """The guide draws b, then a given b; the model a, then b given a: no closed divergence for a pair
    that comes in another order."""

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.4))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
        observe("x", torch.sin(a + 2 * b), 0.8)

    def guide() -> None:
        b = pyro.sample("b", dist.Bernoulli(logits=P("q_a")))
        pyro.sample("a", dist.Bernoulli(logits=P("d")[0] + P("c") * b))

    def plain(draw: Draws) -> Tensor:
        b = draw.bernoulli(P("q_a"))
        logits = P("d")[0] + P("c") * b
        a = draw.bernoulli(logits)
        p = 0.2 + 0.5 * a
        log_prior = b * p.log() + (1 - b) * (1 - p).log()
        entropy = -kl_bits(P("q_a"), torch.zeros(())) + torch.tensor(2.0).log()
        kl = kl_bits(logits, logit(0.4)) - log_prior - entropy
        return kl - log_normal(0.8 - torch.sin(a + 2 * b), 0.7)


@program(q_a=(), m=2, w=())
class BitBeforeNormal:
    """A Bernoulli in the location of a reparameterized site."""

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(0.5 * b, 1.0))
        observe("x", z * (1 + P("w") * b), 0.8)

    def guide() -> None:
        b = pyro.sample("b", dist.Bernoulli(logits=P("q_a")))
        pyro.sample("z", dist.Normal(P("m")[0] + P("m")[1] * b, 0.6))

    def plain(draw: Draws) -> Tensor:
        b = draw.bernoulli(P("q_a"))
        loc = P("m")[0] + P("m")[1] * b
        z = draw.normal(loc, 0.6)
        kl = kl_bits(P("q_a"), logit(0.3)) + kl_normal(loc, torch.tensor(0.6), 0.5 * b)
        return kl - log_normal(0.8 - z * (1 + P("w") * b), 0.7)


@program(plates=1, m=(), c=2, w=())
class NormalBeforeBits:
    """A reparameterized site in the logits of Bernoullis: the gradient goes through both."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            b = pyro.sample("b", dist.Bernoulli(logits=z))
            observe("x", torch.exp(0.5 * b * z + P("w") * b), GRID[0])

    def guide() -> None:
        z = pyro.sample("z", dist.Normal(P("m"), 0.6))
        with pyro.plate("data", 2):
            pyro.sample("b", dist.Bernoulli(logits=P("c") * z))

    def plain(draw: Draws) -> Tensor:
        z = draw.normal(P("m"), 0.6)
        b = draw.bernoulli(P("c") * z)
        kl = kl_normal(P("m"), torch.tensor(0.6)) + kl_bits(P("c") * z, z.expand(2)).sum()
        return kl - log_normal(GRID[0] - torch.exp(0.5 * b * z + P("w") * b), 0.7).sum()


@program(start=2, step=(2, 2), rows=(2, 3))
class MarkovChain:
    """Three integers in a row, each the index of the next one's law; labels are observed."""

    def model() -> None:
        z, rows = None, P("rows")
        for t in pyro.markov(range(3)):
            logits = torch.zeros(2) if z is None else torch.eye(2)[z]
            z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))
            pyro.sample(f"x_{t}", dist.Categorical(logits=rows[z]), obs=torch.tensor(t))

    def guide() -> None:
        z = None
        for t in pyro.markov(range(3)):
            logits = P("start") if z is None else P("step")[z]
            z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))

    def plain(draw: Draws) -> Tensor:
        logits, prior, loss = P("start"), torch.zeros(2), torch.zeros(())
        for t in range(3):
            z = draw.one_hot(logits)
            loss = loss + kl_one_hot(logits, prior)
            loss = loss - torch.log_softmax(z @ P("rows"), -1)[t]
            logits, prior = z @ P("step"), z
        return loss
