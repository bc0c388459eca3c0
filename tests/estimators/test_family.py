"""Each estimator computes its formula; the known mistakes are caught by the same checks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pyro_silent import (
    ZGR,
    ConfigurationError,
    Estimator,
    GappedStraightThrough,
    GumbelSoftmax,
    ReinMax,
    StraightThrough,
    StraightThroughGumbelSoftmax,
)
from pyro_silent.estimators.estimator import (
    Draw,
    covariance_product,
    sigmoid_product,
    softmax_product,
)
from tests.estimators import oracle
from tests.estimators.contract import CASES, Case

STRAIGHT_THROUGH_GUMBEL_SOFTMAX = [
    StraightThroughGumbelSoftmax(temperature) for temperature in (1.0, 0.5, 0.1)
]


def surrogate(estimator, logits, gradient, method="one_hot"):
    """Value and surrogate gradient as arrays, at a seed."""
    tensors = (torch.tensor(array, dtype=torch.float64) for array in (logits, gradient))
    return [result.numpy() for result in Case(estimator, method).run(*tensors)]


# -- the mistakes ----------------------------------------------------------------------------------


class ZGRWithoutHalf(ZGR):
    def _one_hot_gradient(self, draw, gradient, temperature):
        return 2 * super()._one_hot_gradient(draw, gradient, temperature)

    def _bernoulli_gradient(self, draw, gradient, temperature):
        return 2 * super()._bernoulli_gradient(draw, gradient, temperature)


class ReinMaxAllTempered(ReinMax):
    """The temperature in both terms."""

    def _one_hot_gradient(self, draw, gradient, temperature):
        tempered = torch.softmax(draw.log_probs / temperature, -1)
        first = covariance_product((tempered + draw.hard) / 2, gradient)
        return 2 * first - covariance_product(tempered, gradient) / 2


class StraightThroughUntempered(StraightThrough):
    """Without 1 / temperature, the chain rule's part."""

    def _one_hot_gradient(self, draw, gradient, temperature):
        return temperature * super()._one_hot_gradient(draw, gradient, temperature)

    def _bernoulli_gradient(self, draw, gradient, temperature):
        return temperature * super()._bernoulli_gradient(draw, gradient, temperature)


class GappedWithMovingShifts(GappedStraightThrough):
    """The shifts differentiated along."""

    def _one_hot_gradient(self, draw, gradient, temperature):
        with torch.enable_grad():
            theta = draw.log_probs.detach().requires_grad_()
            top = theta.amax(-1, keepdim=True)
            others = torch.minimum(theta, top - self.gap)
            s = torch.softmax(torch.where(draw.hard > 0, top, others) / temperature, -1)
            return torch.autograd.grad(s, theta, gradient)[0]


class LocationTwice(StraightThroughGumbelSoftmax):
    """The location added to noise that has it already."""

    def _one_hot_gradient(self, draw, gradient, temperature):
        return softmax_product(draw.noisy + draw.log_probs, gradient, temperature)

    def _bernoulli_gradient(self, draw, gradient, temperature):
        return sigmoid_product(draw.noisy + draw.log_probs, gradient, temperature)


class OtherNoise(StraightThroughGumbelSoftmax):
    """The derivative at noise that did not decide."""

    def _one_hot_gradient(self, draw, gradient, temperature):
        fresh = self._draw_one_hot(draw.log_probs, temperature)[1]
        return softmax_product(fresh, gradient, temperature)


# -- estimators whose Jacobian depends on logits and sample alone ----------------------------------

CLOSED = [
    (StraightThrough(), lambda theta, d: oracle.straight_through(theta, d, 1.0)),
    (StraightThrough(0.3), lambda theta, d: oracle.straight_through(theta, d, 0.3)),
    (ZGR(), oracle.zgr),
    (ReinMax(), lambda theta, d: oracle.reinmax(theta, d, 1.0)),
    (ReinMax(1.7), lambda theta, d: oracle.reinmax(theta, d, 1.7)),
    (GappedStraightThrough(), lambda theta, d: oracle.gapped(theta, d, 1.0, 1.0)),
    (GappedStraightThrough(0.4, 0.3), lambda theta, d: oracle.gapped(theta, d, 0.4, 0.3)),
    (GappedStraightThrough(2.0, 0.0), lambda theta, d: oracle.gapped(theta, d, 2.0, 0.0)),
]


