"""GumbelRao for binary variables: exact, and by draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from pyro_silent import GumbelRao, StraightThroughGumbelSoftmax
from pyro_silent.estimators import binary_expectation
from pyro_silent.estimators.binary_expectation import binary_derivative
from pyro_silent.estimators.conditional_gumbels import bernoulli_derivative
from pyro_silent.estimators.point_set import POINT_SETS
from tests.estimators import oracle
from tests.estimators.contract import Case
from tests.estimators.test_gumbel_rao import assert_same_moments

POINTS = list(POINT_SETS)
# c given theta = log odds of the value drawn, temperature: Jacobian c [[1, -1], [-1, 1]]
FIXTURE = [
    (0.0, 1.0, 1 / 6),
    (0.0, 0.5, 0.214602),
    (0.0, 0.1, 0.247989),
    (1.0, 1.0, 0.139589),
    (-1.0, 1.0, 0.181823),
    (1.0, 0.5, 0.155160),
    (-1.0, 0.5, 0.253423),
    (1.0, 0.1, 0.142533),
    (-1.0, 0.1, 0.341420),
]


def logistic(x):
    """exp(-|x|), and the density of the logistic law times exp(|x|)."""
    small = math.exp(-abs(x))
    return small, 1 / (1 + small) ** 2


def quad_derivative(theta: float, tau: float) -> float:
    """E[s (1 - s) / tau | drawn] by adaptive quadrature over the logistic noise, not over s.

    The integrand has the scales 1 at 0 and 1 / tau at theta / tau, whose product is log-concave.
    """

    def integrand(t):
        small, rest = logistic(t)
        away = tau * t - theta
        # sigma'(away) / sigma(theta) without overflow
        other = math.exp(-abs(away) + max(-theta, 0)) * (1 + math.exp(-abs(theta)))
        return small * rest * other / (1 + math.exp(-abs(away))) ** 2

    peak = max(theta, 0) / tau
    width = min(1, 1 / tau)
    steps = [0.3, 1, 3, 10, 30, 60]
    breaks = {0.0, peak, *(s * width for s in steps), *(peak + s * width for s in steps), *steps}
    breaks |= {peak - s * width for s in steps if peak > s * width}
    edges = [b for b in sorted(breaks) if b <= 60]
    parts = [
        integrate.quad(integrand, a, b, epsabs=1e-15, epsrel=1e-12, limit=200)[0]
        for a, b in zip(edges, edges[1:])
    ]
    return math.fsum(parts)


def check_fixture(derivative, tolerance=1e-6):
    for theta, tau, expected in FIXTURE:
        assert abs(derivative(theta, tau) - expected) < tolerance, (theta, tau)


def exact(theta, tau, dtype=torch.float64):
    return binary_derivative(torch.tensor(theta, dtype=dtype), tau).item()


def test_the_fixture():
    check_fixture(exact)
    check_fixture(quad_derivative)


def test_the_limits_at_temperature_0():
    for theta, limit in [(0.0, 0.25), (1.0, 0.134471), (-1.0, 0.365529)]:
        assert abs(exact(theta, 1e-6) - limit) < 1e-6
        assert abs(exact(theta, 1e-6) - 0.5 / (1 + math.exp(theta))) < 5e-7


def total_derivative(theta, tau):
    """The mistake: how the conditional mean of s moves, noise and all."""
    step = 1e-4

    def mean(theta):
        odds = np.exp(np.arange(-40, 40, 0.02))
        u = np.log1p(odds * (1 + math.exp(theta)))
        return (odds / (1 + odds) ** 2 / (1 + np.exp(-u / tau))).sum() * 0.02

    return (mean(theta + step) - mean(theta - step)) / (2 * step)


def double_theta(theta, tau):
    """The mistake: theta added to the conditional draws once more."""
    odds = np.exp(np.arange(-40, 40, 0.02))
    u = (np.log1p(odds * (1 + math.exp(theta))) + theta) / tau
    return (odds / (1 + odds) ** 2 / (2 + 2 * np.cosh(np.minimum(u, 700)))).sum() * 0.02 / tau


@pytest.mark.parametrize("mistake", [total_derivative, double_theta])
def test_the_known_mistakes_fail_the_fixture(mistake):
    with pytest.raises(AssertionError):
        check_fixture(mistake, tolerance=1e-3)


@pytest.mark.parametrize("tau", [0.01, 0.1, 0.5, 0.9, 1.0, 1.3, 2.0, 10.0, 60.0])
def test_quadrature_against_adaptive_quadrature(tau):
    thetas = [-1e4, -100.0, -30.0, -10.0, -3.0, -1.0, 0.0, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e4]
    expected = np.array([quad_derivative(theta, tau) for theta in thetas])
    found = binary_derivative(torch.tensor(thetas, dtype=torch.float64), tau).numpy()
    assert np.abs(found - expected).max() < 1e-9
    for limit, tolerance in [(10, 1e-6), (30, 1e-3)]:
        moderate = np.abs(thetas) <= limit
        assert np.abs(found[moderate] / expected[moderate] - 1).max() < tolerance
    single = binary_derivative(torch.tensor(thetas, dtype=torch.float32), tau).numpy()
    assert np.abs(single - expected).max() < 3e-7


@pytest.mark.parametrize("tau", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("num_gumbels", [None, 10])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_and_masked_logits(tau, num_gumbels, dtype):
    rows = [[1e4, -1e4], [-1e4, 1e4], [-math.inf, 3.0], [1e4, 1e4], [30.0, -30.0]]
    logits = torch.tensor(rows, dtype=dtype)
    v = torch.tensor([[1.0, 2.0]] * 2 + [[math.nan, 2.0]] + [[1.0, 2.0]] * 2, dtype=dtype)
    estimator = GumbelRao(tau, num_gumbels)
    for seed in range(3):
        _, gradient = Case(estimator, "one_hot").run(logits, v, seed=seed)
        assert gradient.isfinite().all()
        assert (gradient[2] == 0).all()
        assert gradient[3].abs().min() > 0
        _, gradient = Case(estimator, "bernoulli").run(logits, v, seed=seed)
        assert gradient.isfinite().all()
        assert gradient[2, 0] == 0


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("tau", [0.1, 0.5, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("num_gumbels", [1, 10])
def test_draws_have_the_exact_mean(points, tau, num_gumbels):
    # z < 5 for five log odds: fails by chance at 3e-6
    theta = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0], dtype=torch.float64)
    torch.manual_seed(0)
    rows = theta.expand(10_000, -1)
    found = bernoulli_derivative(rows, tau, num_gumbels, points).numpy()
    expected = np.array([quad_derivative(t, tau) for t in theta.tolist()])
    mean, error = oracle.moments(found)
    assert (np.abs(mean - expected) <= 5 * error).all(), (mean, expected, error)
    if points == "lattice" and num_gumbels == 10:
        independent = bernoulli_derivative(rows, tau, num_gumbels, "independent").numpy()
        assert found.var(0).sum() < 0.5 * independent.var(0).sum()


@pytest.mark.parametrize("points", POINTS)
def test_one_draw_has_the_law_of_straight_through_gumbel_softmax(points):
    logits = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64).expand(100_000, -1)
    one, other = (
        Case(estimator, "bernoulli").run(logits, torch.ones_like(logits), seed=seed)[1].numpy()
        for seed, estimator in enumerate(
            [GumbelRao(0.5, 1, points=points), StraightThroughGumbelSoftmax(0.5)]
        )
    )
    assert_same_moments(one, other)


def test_the_exact_expectation_draws_nothing_in_backward():
    value = GumbelRao(0.5, None).bernoulli(torch.zeros(100, requires_grad=True))
    state = torch.get_rng_state()
    value.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_chunks_do_not_change_the_expectation(monkeypatch, tau):
    theta = torch.randn(50, 3, dtype=torch.float64)
    expected = binary_derivative(theta, tau)
    monkeypatch.setattr(binary_expectation, "_CPU_CHUNK", 100)
    assert torch.allclose(binary_derivative(theta, tau), expected, rtol=1e-12)
    assert binary_derivative(theta[:0], tau).shape == (0, 3)
    assert binary_derivative(theta.t(), tau).shape == (3, 50)
