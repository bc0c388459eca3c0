"""Effect handlers and the smaller primitives: scale, mask, obs_mask, factor, deterministic."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from tests.elbo.agreement import assert_exact, new_parameters
from tests.formulas import expected_normal, kl_bernoulli, kl_normal, normal_entropy

P = pyro.param
SIZE = 4
MASK = torch.tensor([True, False, True, True])


@pytest.fixture
def pair():
    """A local latent per row; terms are returned per row so that a test can weigh them."""
    data = torch.randn(SIZE)
    new_parameters(loc=SIZE, log_scale=SIZE, w=())

    def model() -> None:
        with pyro.plate("data", SIZE):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(P("w") * z, 0.5), obs=data)

    def guide() -> None:
        with pyro.plate("data", SIZE):
            pyro.sample("z", dist.Normal(P("loc"), P("log_scale").exp()))

    def terms() -> tuple[Tensor, Tensor, Tensor]:
        m, s, w = P("loc"), P("log_scale").exp(), P("w")
        prior = expected_normal(m, s**2, 1.0)
        return prior, normal_entropy(s), expected_normal(data - w * m, (w * s) ** 2, 0.5)

    return model, guide, terms


@pytest.mark.parametrize("where", ["both", "model", "guide"])
@pytest.mark.parametrize("weight", [0.3, torch.tensor([0.1, 2.0, 0.5, 1.0])], ids=["number", "row"])
def test_scale(pair, where, weight):
    """Model terms by the model's scale, guide terms by the guide's."""
    model, guide, terms = pair
    model_weight = weight if where != "guide" else 1.0
    guide_weight = weight if where != "model" else 1.0

    def formula() -> Tensor:
        prior, entropy, likelihood = terms()
        return -(model_weight * (prior + likelihood) + guide_weight * entropy).sum()

    scaled_model = poutine.scale(model, scale=model_weight)
    scaled_guide = poutine.scale(guide, scale=guide_weight)
    assert_exact(scaled_model, scaled_guide, formula)


@pytest.mark.parametrize("where", ["both", "model", "guide"])
def test_mask(pair, where):
    model, guide, terms = pair
    ones = torch.ones(SIZE)
    in_model, in_guide = (ones if where == other else MASK for other in ("guide", "model"))

    def formula() -> Tensor:
        prior, entropy, likelihood = terms()
        return -(in_model * (prior + likelihood) + in_guide * entropy).sum()

    masked_model = poutine.mask(model, mask=MASK) if where != "guide" else model
    masked_guide = poutine.mask(guide, mask=MASK) if where != "model" else guide
    assert_exact(masked_model, masked_guide, formula)


@pytest.mark.parametrize("masked", ["model", "guide"])
def test_mask_false(pair, masked):
    """The Python value False switches a whole program's terms off."""
    model, guide, terms = pair

    def formula() -> Tensor:
        prior, entropy, likelihood = (term.sum() for term in terms())
        return -entropy if masked == "model" else -prior - likelihood

    masked_model = poutine.mask(model, mask=False) if masked == "model" else model
    masked_guide = poutine.mask(guide, mask=False) if masked == "guide" else guide
    assert_exact(masked_model, masked_guide, formula)


def test_masked_distributions(pair):
    """``.mask()`` on the distributions themselves."""
    _, _, terms = pair
    data = torch.randn(SIZE)

    def model() -> None:
        with pyro.plate("data", SIZE):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(MASK))
            pyro.sample("x", dist.Normal(P("w") * z, 0.5).mask(MASK), obs=data)

    def guide() -> None:
        with pyro.plate("data", SIZE):
            pyro.sample("z", dist.Normal(P("loc"), P("log_scale").exp()).mask(MASK))

    def formula() -> Tensor:
        prior, entropy, _ = terms()
        m, s, w = P("loc"), P("log_scale").exp(), P("w")
        likelihood = expected_normal(data - w * m, (w * s) ** 2, 0.5)
        return -(prior + entropy + likelihood)[MASK].sum()

    assert_exact(model, guide, formula)


def test_obs_mask_splits_a_site():
    """Rows that were not observed are latents of the guide, correlated with nothing."""
    data = torch.randn(SIZE)
    new_parameters(loc=SIZE, missing=SIZE)

    def model() -> None:
        with pyro.plate("data", SIZE):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            x = pyro.sample("x", dist.Normal(2.0 * z, 0.5), obs=data, obs_mask=MASK)
            pyro.sample("y", dist.Normal(x, 0.4), obs=data + 1.0)

    def guide() -> None:
        with pyro.plate("data", SIZE):
            pyro.sample("z", dist.Normal(P("loc"), 0.3))
            with poutine.mask(mask=~MASK):
                pyro.sample("x_unobserved", dist.Normal(P("missing"), 0.2))

    def formula() -> Tensor:
        m, missing = P("loc"), P("missing")
        observed = expected_normal(data - 2 * m, 4 * 0.3**2, 0.5)[MASK].sum()
        prior = expected_normal(missing - 2 * m, 0.2**2 + 4 * 0.3**2, 0.5)[~MASK].sum()
        entropy = normal_entropy(torch.tensor(0.2)) * (~MASK).sum()
        x, spread = torch.where(MASK, data, missing), torch.where(MASK, 0.0, 0.2**2)
        second = expected_normal(data + 1.0 - x, spread, 0.4).sum()
        kl = kl_normal(m, torch.tensor(0.3)).sum()
        return kl - observed - prior - entropy - second

    assert_exact(model, guide, formula)