def name(argument):
    return repr(argument) if isinstance(argument, Estimator) else "formula"


over_closed = pytest.mark.parametrize("estimator, jacobian", CLOSED, ids=name)


def check_jacobian(estimator, jacobian, n, scale):
    rng = np.random.default_rng(n)
    theta, slope = scale * rng.normal(size=(60, n)), rng.normal(size=(60, n))
    value, found = surrogate(estimator, theta, slope)
    expected = [
        jacobian(t, d).T @ v for t, d, v in zip(theta, value.argmax(-1), slope, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    assert len(set(value.argmax(-1))) == n


@over_closed
@pytest.mark.parametrize("n, scale", [(2, 1.0), (3, 1.0), (7, 1.0), (3, 30.0), (3, 1e4)])
def test_jacobian_is_the_formula(estimator, jacobian, n, scale):
    check_jacobian(estimator, jacobian, n, scale)


@over_closed
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_bernoulli_is_the_first_of_two_categories(estimator, jacobian, scale):
    rng = np.random.default_rng(0)
    logits, slope = scale * rng.normal(size=200), rng.normal(size=200)
    value, found = surrogate(estimator, logits, slope, "bernoulli")
    expected = [
        jacobian(np.array([t, 0.0]), int(1 - b))[0, 0] * v
        for t, b, v in zip(logits, value, slope, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)
    assert set(value) == {0.0, 1.0}


@over_closed
def test_single_precision_keeps_its_digits(estimator, jacobian):
    logits = 4 * torch.randn(500, 5)
    weight = torch.randn(500, 5)
    for method in ("one_hot", "bernoulli"):
        case = Case(estimator, method)
        value, found = case.run(logits, weight)
        hook = getattr(estimator, f"_{method}_gradient")
        exact = logits.double()
        if method == "one_hot":
            exact = exact.log_softmax(-1)
        draw = Draw(exact, value.double(), None)
        expected = hook(draw, weight.double(), estimator.temperature_at(0))
        assert torch.allclose(found.double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "wrong, jacobian",
    [
        (ZGRWithoutHalf(), oracle.zgr),
        (ReinMaxAllTempered(1.7), lambda theta, d: oracle.reinmax(theta, d, 1.7)),
        (StraightThroughUntempered(0.3), lambda theta, d: oracle.straight_through(theta, d, 0.3)),
        (GappedWithMovingShifts(), lambda theta, d: oracle.gapped(theta, d, 1.0, 1.0)),
    ],
    ids=name,
)
def test_the_mistakes_are_caught(wrong, jacobian):
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_jacobian(wrong, jacobian, 3, 1.0)


def test_zgr_is_reinmax_at_temperature_1():
    theta, slope = 3 * torch.randn(400, 6).double(), torch.randn(400, 6).double()
    for method in ("one_hot", "bernoulli"):
        one, other = (Case(estimator, method).run(theta, slope) for estimator in (ZGR(), ReinMax()))
        assert torch.equal(one[0], other[0])
        assert torch.allclose(one[1], other[1], rtol=1e-12, atol=1e-13)


# -- expectation over all samples ------------------------------------------------------------------


def expected_gradient(estimator, theta, slope_at, seed=0):
    """Sum over D of p(D) times the surrogate gradient given D, for independent one-hot rows of theta.

    Every joint value of the rows is met in a batch of draws, once or more: its gradient is that of the
    first one met, since it depends on D alone.
    """
    rows, n = theta.shape
    logits = torch.tensor(theta).expand(20_000, rows, n).requires_grad_()
    torch.manual_seed(seed)
    value = estimator.one_hot(logits)
    (gradient,) = torch.autograd.grad(value, logits, torch.tensor(slope_at(value.detach().numpy())))
    drawn, probs = value.detach().numpy().argmax(-1), oracle.softmax(theta)
    total = 0.0
    for joint in itertools.product(range(n), repeat=rows):
        first = np.flatnonzero((drawn == joint).all(-1))[0]
        total = (
            total + np.prod([probs[r, d] for r, d in enumerate(joint)]) * gradient[first].numpy()
        )
    return total


def exact_gradient(theta, f):
    """By central differences of the enumerated mean."""
    rows, n = theta.shape
    joints = list(itertools.product(range(n), repeat=rows))
    values = np.array([f(np.eye(n)[list(joint)]) for joint in joints])

    def mean(x):
        probs = oracle.softmax(x)
        return sum(v * np.prod(probs[range(rows), j]) for v, j in zip(values, joints, strict=True))

    step = 1e-5
    out = np.zeros_like(theta)
    for index in np.ndindex(theta.shape):
        shift = np.zeros_like(theta)
        shift[index] = step
        out[index] = (mean(theta + shift) - mean(theta - shift)) / (2 * step)
    return out


def bias(estimator, power, seed=0, rows=2, n=3):
    """Largest entry of the bias on a random polynomial of all entries of all rows."""
    rng = np.random.default_rng(seed)
    theta, matrix, line = (rng.normal(size=s) for s in ((rows, n), (2, rows * n), (rows * n)))

    def f(x):
        flat = x.reshape(-1)
        return ((matrix @ flat) ** power).sum() + line @ flat

    def slope_at(values):
        flat = values.reshape(len(values), -1)
        return ((power * (flat @ matrix.T) ** (power - 1)) @ matrix + line).reshape(values.shape)

    return np.abs(expected_gradient(estimator, theta, slope_at) - exact_gradient(theta, f)).max()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "estimator, unbiased_up_to", [(StraightThrough(), 1), (ZGR(), 2), (ReinMax(), 2)]
)
def test_unbiased_on_polynomials_up_to_a_degree(estimator, unbiased_up_to, seed):
    for power in (1, 2, 3):
        found = bias(estimator, power, seed)
        assert (found < 1e-8) if power <= unbiased_up_to else (found > 1e-2), power


@pytest.mark.parametrize("wrong", [ZGRWithoutHalf(), ReinMax(2.0), GappedStraightThrough()])
def test_others_are_biased_on_quadratics(wrong):
    assert bias(wrong, 2) > 1e-2


def test_gapped_is_biased_on_linear_functions():
    assert bias(GappedStraightThrough(), 1) > 1e-2


# -- straight-through Gumbel-softmax ---------------------------------------------------------------

# the Jacobian's mean given the sample is c [[1, -1], [-1, 1]] for two categories
FIXTURE = [
    (0.0, 1.0, 1 / 6, 1 / 6),
    (0.0, 0.5, 0.214602, 0.214602),
    (0.0, 0.1, 0.247989, 0.247989),
    (1.0, 1.0, 0.139589, 0.181823),
    (1.0, 0.5, 0.155160, 0.253423),
    (1.0, 0.1, 0.142533, 0.341420),
]


def check_binary(estimator_type, difference, tau, given_first, given_second, method):
    estimator = estimator_type(tau)
    count = 200_000
    if method == "one_hot":
        theta = np.broadcast_to([difference - 3.0, -3.0], (count, 2))
        value, gradient = surrogate(estimator, theta, np.broadcast_to([1.0, 0.0], (count, 2)))
        value, gradient = value[:, 0], gradient[:, 0]
    else:
        value, gradient = surrogate(estimator, np.full(count, difference), np.ones(count), method)
    for b, expected in ((1.0, given_first), (0.0, given_second)):
        mean, error = oracle.moments(gradient[value == b])
        # the values are rounded to six digits
        assert abs(mean - expected) < 5 * error + 1e-6


@pytest.mark.parametrize("method", ["one_hot", "bernoulli"])
@pytest.mark.parametrize("row", FIXTURE)
def test_gumbel_softmax_jacobian_of_two_categories(row, method):
    # z < 5 for 24 means: fails by chance at 1.4e-5
    check_binary(StraightThroughGumbelSoftmax, *row, method)


@pytest.mark.parametrize("method", ["one_hot", "bernoulli"])
def test_the_location_added_twice_is_caught(method):
    with pytest.raises(AssertionError):
        check_binary(LocationTwice, *FIXTURE[3], method)


def check_conditional_means(estimator, tau):
    theta = np.array([0.5, -0.7, 0.0, 1.0])
    count = 100_000
    drawn, jacobians = oracle.gumbel_softmax_draws(theta, tau, count, seed=1)
    slope = np.array([1.0, -2.0, 0.5, 3.0])
    value, found = surrogate(
        estimator, np.broadcast_to(theta, (count, 4)), np.broadcast_to(slope, (count, 4))
    )
    for d in range(4):
        expected = jacobians[drawn == d] @ slope
        oracle.assert_same_mean(found[value.argmax(-1) == d], expected)
        oracle.assert_same_mean(found[value.argmax(-1) == d] ** 2, expected**2)


@pytest.mark.parametrize("estimator", STRAIGHT_THROUGH_GUMBEL_SOFTMAX, ids=repr)
def test_gumbel_softmax_given_the_sample_against_rejection(estimator):
    # z < 5 for 32 moments in each of three: fails by chance at 6e-5
    check_conditional_means(estimator, estimator.temperature)


@pytest.mark.parametrize("wrong", [LocationTwice(0.5), OtherNoise(0.5)], ids=repr)
def test_wrong_noise_is_caught(wrong):
    with pytest.raises(AssertionError):
        check_conditional_means(wrong, 0.5)


# -- both methods, whatever the noise --------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if c.categorical], ids=repr)
def test_bernoulli_has_the_law_of_two_categories(case):
    # z < 5 for 10 moments in each of 13: fails by chance at 8e-5
    estimator, logit, count = case.estimator, 0.8, 20_000
    stacked = np.broadcast_to([logit, 0.0], (count, 2))
    pair, pair_gradient = surrogate(estimator, stacked, np.broadcast_to([1.5, 0.0], (count, 2)))
    value, gradient = surrogate(estimator, np.full(count, logit), np.full(count, 1.5), "bernoulli")
    oracle.assert_same_mean(value, pair[:, 0])
    for b in (False, True):
        ours = gradient[(value > 0.5) == b]
        theirs = pair_gradient[(pair[:, 0] > 0.5) == b, 0]
        oracle.assert_same_mean(ours, theirs)
        oracle.assert_same_mean(ours**2, theirs**2)


# -- soft samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["one_hot", "bernoulli"])
@pytest.mark.parametrize("tau", [1.0, 0.3, 0.1])
def test_the_soft_sample_has_its_pathwise_derivative(tau, method):
    case = Case(GumbelSoftmax(tau), method)
    rng = np.random.default_rng(0)
    logits, slope = rng.normal(size=(8, 4)), rng.normal(size=(8, 4))
    _, found = surrogate(case.estimator, logits, slope, method)

    def total(x):
        torch.manual_seed(0)
        return (case(torch.tensor(x)).numpy() * slope).sum(-1 if method == "one_hot" else None)

    step = 1e-6
    for j in range(4):
        shift = np.zeros((8, 4))
        shift[:, j] = step
        difference = (total(logits + shift) - total(logits - shift)) / (2 * step)
        expected = found[:, j] if method == "one_hot" else found[:, j].sum()
        np.testing.assert_allclose(difference, expected, rtol=1e-6, atol=1e-7)


def test_the_soft_sample_shares_the_noise_of_the_hard_one():
    logits = torch.randn(100, 5)
    torch.manual_seed(0)
    soft = GumbelSoftmax(0.5).one_hot(logits)
    torch.manual_seed(0)
    hard = StraightThrough().one_hot(logits)
    assert torch.equal(soft.argmax(-1), hard.argmax(-1))
    assert not torch.equal(soft, hard)


@pytest.mark.parametrize("method", ["one_hot", "bernoulli"])
def test_the_soft_sample_at_low_temperature(method):
    logits = torch.tensor([[1e4, -1e4, 0.0, -torch.inf], [-1e4, -1e4, -1e4, -1e4]]).repeat(100, 1)
    value, gradient = Case(GumbelSoftmax(0.01), method).run(logits, torch.randn(200, 4))
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (value[::2, 0] == 1).all()
    if method == "one_hot":
        # four equal logits, however low
        assert value[1::2].mean(0).sub(0.25).abs().max() < 5 * (0.1875 / 100) ** 0.5


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.99, 0.0, -1.0])
def test_reinmax_wants_a_temperature_of_at_least_1(temperature):
    with pytest.raises(
        ConfigurationError, match="temperature: got .*, expected a finite number >= 1"
    ):
        ReinMax(temperature)
    with pytest.raises(ConfigurationError, match="at step 7, expected a finite number >= 1"):
        ReinMax(lambda step: temperature).one_hot(torch.zeros(2), step=7)


@pytest.mark.parametrize("gap", [-0.1, float("nan"), float("inf"), None, "1", True])
def test_the_gap_is_not_negative(gap):
    with pytest.raises(ConfigurationError, match="gap: got .*, expected a finite number >= 0"):
        GappedStraightThrough(gap=gap)


def test_zgr_has_no_temperature():
    with pytest.raises(TypeError):
        ZGR(0.5)
    assert repr(ZGR()) == "ZGR()"
