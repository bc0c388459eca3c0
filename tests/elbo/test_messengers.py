"""GuideMessenger guides: they run the model themselves and give its sites their posteriors on the way."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoHierarchicalNormalMessenger, AutoNormalMessenger
from pyro.infer.autoguide.effect import AutoRegressiveMessenger
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_silent import SilentELBO
from tests.elbo.agreement import assert_close, assert_exact, evaluate, leaves
from tests.formulas import expected_normal, normal_entropy

GROUP = torch.tensor([0, 2, 1, 2, 0, 0, 3])
P = pyro.param


def perturb() -> None:
    """Move every parameter away from its symmetric start."""
    for leaf in leaves().values():
        leaf.data += 0.3 * torch.randn_like(leaf)


def groups(y: Tensor, x: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 4):
        alpha = pyro.sample("alpha", dist.Normal(2.0 * beta, 0.8))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(alpha[..., GROUP] + beta * x, 0.5), obs=y)


class Upstream(AutoNormalMessenger):
    """A posterior of the user's own for one site, written with the value of an earlier one."""

    def get_posterior(self, name: str, prior):
        if name != "alpha":
            return super().get_posterior(name, prior)
        loc = P("bias", torch.zeros(4)) + P("slope", torch.tensor(0.6)) * self.upstream_value(
            "beta"
        )
        return dist.Normal(loc, P("spread", torch.tensor(0.3), dist.constraints.positive))


def negative_elbo(
    m: Tensor, s: Tensor, bias: Tensor, slope: Tensor, t: Tensor, y: Tensor, x: Tensor
) -> Tensor:
    """Of :func:`groups` for beta ~ N(m, s), alpha ~ N(bias + slope * beta, t)."""
    slope = slope.expand(4)
    prior = expected_normal(bias + (slope - 2.0) * m, ((slope - 2.0) * s) ** 2 + t**2, 0.8)
    loc = (bias + slope * m)[GROUP] + m * x
    spread = ((slope[GROUP] + x) * s) ** 2 + t.expand(4)[GROUP] ** 2
    expected = expected_normal(m, s**2, 1.0) + prior.sum()
    expected = expected + expected_normal(y - loc, spread, 0.5).sum()
    return -expected - normal_entropy(s) - normal_entropy(t.expand(4)).sum()


def _mean_field(guide) -> tuple[Tensor, ...]:
    locs, scales = guide.locs, guide.scales
    return locs.beta, scales.beta, locs.alpha, torch.zeros(()), scales.alpha


def _hierarchical(guide) -> tuple[Tensor, ...]:
    locs, scales, weights = guide.locs, guide.scales, guide.weights
    # the prior mean of alpha is 2 beta, that of beta is 0
    return locs.beta, scales.beta, locs.alpha, 2.0 * weights.alpha, scales.alpha


def _regressive(guide) -> tuple[Tensor, ...]:
    locs, scales = guide.locs, guide.scales
    return locs.beta, scales.beta, locs.alpha, 2.0 * scales.alpha, 0.8 * scales.alpha


def _upstream(guide) -> tuple[Tensor, ...]:
    return guide.locs.beta, guide.scales.beta, P("bias"), P("slope"), P("spread")


MOMENTS = {
    AutoNormalMessenger: _mean_field,
    AutoHierarchicalNormalMessenger: _hierarchical,
    AutoRegressiveMessenger: _regressive,
    Upstream: _upstream,
}


@pytest.mark.parametrize("family", MOMENTS)
def test_messengers_of_real_latents(family):
    y, x = torch.randn(2, 7)
    guide = family(groups)
    guide(y, x)
    perturb()
    assert_exact(groups, guide, lambda: negative_elbo(*MOMENTS[family](guide), y, x), y, x)


@pytest.mark.parametrize("family", MOMENTS)
def test_a_guide_that_never_ran_makes_its_parameters_from_values(family):
    """Parameters are made in the first run, from priors that depend on earlier latents."""
    y, x = torch.randn(2, 7)
    guide = family(groups)
    loss = SilentELBO().loss(groups, guide, y, x)
    assert all(leaf.isfinite().all() for leaf in leaves().values())
    assert_close(loss, negative_elbo(*MOMENTS[family](guide), y, x), 1e-9, "loss")


def test_vectorized_particles_are_copies():
    y, x = torch.randn(2, 7)
    guide = AutoHierarchicalNormalMessenger(groups)
    single, gradients = evaluate(SilentELBO(), groups, guide, y, x)
    perturb()
    single, gradients = evaluate(SilentELBO(), groups, guide, y, x)
    elbo = SilentELBO(num_particles=3, vectorize_particles=True)
    loss, vectorized = evaluate(elbo, groups, guide, y, x)
    assert_close(loss, single, 1e-9, "loss")
    for name in gradients:
        assert_close(vectorized[name], gradients[name], 1e-8, name)


def test_a_fit_reaches_a_posterior_that_the_family_holds():
    """beta and alpha are jointly Gaussian with one edge: the loss reaches -log p(y), and stays."""
    y = torch.tensor([0.3, -0.2, 1.0, 0.1])

    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
        alpha = pyro.sample("alpha", dist.Normal(beta, 0.8))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(alpha, 0.5), obs=y)

    guide = AutoHierarchicalNormalMessenger(model)
    loss = SilentELBO()(model, guide)
    loss()
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    covariance = 0.25 * torch.eye(4) + (1.0 + 0.64)
    evidence = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(y)
    assert_close(loss(), -evidence, 1e-6, "loss at the optimum")


def test_subsampling_and_scale():
    """Posterior parameters of the full size, read at the subsample; the terms are scaled."""
    y = torch.randn(6)
    index = torch.tensor([4, 1, 2])

    @poutine.scale(scale=0.7)
    def model() -> None:
        with pyro.plate("data", 6, subsample=index):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y[index])

    guide = AutoNormalMessenger(model)
    guide()
    perturb()

    def formula() -> Tensor:
        m, s = guide.locs.z[index], guide.scales.z[index]
        expected = expected_normal(m, s**2, 1.0) + expected_normal(y[index] - m, s**2, 0.5)
        return -0.7 * 2.0 * (expected + normal_entropy(s)).sum()

    assert_exact(model, guide, formula)


class Fixed(GuideMessenger):
    """A messenger that is no module: a point for one site, a Gaussian around it for the other."""

    def get_posterior(self, name: str, prior):
        if name == "point":
            return P("value", torch.tensor(0.4))
        return dist.Normal(P("loc", torch.tensor(0.1)) + self.upstream_value("point"), 0.5)


def _three() -> None:
    point = pyro.sample("point", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Normal(point, 1.0))
    pyro.deterministic("twice", 2 * z)
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.7))


def test_points_and_deterministic_sites():
    guide = Fixed(_three)
    guide()

    def formula() -> Tensor:
        point, loc = P("value"), P("loc") + P("value")
        spread = torch.tensor(0.25)
        expected = expected_normal(point, 0.0, 1.0) + expected_normal(loc - point, spread, 1.0)
        expected = expected + expected_normal(0.7 - loc, spread, 1.0)
        return -expected - normal_entropy(torch.tensor(0.5))

    assert_exact(_three, guide, formula)


def test_a_site_opts_out_in_the_model():
    """The model's site is the guide's: ``infer`` is written there."""

    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0), infer={"silent": False})
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.7))

    guide = AutoNormalMessenger(model)
    guide()
    losses = {evaluate(SilentELBO(), model, guide, seed=seed)[0] for seed in range(3)}
    assert len(losses) == 3
