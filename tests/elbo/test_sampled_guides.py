"""Guides beyond closed forms: laws without moments, nonlinear dependence, mixed treatments."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.fakes import NonreparameterizedGamma
from torch import Tensor

from pyro_silent import SilentELBO
from tests.elbo.agreement import assert_entry_points_agree, assert_exact, evaluate, new_parameters
from tests.elbo.chance import assert_unbiased
from tests.elbo.families import opaque
from tests.formulas import (
    expected_normal,
    gauss_hermite,
    gauss_hermite_grid,
    kl_bernoulli,
    kl_normal,
    normal_entropy,
)

P = pyro.param
X = torch.tensor(0.8, dtype=torch.float64)

pytestmark = pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")


def sampling(num_particles: int) -> SilentELBO:
    """Without an estimator: gradients are held to be unbiased."""
    return SilentELBO(
        intractable="sample",
        estimator=None,
        num_particles=num_particles,
        vectorize_particles=num_particles > 1,
    )


def check(model, guide, truth: Tensor, num_particles: int = 100, noisy: bool = True) -> None:
    """Unbiased; and at one seed, whatever the entry point, the same number."""
    evaluate(sampling(1), model, guide)
    assert_entry_points_agree(sampling(1), model, guide)
    assert_unbiased(sampling(num_particles), model, guide, truth, noisy=noisy)


@pytest.mark.parametrize("law", [dist.Gamma, NonreparameterizedGamma])
@pytest.mark.parametrize("opted_out", [False, True])
def test_gamma_guide(law, opted_out):
    new_parameters(a=2, b=2)

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Gamma(2.0, 1.5))
            pyro.sample("x", dist.Normal(P("a")[0] * z, 1.0), obs=X)

    def guide() -> None:
        infer = {"silent": False} if opted_out else None
        with pyro.plate("data", 2):
            pyro.sample("z", law(P("a").exp() + 1.0, P("b").exp()), infer=infer)

    a, b = P("a").exp() + 1.0, P("b").exp()
    kl = torch.distributions.kl_divergence(
        torch.distributions.Gamma(a, b), torch.distributions.Gamma(2.0, 1.5)
    )
    weight = P("a")[0]
    likelihood = expected_normal(X - weight * a / b, weight**2 * a / b**2, 1.0)
    check(model, guide, (kl - likelihood).sum())


def _chain(second, **shapes):
    """z1 ~ N(m, s) and z2 by a function of z1; the model is linear in both."""
    new_parameters(m=(), log_s=(), **shapes)

    def model() -> None:
        z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
        z2 = pyro.sample("z2", dist.Normal(0.5 * z1, 1.0))
        pyro.sample("x", dist.Normal(z1 + z2, 0.5), obs=X)

    def guide() -> None:
        z1 = pyro.sample("z1", dist.Normal(P("m"), P("log_s").exp()))
        pyro.sample("z2", second(z1))

    return model, guide


def _chain_truth(loc_of, scale_of) -> Tensor:
    """-ELBO by quadrature over z1; z2 given z1 is Gaussian, so it is done in closed form."""
    nodes, weights = gauss_hermite(80)
    m, s = P("m"), P("log_s").exp()
    z1 = m + s * nodes
    loc, scale = loc_of(z1), scale_of(z1)
    inner = expected_normal(loc - 0.5 * z1, scale**2, 1.0) + normal_entropy(scale)
    inner = inner + expected_normal(X - z1 - loc, scale**2, 0.5)
    return kl_normal(m, s) - (weights * inner).sum()


def test_location_that_is_nonlinear_in_an_earlier_latent():
    def loc(z: Tensor) -> Tensor:
        return torch.tanh(2.0 * z) * P("c")

    model, guide = _chain(lambda z1: dist.Normal(loc(z1), P("log_t").exp()), c=(), log_t=())
    truth = _chain_truth(loc, lambda z: P("log_t").exp() * torch.ones_like(z))
    check(model, guide, truth)


def test_scale_that_depends_on_an_earlier_latent():
    def scale(z: Tensor) -> Tensor:
        return torch.nn.functional.softplus(P("c") * z) + 0.2

    model, guide = _chain(lambda z1: dist.Normal(z1, scale(z1)), c=())
    check(model, guide, _chain_truth(lambda z: z, scale))


def test_scored_child_of_a_reparameterized_parent():
    """log q(z2 | z1) is differentiated through z1 as well."""

    class Scored(dist.Normal):
        has_rsample = False

    def loc(z: Tensor) -> Tensor:
        return torch.tanh(2.0 * z) * P("c")

    model, guide = _chain(lambda z1: Scored(loc(z1), 0.7), c=())
    check(model, guide, _chain_truth(loc, lambda z: torch.full_like(z, 0.7)), num_particles=400)


def test_bernoulli_whose_logit_is_a_latent():
    """A discrete child of a Gaussian parent: no law of its own, drawn together with its parent."""
    new_parameters(m=(), log_s=(), c=(), w=())

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z + P("w") * b, 0.7), obs=X)

    def guide() -> None:
        z = pyro.sample("z", dist.Normal(P("m"), P("log_s").exp()))
        pyro.sample("b", dist.Bernoulli(logits=P("c") * z))

    nodes, weights = gauss_hermite(80)
    m, s = P("m"), P("log_s").exp()
    z = m + s * nodes
    p = torch.sigmoid(P("c") * z)
    on, off = (expected_normal(X - z - w, 0.0, 0.7) for w in (P("w"), 0.0))
    inner = p * on + (1 - p) * off - kl_bernoulli(p, 0.3)
    check(model, guide, kl_normal(m, s) - (weights * inner).sum(), num_particles=400)


def test_gaussian_child_of_a_bernoulli_parent_is_exact():
    """q(z | b) = N(c b + d, t): a mixture of two Gaussians, and every term has two moments."""
    new_parameters(logit=(), c=(), d=(), log_t=())

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(0.5 * b, 1.0))
        pyro.sample("x", dist.Normal(z - b, 0.5), obs=X)

    def guide() -> None:
        b = pyro.sample("b", dist.Bernoulli(logits=P("logit")))
        pyro.sample("z", dist.Normal(P("c") * b + P("d"), P("log_t").exp()))

    def formula() -> Tensor:
        p, t = torch.sigmoid(P("logit")), P("log_t").exp()
        value = kl_bernoulli(p, 0.3) - normal_entropy(t)
        for b, probability in ((0.0, 1 - p), (1.0, p)):
            loc = P("c") * b + P("d")
            inner = expected_normal(loc - 0.5 * b, t**2, 1.0)
            value = value - probability * (inner + expected_normal(X - loc + b, t**2, 0.5))
        return value

    assert_exact(model, guide, formula)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_exact_child_of_a_scored_parent(auxiliary):
    """b is drawn and scored; what follows is exact given b, and all of it belongs to b's score."""
    new_parameters(logit=(), c=(), log_t=2)

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(0.5 * b, 1.0))
        pyro.sample("x", dist.Normal(z - b, 0.5), obs=X)

    def guide() -> None:
        b = pyro.sample("b", dist.Bernoulli(logits=P("logit")), infer={"silent": False})
        scale = (P("log_t")[0] * b + P("log_t")[1] * (1 - b)).exp()
        fn = dist.Normal(P("c") * b, scale)
        if auxiliary:
            z = pyro.sample("u", fn, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(z))
        else:
            pyro.sample("z", fn)

    p, scales = torch.sigmoid(P("logit")), P("log_t").exp()
    truth = kl_bernoulli(p, 0.3)
    for b, probability, t in ((0.0, 1 - p, scales[1]), (1.0, p, scales[0])):
        loc = P("c") * b
        inner = expected_normal(loc - 0.5 * b, t**2, 1.0) + normal_entropy(t)
        truth = truth - probability * (inner + expected_normal(X - loc + b, t**2, 0.5))
    check(model, guide, truth)


