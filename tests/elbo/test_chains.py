"""Latents that depend on latents: chains in guide and model, points, auxiliary sites."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from tests.elbo.agreement import assert_exact, new_parameters
from tests.elbo.mean_field import P, moments, new_normal, normal_site
from tests.formulas import (
    LOG_2PI,
    expected_normal,
    kl_multivariate_normal,
    kl_normal,
    normal_entropy,
    quadratic_form,
)


def test_linear_gaussian_chain_in_guide_and_model():
    """q(z2 | z1) and p(z2 | z1) both affine; the decoder reads both."""
    new_normal(z1=3, z2=2)
    new_parameters(a=(2, 3), c=(2, 3), w=(4, 2), v=(4, 3))
    x = torch.randn(4)

    def model() -> None:
        z1 = pyro.sample("z1", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        z2 = pyro.sample("z2", dist.Normal(P("c") @ z1, 0.8).to_event(1))
        pyro.sample("x", dist.Normal(P("w") @ z2 + P("v") @ z1, 0.5).to_event(1), obs=x)

    def guide() -> None:
        z1 = normal_site("z1", event_dim=1)
        loc = P("a") @ z1 + P("z2_loc")
        pyro.sample("z2", dist.Normal(loc, P("z2_log_scale").exp()).to_event(1))

    def formula() -> Tensor:
        (m1, s1), (b, s2) = moments("z1"), moments("z2")
        a, c, w, v = P("a"), P("c"), P("w"), P("v")
        m2, conditional = a @ m1 + b, torch.diag(s2**2)
        covariance = torch.diag(s1**2)
        step = quadratic_form(a - c, covariance) + s2**2
        prior = expected_normal(m2 - c @ m1, step, 0.8).sum() + normal_entropy(s2).sum()
        through = quadratic_form(w @ a + v, covariance) + quadratic_form(w, conditional)
        likelihood = expected_normal(x - w @ m2 - v @ m1, through, 0.5)
        return kl_normal(m1, s1).sum() - prior - likelihood.sum()

    assert_exact(model, guide, formula)


def test_chain_with_a_full_covariance():
    new_normal(z1=3)
    new_parameters(a=(2, 3), factor=(2, 2))
    x = torch.randn(2)

    def tril() -> Tensor:
        return P("factor").tril(-1) + torch.diag(P("factor").diagonal().exp())

    def model() -> None:
        z1 = pyro.sample("z1", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z2 + z1[:2], 0.5).to_event(1), obs=x)

    def guide() -> None:
        z1 = normal_site("z1", event_dim=1)
        pyro.sample("z2", dist.MultivariateNormal(P("a") @ z1, scale_tril=tril()))

    def formula() -> Tensor:
        m1, s1 = moments("z1")
        a, conditional = P("a"), tril() @ tril().T
        covariance = a @ torch.diag(s1**2) @ a.T + conditional
        entropy = 0.5 * (2 * (LOG_2PI + 1) + torch.logdet(conditional))
        prior = expected_normal(a @ m1, covariance.diagonal(), 1.0).sum()
        joint = (a + torch.eye(3)[:2]) @ torch.diag(s1**2) @ (a + torch.eye(3)[:2]).T + conditional
        likelihood = expected_normal(x - a @ m1 - m1[:2], joint.diagonal(), 0.5).sum()
        return kl_normal(m1, s1).sum() - prior - entropy - likelihood

    assert_exact(model, guide, formula)


def test_random_walk_prior_written_as_a_loop():
    """p(z_t | z_{t-1}) site by site, a mean-field guide, an observation of every state."""
    steps = 5
    new_parameters(loc=steps, log_scale=steps, log_tau=(), log_sigma=())
    y = torch.randn(steps)

    def model() -> None:
        previous = torch.tensor(0.5)
        for t in pyro.markov(range(steps)):
            previous = pyro.sample(f"z_{t}", dist.Normal(previous, P("log_tau").exp()))
            pyro.sample(f"y_{t}", dist.Normal(previous, P("log_sigma").exp()), obs=y[t])

    def guide() -> None:
        for t in pyro.markov(range(steps)):
            pyro.sample(f"z_{t}", dist.Normal(P("loc")[t], P("log_scale")[t].exp()))

    def formula() -> Tensor:
        m, s, tau = P("loc"), P("log_scale").exp(), P("log_tau").exp()
        previous = torch.cat([torch.tensor([0.5]), m[:-1]])
        spread = s**2 + torch.cat([torch.zeros(1), s[:-1] ** 2])
        prior = expected_normal(m - previous, spread, tau).sum()
        likelihood = expected_normal(y - m, s**2, P("log_sigma").exp()).sum()
        return -prior - normal_entropy(s).sum() - likelihood

    assert_exact(model, guide, formula)


@pytest.mark.parametrize("increments", ["slices", "diff"])
def test_random_walk_prior_on_one_vector(increments):
    """Increments of a vector latent scored by pyro.factor's affine cousin: an observed zero."""
    steps = 6
    new_parameters(loc=steps, factor=(steps, steps))

    def tril() -> Tensor:
        return P("factor").tril(-1) + torch.diag(P("factor").diagonal().exp())

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(steps), 1.0).to_event(1))
        steps_of_z = z[1:] - z[:-1] if increments == "slices" else torch.diff(z)
        pyro.sample("walk", dist.Normal(steps_of_z, 0.3).to_event(1), obs=torch.zeros(steps - 1))
        pyro.sample("end", dist.Normal(torch.cumsum(z, -1)[-1], 0.3), obs=torch.tensor(2.0))

    def guide() -> None:
        pyro.sample("z", dist.MultivariateNormal(P("loc"), scale_tril=tril()))

    def formula() -> Tensor:
        mean, covariance = P("loc"), tril() @ tril().T
        rows = torch.eye(steps)[1:] - torch.eye(steps)[:-1]
        walk = expected_normal(rows @ mean, quadratic_form(rows, covariance), 0.3).sum()
        end = expected_normal(2.0 - mean.sum(), covariance.sum(), 0.3)
        return kl_multivariate_normal(mean, covariance) - walk - end

    assert_exact(model, guide, formula)


