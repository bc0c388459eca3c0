"""The toy problem of Gumbel-Rao is the paper's, its integrals are right, wrong estimators fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gumbel_rao_toy as toy
from pyro_silent.estimators import Estimator, GumbelRao, StraightThroughGumbelSoftmax
from pyro_silent.estimators.estimator import Draw
from simplex_problem import (
    TARGET,
    VERTICES,
    Moments,
    Q,
    coefficients,
    exact_gradient,
    integrated_moments,
    lattice,
    quadratic,
    sampled_moments,
)

DOCS = Path(__file__).parent.parent / "docs"
POINTS = torch.tensor(list(toy.REFERENCE), dtype=torch.float64)
NUM_GUMBELS = 20


class ConditionalSoftmax(Estimator):
    """Gumbel-Rao by hand: autograd through softmax of conditional draws, right or wrong in one way.

    :param shift: how often the logits are added to the conditional draws, which hold them already.
    :param held: whether the noise is held fixed, or differentiated through.
    """

    def __init__(self, temperature: float, shift: float = 0.0, held: bool = True) -> None:
        super().__init__(temperature)
        self.shift, self.held = shift, held

    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        with torch.enable_grad():
            logits = draw.log_probs.detach().requires_grad_()
            noise = torch.empty(NUM_GUMBELS, *logits.shape, dtype=logits.dtype).exponential_()
            winner = (noise * draw.hard).sum(-1, keepdim=True)
            loser = -torch.log(noise / logits.exp() + winner)
            draws = torch.where(draw.hard.bool(), -winner.log().expand_as(loser), loser)
            if self.held:
                draws = logits + (draws - logits).detach()
            soft = ((draws + self.shift * logits) / temperature).softmax(-1)
            return torch.autograd.grad((soft * gradient).sum() / NUM_GUMBELS, logits)[0]

    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        raise NotImplementedError


def z_scores(found: Moments, expected: Moments, num_gradients: int) -> Tensor:
    """How far means are from what they should be, in standard errors of a mean of plain draws."""
    return (found.mean - expected.mean).norm(dim=-1) * (num_gradients / expected.variance).sqrt()


def test_the_expectation_is_the_quadratic():
    p = lattice(10)
    values = quadratic(VERTICES.expand(*p.shape, 3), coefficients(p))
    error = p - TARGET
    torch.testing.assert_close((p * values).sum(-1), ((error @ Q) * error).sum(-1))


def test_the_exact_gradient_is_that_of_autograd():
    logits = POINTS.log().requires_grad_()
    values = quadratic(VERTICES.expand(*POINTS.shape, 3), coefficients(POINTS))
    (expected,) = torch.autograd.grad((logits.softmax(-1) * values).sum(), logits)
    torch.testing.assert_close(exact_gradient(POINTS), expected)


def test_the_lattice_keeps_off_the_singular_lines():
    p = lattice(22)
    assert p.shape == (22 * 23 // 2, 3)
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[:, 0]))
    assert (p - 2 / 3).abs().min() > 0.01
    with pytest.raises(ValueError, match="steps: got 21, expected 1 more than a multiple of 3"):
        lattice(21)


@pytest.mark.parametrize("temperature", toy.TEMPERATURES)
def test_integrals_are_those_of_plain_gumbel_noise(temperature):
    torch.manual_seed(0)
    num_gradients = 100_000
    logits = POINTS.log().unsqueeze(1)
    noise = -torch.empty(len(POINTS), num_gradients, 3, dtype=logits.dtype).exponential_().log()
    perturbed = logits + noise
    hard = torch.nn.functional.one_hot(perturbed.argmax(-1), 3).to(logits.dtype)
    slope = 2 * (hard - TARGET) @ coefficients(POINTS)
    soft = (perturbed / temperature).softmax(-1)
    gradient = soft * (slope - (soft * slope).sum(-1, keepdim=True)) / temperature
    squares = (gradient - gradient.mean(1, keepdim=True)).square().sum(-1)
    expected, _ = integrated_moments(POINTS, temperature, NUM_GUMBELS)
    # Both fail by chance less than once in 100,000 seeds; the seed is fixed.
    assert z_scores(Moments(gradient.mean(1), squares), expected, num_gradients).max() < 5
    standard_error = squares.std(1) / num_gradients**0.5
    assert ((squares.mean(1) - expected.variance) / standard_error).abs().max() < 5


@pytest.mark.parametrize("temperature", toy.TEMPERATURES)
@pytest.mark.parametrize(
    "estimator",
    [lambda t: GumbelRao(t, NUM_GUMBELS, points="independent"), ConditionalSoftmax],
    ids=["ours", "by hand"],
)
def test_gumbel_rao_has_the_moments_of_the_integrals(estimator, temperature):
    torch.manual_seed(0)
    _, expected = integrated_moments(POINTS, temperature, NUM_GUMBELS)
    found = sampled_moments(estimator(temperature), POINTS, 10_000)
    assert z_scores(found, expected, 10_000).max() < 5
    torch.testing.assert_close(found.variance, expected.variance, rtol=0.04, atol=0)


def test_draws_of_a_lattice_have_the_same_mean_and_less_variance():
    torch.manual_seed(0)
    plain, limit = integrated_moments(POINTS, 0.5, 10**9)
    _, independent = integrated_moments(POINTS, 0.5, NUM_GUMBELS)
    found = sampled_moments(GumbelRao(0.5, NUM_GUMBELS), POINTS, 10_000)
    assert z_scores(found, independent, 10_000).max() < 5
    excess = (found.variance - limit.variance) / (independent.variance - limit.variance)
    assert excess.max() < 0.9 and excess.min() > -0.5


@pytest.mark.parametrize("wrong", [{"shift": 1.0}, {"held": False}], ids=["twice", "total"])
@pytest.mark.parametrize("temperature", toy.TEMPERATURES)
def test_the_known_wrong_variants_are_caught(wrong, temperature):
    torch.manual_seed(0)
    _, expected = integrated_moments(POINTS, temperature, NUM_GUMBELS)
    found = sampled_moments(ConditionalSoftmax(temperature, **wrong), POINTS, 10_000)
    assert z_scores(found, expected, 10_000).max() > 10
    assert (found.variance / expected.variance).log10().abs().max() > 0.03


def measured_claims() -> tuple[list[toy.Row], Tensor, list[toy.Row]]:
    """What the example would measure if there were no noise at all."""
    p = lattice(7)
    integrals = [
        toy.log_ratio(*integrated_moments(p, temperature, toy.NUM_GUMBELS))
        for temperature in toy.TEMPERATURES
    ]
    exact = torch.stack(integrals)
    table = {
        temperature: integrated_moments(POINTS, temperature, toy.NUM_GUMBELS)
        for temperature in toy.TEMPERATURES
    }
    return toy.grid_rows(p, exact, exact), exact, toy.variance_rows(POINTS, table)


def test_the_claims_hold_for_the_integrals():
    toy.check(*measured_claims())


def test_the_example_fails_when_its_claims_do_not_hold():
    rows, exact, variances = measured_claims()
    with pytest.raises(SystemExit, match="failed: the lattice agrees with quadrature"):
        toy.check([{**rows[0], "largest_error": 0.2}, *rows[1:]], exact, variances)
    with pytest.raises(SystemExit, match="failed: the table agrees with its quadrature"):
        toy.check(rows, exact, [{**variances[0], "measured": 0.2}, *variances[1:]])
    with pytest.raises(SystemExit, match="failed: the table agrees with its reference"):
        toy.check(rows, exact, [{**variances[0], "reference": 0.2}, *variances[1:]])
    with pytest.raises(SystemExit, match="failed: GR improves everywhere"):
        toy.check(rows, exact - 0.3, variances)
    with pytest.raises(SystemExit, match="failed: more at a lower temperature"):
        toy.check(rows, exact[[0, 0, 2]], variances)
    with pytest.raises(SystemExit, match="failed: tau = 1: more in the corners"):
        toy.check([{**rows[0], "corners": 0.0}, *rows[1:]], exact, variances)


def test_biases_that_differ_are_caught():
    torch.manual_seed(0)
    measured = {"ZGR": Moments(exact_gradient(POINTS), POINTS[:, 0])}
    for temperature in toy.TEMPERATURES:
        pair = integrated_moments(POINTS, temperature, toy.NUM_GUMBELS)
        for kind, moments in zip((toy.ST_GS, toy.RAO), pair, strict=True):
            measured[toy.label(kind, temperature)] = moments
    toy.check_errors(POINTS, measured, 10_000, 10_000)
    name = toy.label(toy.RAO, 0.1)
    measured[name] = measured[name]._replace(mean=measured[name].mean + 0.05)
    with pytest.raises(SystemExit, match=r"failed: tau = 0.1: one bias"):
        toy.check_errors(POINTS, measured, 10_000, 10_000)


def test_an_outcome_that_never_came_up_is_refused():
    with pytest.raises(ValueError, match="an outcome never came up in 2 draws"):
        sampled_moments(StraightThroughGumbelSoftmax(1.0), POINTS, 2)


def test_the_page_shows_the_figures_of_the_file():
    record = json.loads((DOCS / "gumbel_rao_toy.json").read_text())
    assert toy.page(record) == (DOCS / "gumbel_rao_toy.md").read_text()
    assert len(record["grid"]) == len(lattice(record["settings"]["steps"]))


def test_the_readme_table_has_a_row_per_point_and_one_column_per_temperature():
    record = json.loads((DOCS / "gumbel_rao_toy.json").read_text())
    header, _, *rows = toy.readme_table(record).splitlines()
    assert header == "| p | tau = 1 | tau = 0.5 | tau = 0.1 |"
    assert len(rows) == len(toy.REFERENCE) + 3
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert cells[0] == "0.2, 0.3, 0.5"
    for cell, expected in zip(cells[1:], toy.REFERENCE[0.2, 0.3, 0.5], strict=True):
        assert float(cell) == pytest.approx(expected, abs=0.03)