def test_obs_mask_with_an_event_dim():
    data = torch.randn(SIZE, 2)
    new_parameters(loc=(SIZE, 2), missing=(SIZE, 2))

    def model() -> None:
        with pyro.plate("data", SIZE):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=data, obs_mask=MASK)

    def guide() -> None:
        with pyro.plate("data", SIZE):
            pyro.sample("z", dist.Normal(P("loc"), 0.3).to_event(1))
            with poutine.mask(mask=~MASK):
                pyro.sample("x_unobserved", dist.Normal(P("missing"), 0.2).to_event(1))

    def formula() -> Tensor:
        m, missing = P("loc"), P("missing")
        observed = expected_normal(data - m, 0.3**2, 0.5)[MASK].sum()
        prior = expected_normal(missing - m, 0.2**2 + 0.3**2, 0.5)[~MASK].sum()
        entropy = normal_entropy(torch.tensor(0.2)) * 2 * (~MASK).sum()
        return kl_normal(m, torch.tensor(0.3)).sum() - observed - prior - entropy

    assert_exact(model, guide, formula)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_factor_that_is_affine_in_a_latent(pair, scale):
    """E[a + b z] is all a linear factor contributes, under the scale that holds there."""
    model, guide, terms = pair
    b = torch.randn(SIZE)

    def with_factor() -> None:
        with pyro.plate("data", SIZE), poutine.scale(scale=scale):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("f", 0.5 + b * z)
        pyro.factor("g", -2.0 * z.sum(-1) + P("w"))

    def formula() -> Tensor:
        prior, entropy, _ = terms()
        in_plate = prior + 0.5 + b * P("loc")
        return -(scale * in_plate).sum() - entropy.sum() + 2.0 * P("loc").sum() - P("w")

    assert_exact(with_factor, guide, formula)


def test_factor_in_the_guide(pair):
    """A guide's factor counts as log q."""
    model, guide, terms = pair

    def with_factor() -> None:
        guide()
        pyro.factor("f", 0.7 * P("loc").sum(), has_rsample=True)

    def formula() -> Tensor:
        return -sum(term.sum() for term in terms()) + 0.7 * P("loc").sum()

    assert_exact(model, with_factor, formula)


def test_deterministic_carries_the_latent_on(pair):
    """``pyro.deterministic`` costs nothing and loses nothing."""
    _, guide, terms = pair
    data = torch.randn(SIZE)

    def model() -> None:
        with pyro.plate("data", SIZE):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = pyro.deterministic("loc", P("w") * z + 1.0)
            pyro.sample("x", dist.Normal(loc, 0.5), obs=data)

    def formula() -> Tensor:
        prior, entropy, _ = terms()
        m, s, w = P("loc"), P("log_scale").exp(), P("w")
        likelihood = expected_normal(data - w * m - 1.0, (w * s) ** 2, 0.5)
        return -(prior + entropy + likelihood).sum()

    assert_exact(model, guide, formula)


def test_conditioned_models(pair):
    """``poutine.condition`` observes from outside."""
    _, guide, terms = pair
    data = torch.randn(SIZE)

    def model() -> None:
        with pyro.plate("data", SIZE):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(P("w") * z, 0.5))

    def formula() -> Tensor:
        prior, entropy, _ = terms()
        m, s, w = P("loc"), P("log_scale").exp(), P("w")
        likelihood = expected_normal(data - w * m, (w * s) ** 2, 0.5)
        return -(prior + entropy + likelihood).sum()

    assert_exact(poutine.condition(model, data={"x": data}), guide, formula)


@pytest.mark.parametrize("certain", [False, True])
def test_masked_discrete_sites(certain):
    """Masks of the KL between discrete sites, one row with probability exactly 0."""
    new_parameters(logits=SIZE)

    def model() -> None:
        with pyro.plate("data", SIZE), poutine.mask(mask=MASK):
            pyro.sample("z", dist.Bernoulli(0.3))

    def guide() -> None:
        with pyro.plate("data", SIZE), poutine.mask(mask=MASK):
            probs = torch.sigmoid(P("logits"))
            if certain:
                probs = torch.where(torch.arange(SIZE) == 2, torch.zeros(()), probs)
            pyro.sample("z", dist.Bernoulli(probs))

    def formula() -> Tensor:
        kl = kl_bernoulli(torch.sigmoid(P("logits")), 0.3)
        at_zero = -torch.log(torch.tensor(0.7))
        if certain:
            kl = torch.where(torch.arange(SIZE) == 2, at_zero, kl)
        return kl[MASK].sum()

    assert_exact(model, guide, formula)
