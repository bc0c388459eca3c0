"""Plates: subsampled, nested, sequential; particles."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_silent import SilentELBO
from tests.elbo.agreement import (
    assert_close,
    assert_entry_points_agree,
    assert_exact,
    evaluate,
    gradients_of,
    new_parameters,
)
from tests.formulas import expected_normal, kl_normal

P = pyro.param
SIZE = 5


def subsampled_pair(data: Tensor, **plate_arguments):
    """A global mean, a local latent per row, and the rows each run drew."""
    drawn: list[Tensor] = []

    def model(subsample: Tensor | None = None) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", SIZE, subsample=subsample, **plate_arguments) as rows:
            drawn.append(rows)
            z = pyro.sample("z", dist.Normal(mu, 0.7))
            pyro.sample("x", dist.Normal(z, P("log_sigma").exp()), obs=data[rows])

    def guide(subsample: Tensor | None = None) -> None:
        pyro.sample("mu", dist.Normal(P("m"), P("log_s").exp()))
        with pyro.plate("data", SIZE, subsample=subsample, **plate_arguments) as rows:
            pyro.sample("z", dist.Normal(P("loc")[rows], P("log_scale")[rows].exp()))

    def formula(rows: Tensor) -> Tensor:
        m, s = P("m"), P("log_s").exp()
        loc, scale = P("loc")[rows], P("log_scale")[rows].exp()
        entropy = 0.5 * torch.log(2 * torch.pi * torch.e * scale**2)
        prior = expected_normal(loc - m, scale**2 + s**2, 0.7)
        likelihood = expected_normal(data[rows] - loc, scale**2, P("log_sigma").exp())
        local = (prior + entropy + likelihood).sum() * SIZE / len(rows)
        return kl_normal(m, s, 0.0, 2.0) - local

    new_parameters(m=(), log_s=(), log_sigma=(), loc=SIZE, log_scale=SIZE)
    return model, guide, formula, drawn


def test_value_for_a_given_subsample():
    rows = torch.tensor([3, 0])
    model, guide, formula, _ = subsampled_pair(torch.randn(SIZE))
    assert_exact(model, guide, lambda: formula(rows), rows)


def test_mean_over_all_subsamples_is_the_full_loss():
    model, guide, formula, _ = subsampled_pair(torch.randn(SIZE))
    subsets = [torch.tensor(rows) for rows in itertools.combinations(range(SIZE), 2)]
    results = [evaluate(SilentELBO(), model, guide, rows) for rows in subsets]
    full = formula(torch.arange(SIZE))
    assert_close(sum(loss for loss, _ in results) / len(subsets), full, 1e-9, "loss")
    for name, truth in gradients_of(full).items():
        mean = sum(gradients[name] for _, gradients in results) / len(subsets)
        assert_close(mean, truth, 1e-8, f"gradient of {name}")


def test_subsample_drawn_by_the_plate():
    """The rows are the only randomness: the loss is the formula at the rows that were drawn."""
    model, guide, formula, drawn = subsampled_pair(torch.randn(SIZE), subsample_size=2)
    losses = set()
    for seed in range(5):
        drawn.clear()
        loss, gradients = evaluate(SilentELBO(), model, guide, seed=seed)
        expected = formula(drawn[-1])
        assert_close(loss, expected, 1e-9, "loss")
        for name, truth in gradients_of(expected).items():
            assert_close(gradients[name], truth, 1e-8, f"gradient of {name}")
        losses.add(loss)
    assert len(losses) > 1
    assert_entry_points_agree(SilentELBO(), model, guide)


def test_minibatch_with_an_encoder():
    """The scale SIZE / batch applies to the local KL and the likelihood, not to the globals."""
    data = torch.randn(SIZE, 3)
    new_parameters(encoder=(3, 2), weights=(2, 3))
    rows = torch.tensor([1, 4, 2])

    def model() -> None:
        with pyro.plate("data", SIZE, subsample=rows):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            batch = pyro.subsample(data, event_dim=1)
            pyro.sample("x", dist.Normal(z @ P("weights"), 0.5).to_event(1), obs=batch)

    def guide() -> None:
        with pyro.plate("data", SIZE, subsample=rows):
            batch = pyro.subsample(data, event_dim=1)
            pyro.sample("z", dist.Normal(batch @ P("encoder"), 0.3).to_event(1))

    def formula() -> Tensor:
        mean, weights = data[rows] @ P("encoder"), P("weights")
        residual = data[rows] - mean @ weights
        likelihood = expected_normal(residual, (0.3 * weights).square().sum(0), 0.5).sum()
        return SIZE / 3 * (kl_normal(mean, torch.tensor(0.3)).sum() - likelihood)

    assert_exact(model, guide, formula)


@pytest.mark.parametrize("order", ["outer_first", "inner_first"])
def test_nested_plates(order):
    """Latents per row, per column and per cell."""
    data = torch.randn(4, 3)
    new_parameters(m_row=(4, 1), m_column=3, m_cell=(4, 3))

    def plates() -> tuple[pyro.plate, pyro.plate]:
        rows, columns = pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1)
        return (rows, columns) if order == "outer_first" else (columns, rows)

    def model() -> None:
        first, second = plates()
        by_name = {plate.name: plate for plate in (first, second)}
        with by_name["rows"]:
            row = pyro.sample("row", dist.Normal(0.0, 1.0))
        with by_name["columns"]:
            column = pyro.sample("column", dist.Normal(0.0, 1.0))
        with first, second:
            cell = pyro.sample("cell", dist.Normal(row + column, 0.5))
            pyro.sample("x", dist.Normal(cell - 0.3 * row, 0.4), obs=data)

    def guide() -> None:
        first, second = plates()
        by_name = {plate.name: plate for plate in (first, second)}
        with by_name["rows"]:
            pyro.sample("row", dist.Normal(P("m_row"), 0.3))
        with by_name["columns"]:
            pyro.sample("column", dist.Normal(P("m_column"), 0.2))
        with first, second:
            pyro.sample("cell", dist.Normal(P("m_cell"), 0.1))

    def formula() -> Tensor:
        row, column, cell = P("m_row"), P("m_column"), P("m_cell")
        kl = kl_normal(row, torch.tensor(0.3)).sum() + kl_normal(column, torch.tensor(0.2)).sum()
        spread = 0.3**2 + 0.2**2 + 0.1**2
        prior = expected_normal(cell - row - column, spread, 0.5).sum()
        entropy = 12 * 0.5 * torch.log(2 * torch.pi * torch.e * torch.tensor(0.1) ** 2)
        spread = 0.1**2 + (0.3 * 0.3) ** 2
        likelihood = expected_normal(data - cell + 0.3 * row, spread, 0.4).sum()
        return kl - prior - entropy - likelihood

    assert_exact(model, guide, formula)


@pytest.mark.parametrize("subsample_size", [None, 2])
def test_sequential_plates(subsample_size):
    """``for i in pyro.plate(...)``, where a subsample scales each site by itself."""
    data = torch.randn(SIZE)
    new_parameters(loc=SIZE, w=())
    rows: list[int] = []

    def model() -> None:
        rows.clear()
        for i in pyro.plate("data", SIZE, subsample_size=subsample_size):
            rows.append(int(i))
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(P("w") * z, 0.5), obs=data[i])

    def guide() -> None:
        for i in pyro.plate("data", SIZE, subsample_size=subsample_size):
            pyro.sample(f"z_{i}", dist.Normal(P("loc")[i], 0.3))

    def formula() -> Tensor:
        chosen = torch.tensor(rows)
        m, w = P("loc")[chosen], P("w")
        likelihood = expected_normal(data[chosen] - w * m, (0.3 * w) ** 2, 0.5)
        local = kl_normal(m, torch.tensor(0.3)) - likelihood
        return local.sum() * SIZE / len(rows)

    if subsample_size is None:
        assert_exact(model, guide, formula)
        assert len(rows) == SIZE
    else:
        for seed in range(3):
            loss, gradients = evaluate(SilentELBO(), model, guide, seed=seed)
            expected = formula()
            assert len(rows) == subsample_size
            assert_close(loss, expected, 1e-9, "loss")
            for name, truth in gradients_of(expected).items():
                assert_close(gradients[name], truth, 1e-8, f"gradient of {name}")


def test_sequential_plate_inside_a_vectorized_one():
    data = torch.randn(3, 4)
    new_parameters(loc=(3, 4))

    def model() -> None:
        columns = pyro.plate("columns", 4)
        for i in pyro.plate("rows", 3):
            with columns:
                z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x_{i}", dist.Normal(z, 0.5), obs=data[i])

    def guide() -> None:
        columns = pyro.plate("columns", 4)
        for i in pyro.plate("rows", 3):
            with columns:
                pyro.sample(f"z_{i}", dist.Normal(P("loc")[i], 0.3))

    def formula() -> Tensor:
        kl = kl_normal(P("loc"), torch.tensor(0.3)).sum()
        return kl - expected_normal(data - P("loc"), 0.3**2, 0.5).sum()

    assert_exact(model, guide, formula)


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("max_plate_nesting", [1, float("inf")])
def test_particles_change_nothing_about_exact_terms(vectorize, max_plate_nesting):
    """More particles of an exact loss: the same value and the same gradient, not their multiple."""
    model, guide, formula, _ = subsampled_pair(torch.randn(SIZE))
    elbo = SilentELBO(
        num_particles=3, vectorize_particles=vectorize, max_plate_nesting=max_plate_nesting
    )
    rows = torch.tensor([2, 1, 4])
    assert_exact(model, guide, lambda: formula(rows), rows, elbo=elbo)


def test_vectorized_particles_over_nested_plates():
    """A latent in the outer plate only, read in the inner one, under vectorized particles."""
    data = torch.randn(4, 3)
    new_parameters(loc=(4, 1))

    def model() -> None:
        with pyro.plate("rows", 4, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("columns", 3, dim=-1):
                pyro.sample("x", dist.Normal(z, 0.5), obs=data)

    def guide() -> None:
        with pyro.plate("rows", 4, dim=-2):
            pyro.sample("z", dist.Normal(P("loc"), 0.3))

    def formula() -> Tensor:
        likelihood = expected_normal(data - P("loc"), 0.3**2, 0.5).sum()
        return kl_normal(P("loc"), torch.tensor(0.3)).sum() - likelihood

    elbo = SilentELBO(num_particles=7, vectorize_particles=True)
    assert_exact(model, guide, formula, elbo=elbo)
