"""Pyro's own guides and reparameterizations, as users combine them with a loss."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO, autoguide
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from pyro_silent import SilentELBO
from tests.elbo.agreement import assert_close, assert_exact, evaluate, leaves
from tests.elbo.chance import Z_LIMIT, run_many
from tests.formulas import (
    expected_normal,
    gauss_hermite,
    gauss_hermite_grid,
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


def test_autolaplace_while_fitting_is_its_point():
    """Its latent is a Delta until ``laplace_approximation``."""
    y = torch.randn(7)
    guide = autoguide.AutoLaplaceApproximation(positive_scale)
    guide(y)
    perturb()
    loss, gradients = evaluate(SilentELBO(), positive_scale, guide, y)
    expected, expected_gradients = evaluate(Trace_ELBO(), positive_scale, guide, y)
    assert_close(loss, expected, 1e-12, "loss")
    for name, gradient in expected_gradients.items():
        assert_close(gradients[name], gradient, 1e-12, f"gradient of {name}")


# A constrained latent: guides are Gaussian in (log tau, mu), a Delta or a transform carries exp


def positive_scale_of_one(y: Tensor) -> None:
    """Location and scale of the data meet in one term."""
    tau = pyro.sample("tau", dist.HalfNormal(1.5))
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, tau), obs=y)


def _mean_field(guide) -> tuple[Tensor, Tensor]:
    locs, scales = guide.locs, guide.scales
    return torch.stack([locs.tau, locs.mu]), torch.diag(torch.stack([scales.tau, scales.mu]))


def _diagonal(guide) -> tuple[Tensor, Tensor]:
    return guide.loc, torch.diag(guide.scale)


def _full(guide) -> tuple[Tensor, Tensor]:
    return guide.loc, guide.scale[:, None] * guide.scale_tril


def _low_rank(guide) -> tuple[Tensor, Tensor]:
    factor = guide.cov_factor * guide.scale[:, None]
    return guide.loc, torch.linalg.cholesky(factor @ factor.T + torch.diag(guide.scale**2))


def _structured(guide) -> tuple[Tensor, Tensor]:
    """tau's auxiliary variable is shifted by mu's, or mu's by tau's, as the guide found them."""
    factors = []
    for name in ("tau", "mu"):
        scale = getattr(guide.scales, name)
        if guide.conditionals[name] == "mvn":
            scale = scale * getattr(guide.scale_trils, name).reshape(1)
        factors.append(scale.squeeze())
    zero = torch.zeros(())
    rows = [torch.stack([factors[0], zero]), torch.stack([zero, factors[1]])]
    ((down, upstream),) = guide.dependencies.items()
    (up,) = upstream
    weight = getattr(getattr(guide.deps, down), up).weight.squeeze()
    order = {"tau": 0, "mu": 1}
    rows[order[down]] = rows[order[down]] + weight * rows[order[up]]
    return torch.cat([guide.locs.tau, guide.locs.mu]), torch.stack(rows)


def _hierarchical(guide) -> tuple[Tensor, Tensor]:
    mean, tril = _mean_field(guide)
    prior = dist.HalfNormal(1.5).mean.log()
    shift = torch.stack([guide.weights.tau * prior, 0.0 * guide.weights.mu])
    return mean + shift, tril


def _list(guide) -> tuple[Tensor, Tensor]:
    mean = torch.stack([guide[0].locs.tau, guide[1].loc[0]])
    return mean, torch.diag(torch.stack([guide[0].scales.tau, guide[1].scale[0]]))


def _auto_list(model) -> autoguide.AutoGuideList:
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(poutine.block(model, hide=["mu"])))
    guide.append(autoguide.AutoDiagonalNormal(poutine.block(model, hide=["tau"])))
    return guide


CONSTRAINED = {
    "AutoNormal": (autoguide.AutoNormal, _mean_field),
    "AutoDiagonalNormal": (autoguide.AutoDiagonalNormal, _diagonal),
    "AutoMultivariateNormal": (autoguide.AutoMultivariateNormal, _full),
    "AutoLowRankMultivariateNormal": (autoguide.AutoLowRankMultivariateNormal, _low_rank),
    "AutoStructured normal": (
        partial(autoguide.AutoStructured, conditionals="normal"),
        _structured,
    ),
    "AutoStructured mvn": (partial(autoguide.AutoStructured, conditionals="mvn"), _structured),
    "AutoGuideList": (_auto_list, _list),
    "AutoNormalMessenger": (autoguide.AutoNormalMessenger, _mean_field),
    "AutoHierarchicalNormalMessenger": (
        autoguide.AutoHierarchicalNormalMessenger,
        _hierarchical,
    ),
}


def negative_elbo_of_one(mean: Tensor, root: Tensor, y: Tensor) -> Tensor:
    """For (log tau, mu) = mean + root e, on a grid of nodes for e."""
    grid, weights = gauss_hermite_grid(2, 60)
    log_tau, mu = (mean + grid @ root.T).unbind(-1)
    log_p = dist.HalfNormal(1.5).log_prob(log_tau.exp()) + log_tau
    log_p = log_p + dist.Normal(0.0, 2.0).log_prob(mu)
    log_p = log_p + dist.Normal(mu, log_tau.exp()).log_prob(y[:, None]).sum(0)
    entropy = normal_entropy(torch.ones(2)).sum() + torch.linalg.slogdet(root).logabsdet
    return -(weights * log_p).sum() - entropy


@pytest.mark.parametrize("family", CONSTRAINED)
def test_autoguides_of_a_positive_latent(family):
    """Exact, the Jacobian in a Delta's log_density included."""
    y = torch.randn(5) + 1.0
    make, moments = CONSTRAINED[family]
    guide = make(positive_scale_of_one)
    guide(y)
    perturb()
    assert_exact(positive_scale_of_one, guide, lambda: negative_elbo_of_one(*moments(guide), y), y)


