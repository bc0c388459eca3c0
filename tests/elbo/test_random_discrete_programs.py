"""Random programs of discrete sites that depend on each other, held against Pyro's own traces."""

from __future__ import annotations

import random
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent import ZGR, DisARMELBO, LeaveOneOutELBO, StraightThroughELBO
from tests.elbo.agreement import new_parameters
from tests.elbo.chance import Z_LIMIT, worst_z_scores
from tests.elbo.discrete_losses import RUNS
from tests.elbo.discrete_oracle import pyro_loss
from tests.elbo.discrete_programs import P, observe

KINDS = ("bit", "one_hot", "index", "rows")


def _code(kind: str, value: Tensor) -> Tensor:
    """Two numbers that say what a site's value is, by one of the ways people write."""
    if kind == "bit":
        return torch.stack([value, 1 - value], -1)
    if kind == "one_hot":
        return value[..., :2]
    if kind == "index":
        return torch.tensor([[0.5, -0.5], [1.0, 2.0], [0.0, -1.0]])[value]
    return F.one_hot(value.long(), 2)[..., 0].to(value.dtype)  # of two bits in an event


def _law(kind: str, logits: Tensor) -> dist.Distribution:
    if kind == "bit":
        return dist.Bernoulli(logits=logits[..., 0])
    if kind == "one_hot":
        return dist.OneHotCategorical(logits=logits)
    if kind == "index":
        return dist.Categorical(logits=logits)
    return dist.Bernoulli(logits=logits[..., :2]).to_event(1)


def random_program(seed: int) -> tuple[Callable, Callable]:
    """Three sites in random orders, each fed by random earlier ones, in guide and model apart."""
    chance = random.Random(seed)
    kinds = {f"z{i}": chance.choice(KINDS) for i in range(3)}
    scales = {name: chance.choice([1.0, 1.0, 1.5]) for name in kinds}

    def order(prefix: str) -> list[tuple[str, list[str]]]:
        names = list(kinds)
        chance.shuffle(names)
        fed = [[p for p in names[:i] if chance.random() < 0.7] for i in range(3)]
        new_parameters(**{f"{prefix}_{name}": 3 for name in names})
        new_parameters(**{f"{prefix}_{p}_{n}": (2, 3) for n, f in zip(names, fed) for p in f})
        return list(zip(names, fed, strict=True))

    orders = {prefix: order(prefix) for prefix in ("guide", "model")}
    new_parameters(w=(3, 2))

    def sites(prefix: str) -> dict[str, Tensor]:
        codes: dict[str, Tensor] = {}
        for name, fed in orders[prefix]:
            logits = P(f"{prefix}_{name}")
            for parent in fed:
                logits = logits + 2 * codes[parent] @ P(f"{prefix}_{parent}_{name}")
            with pyro.poutine.scale(scale=scales[name] if prefix == "guide" else 1.0):
                codes[name] = _code(kinds[name], pyro.sample(name, _law(kinds[name], logits)))
        return codes

    def model() -> None:
        codes = sites("model")
        total = sum((codes[name] * w).sum(-1) for name, w in zip(kinds, P("w"), strict=True))
        observe("x", 2 * torch.sin(total), 0.8)

    def guide() -> None:
        sites("guide")

    return model, guide


@pytest.mark.parametrize("seed", range(4))
def test_random_programs(seed):
    """Every loss has the mean value; the unbiased ones have the mean gradient."""
    model, guide = random_program(seed)
    for make in (LeaveOneOutELBO, DisARMELBO, lambda **keys: StraightThroughELBO(ZGR(), **keys)):
        elbo = make(num_particles=50, vectorize_particles=True, max_plate_nesting=0)
        worst = worst_z_scores(elbo, model, guide, pyro_loss(model, guide), runs=RUNS)
        if isinstance(elbo, StraightThroughELBO):
            worst = {"loss": worst["loss"]}
        assert max(worst.values()) < Z_LIMIT, (type(elbo).__name__, worst)
