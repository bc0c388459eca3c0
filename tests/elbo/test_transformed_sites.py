"""Guide sites whose law is a transformed one: LogNormal, user-made compositions, flows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from pyro.infer import autoguide
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_silent import IntractableError, SilentELBO
from tests.elbo.agreement import assert_close, assert_exact, evaluate, new_parameters
from tests.elbo.chance import assert_unbiased
from tests.formulas import expected_normal, gauss_hermite, normal_entropy

P = pyro.param


class Case(NamedTuple):
    """A transformed Gaussian, a prior on its support, and a density of data given the value."""

    transforms: Callable[[], list]
    prior: Callable[[], dist.Distribution]
    data: Callable[[Tensor], dist.Distribution]
    observed: float


def _count(value: Tensor) -> dist.Distribution:
    return dist.Poisson(value)


def _spread(value: Tensor) -> dist.Distribution:
    return dist.Normal(0.3, value)


def _bit(value: Tensor) -> dist.Distribution:
    return dist.Bernoulli(value)


def _location(value: Tensor) -> dist.Distribution:
    return dist.Normal(value, 0.7)


CASES = {
    "exp": Case(lambda: [T.ExpTransform()], lambda: dist.Gamma(2.0, 1.5), _count, 2.0),
    "affine, exp": Case(
        lambda: [T.AffineTransform(0.3, P("a").exp()), T.ExpTransform()],
        lambda: dist.LogNormal(0.2, 0.8),
        _spread,
        1.1,
    ),
    "exp, affine": Case(
        lambda: [T.ExpTransform(), T.AffineTransform(0.0, P("a").exp())],
        lambda: dist.Exponential(1.5),
        _count,
        1.0,
    ),
    "exp, power": Case(
        lambda: [T.ExpTransform(), T.PowerTransform(0.5)],
        lambda: dist.InverseGamma(2.0, 1.5),
        _count,
        3.0,
    ),
    "positive": Case(
        lambda: [biject_to(constraints.positive)], lambda: dist.HalfNormal(1.5), _spread, 0.4
    ),
    "sigmoid": Case(lambda: [T.SigmoidTransform()], lambda: dist.Beta(2.0, 3.0), _bit, 1.0),
    "sigmoid, affine": Case(
        lambda: [T.SigmoidTransform(), T.AffineTransform(1.0, P("a").exp())],
        lambda: dist.Normal(1.0, 2.0),
        _location,
        1.7,
    ),
    "interval": Case(
        lambda: [biject_to(constraints.interval(0.5, 2.5))],
        lambda: dist.Normal(1.0, 2.0),
        _location,
        1.7,
    ),
    "softplus": Case(
        lambda: [T.SoftplusTransform()], lambda: dist.Normal(1.0, 2.0), _location, 1.7
    ),
    "tanh": Case(lambda: [T.TanhTransform()], lambda: dist.Normal(1.0, 2.0), _location, 0.7),
    "exp, log": Case(
        lambda: [T.ExpTransform(), T.AffineTransform(0.0, 2.0), T.ExpTransform().inv],
        lambda: dist.Normal(1.0, 2.0),
        _location,
        0.7,
    ),
    "random transform": Case(
        lambda: [T.AffineTransform(P("a"), -1.5)], lambda: dist.Normal(1.0, 2.0), _location, 0.7
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_transformed_gaussians(name):
    """Value and gradients are those of one-dimensional quadrature of Pyro's own log densities."""
    case = CASES[name]
    new_parameters(a=(), loc=3, log_scale=3)
    observed = torch.tensor(case.observed)

    def law() -> dist.Distribution:
        base = dist.Normal(P("loc"), 0.4 * P("log_scale").exp())
        return dist.TransformedDistribution(base, case.transforms())

    def model() -> None:
        with pyro.plate("data", 3):
            y = pyro.sample("y", case.prior())
            pyro.sample("x", case.data(y), obs=observed)

    def guide() -> None:
        P("a")
        with pyro.plate("data", 3):
            pyro.sample("y", law())

    def formula() -> Tensor:
        nodes, weights = gauss_hermite(120)
        y = law().base_dist.loc + law().base_dist.scale * nodes[:, None]
        for transform in law().transforms:
            y = transform(y)
        ratio = case.prior().log_prob(y) + case.data(y).log_prob(observed) - law().log_prob(y)
        return -(weights[:, None] * ratio).sum() + 0.0 * P("a")

    assert_exact(model, guide, formula)


