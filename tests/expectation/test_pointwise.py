"""Expectations of pointwise programs against dense quadrature and enumeration, row by row."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent import (
    IntractableError,
    LeakError,
    PyroSilentError,
    RandomTensor,
    covariance,
    expected_log_prob,
    mean,
    random_tensor,
    variance,
)
from pyro_silent.expectation.quadrature import QuadratureWarning
from tests.devices import seeded
from tests.expectation import dense
from tests.expectation.pointwise_rows import ROWS, Row, bernoulli, index, mvn, normal, one_hot
from tests.oracles import Moments
from tests.random_tensor.sources import Source


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Relative to each entry; entries below a hundredth of the largest, or of 1, count as that."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    if not expected.numel():
        return
    largest = max(1.0, expected.detach().abs().max().item())
    torch.testing.assert_close(
        actual.to(expected.dtype),
        expected,
        rtol=tolerance,
        atol=1e-2 * tolerance * largest,
        msg=lambda text: f"{what}: {text}",
    )


def gradients(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a fixed random linear function of a tensor; zero for an unused leaf."""
    generator = seeded(3)
    weight = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    total = (weight * value).sum()
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, found, strict=True)
    ]


@contextmanager
def tolerated(row: Row) -> Iterator[None]:
    """Warnings are errors, but for rows that may warn of their quadrature."""
    with warnings.catch_warnings():
        if row.warns:
            warnings.simplefilter("ignore", QuadratureWarning)
        yield


class Run:
    """One row run on random tensors and by the oracle."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.sources: list[Source] = row.sources()
        self.operands = row.plain_operands()
        self.leaves = [p for s in self.sources for p in s.parameters] + self.operands

    def program(self, *latents: Tensor) -> Tensor:
        """The row's program with its operands."""
        return self.row.program(*latents, *self.operands)

    @functools.cached_property
    def expected(self) -> Moments:
        """By the oracle."""
        laws = [s.distribution() for s in self.sources]
        return dense.moments(self.program, *laws, kinks=self.row.kinks, points=self.row.points)

    def result(self) -> Tensor:
        """On random tensors."""
        return self.program(*(random_tensor(s.distribution()) for s in self.sources))

    def check(self, moment, name: str, claimed: bool) -> bool:
        """A moment of the result and its gradients; whether it was given."""
        expected = getattr(self.expected, name)
        try:
            with tolerated(self.row):
                actual = moment(self.result())
        except IntractableError:
            assert not claimed, f"the {name} is refused"
            return False
        assert type(actual) is Tensor
        assert_near(actual, expected, self.row.tolerance, name)
        if self.row.gradients:
            pairs = zip(gradients(actual, self.leaves), gradients(expected, self.leaves))
            for i, (got, wanted) in enumerate(pairs):
                assert_near(got, wanted, 10 * self.row.tolerance, f"gradient {i} of the {name}")
        return True


@pytest.mark.parametrize("name", ROWS)
def test_mean(name):
    run = Run(ROWS[name])
    run.check(mean, "mean", run.row.mean)


@pytest.mark.parametrize("name", ROWS)
def test_variance(name):
    """Given or refused, never wrong."""
    run = Run(ROWS[name])
    run.check(variance, "variance", run.row.variance)


def _all_covariances(y: Tensor) -> Tensor:
    flat = y.reshape(-1)
    return covariance(flat[:, None], flat[None, :])


@pytest.mark.parametrize("name", ROWS)
def test_covariance_of_all_pairs(name):
    """Given or refused, never wrong."""
    Run(ROWS[name]).check(_all_covariances, "covariance", False)


@pytest.mark.parametrize("name", ROWS)
def test_shape_and_dtype_are_those_of_the_plain_program(name):
    run = Run(ROWS[name])
    plain = run.program(*(s.distribution().sample() for s in run.sources))
    y = run.result()
    assert isinstance(y, RandomTensor)
    assert (y.shape, y.dtype) == (plain.shape, plain.dtype)


