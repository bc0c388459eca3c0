"""The tables of the examples are the published ones: sizes, totals, and what was made of them."""

from __future__ import annotations

import pytest
import torch

import data


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


def assert_standardised(covariates: torch.Tensor) -> None:
    torch.testing.assert_close(covariates.mean(0), torch.zeros(covariates.shape[1]))
    torch.testing.assert_close(covariates.square().mean(0), torch.ones(covariates.shape[1]))


def test_eight_schools():
    effects, standard_errors = data.load_eight_schools()
    # The pooled effect and its standard error in Gelman et al., Bayesian Data Analysis: 7.7 and 4.1.
    weights = standard_errors**-2
    assert (weights @ effects / weights.sum()).item() == pytest.approx(7.7, abs=0.05)
    assert weights.sum().rsqrt().item() == pytest.approx(4.1, abs=0.05)


def test_breast_cancer():
    table = data.load_breast_cancer()
    assert table.covariates.shape == (569, 30) and len(table.names) == 30
    assert table.response.sum() == 357  # benign
    assert_standardised(table.covariates)


def test_doctor_visits():
    table = data.load_doctor_visits()
    assert table.covariates.shape == (20190, 5) and table.counts.shape == table.groups.shape
    assert table.counts.mean().item() == pytest.approx(2.860426, abs=1e-6)
    assert_standardised(table.covariates)
    sizes = torch.bincount(table.groups)
    assert len(sizes) == len(table.group_names) == 20 and sizes.sum() == 20190
    assert sizes[:4].sum() == 10997  # rows with free care
    assert table.group_names[7] == "25 % coinsurance, poor health" and sizes[7] == 29


@pytest.mark.parametrize(
    "load, shape",
    [(data.load_stack_loss, (21, 3)), (data.load_food_expenditure, (235, 1))],
    ids=["stack loss", "food expenditure"],
)
def test_regressions(load, shape):
    table = load()
    assert table.covariates.shape == shape and table.response.shape == shape[:1]
    assert len(table.names) == shape[1]
    assert_standardised(table.covariates)


def test_nile():
    flow = data.load_nile()
    assert flow.shape == (100,) and flow[0] == 1120 and flow[-1] == 740


def test_fertility_has_only_known_entries():
    matrix = data.load_fertility()
    assert matrix.shape == (210, 52) and len(matrix.values) == 10284
    assert len(matrix.rows.unique()) == 210 and len(matrix.columns.unique()) == 52
    assert matrix.values.isfinite().all() and 0 < matrix.values.min() and matrix.values.max() < 10


def test_iris():
    flowers, species = data.load_iris()
    assert flowers.shape == (150, 4) and torch.bincount(species).tolist() == [50, 50, 50]
    assert_standardised(flowers)


def test_tables_follow_the_default_dtype():
    torch.set_default_dtype(torch.float32)
    assert data.load_nile().dtype == torch.float32
    assert data.load_doctor_visits().covariates.dtype == torch.float32
