"""GumbelRao for more than two categories: its mean, its variance, its numerics."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_silent import ConfigurationError, GumbelRao, StraightThroughGumbelSoftmax
from pyro_silent.estimators import binary_expectation, conditional_gumbels
from pyro_silent.estimators.binary_expectation import binary_derivative
from pyro_silent.estimators.conditional_gumbels import (
    RelativeWeights,
    one_hot_product,
)
from pyro_silent.estimators.estimator import Draw
from pyro_silent.estimators.point_set import POINT_SETS
from tests.estimators import gumbel_rao_truth as truth
from tests.estimators import oracle
from tests.estimators.contract import Case

INF = math.inf
THETA = np.array([0.4, -0.9, 1.1, -2.0])
V = np.array([1.0, -0.5, 2.0, 0.3])
POINTS = list(POINT_SETS)


def tensor(array, dtype=torch.float64):
    return torch.tensor(array, dtype=dtype)


def products(estimator, theta, drawn, v, tau, count, seed=0, dtype=torch.float64):
    """The estimator's gradients ``[count, n]`` at a fixed sample."""
    torch.manual_seed(seed)
    rows = tensor(theta, dtype).log_softmax(-1).expand(count, -1)
    hard = torch.zeros_like(rows)
    hard[:, drawn] = 1
    gradient = tensor(v, dtype).expand(count, -1)
    return estimator._one_hot_gradient(Draw(rows, hard, None), gradient, tau).double().numpy()


def standard_error_of_variance(samples):
    """Of the unbiased variance of each column."""
    centred = samples - samples.mean(0)
    return np.sqrt(((centred**4).mean(0) - (centred**2).mean(0) ** 2) / len(samples))


def assert_same_moments(one, other):
    """Means and variances agree, z < 5 per entry; fails by chance at 6e-7 per comparison."""
    oracle.assert_same_mean(one, other)
    error = np.hypot(standard_error_of_variance(one), standard_error_of_variance(other))
    assert (np.abs(one.var(0) - other.var(0)) <= 5 * error + 1e-12).all()


# -- the conditional draws -------------------------------------------------------------------------


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("drawn", range(4))
def test_conditional_draws_have_the_law_of_those_that_rejection_keeps(points, drawn):
    # Kolmogorov-Smirnov at 1e-7 and z < 5: fails by chance at about 1e-5 in all
    torch.manual_seed(0)
    others = [j for j in range(4) if j != drawn]
    count = 20_000
    log_probs = tensor(THETA).log_softmax(-1)[others, None].expand(-1, count)
    stream = POINT_SETS[points](1, 4, count, log_probs)
    clocks = -stream.fill(log_probs.new_empty(1, 4, count)).log()
    weights = RelativeWeights(log_probs, 1.0)(clocks[:, :1], clocks[:, 1:], slice(None))
    found = -weights.squeeze(0).log().T.numpy()  # X_d - X_j
    kept = truth.rejection_draws(THETA, drawn, count=150_000, seed=1)
    assert len(kept) > 1000
    expected = kept[:, [drawn]] - kept[:, others]
    for column in range(3):
        assert stats.ks_2samp(found[:, column], expected[:, column]).pvalue > 1e-7
    assert_same_moments(found, expected)
    pairs = list(itertools.combinations(range(3), 2))
    one, other = (np.stack([x[:, i] * x[:, j] for i, j in pairs], -1) for x in (found, expected))
    oracle.assert_same_mean(one, other)


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("theta", [THETA, THETA[:2]], ids=["one_hot", "one_hot of two"])
@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_one_draw_has_the_law_of_straight_through_gumbel_softmax(points, theta, tau):
    count = 100_000
    logits, v = tensor(theta).expand(count, -1), tensor(V[: len(theta)]).expand(count, -1)
    one, other = (
        Case(estimator, "one_hot").run(logits, v, seed=seed)[1].numpy()
        for seed, estimator in enumerate(
            [GumbelRao(tau, 1, points=points), StraightThroughGumbelSoftmax(tau)]
        )
    )
    assert_same_moments(one, other)


