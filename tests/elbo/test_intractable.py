"""Sampled terms: the noise is theirs alone, and they have no bias."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_silent import SampledSiteWarning, SilentELBO
from tests.elbo.agreement import (
    assert_close,
    assert_entry_points_agree,
    evaluate,
    gradients_of,
    new_parameters,
)
from tests.elbo.chance import Z_LIMIT, assert_unbiased, run_many, worst_z_scores
from tests.elbo.families import BATCH, DATA, FAMILIES, P, deep, deep_pair, opaque, sampling
from tests.formulas import (
    binary_codes,
    expected_normal,
    gauss_hermite_grid,
    kl_bernoulli,
    kl_normal,
)

quiet = pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")


@quiet
@pytest.mark.parametrize("family", ["normal", "bernoulli", "one_hot_blocks"])
def test_noise_comes_from_the_sampled_site_alone(family):
    """An exact site and another prior shift loss and gradient by the same at all seeds."""
    latent = FAMILIES[family]
    x = torch.randn(BATCH, DATA)
    latent.new_parameters()
    new_parameters(w1=(latent.width, 4), w2=(4, DATA), v=(latent.width, DATA))

    def model(with_exact: bool) -> Callable:
        def run(x: Tensor) -> None:
            with pyro.plate("data", BATCH):
                z = pyro.sample("z", latent.prior(0.3 if with_exact else 0.5))
                code = latent.code(z)
                pyro.sample("deep", dist.Normal(deep(code), 0.5).to_event(1), obs=x)
                if with_exact:
                    pyro.sample("linear", dist.Normal(code @ P("v"), 0.01).to_event(1), obs=x)

        return run

    losses, gradients = run_many(sampling(), model(True), latent.guide, x, runs=5)
    bare_losses, bare_gradients = run_many(sampling(), model(False), latent.guide, x, runs=5)
    assert losses.std() > 1e-3
    nodes, probabilities = latent.nodes()
    linear = expected_normal(x - nodes @ P("v"), 0.0, 0.01).sum(-1)
    shift = latent.kl(0.3).sum() - latent.kl(0.5).sum() - (probabilities * linear).sum()
    for change in losses - bare_losses:
        assert_close(change, shift, 1e-9, "shift of the loss")
    for name, truth in gradients_of(shift).items():
        bare = bare_gradients.get(name, torch.zeros(5, *truth.shape))
        for change in gradients[name] - bare:
            assert_close(change, truth, 1e-7, f"shift of the gradient of {name}")


@quiet
@pytest.mark.parametrize("family", FAMILIES)
def test_deep_decoder_is_unbiased(family):
    latent = FAMILIES[family]
    model, formula, x = deep_pair(latent)
    evaluate(sampling(), model, latent.guide, x)
    assert_unbiased(sampling(100), model, latent.guide, formula(), x)


@quiet
@pytest.mark.parametrize("family", ["normal", "bernoulli"])
def test_the_mean_of_a_deep_decoder_would_be_caught(family):
    """The z-test rejects the plug-in f(E[z]), which is what a silent leak would compute."""
    latent = FAMILIES[family]
    model, formula, x = deep_pair(latent)
    evaluate(sampling(), model, latent.guide, x)
    nodes, probabilities = latent.nodes()
    mean = (probabilities[..., None] * nodes).sum(0)
    wrong = latent.kl(0.5).sum() - expected_normal(x - deep(mean), 0.0, 0.5).sum()
    worst = worst_z_scores(sampling(100), model, latent.guide, wrong, x)
    assert worst["loss"] > 2 * Z_LIMIT


@quiet
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_entry_points_agree_at_a_seed(family, num_particles):
    latent = FAMILIES[family]
    model, _, x = deep_pair(latent)
    assert_entry_points_agree(sampling(num_particles), model, latent.guide, x)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "opted_out" in name])
def test_opted_out_latents_are_pyros_own_samples(family):
    """The model sees what the guide draws; only the divergence from the prior is exact."""
    latent = FAMILIES[family]
    model, _, x = deep_pair(latent)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SampledSiteWarning)
        loss, gradients = evaluate(SilentELBO(), model, latent.guide, x, seed=7)
    pyro.set_rng_seed(7)
    drawn = poutine.trace(latent.guide).get_trace()
    replayed = poutine.trace(poutine.replay(model, drawn)).get_trace(x)
    replayed.compute_log_prob()
    expected = latent.kl(0.5).sum() - replayed.nodes["x"]["log_prob_sum"]
    assert_close(loss, expected, 1e-12, "loss")
    truth = gradients_of(expected)
    for name in truth if latent.fn().has_rsample else ("w1", "w2"):
        assert_close(gradients[name], truth[name], 1e-12, f"gradient of {name}")


@quiet
@pytest.mark.parametrize("family", ["normal", "bernoulli"])
def test_scale_and_mask_of_a_sampled_term(family):
    latent = FAMILIES[family]
    model, _, x = deep_pair(latent)
    mask, scale = torch.tensor([True, False]), 2.5
    nodes, probabilities = latent.nodes()
    model = poutine.scale(poutine.mask(model, mask=mask), scale=scale)
    guide = poutine.scale(poutine.mask(latent.guide, mask=mask), scale=scale)
    evaluate(sampling(), model, guide, x)
    likelihood = (probabilities * expected_normal(x - deep(nodes), 0.0, 0.5).sum(-1)).sum(0)
    truth = scale * latent.kl(0.5)[mask].sum()
    truth = truth - scale * likelihood[mask].sum()
    assert_unbiased(sampling(100), model, guide, truth, x)


@quiet
@pytest.mark.parametrize("vectorized", [False, True])
def test_discrete_latents_and_sampled_terms_in_different_plates(vectorized):
    """Bits of an outer plate read in an inner one: the score weight sums the inner plate only."""
    new_parameters(logits=3, w=(3, 2))
    data = torch.randn(3, 2)

    def model() -> None:
        if vectorized:
            with pyro.plate("outer", 3, dim=-2):
                z = pyro.sample("z", dist.Bernoulli(0.4))
                with pyro.plate("inner", 2, dim=-1):
                    pyro.sample("x", dist.Normal(opaque(P("w") * z), 0.5), obs=data)
            return
        for i in pyro.plate("outer", 3):
            z = pyro.sample(f"z_{i}", dist.Bernoulli(0.4))
            with pyro.plate(f"inner_{i}", 2):
                pyro.sample(f"x_{i}", dist.Normal(opaque(P("w")[i] * z), 0.5), obs=data[i])

    def guide() -> None:
        if vectorized:
            with pyro.plate("outer", 3, dim=-2):
                pyro.sample("z", dist.Bernoulli(logits=P("logits")[:, None]))
            return
        for i in pyro.plate("outer", 3):
            pyro.sample(f"z_{i}", dist.Bernoulli(logits=P("logits")[i]))

    p, w = torch.sigmoid(P("logits")), P("w")
    on = expected_normal(data - opaque(w), 0.0, 0.5).sum(-1)
    off = expected_normal(data, 0.0, 0.5).sum(-1)
    truth = kl_bernoulli(p, 0.4).sum() - (p * on + (1 - p) * off).sum()
    evaluate(sampling(), model, guide)
    assert_unbiased(sampling(50), model, guide, truth)


@quiet
def test_sampled_term_of_a_latent_summed_over_its_plate():
    """One nonlinear observation of all bits: every bit's score weight is the whole term."""
    new_parameters(logits=3, w=3)

    def model() -> None:
        with pyro.plate("bits", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
        loc = opaque((P("w") * z).sum(-1, keepdim=True))  # [particles, 1]
        pyro.sample("x", dist.Normal(loc, 0.5), obs=torch.tensor(0.7))

    def guide() -> None:
        with pyro.plate("bits", 3):
            pyro.sample("z", dist.Bernoulli(logits=P("logits")))

    p, w = torch.sigmoid(P("logits")), P("w")
    terms = [
        probability * expected_normal(0.7 - opaque((w * z).sum()), 0.0, 0.5)
        for z, probability in binary_codes(p)
    ]
    truth = kl_bernoulli(p, 0.4).sum() - sum(terms)
    elbo = SilentELBO(
        intractable="sample",
        estimator=None,
        num_particles=100,
        vectorize_particles=True,
        max_plate_nesting=1,
    )
    evaluate(elbo, model, guide)
    assert_unbiased(elbo, model, guide, truth)


@quiet
def test_subsampled_plate_with_a_sampled_term():
    """Rows and latents are both drawn: the mean is the full loss."""
    new_parameters(loc=4, w=())
    data = torch.randn(4)

    def model() -> None:
        with pyro.plate("data", 4, subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(opaque(P("w") * z), 0.5), obs=data[rows])

    def guide() -> None:
        with pyro.plate("data", 4, subsample_size=2) as rows:
            pyro.sample("z", dist.Normal(P("loc")[rows], 0.6))

    grid, probabilities = gauss_hermite_grid(1, 60)
    nodes = P("loc") + 0.6 * grid
    likelihood = expected_normal(data - opaque(P("w") * nodes), 0.0, 0.5)
    truth = kl_normal(P("loc"), torch.tensor(0.6)).sum()
    truth = truth - (probabilities[:, None] * likelihood).sum()
    evaluate(sampling(), model, guide)
    assert_unbiased(sampling(50), model, guide, truth, runs=100)
