"""Small programs with discrete latents, each written twice (see ``discrete_oracle``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor, sigmoid

from tests.elbo.discrete_oracle import (
    ENUMERATED,
    SCORED,
    Draws,
    Program,
    kl_bits,
    kl_one_hot,
    log_normal,
)
from tests.formulas import kl_normal

P = pyro.param
PROGRAMS: dict[str, Program] = {}
THREE = torch.tensor([0.4, -0.7, 1.1], dtype=torch.float64)
GRID = torch.tensor([[0.3, -0.4], [0.9, 0.2]], dtype=torch.float64)


def program(plates: int = 0, **shapes: Any) -> Callable[[type], Program]:
    """Register a class of three functions, ``model``, ``guide`` and ``plain``."""

    def register(cls: type) -> Program:
        entry = Program(cls.__name__, cls.model, cls.guide, cls.plain, plates, shapes)
        PROGRAMS[entry.name] = entry
        return entry

    return register


def logit(p: float) -> Tensor:
    return torch.logit(torch.tensor(p, dtype=torch.float64))


def observe(name: str, loc: Tensor, value: Tensor | float, scale: float = 0.7) -> None:
    pyro.sample(name, dist.Normal(loc, scale), obs=torch.as_tensor(value))


# -- one site ----------------------------------------------------------------------------------


@program(logits=3, w=3)
class Bits:
    """Bernoullis in one event."""

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.3)).to_event(1))
        observe("x", torch.tanh(b @ P("w")), 0.8)

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=P("logits")).to_event(1))

    def plain(draw: Draws) -> Tensor:
        b = draw.bernoulli(P("logits"))
        likelihood = log_normal(0.8 - torch.tanh(b @ P("w")), 0.7)
        return kl_bits(P("logits"), logit(0.3).expand(3)).sum() - likelihood


@program(plates=1, logits=2, table=(2, 2), w=2)
class BitsAsIndices:
    """What people write with a bit: an index, a switch, an equality, a complement."""

    def model() -> None:
        with pyro.plate("bits", 2):
            b = pyro.sample("b", dist.Bernoulli(0.3))
        picked = P("table")[b.long()].sum(-1)
        switched = torch.where(b > 0, P("w")[0], P("w")[1].exp()) + (b == 0) * 0.5 + (1 - b)
        observe("x", (picked * switched.sin()).sum(-1, keepdim=True), 0.8)

    def guide() -> None:
        with pyro.plate("bits", 2):
            pyro.sample("b", dist.Bernoulli(logits=P("logits")))

    def plain(draw: Draws) -> Tensor:
        b = draw.bernoulli(P("logits"))
        rows = P("table").sum(-1)
        picked = b * rows[1] + (1 - b) * rows[0]
        switched = b * P("w")[0] + (1 - b) * P("w")[1].exp() + (1 - b) * 1.5
        likelihood = log_normal(0.8 - (picked * switched.sin()).sum(), 0.7)
        return kl_bits(P("logits"), logit(0.3).expand(2)).sum() - likelihood


@program(plates=1, logits=(3, 3), w=3)
class OneHots:
    """One-hot codes in a plate."""

    def model() -> None:
        with pyro.plate("data", 3):
            c = pyro.sample("c", dist.OneHotCategorical(logits=THREE))
            observe("x", (c @ P("w")).exp(), THREE)

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("c", dist.OneHotCategorical(logits=P("logits")))

    def plain(draw: Draws) -> Tensor:
        c = draw.one_hot(P("logits"))
        likelihood = log_normal(THREE - (c @ P("w")).exp(), 0.7)
        return (kl_one_hot(P("logits"), THREE.expand(3, 3)) - likelihood).sum()


@program(plates=1, logits=(2, 4), table=(4, 2))
class IndexedTable:
    """Rows of a table, looked up by an integer latent."""

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.1, 0.2, 0.3, 0.4])))
            row = torch.tanh(P("table")[z])
            pyro.sample("x", dist.Normal(row, 0.7).to_event(1), obs=GRID)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Categorical(logits=P("logits")))

    def plain(draw: Draws) -> Tensor:
        z = draw.one_hot(P("logits"))
        likelihood = log_normal(GRID - torch.tanh(z @ P("table")), 0.7).sum(-1)
        prior = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(2, 4)
        return (kl_one_hot(P("logits"), prior) - likelihood).sum()


@program(plates=1, logits=(2, 3), table=(2, 3))
class Vindexed:
    """A table with a row for each datum; ``Vindex`` and plain advanced indexing."""

    def model() -> None:
        rows = torch.arange(2)
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(logits=torch.zeros(3)))
            loc = Vindex(P("table"))[rows, z] * P("table").exp()[rows, z]
            observe("x", loc, GRID[0])

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Categorical(logits=P("logits")))

    def plain(draw: Draws) -> Tensor:
        z = draw.one_hot(P("logits"))
        loc = (z * P("table")).sum(-1) * (z * P("table").exp()).sum(-1)
        likelihood = log_normal(GRID[0] - loc, 0.7)
        return (kl_one_hot(P("logits"), torch.zeros(2, 3)) - likelihood).sum()


@program(plates=1, logits=(2, 3), w=3)
class ComparedIndices:
    """An integer latent that is compared, encoded and selected by."""

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(logits=THREE))
            a = torch.where(z == 1, P("w")[0], P("w")[1]) * (z != 2)
            b = F.one_hot(z, 3).double() @ P("w")
            observe("x", a.sin() + a * b, GRID[0])

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Categorical(logits=P("logits")))

    def plain(draw: Draws) -> Tensor:
        z = draw.one_hot(P("logits"))
        w = P("w")
        a = (z[:, 1] * w[0] + (1 - z[:, 1]) * w[1]) * (1 - z[:, 2])
        likelihood = log_normal(GRID[0] - a.sin() - a * (z @ w), 0.7)
        return (kl_one_hot(P("logits"), THREE.expand(2, 3)) - likelihood).sum()


@program(plates=1, logits=(2, 2), w=(2, 2))
class BitRows:
    """Bernoullis in an event and in a plate."""

    def model() -> None:
        with pyro.plate("data", 2):
            b = pyro.sample("b", dist.Bernoulli(torch.full((2,), 0.3)).to_event(1))
            observe("x", (b * P("w")).sum(-1).exp(), GRID[0])

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("b", dist.Bernoulli(logits=P("logits")).to_event(1))

    def plain(draw: Draws) -> Tensor:
        b = draw.bernoulli(P("logits"))
        kl = kl_bits(P("logits"), logit(0.3).expand(2, 2)).sum()
        return kl - log_normal(GRID[0] - (b * P("w")).sum(-1).exp(), 0.7).sum()


@program(c=(2, 3), z=(2, 3), w=3, table=(3, 2))
class CodesInAnEvent:
    """Several one-hot codes, and several integers, in one site each."""

    def model() -> None:
        c = pyro.sample("codes", dist.OneHotCategorical(logits=THREE.expand(2, 3)).to_event(1))
        z = pyro.sample("numbers", dist.Categorical(logits=torch.zeros(2, 3)).to_event(1))
        loc = (c @ P("w")).sum(-1).sin() * P("table")[z].prod(-1).sum(-1)
        observe("x", loc, 0.8)

    def guide() -> None:
        pyro.sample("codes", dist.OneHotCategorical(logits=P("c")).to_event(1))
        pyro.sample("numbers", dist.Categorical(logits=P("z")).to_event(1))

    def plain(draw: Draws) -> Tensor:
        c, z = draw.one_hot(P("c")), draw.one_hot(P("z"))
        kl = kl_one_hot(P("c"), THREE.expand(2, 3)) + kl_one_hot(P("z"), torch.zeros(2, 3))
        loc = (c @ P("w")).sum(-1).sin() * (z @ P("table")).prod(-1).sum(-1)
        return kl.sum() - log_normal(0.8 - loc, 0.7)


# -- several sites -----------------------------------------------------------------------------


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


# -- scales, masks, plates ---------------------------------------------------------------------

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


# -- laws at the edge --------------------------------------------------------------------------


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


# -- other ways to treat a site ----------------------------------------------------------------


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