# -- the mean --------------------------------------------------------------------------------------


def check_mean(gradients, theta, drawn, tau, v):
    """The mean is that of quadrature, z < 5 for each of three entries: by chance 2e-6."""
    expected, _ = truth.conditional_moments(theta, drawn, tau, v)
    mean, error = oracle.moments(gradients)
    assert (np.abs(mean - expected) <= 5 * error + 1e-12).all(), (mean, expected, error)


def check_limit(gradients, theta, drawn, v):
    """The mean at temperature .01 is that of ZGR, up to the distance that quadrature finds."""
    mean, error = oracle.moments(gradients)
    expected = oracle.zgr(theta, drawn) @ v
    assert (np.abs(mean - expected) <= 5 * error + 0.01).all(), (mean, expected, error)


# powers 10 and 2, no whole power, 1, factored; with the control variate up to 1/3
TEMPERATURES = [0.1, 0.3, 0.5, 0.7, 1.0, 3.0]


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("tau", TEMPERATURES)
@pytest.mark.parametrize("num_gumbels, count", [(1, 20_000), (7, 4000), (100, 500)])
def test_the_mean_is_the_conditional_expectation(points, tau, num_gumbels, count):
    estimator = GumbelRao(tau, num_gumbels, points=points)
    for drawn in range(3):
        gradients = products(estimator, THETA[:3], drawn, V[:3], tau, count)
        check_mean(gradients, THETA[:3], drawn, tau, V[:3])


@pytest.mark.parametrize("points", POINTS)
def test_the_limit_at_low_temperature_is_zgr(points):
    estimator = GumbelRao(0.01, 1000, points=points)
    for drawn in range(4):
        check_limit(products(estimator, THETA, drawn, V, 0.01, 1000), THETA, drawn, V)


def test_the_oracle_tends_to_zgr_linearly():
    # so that the distance in check_limit is known without any draws
    for drawn in range(3):
        expected = oracle.zgr(THETA[:3], drawn) @ V[:3]
        for tau in (0.1, 0.01, 0.001):
            mean, _ = truth.conditional_moments(THETA[:3], drawn, tau, V[:3])
            assert np.abs(mean - expected).max() < tau


@pytest.mark.parametrize("mistake", ["total derivative", "double theta"])
def test_the_known_mistakes_are_caught(mistake):
    def gradients(theta, drawn, tau, v, num_gumbels, count, mistake):
        torch.manual_seed(0)
        rows, index = tensor(theta).expand(count, -1), torch.full((count,), drawn)
        noise = torch.empty(num_gumbels, *rows.shape, dtype=rows.dtype).exponential_()
        v = tensor(v).expand_as(rows)
        return truth.materialised(rows, index, v, tau, noise, mistake).numpy()

    theta, v = THETA[:3], V[:3]
    for tau in (1.0, 0.5, 0.1):
        check_mean(gradients(theta, 0, tau, v, 10, 4000, None), theta, 0, tau, v)
        with pytest.raises(AssertionError):
            check_mean(gradients(theta, 0, tau, v, 10, 4000, mistake), theta, 0, tau, v)
    check_limit(gradients(theta, 0, 0.01, v, 100, 5000, None), theta, 0, v)
    with pytest.raises(AssertionError):
        check_limit(gradients(theta, 0, 0.01, v, 100, 5000, mistake), theta, 0, v)


