"""Latents that meet: gathers, hierarchies, sums, repetitions."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from tests.elbo.agreement import assert_exact, new_parameters
from tests.elbo.mean_field import P, moments, new_normal, normal_site
from tests.formulas import (
    expected_normal,
    kl_multivariate_normal,
    kl_normal,
    normal_entropy,
    quadratic_form,
)

GROUP = torch.tensor([0, 2, 1, 2, 0, 0, 3])


def test_group_effects():
    """alpha[group] + beta * x: effects of a plate gathered into another plate."""
    new_normal(alpha=5, beta=())
    new_parameters(log_sigma=())
    x, y = torch.randn(2, 7)

    def model(y: Tensor) -> None:
        with pyro.plate("groups", 5):
            alpha = pyro.sample("alpha", dist.Normal(0.0, 2.0))
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            loc = alpha[GROUP] + beta * x
            pyro.sample("y", dist.Normal(loc, P("log_sigma").exp()), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("groups", 5):
            normal_site("alpha")
        normal_site("beta")

    def formula() -> Tensor:
        (a, s), (b, t) = moments("alpha"), moments("beta")
        spread = s[GROUP] ** 2 + (x * t) ** 2
        expected = expected_normal(y - a[GROUP] - b * x, spread, P("log_sigma").exp())
        return kl_normal(a, s, 0.0, 2.0).sum() + kl_normal(b, t) - expected.sum()

    assert_exact(model, guide, formula, y)


def test_group_means_with_a_random_prior_mean():
    """alpha_g ~ N(mu, tau) with mu a latent: random value and random location in one site."""
    new_normal(mu=(), alpha=4)
    new_parameters(log_tau=())
    y = torch.randn(7)

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("groups", 4):
            alpha = pyro.sample("alpha", dist.Normal(mu, P("log_tau").exp()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(alpha[GROUP], 0.5), obs=y)

    def guide(y: Tensor) -> None:
        normal_site("mu")
        with pyro.plate("groups", 4):
            normal_site("alpha")

    def formula() -> Tensor:
        (m, s), (a, t) = moments("mu"), moments("alpha")
        prior = expected_normal(a - m, t**2 + s**2, P("log_tau").exp()) + normal_entropy(t)
        likelihood = expected_normal(y - a[GROUP], t[GROUP] ** 2, 0.5)
        return kl_normal(m, s, 0.0, 3.0) - prior.sum() - likelihood.sum()

    assert_exact(model, guide, formula, y)


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_difference_of_two_gathers_of_one_latent(posterior):
    """skill[winner] - skill[loser]; a player against themself has a difference of exactly zero."""
    players = 5
    winner = torch.tensor([0, 1, 2, 3, 1, 4, 0, 2])
    loser = torch.tensor([1, 2, 0, 3, 4, 1, 1, 2])
    new_normal(skill=players)
    new_parameters(factor=(players, players))
    margin = torch.randn(len(winner))

    def model(margin: Tensor) -> None:
        skill = pyro.sample("skill", dist.Normal(torch.zeros(players), 1.0).to_event(1))
        with pyro.plate("games", len(margin)):
            loc = skill[winner] - skill[loser]
            pyro.sample("margin", dist.Normal(loc, 0.7), obs=margin)

    def tril() -> Tensor:
        return P("factor").tril(-1) + torch.diag(P("skill_log_scale").exp())

    def guide(margin: Tensor) -> None:
        if posterior == "diagonal":
            normal_site("skill", event_dim=1)
        else:
            fn = dist.MultivariateNormal(P("skill_loc"), scale_tril=tril())
            pyro.sample("skill", fn)

    def formula() -> Tensor:
        mean, scale = moments("skill")
        covariance = torch.diag(scale**2) if posterior == "diagonal" else tril() @ tril().T
        rows = torch.eye(players)[winner] - torch.eye(players)[loser]
        spread = quadratic_form(rows, covariance)
        expected = expected_normal(margin - rows @ mean, spread, 0.7)
        return kl_multivariate_normal(mean, covariance) - expected.sum()

    assert_exact(model, guide, formula, margin)


def test_two_gathers_of_a_plate_of_vectors():
    """Rows of a [players, traits] latent in a plate, differenced and projected."""
    players, traits = 4, 3
    winner, loser = torch.tensor([0, 1, 3, 2, 1]), torch.tensor([1, 0, 2, 2, 3])
    new_normal(skill=(players, traits))
    new_parameters(weights=traits)
    margin = torch.randn(len(winner))

    def model(margin: Tensor) -> None:
        with pyro.plate("players", players):
            skill = pyro.sample("skill", dist.Normal(torch.zeros(traits), 1.0).to_event(1))
        with pyro.plate("games", len(margin)):
            loc = (skill[winner] - skill[loser]) @ P("weights")
            pyro.sample("margin", dist.Normal(loc, 0.7), obs=margin)

    def guide(margin: Tensor) -> None:
        with pyro.plate("players", players):
            normal_site("skill", event_dim=1)

    def formula() -> Tensor:
        mean, scale = moments("skill")
        incidence = torch.eye(players)[winner] - torch.eye(players)[loser]
        w = P("weights")
        spread = incidence**2 @ scale**2 @ w**2
        expected = expected_normal(margin - incidence @ mean @ w, spread, 0.7)
        return kl_normal(mean, scale).sum() - expected.sum()

    assert_exact(model, guide, formula, margin)


@pytest.mark.parametrize("weighted", [False, True])
def test_sum_across_a_plate(weighted):
    """One observation of the total, outside the plate, beside one of every part."""
    new_normal(z=6)
    parts, total, weights = torch.randn(6), torch.tensor(0.8), torch.randn(6)
    if not weighted:
        weights = torch.ones(6)

    def model() -> None:
        with pyro.plate("parts", 6):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("part", dist.Normal(z, 0.5), obs=parts)
        pyro.sample("total", dist.Normal((z * weights).sum(-1), 0.3), obs=total)
        pyro.sample("mean", dist.Normal((z * weights).mean(), 0.2), obs=total / 2)

    def guide() -> None:
        with pyro.plate("parts", 6):
            normal_site("z")

    def formula() -> Tensor:
        m, s = moments("z")
        by_part = expected_normal(parts - m, s**2, 0.5).sum()
        loc, spread = (weights * m).sum(), (weights**2 * s**2).sum()
        by_total = expected_normal(total - loc, spread, 0.3)
        by_mean = expected_normal(total / 2 - loc / 6, spread / 36, 0.2)
        return kl_normal(m, s).sum() - by_part - by_total - by_mean

    assert_exact(model, guide, formula)


def test_bernoulli_switches_summed_over_a_plate():
    new_parameters(logits=6, effect=6)

    def model() -> None:
        with pyro.plate("switches", 6):
            z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal((z * P("effect")).sum(-1), 0.4), obs=torch.tensor(1.3))

    def guide() -> None:
        with pyro.plate("switches", 6):
            pyro.sample("z", dist.Bernoulli(logits=P("logits")))

    def formula() -> Tensor:
        p, effect = torch.sigmoid(P("logits")), P("effect")
        kl = (p * (p / 0.3).log() + (1 - p) * ((1 - p) / 0.7).log()).sum()
        loc, spread = (p * effect).sum(), (p * (1 - p) * effect**2).sum()
        return kl - expected_normal(1.3 - loc, spread, 0.4)

    assert_exact(model, guide, formula)


@pytest.mark.parametrize("law", ["normal", "bernoulli"])
def test_parameters_shared_over_a_plate_make_independent_latents(law):
    """One loc and scale expanded over the plate: the variance of the sum is N s^2, not N^2 s^2."""
    new_parameters(h=())

    def posterior() -> dist.Distribution:
        return dist.Normal(P("h"), 0.4) if law == "normal" else dist.Bernoulli(logits=P("h"))

    def model() -> None:
        with pyro.plate("parts", 5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0) if law == "normal" else dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z.sum(-1), 0.3), obs=torch.tensor(0.8))
        pyro.sample("y", dist.Normal(z[0] - z[3], 0.3), obs=torch.tensor(0.8))

    def guide() -> None:
        with pyro.plate("parts", 5):
            pyro.sample("z", posterior())

    def formula() -> Tensor:
        if law == "normal":
            m, v, kl = P("h"), torch.tensor(0.16), kl_normal(P("h"), torch.tensor(0.4))
        else:
            m = torch.sigmoid(P("h"))
            v = m * (1 - m)
            kl = m * (m / 0.3).log() + (1 - m) * ((1 - m) / 0.7).log()
        zero = torch.zeros(())
        x = expected_normal(0.8 - 5 * m, 5 * v, 0.3)
        return 5 * kl - x - expected_normal(0.8 + zero, 2 * v, 0.3)

    assert_exact(model, guide, formula)


def test_one_latent_repeated_over_a_plate():
    """The other way round: N readings of one latent are fully correlated."""
    new_normal(z=())

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("parts", 5):
            repeated = pyro.deterministic("repeated", z.expand(5) * torch.arange(5.0))
        pyro.sample("x", dist.Normal(repeated.sum(-1), 0.3), obs=torch.tensor(0.8))
        pyro.sample("y", dist.Normal(repeated[2] - 2 * repeated[1], 0.3), obs=torch.tensor(0.8))

    def guide() -> None:
        normal_site("z")

    def formula() -> Tensor:
        m, s = moments("z")
        constant = expected_normal(torch.tensor(0.8), 0.0, 0.3)
        return kl_normal(m, s) - expected_normal(0.8 - 10 * m, (10 * s) ** 2, 0.3) - constant

    assert_exact(model, guide, formula)


def test_one_distribution_object_for_two_sites():
    """The latents are independent although their law is one object."""
    new_normal(z=())

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a - b, 0.3), obs=torch.tensor(0.8))

    def guide() -> None:
        fn = dist.Normal(P("z_loc"), P("z_log_scale").exp())
        pyro.sample("a", fn)
        pyro.sample("b", fn)

    def formula() -> Tensor:
        m, s = moments("z")
        return 2 * kl_normal(m, s) - expected_normal(0.8 + 0 * m, 2 * s**2, 0.3)

    assert_exact(model, guide, formula)