def test_state_space_model_with_an_autoregressive_guide():
    """Two-dimensional states in a batch of sequences; the guide's chain is affine as well."""
    steps, batch = 3, 2
    new_parameters(transition=(2, 2), gain=(2, 2), emission=(3, 2), shift=(steps, batch, 2))
    y = torch.randn(steps, batch, 3)

    def model() -> None:
        with pyro.plate("sequences", batch):
            z = torch.zeros(batch, 2)
            for t in range(steps):
                z = pyro.sample(f"z_{t}", dist.Normal(z @ P("transition").T, 0.6).to_event(1))
                loc = z @ P("emission").T
                pyro.sample(f"y_{t}", dist.Normal(loc, 0.5).to_event(1), obs=y[t])

    def guide() -> None:
        with pyro.plate("sequences", batch):
            z = torch.zeros(batch, 2)
            for t in range(steps):
                loc = z @ P("gain").T + P("shift")[t]
                z = pyro.sample(f"z_{t}", dist.Normal(loc, 0.4).to_event(1))

    def formula() -> Tensor:
        a, g, e = P("transition"), P("gain"), P("emission")
        mean, covariance = torch.zeros(batch, 2), torch.zeros(2, 2)
        value = torch.zeros(())
        for t in range(steps):
            new_mean = mean @ g.T + P("shift")[t]
            drift = quadratic_form(g - a, covariance) + 0.4**2
            value = value + expected_normal(new_mean - mean @ a.T, drift, 0.6).sum()
            value = value + batch * 2 * normal_entropy(torch.tensor(0.4))
            mean, covariance = new_mean, g @ covariance @ g.T + 0.4**2 * torch.eye(2)
            spread = quadratic_form(e, covariance)
            value = value + expected_normal(y[t] - mean @ e.T, spread, 0.5).sum()
        return -value

    assert_exact(model, guide, formula)


# Delta sites, auxiliary sites


def test_delta_guides():
    """A point estimate enters as a plain value, also where a random location would be refused."""
    new_normal(z=4)
    new_parameters(log_sigma=(), weights=4)
    y = torch.randn(4)

    def model() -> None:
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(torch.zeros(4), 2.0).to_event(1))
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(w * z, sigma).to_event(1), obs=y)

    def guide() -> None:
        pyro.sample("sigma", dist.Delta(P("log_sigma").exp(), log_density=-P("log_sigma")))
        pyro.sample("w", dist.Delta(P("weights"), event_dim=1))
        normal_site("z", event_dim=1)

    def formula() -> Tensor:
        m, s = moments("z")
        w, log_sigma = P("weights"), P("log_sigma")
        sigma_prior = -log_sigma - 0.5 * (LOG_2PI + log_sigma**2)
        w_prior = expected_normal(w, 0.0, 2.0).sum()
        likelihood = expected_normal(y - w * m, (w * s) ** 2, log_sigma.exp()).sum()
        return kl_normal(m, s).sum() - sigma_prior - log_sigma - w_prior - likelihood

    assert_exact(model, guide, formula)


@pytest.mark.parametrize("kind", ["delta", "normal"])
def test_auxiliary_guide_sites(kind):
    """An auxiliary u with z an affine image of it, with and without noise of its own."""
    new_normal(u=3)
    new_parameters(a=3, x=3)
    x = torch.randn(3)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide() -> None:
        u_fn = dist.Normal(P("u_loc"), P("u_log_scale").exp()).to_event(1)
        u = pyro.sample("u", u_fn, infer={"is_auxiliary": True})
        loc = P("a").exp() * u + 0.1
        if kind == "delta":
            pyro.sample("z", dist.Delta(loc, log_density=-P("a").sum(), event_dim=1))
        else:
            pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))

    def formula() -> Tensor:
        m, s = moments("u")
        a = P("a").exp()
        mean, spread = a * m + 0.1, (a * s) ** 2
        if kind == "delta":
            entropy = normal_entropy(s).sum() + P("a").sum()
        else:
            spread = spread + 0.3**2
            entropy = normal_entropy(s).sum() + 3 * normal_entropy(torch.tensor(0.3))
        prior = expected_normal(mean, spread, 1.0).sum()
        return -prior - entropy - expected_normal(x - mean, spread, 0.5).sum()

    assert_exact(model, guide, formula)


def test_closed_divergence_from_a_prior_without_a_rule():
    """E log Laplace has no rule of its own, but KL(Normal || Laplace) is known to torch."""
    new_normal(z=3)
    x = torch.randn(3)

    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Laplace(0.2, 1.5))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide() -> None:
        with pyro.plate("data", 3):
            normal_site("z")

    def formula() -> Tensor:
        m, s = moments("z")
        a = m - 0.2  # E|a + s e| = s sqrt(2/pi) exp(-a^2 / 2 s^2) + a erf(a / s sqrt 2)
        ratio = a / s / 2**0.5
        absolute = s * (2 / torch.pi) ** 0.5 * torch.exp(-(ratio**2)) + a * torch.erf(ratio)
        prior = -absolute / 1.5 - torch.log(torch.tensor(3.0))
        likelihood = expected_normal(x - m, s**2, 0.5)
        return -(prior + normal_entropy(s) + likelihood).sum()

    assert_exact(model, guide, formula)