# -- the variance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_variance_splits_as_proposition_3_says(tau):
    # The right-hand side is exact; 2 % of the left-hand side is z > 5, by chance 6e-7 for each of 12.
    theta, v = THETA[:3], V[:3]
    within, between = truth.covariances(theta, tau, v)
    assert within > 3 * between
    for num_gumbels, points in itertools.product([1, 2, 8], POINTS):
        count = 800_000 if points == "independent" else 100_000
        logits = tensor(theta, torch.float32).expand(count, -1)
        gradient = tensor(v, torch.float32).expand(count, -1)
        case = Case(GumbelRao(tau, num_gumbels, points=points), "one_hot")
        gradients = case.run(logits, gradient, seed=num_gumbels)[1].double().numpy()
        for num_draws in (1, 4):
            means = gradients.reshape(-1, num_draws, 3).mean(1)
            distances = ((means - means.mean(0)) ** 2).sum(-1)
            expected = within / (num_gumbels * num_draws) + between / num_draws
            if points == "independent":
                assert 5 * distances.std() / len(distances) ** 0.5 < 0.02 * expected
                assert abs(distances.mean() / expected - 1) < 0.02, (num_gumbels, num_draws)
            else:
                assert distances.mean() < (1.03 if num_gumbels == 1 else 0.75) * expected


