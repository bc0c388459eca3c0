"""The advice of docs/expectations.md: what it lists first is sampled, what it lists next is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_silent import explain
from tests.test_docs import PAGES

ONE = torch.tensor(1.0)


def latents() -> Tensor:
    return pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))


def observe(loc: Tensor) -> None:
    pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=torch.zeros(loc.shape))


def branch() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(1.0 if z > 0 else 2.0, 1.0), obs=ONE)
    pyro.sample("y", dist.Normal(z, 1.0), obs=ONE)


def where() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(torch.where(z > 0, 1.0, 2.0), 1.0), obs=ONE)
    pyro.sample("y", dist.Normal(z, 1.0), obs=ONE)


def buffer() -> None:
    z, out = latents(), torch.zeros(4)
    for k in range(4):
        out[k] = z[k] * k
    observe(out)


def stack() -> None:
    z = latents()
    observe(torch.stack([z[k] * k for k in range(4)]))


def rate_model() -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    pyro.sample("x", dist.Poisson(rate), obs=ONE)


def gamma() -> None:
    pyro.sample("rate", dist.Gamma(torch.tensor(3.0), 2.0))


def log_normal() -> None:
    pyro.sample("rate", dist.LogNormal(torch.tensor(0.3), 0.2))


def random_logits() -> None:
    pyro.sample("x", dist.Categorical(logits=latents()), obs=torch.tensor(1))


def table_of_logits() -> None:
    k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
    table = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    pyro.sample("x", dist.Categorical(logits=table[k]), obs=torch.tensor(1))


def index_guide() -> None:
    pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))


SHAPE = torch.tensor([[1.0, 0.0], [0.5, 1.0]])


def random_covariance() -> None:
    s = pyro.sample("s", dist.Normal(0.0, 1.0))
    factor = SHAPE * s.exp()
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=torch.ones(2))


def whitened() -> None:
    s = pyro.sample("s", dist.Normal(0.0, 1.0))
    x = torch.linalg.solve_triangular(SHAPE, torch.ones(2, 1), upper=False).squeeze(-1)
    pyro.sample("x", dist.Normal(torch.zeros(2), s.exp()).to_event(1), obs=x)


def ordered() -> None:
    observe(latents().sort()[0])


def elementwise() -> None:
    observe(torch.tanh(latents()))


def deep() -> None:
    torch.manual_seed(0)
    observe(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))(latents()))


def linear() -> None:
    torch.manual_seed(0)
    observe(nn.Linear(4, 2)(latents()))


class Advice(NamedTuple):
    row: str
    lost: Callable
    kept: Callable
    lost_guide: Callable | None = None
    kept_guide: Callable | None = None


ADVICE = [
    Advice("if z > 0: loc = a else: loc = b", branch, where),
    Advice("out[i] = z * x[i]", buffer, stack),
    Advice("dist.Gamma(a, b)", rate_model, rate_model, gamma, log_normal),
    Advice("dist.Categorical(logits=z)", random_logits, table_of_logits, None, index_guide),
    Advice("dist.MultivariateNormal(z, scale_tril=f(s))", random_covariance, whitened),
    Advice("z.sort()", ordered, elementwise),
    Advice("net(z)", deep, linear),
]


@pytest.mark.parametrize("advice", ADVICE, ids=lambda advice: advice.row)
def test_advice(advice):
    lost = explain(advice.lost, advice.lost_guide or AutoNormal(advice.lost))
    kept = explain(advice.kept, advice.kept_guide or AutoNormal(advice.kept))
    assert not lost.is_silent
    assert kept.is_silent, str(kept)


def test_every_row_of_the_page_is_tried():
    lines = PAGES["expectations.md"].splitlines()
    start = lines.index("| instead of | write | because |") + 2
    table = lines[start : lines.index("", start)]
    assert len(table) == len(ADVICE)
    for line, advice in zip(table, ADVICE, strict=True):
        assert f"`{advice.row}`" in line.split("|")[1]