def probability(k: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(k)):
        pyro.sample("k", dist.Bernoulli(p), obs=k)


@pytest.mark.parametrize("family", ["AutoNormal", "AutoDiagonalNormal", "AutoNormalMessenger"])
def test_autoguides_of_a_probability(family):
    """Sigmoid by quadrature. Pyro's mean-field ELBO forgets the Jacobian at the guides with a Delta."""
    k = torch.tensor([1.0, 1.0, 0.0, 1.0])
    guide = getattr(autoguide, family)(probability)
    guide(k)
    perturb()

    def formula() -> Tensor:
        if family == "AutoDiagonalNormal":
            m, s = guide.loc, guide.scale
        else:
            m, s = guide.locs.p, guide.scales.p
        nodes, weights = gauss_hermite(120)
        u = m + s * nodes
        log_p, log_q = torch.nn.functional.logsigmoid(u), torch.nn.functional.logsigmoid(-u)
        prior = dist.Beta(2.0, 3.0).log_prob(u.sigmoid()) + log_p + log_q
        expected = (weights * (prior + 3 * log_p + log_q)).sum()
        return -expected - normal_entropy(s).sum()

    assert_exact(probability, guide, formula, k)
    if family != "AutoNormalMessenger":
        elbo = TraceMeanField_ELBO(num_particles=200, vectorize_particles=True)
        assert abs(elbo.loss(probability, guide, k) - formula().item()) > 0.5


def test_autolaplace_after_fitting_is_a_gaussian():
    y = torch.randn(5) + 1.0
    point = autoguide.AutoLaplaceApproximation(positive_scale_of_one)
    point(y)
    guide = point.laplace_approximation(y)
    loss, _ = evaluate(SilentELBO(), positive_scale_of_one, guide, y)
    assert_close(loss, negative_elbo_of_one(*_full(guide), y), 1e-9, "loss")


def test_autostructured_points_are_exact():
    """Points for one site, a Gaussian that depends on it for the other."""
    y = torch.randn(5) + 1.0
    guide = autoguide.AutoStructured(
        positive_scale_of_one,
        conditionals={"tau": "delta", "mu": "normal"},
        dependencies={"mu": {"tau": "linear"}},
    )
    guide(y)
    perturb()

    def formula() -> Tensor:
        tau, m, s = guide.locs.tau.exp(), guide.locs.mu, guide.scales.mu
        prior = dist.HalfNormal(1.5).log_prob(tau) - kl_normal(m, s, 0.0, 2.0)
        # the shift by tau's auxiliary variable is 0 at a point
        expected = expected_normal(y - m, s**2, tau)
        return -prior.sum() - expected.sum() + 0.0 * guide.deps.mu.tau.weight.sum()

    assert_exact(positive_scale_of_one, guide, formula, y)


def simplex(y: Tensor) -> None:
    """A simplex, a positive latent, a real one."""
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 1.0, 3.0])))
    tau = pyro.sample("tau", dist.HalfNormal(1.5))
    with pyro.plate("data", len(y)):
        pyro.sample("k", dist.Categorical(p), obs=torch.arange(len(y)) % 3)
        pyro.sample("y", dist.Normal(0.0, tau), obs=y)


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
@pytest.mark.parametrize("family", ["AutoNormal", "AutoNormalMessenger", "AutoMultivariateNormal"])
def test_a_simplex_is_sampled_and_the_rest_is_not(family):
    """StickBreaking has no closed form: value and gradients agree with many particles of Pyro's own."""
    y = torch.randn(4)
    guide = getattr(autoguide, family)(simplex)
    guide(y)
    perturb()
    elbo = SilentELBO(intractable="sample")
    elbo.loss(simplex, guide, y)
    particle = next(elbo._get_traces(simplex, guide, (y,), {}))
    sampled = {name for (kind, name), record in particle.records.items() if record.error}
    assert {"p", "k"} <= sampled
    assert sampled.isdisjoint({"y", "tau"} if family != "AutoMultivariateNormal" else {"y"})
    settings = {"num_particles": 500, "vectorize_particles": True, "max_plate_nesting": 1}
    ours, our_gradients = run_many(SilentELBO(intractable="sample", **settings), simplex, guide, y)
    theirs, their_gradients = run_many(Trace_ELBO(**settings), simplex, guide, y)
    pairs = {"loss": (ours, theirs)}
    pairs |= {name: (our_gradients[name], their_gradients[name]) for name in our_gradients}
    for name, (a, b) in pairs.items():
        error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() <= Z_LIMIT * error + 1e-9).all(), name