@pytest.mark.parametrize("name", ROWS)
def test_single_precision(name):
    """The mean in float32 is the mean in float64 to five digits, in float32."""
    row = ROWS[name]
    expected = Run(row).expected.mean
    run = Run(row)
    for source in run.sources:
        source.parameters = [p.detach().float() for p in source.parameters]
    run.operands = [a.detach().float() for a in run.operands]
    torch.set_default_dtype(torch.float32)
    try:
        with tolerated(row):
            actual = mean(run.result())
    except IntractableError:
        assert not row.mean
        return
    assert actual.dtype is (torch.float64 if "double" in _names(row) else torch.float32)
    # 1e-2 of the largest entry or 1 is the floor: single precision cancels.
    torch.testing.assert_close(actual.double(), expected.detach(), rtol=1e-4, atol=1e-5)


def _names(row: Row) -> tuple[str, ...]:
    """Names in a program's code: what it casts to."""
    code = row.program.__code__ if hasattr(row.program, "__code__") else None
    names = code.co_names if code else ()
    return ("double",) if {"double", "float64"} & set(names) else ()


EMPTY = {
    "x^2 exp(x)": lambda x: x**2 * x.exp(),
    "softplus": F.softplus,
    "abs": torch.abs,
    "two functions": lambda x: x.sin() * x.exp().log1p(),
    "map, then exp": lambda x: (x @ torch.ones(2, 3)).exp(),
    "rows summed": lambda x: (x * x.exp()).sum(-1),
    "all summed": lambda x: (x * x).sum(),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("family", ["normal", "mvn", "bernoulli"])
def test_empty_batch(name, family):
    laws = {
        "normal": dist.Normal(torch.zeros(0, 2), 1.0).to_event(1),
        "mvn": dist.MultivariateNormal(
            torch.zeros(0, 2), scale_tril=torch.eye(2).expand(0, 2, 2), validate_args=False
        ),
        "bernoulli": dist.Bernoulli(torch.full((0, 2), 0.4)).to_event(1),
    }
    program = EMPTY[name]
    actual = mean(program(random_tensor(laws[family])))
    plain = program(torch.zeros(0, 2))
    assert actual.shape == plain.shape
    assert actual.sum() == 0


def test_no_grad_and_detach_give_the_value_without_gradient():
    m = torch.tensor([0.3, -0.2], requires_grad=True)
    x = random_tensor(dist.Normal(m, 0.5).to_event(1))
    live = x**2 * (-x).exp()
    expected = mean(live)
    assert expected.requires_grad
    with torch.no_grad():
        inside = x**2 * (-x).exp()
    for quiet in (live.detach(), inside, x.detach() ** 2 * (-x.detach()).exp()):
        found = mean(quiet)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=0)


DETACHED = {
    "x detach(x)": lambda x: x * x.detach(),
    "exp(x) detach(x)": lambda x: x.exp() * x.detach(),
    "x detach(exp x)": lambda x: x * x.exp().detach(),
    "softplus(x) detach(exp x)": lambda x: F.softplus(x) * x.exp().detach(),
    "x + detach(x^2)": lambda x: x + (x**2).detach(),
    "(x detach(x)) summed": lambda x: (x * x.detach()).sum(),
    "exp(x - detach x)": lambda x: (x - x.detach()).exp(),
}


@pytest.mark.parametrize("name", DETACHED)
@pytest.mark.parametrize("kind", [normal(2), mvn(2)], ids=["normal", "mvn"])
def test_live_and_detached_readings(name, kind):
    """The gradient is the pathwise one of the plain program, or it is refused."""
    run = Run(Row((kind,), DETACHED[name], tolerance=1e-7))
    run.check(mean, "mean", False)