@pytest.mark.parametrize("wrap", ["to_event", "expand", "mask", "mask under to_event"])
def test_wrapped_laws(wrap):
    """Shapes and masks around a LogNormal; its entropy and all it meets are closed forms."""
    new_parameters(loc=3, log_scale=3)
    mask = torch.tensor([True, False, True])
    x = torch.rand(3)

    def wrapped(law: dist.Distribution) -> dist.Distribution:
        if wrap == "expand":
            return law.expand([2, 3]).to_event(2)
        if wrap == "mask":
            return law.mask(mask).to_event(1).mask(True)
        if wrap == "mask under to_event":
            return dist.Independent(law.mask(mask), 1)
        return law.to_event(1)

    def model() -> None:
        y = pyro.sample("y", wrapped(dist.LogNormal(torch.zeros(3), 1.0)))
        pyro.sample("x", dist.Exponential(y).to_event(), obs=x.expand(y.shape))

    def guide() -> None:
        pyro.sample("y", wrapped(dist.LogNormal(P("loc"), P("log_scale").exp())))

    def formula() -> Tensor:
        m, s = P("loc"), P("log_scale").exp()
        divergence = 0.5 * (s**2 + m**2 - 1) - s.log()
        if wrap.startswith("mask"):
            divergence = torch.where(mask, divergence, 0.0)
        expected = (m - x * (m + s**2 / 2).exp()).sum()
        return (divergence.sum() - expected) * (2.0 if wrap == "expand" else 1.0)

    assert_exact(model, guide, formula)


def test_a_linear_transform_is_a_multivariate_gaussian():
    """``tril @ e + loc`` has one Jacobian for a whole vector."""
    new_parameters(loc=(4, 2), tril=(2, 2))
    x = torch.randn(4, 2)

    def tril() -> Tensor:
        return torch.tril(P("tril"), -1) + torch.diag(P("tril").diagonal().exp())

    def model() -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(transformed: bool) -> None:
        with pyro.plate("data", 4):
            if transformed:
                base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
                transforms = [
                    T.LowerCholeskyAffine(P("loc"), tril()),
                    T.Permute(torch.tensor([1, 0])),
                ]
                law = dist.TransformedDistribution(base, transforms)
            else:
                flip = torch.tensor([1, 0])
                law = dist.MultivariateNormal(P("loc")[:, flip], (tril() @ tril().T)[flip][:, flip])
            pyro.sample("z", law)

    loss, gradients = evaluate(SilentELBO(), model, lambda: guide(False))
    found, transformed = evaluate(SilentELBO(), model, lambda: guide(True))
    assert_close(found, loss, 1e-9, "loss")
    for name in gradients:
        assert_close(transformed[name], gradients[name], 1e-8, name)


