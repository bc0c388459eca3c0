"""Integer codes read from tables; discrete priors at the edge of single precision."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent import SilentELBO
from tests.elbo.agreement import assert_exact, new_parameters
from tests.elbo.codes import BATCH, BLOCKS, DATA
from tests.formulas import (
    categorical_covariance,
    expected_normal,
    kl_categorical,
)


@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("lookup", ["index", "embedding", "one_hot", "index_select"])
def test_categorical_code_and_lookup_table(lookup, nonlinear):
    """An integer code: the log densities at the table's rows mix with the code's probabilities.

    A function of one integer takes as many values as the integer: a nonlinear decoder is as exact.
    """
    states = 5
    new_parameters(prior=states, logits=(BATCH, states), table=(states, DATA))
    data = torch.randn(BATCH, DATA)

    def decode(row: Tensor) -> Tensor:
        return torch.tanh(row @ weights.relu()).exp() if nonlinear else row

    weights = torch.randn(DATA, DATA)
    readings = {
        "index": lambda table, z: table[z],
        "embedding": lambda table, z: F.embedding(z, table),
        "one_hot": lambda table, z: F.one_hot(z, states).to(table.dtype) @ table,
        "index_select": lambda table, z: torch.index_select(table, 0, z),
    }

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=pyro.param("prior")))
            loc = decode(readings[lookup](pyro.param("table"), z))
            pyro.sample("x", dist.Normal(loc, 0.4).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=pyro.param("logits")))

    def formula() -> Tensor:
        p, prior = (torch.softmax(pyro.param(name), -1) for name in ("logits", "prior"))
        table = decode(pyro.param("table"))
        by_state = expected_normal(data[:, None, :] - table, 0.0, 0.4).sum(-1)
        return kl_categorical(p, prior).sum() - (p * by_state).sum()

    assert_exact(model, guide, formula, data)


def test_categorical_blocks_read_from_separate_tables():
    """Several integer codes per row, each with a table of its own, summed into one location."""
    states = 3
    new_parameters(logits=(BATCH, BLOCKS, states), table=(BLOCKS, states, DATA))
    data = torch.randn(BATCH, DATA)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(BLOCKS, states)).to_event(1))
            loc = sum(pyro.param("table")[b][z[..., b]] for b in range(BLOCKS))
            pyro.sample("x", dist.Normal(loc, 0.4).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=pyro.param("logits")).to_event(1))

    def formula() -> Tensor:
        p = torch.softmax(pyro.param("logits"), -1)
        table = pyro.param("table")
        mean = torch.einsum("nbk,bkd->nd", p, table)
        spread = torch.einsum("nbkl,bkd,bld->nd", categorical_covariance(p), table, table)
        kl = kl_categorical(p, torch.full((states,), 1 / states)).sum()
        return kl - expected_normal(data - mean, spread, 0.4).sum()

    assert_exact(model, guide, formula, data)


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("logit", [20.0, 50.0, -120.0])
@pytest.mark.parametrize("law", ["bernoulli", "one_hot", "categorical"])
def test_priors_whose_probabilities_underflow(law, logit, silent):
    """Single precision: a prior's probability rounds to 0 or 1, its logits do not; no infinity."""
    torch.set_default_dtype(torch.float32)
    logits = torch.tensor([0.0, logit])

    def prior_and_posterior() -> tuple[dist.Distribution, dist.Distribution]:
        if law == "bernoulli":
            return dist.Bernoulli(logits=logits[1]), dist.Bernoulli(torch.tensor(0.5))
        family = dist.OneHotCategorical if law == "one_hot" else dist.Categorical
        return family(logits=logits), family(torch.tensor([0.5, 0.5]))

    def model() -> None:
        pyro.sample("z", prior_and_posterior()[0])

    def guide() -> None:
        pyro.sample("z", prior_and_posterior()[1], infer=None if silent else {"silent": False})

    kl = F.softplus(logits[1].double()) - 0.5 * logit - torch.tensor(2.0).double().log()
    loss = SilentELBO().loss(model, guide)
    if silent:
        assert loss == pytest.approx(kl.item(), rel=1e-5)
    else:
        assert 0 <= loss + torch.tensor(2.0).log() <= 2 * abs(logit)