def test_opted_out_and_silent_latents_in_one_site():
    """Given the drawn latent, the location is still affine in the silent one."""
    new_parameters(m=2, log_s=2, w=())

    def model() -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(torch.sin(u) * z + P("w") * u, 0.5), obs=X)

    def guide() -> None:
        s = P("log_s").exp()
        pyro.sample("u", dist.Normal(P("m")[0], s[0]), infer={"silent": False})
        pyro.sample("z", dist.Normal(P("m")[1], s[1]))

    nodes, weights = gauss_hermite(80)
    m, s = P("m"), P("log_s").exp()
    u = m[0] + s[0] * nodes
    inner = expected_normal(X - torch.sin(u) * m[1] - P("w") * u, (torch.sin(u) * s[1]) ** 2, 0.5)
    check(model, guide, kl_normal(m, s).sum() - (weights * inner).sum())
    SilentELBO().loss(model, guide)  # nothing is intractable given the draw


@pytest.mark.parametrize("noisy", [False, True])
def test_nonlinear_function_of_several_latents(noisy):
    """Of two it is integrated; three cannot be."""
    new_parameters(m=3, log_s=3)

    def loc(z1: Tensor, z2: Tensor, z3: Tensor) -> Tensor:
        return (z1 * z2 + z3).sin() if noisy else (z1 * z2).sin() + z3

    def model() -> None:
        z = [pyro.sample(f"z{i}", dist.Normal(0.0, 1.0)) for i in range(3)]
        pyro.sample("x", dist.Normal(loc(*z), 0.5), obs=X)

    def guide() -> None:
        s = P("log_s").exp()
        for i in range(3):
            pyro.sample(f"z{i}", dist.Normal(P("m")[i], s[i]))

    grid, weights = gauss_hermite_grid(3, 40)
    z = P("m") + P("log_s").exp() * grid
    inner = expected_normal(X - loc(*z.unbind(-1)), 0.0, 0.5)
    truth = kl_normal(P("m"), P("log_s").exp()).sum() - (weights * inner).sum()
    check(model, guide, truth, noisy=noisy)