def test_a_chain_of_transformed_sites():
    """The location of a LogNormal is affine in the logarithm of an earlier one."""
    new_parameters(m=(), slope=(), t=())

    def model() -> None:
        a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
        b = pyro.sample("b", dist.LogNormal(a.log(), 0.8))
        pyro.sample("x", dist.Normal(b.log(), 0.5), obs=torch.tensor(0.3))

    def guide() -> None:
        a = pyro.sample("a", dist.LogNormal(P("m"), 0.6))
        pyro.sample("b", dist.LogNormal(P("slope") * a.log(), P("t").exp()))

    def formula() -> Tensor:
        m, slope, t = P("m"), P("slope"), P("t").exp()
        s = torch.tensor(0.6)
        # all densities of log a and log b carry the same Jacobians in model and guide
        expected = expected_normal(m, s**2, 1.0)
        expected = expected + expected_normal((slope - 1) * m, ((slope - 1) * s) ** 2 + t**2, 0.8)
        expected = expected + expected_normal(0.3 - slope * m, (slope * s) ** 2 + t**2, 0.5)
        return -expected - normal_entropy(s) - normal_entropy(t)

    assert_exact(model, guide, formula)


def test_a_folded_gaussian():
    """HalfNormal is a transformed law whose transform has no inverse; its entropy is known."""
    new_parameters(log_scale=2)

    def model() -> None:
        with pyro.plate("data", 2):
            y = pyro.sample("y", dist.HalfNormal(1.0))
            pyro.sample("x", dist.Normal(y, 0.5), obs=torch.tensor([0.3, 1.2]))

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("y", dist.HalfNormal(P("log_scale").exp()))

    def formula() -> Tensor:
        s = P("log_scale").exp()
        mean = s * math.sqrt(2 / math.pi)
        x = torch.tensor([0.3, 1.2])
        expected = expected_normal(x - mean, s**2 - mean**2, 0.5)
        return (0.5 * (s**2 - 1) - s.log() - expected).sum()

    assert_exact(model, guide, formula)


class _Sharp(dist.HalfNormal):
    """A folded law with another density, and no entropy that is known."""

    entropy = torch.distributions.Distribution.entropy


def test_a_folded_law_without_an_entropy_is_refused():
    def model() -> None:
        pyro.sample("y", dist.HalfNormal(1.0))

    def guide() -> None:
        pyro.sample("y", _Sharp(P("scale", torch.tensor(0.5))))

    with pytest.raises(IntractableError, match="'y'.*_Sharp"):
        SilentELBO().loss(model, guide)


class _Reading(T.Transform):
    """A transform that asks for a number."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = 1

    def _call(self, x: Tensor) -> Tensor:
        return x + 1.0 if x.sum().item() > 0 else x + 1.0

    def _inverse(self, y: Tensor) -> Tensor:
        return y - 1.0

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
def test_a_transform_that_needs_values_is_sampled_as_a_whole():
    new_parameters(loc=())

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(P("loc"), 0.5), [_Reading()]))

    with pytest.raises(IntractableError, match="'z'.*TransformedDistribution"):
        SilentELBO().loss(model, guide)
    m, s = P("loc") + 1.0, torch.tensor(0.5)
    truth = -expected_normal(m, s**2, 1.0) - expected_normal(m - 0.3, s**2, 1.0) - normal_entropy(s)
    elbo = SilentELBO(intractable="sample", num_particles=50, vectorize_particles=True)
    assert_unbiased(elbo, model, guide, truth)


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
def test_a_flow_without_an_inverse_is_scored_forward():
    """Only the Jacobian is sampled, at the value that was drawn; the base's entropy is exact."""
    flow = T.Planar(1).requires_grad_(False)
    flow.bias.fill_(0.3), flow.u.fill_(0.8), flow.w.fill_(0.5)
    new_parameters(loc=1)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(1))

    def guide() -> None:
        base = dist.Normal(P("loc"), 0.5).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    nodes, weights = gauss_hermite(120)
    base = P("loc") + 0.5 * nodes[:, None]
    y = flow(base)
    log_det = flow.log_abs_det_jacobian(base, y)
    log_p = (dist.Normal(0.0, 1.0).log_prob(y) + dist.Normal(y, 1.0).log_prob(torch.ones(1))).sum(
        -1
    )
    truth = -(weights * (log_p + log_det)).sum() - normal_entropy(torch.tensor(0.5))
    elbo = SilentELBO(intractable="sample", num_particles=100, vectorize_particles=True)
    assert_unbiased(elbo, model, guide, truth)


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
def test_a_flow_that_remembers_leaves_nothing_random_behind():
    """The flow's caches hold what it saw in a run that leaked; the next run samples its latent."""
    guide = autoguide.AutoIAFNormal(_leaking, hidden_dim=[4])
    guide()
    elbo = SilentELBO(intractable="sample")
    losses = {evaluate(elbo, _leaking, guide, seed=seed)[0] for seed in range(3)}
    assert len(losses) == 3
    particle = next(elbo._get_traces(_leaking, guide, (), {}))
    assert {treated.method for treated in particle.treated.values()} == {"point"}
    assert list(elbo._plain) == ["_AutoIAFNormal_latent"]


