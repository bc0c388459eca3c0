"""StraightThroughELBO and GumbelRaoELBO: the value of the hard sample, the gradient of the estimator.

The chance of a failure without a cause is in ``discrete_losses``.
"""

from __future__ import annotations

import pytest
import torch

from pyro_silent import (
    ZGR,
    GumbelRao,
    GumbelRaoELBO,
    ReinMax,
    StraightThrough,
    StraightThroughELBO,
    StraightThroughGumbelSoftmax,
)
from tests.elbo.agreement import (
    assert_entry_points_agree,
    evaluate,
    new_parameters,
)
from tests.elbo.chance import Z_LIMIT, assert_unbiased, run_many, worst_z_scores
from tests.elbo.discrete_losses import MIXED, RUNS, check_at_a_seed, many
from tests.elbo.discrete_oracle import (
    gumbel_rao_jacobian,
    straight_through_jacobian,
    surrogate_loss,
)
from tests.elbo.discrete_programs import PROGRAMS, P

ONE_DRAW = ("Bits", "BitsAsIndices", "OneHots", "IndexedTable", "ComparedIndices", "Factors")
BINARY = [
    "Bits",
    "BitsAsIndices",
    "BitChain",
    "ChildFirst",
    "NormalBeforeBits",
    "NestedPlates",
    "Impossible",
    "OwnPrior",
    "Auxiliary",
]


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in MIXED])
@pytest.mark.parametrize(
    "estimator", [ZGR(), StraightThroughGumbelSoftmax(0.5)], ids=lambda e: type(e).__name__
)
def test_a_run_is_plain_torch_with_the_estimators_samples(name, estimator):
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = StraightThroughELBO(estimator, max_plate_nesting=program.max_plate_nesting)
    check_at_a_seed(program, elbo, estimator)


@pytest.mark.parametrize("name", [name for name in BINARY if name != "Impossible"])
def test_gumbel_rao_without_conditional_samples(name):
    """Binary sites have the exact expectation: nothing is drawn but the values."""
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = GumbelRaoELBO(0.5, None, max_plate_nesting=program.max_plate_nesting)
    check_at_a_seed(program, elbo, GumbelRao(0.5, None))


@pytest.mark.parametrize("name", PROGRAMS)
def test_mean_of_loss_and_gradient(name):
    """The mean loss is the enumerated -ELBO, the mean gradient that of the enumerated surrogate."""
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = many(program, StraightThroughELBO, ZGR())
    assert_unbiased(elbo, program.model, program.guide, surrogate_loss(program), runs=RUNS)


@pytest.mark.parametrize("name", ["BitsAsIndices", "BitChain"])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
@pytest.mark.parametrize("num_gumbels", [None, 10])
def test_mean_of_gumbel_rao(name, temperature, num_gumbels):
    """Whatever the number of conditional samples, by quadrature over the noise given the value."""
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    truth = surrogate_loss(program, gumbel_rao_jacobian(temperature))
    elbo = many(program, GumbelRaoELBO, temperature, num_gumbels)
    assert_unbiased(elbo, program.model, program.guide, truth, runs=RUNS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_values_do_not_depend_on_the_estimator(name):
    """At one seed; Gumbel-Rao draws a seed with each sample, so that only the first one is the same."""
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    estimators = [ZGR(), StraightThrough(), ReinMax(2.0)]
    if name in ONE_DRAW:
        estimators.append(GumbelRao(0.1))
    losses = []
    for estimator in estimators:
        elbo = StraightThroughELBO(estimator, max_plate_nesting=program.max_plate_nesting)
        losses.append(evaluate(elbo, program.model, program.guide, seed=3)[0])
    assert max(losses) - min(losses) < 1e-12


def _no_jacobian(p, hard):
    return torch.zeros(p.shape + p.shape[-1:])


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("BitsAsIndices", straight_through_jacobian),
        ("BitChain", straight_through_jacobian),
        ("IndexChain", _no_jacobian),
        ("NormalBeforeBits", _no_jacobian),
        ("Enumerated", _no_jacobian),
    ],
)
def test_another_jacobian_would_be_caught(name, wrong):
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = many(program, StraightThroughELBO, ZGR())
    worst = worst_z_scores(elbo, program.model, program.guide, surrogate_loss(program, wrong))
    assert worst.pop("loss") < Z_LIMIT
    assert max(worst.values()) > 2 * Z_LIMIT


@pytest.mark.parametrize("name", ["Impossible", "Subsampled", "Scored", "Enumerated"])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_entry_points_agree_at_a_seed(name, num_particles):
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = StraightThroughELBO(ZGR(), num_particles=num_particles)
    assert_entry_points_agree(elbo, program.model, program.guide)
    assert_entry_points_agree(
        GumbelRaoELBO(num_particles=num_particles), program.model, program.guide
    )


def test_gumbel_rao_has_less_variance_at_low_temperatures():
    """At tau = .1 the gradients of ST-GS spread more than three times as much in variance."""
    program = PROGRAMS["OneHots"]
    new_parameters(**program.shapes)
    spreads = {}
    for elbo in (
        StraightThroughELBO(StraightThroughGumbelSoftmax(0.1)),
        GumbelRaoELBO(0.1, num_gumbels=100),
    ):
        _, gradients = run_many(elbo, program.model, program.guide, runs=150)
        spreads[type(elbo)] = gradients["logits"].var(0).sum()
    assert spreads[StraightThroughELBO] > 3 * spreads[GumbelRaoELBO]


def test_parameters_of_the_model_are_exact_given_the_sample():
    """They do not pass through the estimator: unbiased, whatever its Jacobian."""
    program = PROGRAMS["IndexChain"]
    new_parameters(**program.shapes)
    truth = surrogate_loss(program, _no_jacobian)
    elbo = many(program, StraightThroughELBO, StraightThrough(5.0))
    worst = worst_z_scores(elbo, program.model, program.guide, truth)
    assert worst["v"] < Z_LIMIT and worst["u"] < Z_LIMIT < worst["q_a"]
    assert P("u").grad is None