IN_PLACE = {
    "times": lambda x, a: x.exp() * a,
    "plus": lambda x, a: x.exp() + a,
    "less, squared": lambda x, a: (x - a) ** 2,
    "over": lambda x, a: F.softplus(x) / a,
    "a map": lambda x, a: (x @ a.diag()).exp(),
    "where": lambda x, a: torch.where(a > 0, x.exp(), 0.0),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_operand_changed_in_place(name):
    """A change after the operation is refused or has no effect."""
    law = dist.Normal(torch.tensor([0.3, -0.2]), 0.5).to_event(1)
    expected = mean(IN_PLACE[name](random_tensor(law), torch.tensor([1.0, 2.0])))
    a = torch.tensor([1.0, 2.0])
    y = IN_PLACE[name](random_tensor(law), a)
    a.mul_(-3.0)
    try:
        actual = mean(y)
    except LeakError:
        return
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


INTEGERS = {
    "index over its count": lambda z: z / 3,
    "index squared": lambda z: z * z,
    "index to a power": lambda z: z**2,
    "indicator": lambda z: (z == 1) * 2.0,
    "product of indicators": lambda z: (z == 1) * (z == 2),
    "indicator with itself": lambda z: (z == 1) * (z == 1),
    "index as float, exp": lambda z: z.double().exp(),
    "exp of an index": lambda z: z.exp(),
    "index as float, tanh": lambda z: (0.5 * z).tanh(),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name):
    """Integer arithmetic of an index keeps torch's dtype and the right mean."""
    run = Run(Row((index(3, 2),), INTEGERS[name], gradients=True))
    assert run.result().dtype is run.program(torch.tensor([0, 2])).dtype
    run.check(mean, "mean", False)
    run.check(variance, "variance", False)


def test_deep_chain():
    """300 operations, nonlinear ones among them, neither recurse too deep nor lose digits."""
    law = dist.Normal(torch.tensor([0.3, -0.2]), 0.5).to_event(1)

    def program(x: Tensor) -> Tensor:
        y = x.exp()
        for i in range(300):
            y = y * 1.01 - 0.01 * (i % 3)
        return y

    torch.testing.assert_close(
        mean(program(random_tensor(law))), dense.moments(program, law).mean, rtol=1e-9, atol=0
    )


def test_deep_chain_of_products():
    """x exp(x) exp(-x) exp(x) ...: one exponent however many factors."""
    law = dist.Normal(torch.tensor(0.3), 0.5)

    def program(x: Tensor) -> Tensor:
        y = x
        for i in range(301):
            y = y * (x if i % 2 else -x).exp()
        return y

    torch.testing.assert_close(
        mean(program(random_tensor(law))), dense.moments(program, law).mean, rtol=1e-8, atol=0
    )


LARGE = {
    "exp(x)": lambda x: x.exp(),
    "x exp(x)": lambda x: x * x.exp(),
    "(x - tilted mean) exp(x)": lambda x: (x - 900.0) * x.exp(),
    "exp(x) exp(-x)": lambda x: x.exp() * (-x).exp(),
    "exp(x) / exp(2 x)": lambda x: x.exp() / (2 * x).exp(),
    "square / exp": lambda x: x**2 / x.exp(),
    "exp(x) - exp(x)": lambda x: x.exp() - x.exp(),
    "log(exp x)": lambda x: x.exp().log(),
    "log1p(exp x)": lambda x: x.exp().log1p(),
    "softplus": F.softplus,
    "softplus(x) exp(x)": lambda x: F.softplus(x) * x.exp(),
    "abs(x) exp(x)": lambda x: x.abs() * x.exp(),
    "sigmoid(x) exp(x)": lambda x: x.sigmoid() * x.exp(),
    "sin(x) exp(-x)": lambda x: x.sin() * (-x).exp(),
    "0 * exp(x)": lambda x: 0.0 * x.exp(),
    "sum of exps": lambda x: torch.stack([x, -x]).exp().sum(0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", LARGE)
def test_overflow_is_infinite_or_refused_but_never_nan(name, dtype):
    """x ~ N(0, 30^2): E exp(x) = e^450 is beyond single precision, E exp(2x) = e^1800 beyond both."""
    for loc, scale in ((0.0, 30.0), (0.0, 100.0), (-50.0, 30.0)):
        m = torch.tensor(loc, dtype=dtype, requires_grad=True)
        s = torch.tensor(scale, dtype=dtype, requires_grad=True)
        try:
            found = mean(LARGE[name](random_tensor(dist.Normal(m, s))))
        except PyroSilentError:
            continue
        assert not found.isnan(), f"scale {scale}"
        if found.isfinite() and found.requires_grad:
            for gradient in torch.autograd.grad(found, [m, s], allow_unused=True):
                assert gradient is None or not gradient.isnan(), f"gradient at scale {scale}"


SCALES = (1e-6, 1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3)
SMOOTH = {
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "relu": F.relu,
    "erf": torch.erf,
    "ndtr": torch.special.ndtr,
    "log1p(x^2)": lambda x: (x**2).log1p(),
    "x^2": lambda x: x**2,
    "x^2 tanh(x)": lambda x: x**2 * x.tanh(),
}
CUTS = (0.0, *(sign * cut for sign in (-1, 1) for cut in (0.5, 1, 2, 3, 5, 8, 13, 21, 34)))


@pytest.mark.parametrize("loc", [0.0, -0.7, 3.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_posterior_scales(name, loc):
    """From 1e-6 to 1e3, relative to E|f| (the gradient: to E|f| / scale); only poles may warn."""
    kinks = [lambda x, cut=cut: x - cut for cut in CUTS]
    for scale in SCALES:
        m = torch.tensor(loc, requires_grad=True)
        s = torch.tensor(scale, requires_grad=True)
        law = dist.Normal(m, s)
        expected = dense.moments(SMOOTH[name], law, kinks=kinks).mean
        size = dense.moments(lambda x: SMOOTH[name](x).abs(), law, kinks=kinks).mean.item()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            actual = mean(SMOOTH[name](random_tensor(law)))
        if caught:
            assert name == "log1p(x^2)" and scale > 100, caught[0].message
            continue
        assert (actual - expected).abs().item() <= 1e-6 * max(size, 1e-3), f"mean at {scale}"
        found = torch.autograd.grad(actual, [m, s])
        for got, wanted in zip(found, torch.autograd.grad(expected, [m, s]), strict=True):
            limit = 1e-4 * max(wanted.abs().item(), size / scale, 1e-2)
            assert (got - wanted).abs().item() <= limit, f"gradient at {scale}"


LIKELIHOODS = {
    "Normal around a product": (
        (normal(2), normal(2)),
        lambda u, v: (dist.Normal(u * v, 0.7), torch.tensor([0.3, -1.0])),
        6,
    ),
    "Normal around an inner product": (
        (normal(2, 2), normal(2, 2)),
        lambda u, v: (dist.Normal((u * v).sum(-1), 0.7), torch.tensor([0.3, -1.0])),
        3,
    ),
    "Normal around a matrix product": (
        (normal(2, 2), mvn(2, 2)),
        lambda u, v: (dist.Normal(u @ v.T, 0.7).to_event(1), torch.eye(2)),
        3,
    ),
    "Normal around gathered factors": (
        (normal(2, 2), normal(2, 2)),
        lambda u, v: (dist.Normal((u[[0, 1, 0]] * v[[1, 1, 0]]).sum(-1), 0.7), torch.ones(3)),
        3,
    ),
    "Normal around exp": (
        (normal(2),),
        lambda x: (dist.Normal(x.exp(), 0.7), torch.tensor([0.3, -1.0])),
        None,
    ),
    "Normal around tanh": (
        (normal(2),),
        lambda x: (dist.Normal(x.tanh(), 0.7), torch.tensor([0.3, -1.0])),
        None,
    ),
    "Normal with scale exp": (
        (mvn(2),),
        lambda z: (dist.Normal(z[0], z[1].exp()), torch.tensor([0.3, -1.0])),
        None,
    ),
    "Normal with scale exp, product of locations": (
        (mvn(2), normal()),
        lambda z, y: (dist.Normal(z[0] * y, (0.5 * z[1]).exp()), torch.tensor([0.3, -1.0])),
        None,
    ),
    "Normal with group scales": (
        (normal(2), normal(1)),
        lambda t, m: (dist.Normal(m, t.exp()[[0, 1, 1]]), torch.tensor([0.3, -1.0, 0.0])),
        None,
    ),
    "Normal value and location random": (
        (normal(2), normal(1)),
        lambda x, t: (dist.Normal(x[0], t.exp()), x[1] * torch.ones(2)),
        None,
    ),
    "Normal from a mixture of means": (
        (index(2, 2), normal(2)),
        lambda z, mu: (dist.Normal(mu[z], 0.7), torch.tensor([0.3, -1.0])),
        6,
    ),
    "Normal from one-hot means": (
        (one_hot(2, 2), normal(2)),
        lambda h, mu: (dist.Normal(h @ mu, 0.7), torch.tensor([0.3, -1.0])),
        6,
    ),
    "Normal gated by Bernoulli": (
        (bernoulli(2), normal(2)),
        lambda b, x: (dist.Normal(b * x, 0.7), torch.tensor([0.3, -1.0])),
        6,
    ),
    "LogNormal": (
        (mvn(2),),
        lambda z: (dist.LogNormal(z[0], z[1].exp()), torch.tensor([0.3, 2.0])),
        None,
    ),
    "Poisson": (
        (mvn(2),),
        lambda z: (dist.Poisson((z[0] + torch.tensor([0.5, -0.2]) * z[1]).exp()), torch.ones(2)),
        None,
    ),
    "Poisson, mixed rate": (
        (normal(1), bernoulli(2)),
        lambda x, b: (dist.Poisson((x + 0.7 * b).exp()), torch.tensor([2.0, 0.0])),
        None,
    ),
    "Exponential": (
        (mvn(2),),
        lambda z: (dist.Exponential(z.exp()), torch.tensor([0.3, 2.0])),
        None,
    ),
    "Gamma with random rate": (
        (mvn(2),),
        lambda z: (dist.Gamma(2.0, z.exp()), torch.tensor([0.3, 2.0])),
        None,
    ),
    "Bernoulli by logits": (
        (mvn(2),),
        lambda z: (dist.Bernoulli(logits=z @ torch.ones(2, 3)), torch.tensor([0.0, 1.0, 1.0])),
        None,
    ),
    "Binomial by logits": (
        (mvn(2),),
        lambda z: (dist.Binomial(5, logits=z), torch.tensor([0.0, 3.0])),
        None,
    ),
    "HalfNormal value": (
        (normal(2),),
        lambda x: (dist.HalfNormal(1.5), x.exp()),
        None,
    ),
    "Masked": (
        (normal(2),),
        lambda x: (
            dist.Normal(x.exp(), 0.7).mask(torch.tensor([True, False])),
            torch.tensor([0.3, 2.0]),
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_expected_log_prob(name):
    """Log densities of distributions with pointwise arguments."""
    kinds, build, points = LIKELIHOODS[name]

    def program(*latents: Tensor) -> Tensor:
        distribution, value = build(*latents)
        distribution._validate_args = False
        return distribution.log_prob(value)

    run = Run(Row(kinds, program, points=points))
    latents = [random_tensor(s.distribution()) for s in run.sources]
    distribution, value = build(*latents)
    actual = expected_log_prob(distribution, value)
    assert_near(actual, run.expected.mean, 1e-7, "expected log density")
    pairs = zip(gradients(actual, run.leaves), gradients(run.expected.mean, run.leaves))
    for i, (got, wanted) in enumerate(pairs):
        assert_near(got, wanted, 1e-6, f"gradient {i}")


DIVERGENT = {
    "exp(x^2)": lambda x: (x**2).exp(),
    "exp(x^3)": lambda x: (x**3).exp(),
    "exp(exp x)": lambda x: x.exp().exp(),
    "exp(x exp x)": lambda x: (x * x.exp()).exp(),
    "cosh(x^2)": lambda x: (x**2).cosh(),
    "1 / x": lambda x: 1 / x,
    "1 / x^2": lambda x: x**-2,
    "exp(x) / x^2": lambda x: x.exp() / x**2,
    "1 / |x|": lambda x: 1 / x.abs(),
    "tan(x)": torch.tan,
}


@pytest.mark.parametrize("name", DIVERGENT)
def test_an_expectation_that_does_not_exist_is_not_a_quiet_number(name):
    """Refused, infinite, or with a warning: quadrature of a divergent integral is a finite number."""
    x = random_tensor(dist.Normal(torch.tensor(0.3), 1.5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = mean(DIVERGENT[name](x))
        except IntractableError:
            return
    assert caught or not found.isfinite(), found