def _leaking() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    buffer = torch.zeros(2)
    buffer[0] = z[0]
    pyro.sample("x", dist.Normal(buffer + z, 1.0).to_event(1), obs=torch.ones(2))


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
def test_transforms_with_a_cache_and_random_parameters_are_drawn_anew():
    """The law of b is known only given a; its transforms remember their last value."""
    new_parameters(m=())

    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        a = pyro.sample("a", dist.Normal(P("m"), 0.3))
        transforms = [T.ExpTransform(cache_size=1), T.AffineTransform(a, 0.5, cache_size=1)]
        pyro.sample("b", dist.TransformedDistribution(dist.Uniform(-1.0, 1.0), transforms))

    s = torch.tensor(0.3)
    m = P("m")
    mean = m + 0.5 * math.sinh(1.0)
    second = math.sinh(2.0) / 2  # E exp(2u) for u uniform on (-1, 1)
    variance = s**2 + 0.25 * (second - math.sinh(1.0) ** 2)
    expected = expected_normal(m, s**2, 1.0) + expected_normal(mean, variance, 3.0)
    expected = expected + expected_normal(0.3 - mean, variance, 1.0)
    # log q(b) = log(1/2) - E log |db/du| = log(1/2) - log(1/2)
    truth = -expected - normal_entropy(s)
    elbo = SilentELBO(intractable="sample", num_particles=100, vectorize_particles=True)
    assert_unbiased(elbo, model, guide, truth)


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
def test_a_simplex_is_sampled_at_its_own_sites_only():
    """StickBreaking has no closed forms; the Gaussian beside it keeps its own."""
    new_parameters(loc=1, m=())

    def model() -> None:
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0])))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("k", dist.Categorical(p), obs=torch.tensor(1))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        base = dist.Normal(P("loc"), 0.5).to_event(1)
        transform = biject_to(constraints.simplex)
        pyro.sample("p", dist.TransformedDistribution(base, [transform]))
        pyro.sample("z", dist.Normal(P("m"), 0.4))

    nodes, weights = gauss_hermite(120)
    transform = biject_to(constraints.simplex)
    u = P("loc") + 0.5 * nodes[:, None]
    p = transform(u)
    ratio = dist.Dirichlet(torch.tensor([2.0, 3.0])).log_prob(p) + p[:, 1].log()
    ratio = ratio + transform.log_abs_det_jacobian(u, p)
    s = torch.tensor(0.4)
    truth = -(weights * ratio).sum() - normal_entropy(torch.tensor(0.5)) - normal_entropy(s)
    truth = truth - expected_normal(P("m"), s**2, 1.0) - expected_normal(P("m") - 0.3, s**2, 1.0)
    elbo = SilentELBO(intractable="sample", num_particles=50, vectorize_particles=True)
    with pytest.raises(IntractableError, match="'p'"):
        SilentELBO().loss(model, guide)
    assert_unbiased(elbo, model, guide, truth)
    particle = next(elbo._get_traces(model, guide, (), {}))
    sampled = {key for key, record in particle.records.items() if record.error is not None}
    assert sampled == {("guide", "p"), ("model", "p"), ("model", "k")}