@pytest.mark.parametrize("noisy", [False, True])
def test_counts_and_switches(noisy):
    """A log-linear rate and a linear logit are integrated; a rate nobody sees through is sampled."""
    new_parameters(m=2, log_s=2, w=2)

    def rate(z: Tensor) -> Tensor:
        return opaque(P("w") * z).exp() if noisy else (P("w") * z).exp()

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("count", dist.Poisson(rate(z)), obs=torch.tensor([3.0, 0.0]))
            pyro.sample("switch", dist.Bernoulli(logits=z), obs=torch.tensor([1.0, 0.0]))

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(P("m"), P("log_s").exp()))

    nodes, weights = gauss_hermite(80)
    m, s = P("m"), P("log_s").exp()
    z = m + s * nodes[:, None]
    inner = dist.Poisson(rate(z)).log_prob(torch.tensor([3.0, 0.0]))
    inner = inner + dist.Bernoulli(logits=z).log_prob(torch.tensor([1.0, 0.0]))
    truth = (kl_normal(m, s) - (weights[:, None] * inner).sum(0)).sum()
    check(model, guide, truth, noisy=noisy)


class Shifted(dist.Normal):
    """A subclass with a density of its own: what is known of a Normal does not hold."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value - 1.0)


@pytest.mark.parametrize("opted_out", [False, True])
def test_closed_divergences_are_not_used_for_subclasses_with_another_density(opted_out):
    new_parameters(m=(), log_s=())
    infer = {"silent": False} if opted_out else None

    def model() -> None:
        z = pyro.sample("z", Shifted(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=X)

    def guide() -> None:
        pyro.sample("z", dist.Normal(P("m"), P("log_s").exp()), infer=infer)

    m, s = P("m"), P("log_s").exp()
    truth = kl_normal(m, s, 1.0, 1.0) - expected_normal(X - m, s**2, 0.5)
    check(model, guide, truth, noisy=opted_out)


@pytest.mark.parametrize("opted_out", [False, True])
def test_closed_divergences_are_not_used_under_different_masks(opted_out):
    """The prior's term is masked by the model's mask, the entropy by the guide's."""
    new_parameters(m=3)
    infer = {"silent": False} if opted_out else None
    in_model, in_guide = torch.tensor([True, True, False]), torch.tensor([True, False, True])

    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(in_model))
            pyro.sample("x", dist.Normal(z, 0.5), obs=X)

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(P("m"), 0.7).mask(in_guide), infer=infer)

    m, s = P("m"), torch.tensor(0.7)
    prior = (in_model * expected_normal(m, s**2, 1.0)).sum()
    entropy = normal_entropy(s) * in_guide.sum()
    truth = -prior - entropy - expected_normal(X - m, s**2, 0.5).sum()
    check(model, guide, truth, noisy=opted_out)


def test_closed_divergences_need_bijective_transforms():
    """|N(-1, 1)| and |N(1, 1)| are one law, although the laws under the fold are not."""

    def program(loc: float):
        def run() -> None:
            fn = dist.FoldedDistribution(dist.Normal(torch.tensor(loc), 1.0))
            pyro.sample("z", fn, infer={"silent": False})

        return run

    assert SilentELBO().loss(program(1.0), program(-1.0)) == pytest.approx(0.0, abs=1e-12)
