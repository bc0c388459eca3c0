"""One discrete site, and everything people do with its value."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.ops.indexing import Vindex
from torch import Tensor

from tests.elbo.discrete_oracle import (
    Draws,
    kl_bits,
    kl_one_hot,
    log_normal,
)
from tests.elbo.discrete_programs.program import GRID, THREE, P, logit, observe, program


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
