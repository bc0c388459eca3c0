"""Bias over its standard error is standard normal where there is no bias, and large where there is.

One call of :func:`compare` is 200 repetitions here: 200 parameters with gradients independent of each
other are 200 groups. Each Kolmogorov-Smirnov test fails by chance with probability 1e-5, each z-score
with less; together 30 such numbers fail with probability below 1e-3, and the seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import stats

from pyro_silent.diagnostics.student_t import standard_errors
from tests.diagnostics import gradient_oracle as oracle
from tests.diagnostics.comparison_programs import (
    REPLICAS,
    Bit,
    measure,
    no_clock,
    replicas_of,
    replicated,
    replicated_bits,
    shifted,
)

P_LIMIT = 1e-5
Z_LIMIT = 4.5


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    no_clock(monkeypatch)
    torch.set_default_dtype(torch.float64)


def p_value(scores: list[float], law=stats.norm) -> float:
    """Of the hypothesis that scores are independent draws from a law."""
    assert np.isfinite(scores).all()
    return stats.kstest(scores, law.cdf).pvalue


def assert_standard_normal(scores: list[float], n: int) -> None:
    """The whole law, and mean and variance on their own.

    With n samples the standard error has n - 2 degrees of freedom: Student's t, of a variance slightly
    above one.
    """
    assert p_value(scores) > P_LIMIT
    freedom = n - 2
    law = stats.t(freedom)
    assert p_value(scores, law) > P_LIMIT
    assert abs(np.mean(scores)) * math.sqrt(len(scores)) < Z_LIMIT * law.std()
    spread = math.sqrt((law.stats("k") + 2) / len(scores))
    assert abs(np.var(scores, ddof=1) / law.var() - 1) < Z_LIMIT * spread


def scores_of(rows: list[dict]) -> list[float]:
    return [row["grad_bias"] / row["grad_bias_se"] for row in rows]


def limit(n: int) -> float:
    """As rare for n samples as 3 for a normal variable: 0.00135."""
    return stats.t(n - 2).isf(stats.norm.sf(3))


def assert_rarely_beyond(scores: list[float], n: int) -> None:
    """5 of 200 are with probability 1e-5."""
    assert sum(score > limit(n) for score in scores) < 5


@pytest.mark.parametrize(
    "size, n, reference",
    [
        (1, 20, "exact"),
        (50, 20, "exact"),
        (3, 100, "exact"),
        (1, 20, "noisy"),
        (50, 20, "noisy"),
    ],
)
def test_scores_of_unbiased_gradients_are_standard_normal(size, n, reference):
    model, guide = replicated(size)
    noisy = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    comparison = measure(
        model,
        guide,
        {"trace": Trace_ELBO()},
        num_samples=n,
        reference=noisy if reference == "noisy" else None,
        seed=size + n,
    )
    assert comparison.reference["exact"] == (reference == "exact")
    rows = replicas_of(comparison, "trace")
    assert_standard_normal(scores_of(rows), n)
    assert_rarely_beyond(scores_of(rows), n)
    assert not any(row["biased"] for row in rows), "one of 200 is with probability 0.001"
    # the variance is known, and that of its estimate too
    squares = np.array([row["grad_std"] ** 2 for row in rows])
    assert abs(np.mean(squares) - size) < Z_LIMIT * math.sqrt(2 * size / (n - 1) / REPLICAS)
    # and each says how much it spreads, of few samples too little
    spread = np.std([row["grad_std"] for row in rows], ddof=1)
    told = np.mean([row["grad_std_se"] for row in rows])
    assert abs(told / spread - 1) < 3 / n + Z_LIMIT / math.sqrt(2 * REPLICAS)


def test_scores_of_skewed_and_dependent_gradients_are_standard_normal():
    """The score function of three bits: eight values, whose mean converges to a normal law."""
    model, guide = replicated_bits()
    comparison = measure(model, guide, {"trace": Trace_ELBO()}, num_samples=40)
    assert comparison.reference["name"] == "SilentELBO()"
    rows = replicas_of(comparison, "trace")
    assert_standard_normal(scores_of(rows), 40)
    assert_rarely_beyond(scores_of(rows), 40)


def test_known_wrong_scores_are_not_standard_normal():
    """What the tests above would say if compare did one of these."""
    generator = np.random.default_rng(0)
    right, in_sample, naive, stale = [], [], [], []
    for _ in range(REPLICAS):
        g, r, pilot = generator.normal(size=(3, 20, 3))
        s = pilot.mean(0)
        right.append(oracle.score(oracle.bias_terms(g, r, s)))
        in_sample.append(oracle.score(oracle.in_sample_terms(g, r, s)))
        naive.append(oracle.naive_score(g, r))
        # the mean that gave the direction once more, instead of fresh samples of the reference
        stale.append(oracle.score(oracle.bias_terms(g, np.broadcast_to(s, g.shape), s)))
    assert_standard_normal(right, 20)
    for wrong in (in_sample, naive, stale):
        assert p_value(wrong) < P_LIMIT


def exact(model, guide):
    return pyro.param("theta", torch.tensor(1.0)) - 2 * pyro.param("w", torch.tensor(1.0))


def noisy(model, guide):
    """The same with noise of variance 1 in each of the two gradients."""
    noise = torch.randn(2)
    return exact(model, guide) + noise[0] * pyro.param("theta") + noise[1] * pyro.param("w")


def test_two_hundred_seeds():
    """Row after row of the table, each at another seed; the losses are a line of torch."""
    bit = Bit()
    scores, flagged = [], 0
    for seed in range(REPLICAS):
        comparison = measure(
            bit.model, bit.guide, {"noisy": noisy}, num_samples=10, reference=exact, seed=seed
        )
        scores += scores_of(comparison.rows)
        flagged += comparison.rows[0]["biased"]
    assert_standard_normal(scores, 10)
    assert flagged < 9, "0.5% of the rows are: 9 of 200 with probability 2e-6"


def test_a_bias_of_five_standard_errors_is_flagged():
    """The chance is 0.87 with noise in two dims, for the direction is soon found."""
    bit, n = Bit(), 40

    def shifted_noisy(model, guide):
        return noisy(model, guide) + 5 / math.sqrt(n) * pyro.param("theta")

    flagged = 0
    for seed in range(25):
        comparison = measure(
            bit.model, bit.guide, {"a": shifted_noisy}, num_samples=n, reference=exact, seed=seed
        )
        flagged += comparison.rows[0]["biased"]
    assert flagged >= 13, "fewer with probability 1e-5"


def test_the_power_to_see_five_standard_errors():
    """0.90 in one dim, where some of the first directions are wrong; what is told is the norm.

    Of 40 samples, by simulation in numpy; 0.95 of many.
    """
    n = 40
    model, guide = replicated(1)
    shift = 5 / math.sqrt(n)
    comparison = measure(model, guide, {"shifted": shifted(shift)}, num_samples=n)
    rows = replicas_of(comparison, "shifted")
    found = sum(score > limit(n) for score in scores_of(rows))
    power = 0.90
    assert found > REPLICAS * power - Z_LIMIT * math.sqrt(REPLICAS * power * (1 - power))
    biases = [row["grad_bias"] for row in rows]
    assert abs(np.mean(biases) / shift - 1) < 0.05 + Z_LIMIT / 5 / math.sqrt(REPLICAS)


@pytest.mark.parametrize("n, tolerance", [(5, 0.3), (10, 0.02), (30, 0.005), (100, 0.001)])
@pytest.mark.parametrize("deviate", [3.0, 4.5])
def test_limits_for_few_samples_are_students(n, deviate, tolerance):
    truth = stats.t(n - 2).isf(stats.norm.sf(deviate))
    assert standard_errors(deviate, n - 2) == pytest.approx(truth, rel=tolerance)


def test_twice_the_variance_is_a_ratio_of_two():
    """From 5 samples too, for the estimate has no bias, which 1/n instead of 1/(n - 1) would show."""
    model, guide = replicated(3)
    two = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    comparison = measure(model, guide, {"one": Trace_ELBO(), "two": two}, num_samples=5)
    means = {}
    for name, variance in (("one", 3.0), ("two", 1.5)):
        squares = np.array([row["grad_std"] ** 2 for row in replicas_of(comparison, name)])
        error = variance * math.sqrt(2 / 3 / 4 / REPLICAS)
        assert abs(squares.mean() - variance) < Z_LIMIT * error
        assert abs(0.8 * squares.mean() - variance) > Z_LIMIT * error, "the planted 1/n"
        means[name] = squares.mean()
    ratio_error = 2 * math.sqrt(2 * 2 / 3 / 4 / REPLICAS)
    assert abs(means["one"] / means["two"] - 2) < Z_LIMIT * ratio_error