@pytest.mark.parametrize("tau", [0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("num_categories", [3, 16, 60])
@pytest.mark.parametrize("num_gumbels", [2, 3, 10, 64])
def test_lattice_points_do_not_add_to_the_variance(tau, num_categories, num_gumbels):
    # The ratio is between .005 and .9 here, with an error of about 3 %
    torch.manual_seed(2)
    count, different = 800, 5
    logits = torch.randn(different, num_categories)
    gradient = torch.randn(different, num_categories)
    log_probs = logits.log_softmax(-1).repeat(count, 1)
    hard = torch.nn.functional.one_hot(logits.argmax(-1), num_categories).float().repeat(count, 1)
    variance = {}
    for points in POINTS:
        result = one_hot_product(
            log_probs, hard, gradient.repeat(count, 1), tau, num_gumbels, points
        )
        variance[points] = result.view(count, different, -1).var(0).sum().item()
    assert variance["lattice"] < 1.1 * variance["independent"]
    if num_categories == 3 and num_gumbels == 64:
        assert variance["lattice"] < 0.2 * variance["independent"]


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("num_categories", [3, 16, 200])
def test_the_control_variate_lowers_the_variance(monkeypatch, tau, num_categories):
    # The ratio is between .02 and .6 here, with an error of about 5 %; at .1 it is below .15
    torch.manual_seed(4)
    count, different = 400, 5
    logits = torch.randn(different, num_categories)
    gradient = torch.randn(different, num_categories).repeat(count, 1)
    log_probs = logits.log_softmax(-1).repeat(count, 1)
    hard = torch.nn.functional.one_hot(logits.argmax(-1), num_categories).float().repeat(count, 1)

    def variance():
        result = one_hot_product(log_probs, hard, gradient, tau, 5, "lattice")
        return result.view(count, different, -1).var(0).sum().item()

    controlled = variance()
    monkeypatch.setattr(conditional_gumbels, "_MAX_CONTROLLED", 0.0)
    assert controlled < (0.3 if tau <= 0.1 else 0.9) * variance()


def test_a_control_variate_of_another_mean_is_caught(monkeypatch):
    theta, v = THETA[:3], V[:3]
    monkeypatch.setattr(
        conditional_gumbels, "binary_derivative", lambda x, tau: 0.9 * binary_derivative(x, tau)
    )
    with pytest.raises(AssertionError):
        check_mean(products(GumbelRao(0.1, 7), theta, 0, v, 0.1, 4000), theta, 0, 0.1, v)


# -- chunks ----------------------------------------------------------------------------------------


class Replayed(POINT_SETS["independent"]):
    """Independent points that are kept."""

    seen: list = []

    def fill(self, out):
        self.seen.append(super().fill(out).clone())
        return out


@pytest.mark.parametrize("tau", [*TEMPERATURES, 0.01, 1 / 127, 1 / 200])
@pytest.mark.parametrize("chunk", [1, 40, 2**18])
def test_the_product_is_the_mean_over_all_points(monkeypatch, tau, chunk):
    # the same exponentials through the paper's formula and autograd
    for limit in ("_CPU_CHUNK", "_GPU_CHUNK"):
        monkeypatch.setattr(conditional_gumbels, limit, chunk)
    monkeypatch.setattr(Replayed, "seen", [])
    monkeypatch.setitem(POINT_SETS, "replayed", Replayed)
    torch.manual_seed(1)
    num_gumbels, rows, n = 7, 5, 4
    theta, v = torch.randn(2, rows, n, dtype=torch.float64)
    drawn = torch.tensor([0, 1, 2, 3, 0])
    hard = torch.nn.functional.one_hot(drawn, n).double()
    found = one_hot_product(theta.log_softmax(-1), hard, v, tau, num_gumbels, "replayed")

    uniform = Replayed.seen
    if chunk != 2**18:  # one row at a time, in chunks of 1 or all its draws at a time
        assert len(uniform) > 1
        by_row = len(uniform) // rows
        parts = [torch.cat(uniform[i : i + by_row]) for i in range(0, len(uniform), by_row)]
        uniform = [torch.cat(parts, -1)]
    noise = -torch.log(uniform[0]).permute(0, 2, 1)  # the winner first, then the others
    exponential = torch.empty_like(noise)
    for row, winner in enumerate(drawn.tolist()):
        # the others keep their places, but for category 0, which has the winner's
        order = [winner, *(0 if j == winner else j for j in range(1, n))]
        exponential[:, row, order] = noise[:, row]
    expected = truth.materialised(theta, drawn, v, tau, exponential)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else [result]
        sizes = [part.untyped_storage().nbytes() for part in results if torch.is_tensor(part)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("method", ["one_hot", "bernoulli"])
def test_memory_does_not_grow_with_the_number_of_draws(monkeypatch, points, method):
    for limit in ("_CPU_CHUNK", "_GPU_CHUNK"):
        monkeypatch.setattr(conditional_gumbels, limit, 1000)
        monkeypatch.setattr(binary_expectation, limit, 1000)
    logits = torch.randn(50, 6)
    largest = []
    for num_gumbels in (20, 60, 200):
        case = Case(GumbelRao(0.3, num_gumbels, points=points), method)
        case.run(logits, torch.ones_like(logits))  # fills the cache of generating vectors
        with Largest() as mode:
            case.run(logits, torch.ones_like(logits))
        largest.append(mode.elements)
    assert 0 < largest[0] == largest[1] == largest[2] <= 2 * 4 * 1000, largest


@pytest.mark.parametrize("method", ["one_hot", "bernoulli"])
@pytest.mark.parametrize("points", POINTS)
def test_the_backward_pass_draws_from_a_seed_of_the_forward_pass(method, points):
    logits = torch.randn(20, 3, requires_grad=True)
    sample = getattr(GumbelRao(0.5, 10, points=points), method)
    values = sample(logits), sample(logits)
    state = torch.get_rng_state()
    once, again = (
        torch.autograd.grad(values[0].square().sum(), logits, retain_graph=True)[0]
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(once, again)
    other = torch.autograd.grad(values[1].square().sum(), logits)[0]
    same = (values[0] == values[1]).all(-1)
    assert same.any()
    assert not torch.equal(once[same], other[same])


# -- numerics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.001, 0.1, 1.0, 10.0])
def test_extreme_logits_give_finite_gradients_that_sum_to_zero(points, dtype, tau):
    rows = [[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [-INF, 3.0, -1.0], [-INF, -INF, 5.0]]
    logits = tensor(rows, dtype)
    v = tensor([[INF, 1.0, 2.0]] + [[-INF if x == -INF else 2.0 for x in row] for row in rows[1:]])
    v[0, 0] = 1.0
    case = Case(GumbelRao(tau, 10, points=points), "one_hot")
    for seed in range(5):
        _, gradient = case.run(logits, v.to(dtype), seed=seed)
        assert gradient.isfinite().all()
        assert (gradient[logits == -INF] == 0).all()
        assert (gradient[3] == 0).all()
        assert torch.allclose(gradient.double().sum(-1), torch.zeros(4).double(), atol=0.01)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 4), (2, 1, 4)])
@pytest.mark.parametrize("drawn", [0, 2])
def test_the_operands_stay_as_they_are(shape, drawn):
    log_probs, v = torch.randn(2, *shape).log_softmax(-1)
    hard = torch.zeros(shape)
    hard[..., drawn] = 1
    operands = [log_probs, hard, v]
    before = [operand.clone() for operand in operands]
    one_hot_product(*operands, 0.5, 10, "lattice")
    assert all(map(torch.equal, operands, before))


def test_one_category_and_no_rows():
    for shape in [(5, 1), (0, 4), (3, 0, 7), (0, 2)]:
        _, gradient = Case(GumbelRao(), "one_hot").run(torch.randn(shape), torch.ones(shape))
        assert gradient.shape == shape
        assert (gradient == 0).all()


def test_a_gradient_at_a_category_that_cannot_occur_says_nothing():
    # -200 underflows in float32 only
    for low, dtype in [(-INF, torch.float32), (-INF, torch.float64), (-200.0, torch.float32)]:
        log_probs = tensor([[0.0, 1.0, low, -1.0]], dtype).log_softmax(-1).repeat(50, 1)
        hard = tensor([[0.0, 1.0, 0.0, 0.0]], dtype).repeat(50, 1)
        results = []
        for bad in (0.0, INF, math.nan):
            torch.manual_seed(0)
            v = tensor([[1.0, 2.0, bad, 3.0]], dtype).repeat(50, 1)
            results.append(one_hot_product(log_probs, hard, v, 0.5, 10, "lattice"))
        assert results[0].isfinite().all()
        assert (results[0][:, 2] == 0).all()
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("tau", [1.0, 10.0])
def test_improbable_categories_in_float32(tau):
    # at temperature 10 a category of probability e^-120 still has weight .001
    theta = np.array([0.0, -120.0 if tau > 1 else -9.0, -1.0])
    expected, _ = truth.conditional_moments(theta, 0, tau, V[:3])
    gradients = products(
        GumbelRao(tau, 1000), theta, 0, V[:3], tau, count=2000, dtype=torch.float32
    )
    mean, error = oracle.moments(gradients)
    assert (np.abs(mean - expected) <= 5 * error + 1e-6 * np.abs(expected)).all()
    assert (np.abs(expected) > 50 * error).all()


@pytest.mark.parametrize("points", POINTS)
def test_thousands_of_categories(points):
    torch.manual_seed(0)
    logits, v = torch.randn(2, 3, 5000)
    estimator = GumbelRao(0.5, 10, points=points)
    _, gradient = Case(estimator, "one_hot").run(logits, v)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert gradient.double().sum(-1).abs().max() < 1e-5


# -- the arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 1.0, "10", True, False])
def test_num_gumbels_is_an_integer_or_none(value):
    with pytest.raises(ConfigurationError, match=f"num_gumbels: got {value!r}, expected an int"):
        GumbelRao(1.0, value)


def test_points_are_known():
    with pytest.raises(ConfigurationError, match="points: got 'sobol', expected one of 'lattice'"):
        GumbelRao(1.0, 10, points="sobol")


def test_none_is_for_binary_variables():
    message = "num_gumbels: got None for 3 categories, expected at most 2.*write num_gumbels=100"
    with pytest.raises(ConfigurationError, match=message):
        GumbelRao(1.0, None).one_hot(torch.zeros(3, requires_grad=True))
    assert (GumbelRao(1.0, None).one_hot(torch.zeros(4, 1)) == 1).all()


def test_repr():
    shown = "GumbelRao(temperature=0.5, num_gumbels=10, points='lattice')"
    assert re.fullmatch(re.escape(shown), repr(GumbelRao(0.5, 10)))
