"""200 captured steps of every example's model are 200 steps of Pyro's SVI."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.optim import AdamW, ClippedAdam
from torch import Tensor

import annealed_vae_model
import compare_elbos_problems
import count_regression
import discrete_vae_estimators
import discrete_vae_model
import eight_schools
import factorisation
import gaussian_mixture
import local_linear_trend
import log_linear_variance
import logistic_regression
import robust_regression
import vae
from annealed_vae_arms import make_loss
from data import (
    load_breast_cancer,
    load_doctor_visits,
    load_eight_schools,
    load_fertility,
    load_food_expenditure,
    load_iris,
    load_nile,
    load_stack_loss,
)
from pyro_silent import Constant, SilentELBO
from tests.capture.side_by_side import Training, assert_same

STEPS = 200


def every(step: int, *columns: Tensor) -> tuple[Tensor, ...]:
    return tuple(column[::step] for column in columns)


def table(model: Any, guide: Callable[[], Any], data: tuple, **parts: Any) -> Training:
    """Full-batch training of a model of a table."""
    return Training(lambda: (model, guide()), lambda step: data, **parts)


def schools(parametrisation: str, guide: str, **parts: Any) -> Training:
    effects, standard_errors = load_eight_schools()
    model, _ = eight_schools.MODELS[parametrisation]
    make = eight_schools.guides(parametrisation)[guide]
    return table(model, make, (standard_errors, effects), **parts)


def counts(likelihood: str, guide: str, **parts: Any) -> Training:
    visits = load_doctor_visits()
    data = every(700, visits.covariates, visits.groups, visits.counts)
    model, _ = count_regression.MODELS[likelihood]
    return table(model, count_regression.guides(likelihood)[guide], data, **parts)


def logistic(guide: str, **parts: Any) -> Training:
    data = every(10, *load_breast_cancer()[:2])
    return table(logistic_regression.model, logistic_regression.GUIDES[guide], data, **parts)


def robust(guide: str, **parts: Any) -> Training:
    data = load_stack_loss()[:2]
    return table(robust_regression.robust, robust_regression.GUIDES[guide], data, **parts)


def births(guide: str) -> Training:
    matrix = factorisation.head(load_fertility(), 12)
    split = factorisation.split(matrix, 0.15, seed=0)
    problem = factorisation.problem(split, 2)
    make = {
        "by hand": lambda: functools.partial(
            factorisation.hand_guide, shape=split.shape, num_factors=2
        ),
        "AutoNormal": lambda: factorisation.auto_normal(problem.model),
        "AutoDelta": lambda: factorisation.auto_delta(problem.model),
    }[guide]
    return table(problem.model, make, split.seen)


def mixture(name: str) -> Training:
    flowers = every(8, *load_iris())[0]
    way = gaussian_mixture.WAYS[name]
    return table(way.model, way.maker(flowers), (flowers,))


def trend(scales: str, guide: str) -> Training:
    flow = load_nile()[:12]
    model = {
        "known": local_linear_trend.known_scales,
        "unknown": local_linear_trend.unknown_scales,
    }[scales]
    return table(model, local_linear_trend.guides(model)[guide], (flow,))


def expenditure(guide: str) -> Training:
    columns = load_food_expenditure()
    terms = torch.cat([torch.ones(len(columns.response), 1), columns.covariates], -1)
    data = every(9, terms, terms, columns.response / columns.response.mean())
    return table(log_linear_variance.expenditure, log_linear_variance.GUIDES[guide], data)


@functools.cache
def digits(size: int = 6) -> tuple[Tensor, ...]:
    """A few minibatches."""
    images, _ = compare_elbos_problems.digits_of(None)
    return images[:: len(images) // (4 * size)][: 4 * size].double().split(size)


def minibatches(programs: Callable[[], tuple], **parts: Any) -> Training:
    """Training on another minibatch in each step."""
    return Training(programs, lambda step: (digits()[step % 4].clone(),), **parts)


def linear_vae(code: str, loss: Any = SilentELBO) -> Training:
    small = vae.CODES[code]

    def programs() -> tuple:
        network = vae.LinearDecoderVAE(small, num_hidden=8)
        return network.model, network.guide

    return minibatches(programs, loss=loss)


def discrete_vae(estimator: str, arity: int) -> Training:
    contender = discrete_vae_estimators.CONTENDERS[estimator]

    def programs() -> tuple:
        binary = torch.cat(digits()).round()
        code = discrete_vae_model.Code(arity, 5)
        rates = discrete_vae_model.base_rates(binary)
        network = discrete_vae_model.DiscreteVAE(code, rates, num_hidden=8)
        return network.model, network.guide

    return Training(
        programs,
        lambda step: (digits()[step % 4].round(),),
        loss=lambda: contender.loss(0.7),
    )


def annealed_vae(code: str, arm: str) -> Training:
    """Twins, both of which are trained."""

    def programs() -> tuple:
        law = annealed_vae_model.CODES[code](4)
        network = annealed_vae_model.DeepVAE(law, "tanh", torch.cat(digits()))
        return network.model, network.guide

    estimator = "reparam" if code == "Gaussian" else "GR"
    return minibatches(programs, loss=lambda: make_loss(arm, estimator, 0.7, Constant(1.0)))


def binary_code(loss: str) -> Training:
    def programs() -> tuple:
        network = compare_elbos_problems.BinaryVAE(3, torch.cat(digits()).mean(0), deep=False)
        return network.model, network.guide

    return minibatches(programs, loss=lambda: compare_elbos_problems.binary_losses(False)[loss])


EXAMPLES: dict[str, Callable[[], Training]] = {
    "eight schools, centered, by hand": lambda: schools("centered", "by hand"),
    "eight schools, non-centered, AutoNormal": lambda: schools("non-centered", "AutoNormal"),
    "Poisson regression, AutoDiagonalNormal": lambda: counts("Poisson", "AutoDiagonalNormal"),
    "negative binomial regression, by hand": lambda: counts(
        "negative binomial", "by hand", optim=lambda: ClippedAdam({"lr": 0.01, "lrd": 0.999})
    ),
    "logistic regression, AutoMultivariateNormal": lambda: logistic("AutoMultivariateNormal"),
    "factorisation, by hand": lambda: births("by hand"),
    "mixture, enumerated": lambda: mixture("enumerated"),
    "mixture, index": lambda: mixture("index"),
    "mixture, one-hot": lambda: mixture("one-hot"),
    "trend, known scales, low rank": lambda: trend("known", "AutoLowRankMultivariateNormal"),
    "trend, unknown scales, AutoNormal": lambda: trend("unknown", "AutoNormal"),
    "log-linear variance, by hand": lambda: expenditure("by hand"),
    "VAE, Gaussian code": lambda: linear_vae("gaussian"),
    "VAE, binary code": lambda: linear_vae("bernoulli"),
    "VAE, one-hot code": lambda: linear_vae("onehot"),
    "comparison, linear": lambda: binary_code("SilentELBO"),
    "annealed VAE, silent": lambda: annealed_vae("Gaussian", "silent"),
}
DRAWING: dict[str, Callable[[], Training]] = {
    "discrete VAE, GR-MC10": lambda: discrete_vae("GR-MC10", 4),
    "discrete VAE, RLOO": lambda: discrete_vae("RLOO", 2),
    "discrete VAE, GS": lambda: discrete_vae("GS", 4),
    "annealed VAE, control": lambda: annealed_vae("Bernoulli", "control"),
    "comparison, Trace_ELBO": lambda: binary_code("Trace_ELBO"),
    "comparison, DisARM": lambda: binary_code("DisARMELBO"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_trained_alike(name):
    assert_same(EXAMPLES[name](), STEPS)


@pytest.mark.parametrize("name", DRAWING)
def test_example_that_draws_is_trained_alike(name):
    assert_same(DRAWING[name](), STEPS // 5)


def test_robust_regression_is_trained_alike():
    """A graph keeps to its quadrature nodes as long as they suffice, an eager step does not.

    What the other nodes give differs by their error, which a gradient shows in its ninth digit.
    """
    training = robust("AutoNormal", optim=lambda: AdamW({"lr": 0.01}))
    _, found = assert_same(training, STEPS, graphs=None, tolerance=1e-8)
    assert found.svi.statistics.replays >= STEPS // 2
