"""Pyro's own guides and reparameterizations, as users combine them with a loss."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, autoguide
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_silent import IntractableError, SilentELBO
from tests.elbo.agreement import assert_close, assert_exact, evaluate, leaves
from tests.elbo.chance import assert_unbiased
from tests.formulas import (
    expected_normal,
    gauss_hermite,
    kl_multivariate_normal,
    kl_normal,
    normal_entropy,
    quadratic_form,
)

GROUP = torch.tensor([0, 2, 1, 2, 0, 0, 3])


def perturb() -> None:
    """Move every parameter away from its symmetric start."""
    for leaf in leaves().values():
        leaf.data += 0.3 * torch.randn_like(leaf)


def _unconstrained_moments(guide: autoguide.AutoGuide) -> tuple[Tensor, Tensor]:
    """Mean and covariance of all latents in the order beta, alpha."""
    if isinstance(guide, autoguide.AutoNormal):
        mean = torch.cat([guide.locs.beta.reshape(1), guide.locs.alpha])
        return mean, torch.diag(torch.cat([guide.scales.beta.reshape(1), guide.scales.alpha]) ** 2)
    if isinstance(guide, autoguide.AutoDiagonalNormal):
        return guide.loc, torch.diag(guide.scale**2)
    if isinstance(guide, autoguide.AutoMultivariateNormal):
        tril = guide.scale[:, None] * guide.scale_tril
        return guide.loc, tril @ tril.T
    factor = guide.cov_factor * guide.scale[:, None]
    return guide.loc, factor @ factor.T + torch.diag(guide.scale**2)


@pytest.mark.parametrize(
    "family",
    ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal"],
)
def test_autoguides_of_real_latents(family):
    """Auxiliary sites, slices of one flat latent, and Deltas, as Pyro's own guides write them."""
    x, y = torch.randn(2, 7)

    def model(y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 4):
            alpha = pyro.sample("alpha", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(alpha[GROUP] + beta * x, 0.5), obs=y)

    guide = getattr(autoguide, family)(model)
    guide(y)
    perturb()

    def formula() -> Tensor:
        mean, covariance = _unconstrained_moments(guide)
        rows = torch.cat([x[:, None], torch.eye(4)[GROUP]], -1)
        spread = quadratic_form(rows, covariance)
        expected = expected_normal(y - rows @ mean, spread, 0.5)
        return kl_multivariate_normal(mean, covariance) - expected.sum()

    assert_exact(model, guide, formula, y)


def test_decentered_hierarchy():
    """``poutine.reparam`` writes alpha = mu + 0.8 * decentered into the model, which is affine."""
    y = torch.randn(7)

    @poutine.reparam(config={"alpha": LocScaleReparam(0.0)})
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("groups", 4):
            alpha = pyro.sample("alpha", dist.Normal(mu, 0.8))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(alpha[GROUP], 0.5), obs=y)

    guide = autoguide.AutoNormal(model)
    guide(y)
    perturb()

    def formula() -> Tensor:
        m, s = guide.locs.mu, guide.scales.mu
        d, t = guide.locs.alpha_decentered, guide.scales.alpha_decentered
        kl = kl_normal(m, s, 0.0, 3.0) + kl_normal(d, t).sum()
        spread = s**2 + (0.8 * t[GROUP]) ** 2
        return kl - expected_normal(y - m - 0.8 * d[GROUP], spread, 0.5).sum()

    assert_exact(model, guide, formula, y)


def positive_scale(y: Tensor) -> None:
    """A positive latent: exp enters through the guide's transform."""
    tau = pyro.sample("tau", dist.HalfNormal(1.5))
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, tau), obs=y)
    pyro.sample("m", dist.Normal(mu, 0.5), obs=torch.tensor(1.0))


def test_autodelta_is_exact_for_any_model():
    """Points are plain values, so nothing is intractable: the loss is -log p at the point."""
    y = torch.randn(7)
    guide = autoguide.AutoDelta(positive_scale)
    guide(y)
    perturb()
    loss, gradients = evaluate(SilentELBO(), positive_scale, guide, y)
    expected, expected_gradients = evaluate(Trace_ELBO(), positive_scale, guide, y)
    assert_close(loss, expected, 1e-12, "loss")
    for name, gradient in expected_gradients.items():
        assert_close(gradients[name], gradient, 1e-12, f"gradient of {name}")


def test_autonormal_of_a_positive_latent_is_refused():
    y = torch.randn(7)
    guide = autoguide.AutoNormal(positive_scale)
    guide(y)
    with pytest.raises(IntractableError, match="'tau_unconstrained'.*exp"):
        SilentELBO().loss(positive_scale, guide, y)


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
@pytest.mark.parametrize("family", ["AutoNormal", "AutoDiagonalNormal"])
def test_autoguide_of_a_positive_latent_is_unbiased(family):
    """The Jacobian in the Delta's log_density counts."""
    y = torch.randn(7)
    guide = getattr(autoguide, family)(positive_scale)
    guide(y)
    perturb()
    if family == "AutoNormal":
        (m, m_mu), (s, s_mu) = ((part.tau, part.mu) for part in (guide.locs, guide.scales))
    else:
        (m, m_mu), (s, s_mu) = guide.loc, guide.scale
    nodes, weights = gauss_hermite(80)
    u = m + s * nodes
    prior = dist.HalfNormal(1.5).log_prob(u.exp()) + u
    likelihood = expected_normal(y[:, None], 0.0, u.exp()).sum(0)
    truth = kl_normal(m_mu, s_mu, 0.0, 2.0) - expected_normal(1.0 - m_mu, s_mu**2, 0.5)
    truth = truth - (weights * (prior + likelihood)).sum() - normal_entropy(s)
    elbo = SilentELBO(intractable="sample", num_particles=50, vectorize_particles=True)
    evaluate(elbo, positive_scale, guide, y)
    assert_unbiased(elbo, positive_scale, guide, truth, y)
