"""Terms without a closed form: refused with a reason, or announced once when they are sampled."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_silent import IntractableError, SampledSiteWarning, SilentELBO
from tests.elbo.agreement import (
    new_parameters,
)
from tests.elbo.families import BATCH, CODE, DATA, P, sampling


def line_of(function: Callable, fragment: str) -> str:
    """``file:line`` of the one line of a function that contains a fragment."""
    lines, start = inspect.getsourcelines(function)
    (offset,) = [i for i, line in enumerate(lines) if fragment in line]
    return f"{__file__}:{start + offset}"


def gaussian_guide(*_) -> None:
    with pyro.plate("data", BATCH):
        fn = dist.Normal(P("loc"), P("log_scale").exp()).to_event(1)
        pyro.sample("z", fn)


def model_of(transform: Callable[[Tensor], Tensor]) -> Callable:
    def model(x: Tensor) -> None:
        with pyro.plate("data", BATCH):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(transform(z), 0.5).to_event(1), obs=x)

    return model


def deep_tanh(z: Tensor) -> Tensor:
    hidden = torch.tanh(z @ P("w1"))
    return torch.tanh(hidden @ P("w2")) @ P("w3")


def deep_relu(z: Tensor) -> Tensor:
    hidden = torch.relu(z @ P("w1"))
    return (hidden @ P("w2")).relu() @ P("w3")


def largest(z: Tensor) -> Tensor:
    return z.sort(-1).values @ P("w1") @ P("w3")


@pytest.fixture
def weights():
    new_parameters(loc=(BATCH, CODE), log_scale=(BATCH, CODE))
    new_parameters(w1=(CODE, 4), w2=(4, 4), w3=(4, DATA))


@pytest.mark.parametrize(
    ("decoder", "fragment", "operation"),
    [(deep_tanh, "hidden @", "tanh"), (deep_relu, "hidden @", "relu"), (largest, "sort", "sort")],
)
def test_refusal_names_everything(weights, decoder, fragment, operation):
    """Site, operation, latent, the line where exactness was lost, and what to write instead."""
    with pytest.raises(IntractableError) as caught:
        SilentELBO().loss(model_of(decoder), gaussian_guide, torch.randn(BATCH, DATA))
    error, message = caught.value, str(caught.value)
    assert error.site == "x"
    assert re.search(operation, error.operation)
    assert error.latents == ("z",)
    assert error.location == line_of(decoder, fragment)
    for part in ("'x'", "'z'", error.operation, error.location):
        assert part in message
    assert 'intractable="sample"' in message
    assert 'infer={"silent": False}' in message


def test_refusal_points_at_the_users_call_of_a_module(weights):
    """An activation inside nn.Sequential is torch's code; the place is the line that calls it."""
    decoder = nn.Sequential(nn.Linear(CODE, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())

    def model(x: Tensor) -> None:
        with pyro.plate("data", BATCH):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            loc = decoder(z)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    with pytest.raises(IntractableError, match="tanh") as caught:
        SilentELBO().loss(model, gaussian_guide, torch.randn(BATCH, 4))
    assert caught.value.location == line_of(model, "decoder(z)")


def test_random_scale_is_refused_by_name(weights):
    def model() -> None:
        with pyro.plate("data", BATCH):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            scale = torch.tanh(z @ P("w1")) @ P("w3")
            pyro.sample(
                "x", dist.Normal(0.0, scale.exp()).to_event(1), obs=torch.zeros(BATCH, DATA)
            )

    with pytest.raises(IntractableError, match="'x'") as caught:
        SilentELBO().loss(model, gaussian_guide)
    assert re.search("tanh|exp", caught.value.operation)


def test_a_refused_model_leaves_the_random_state_alone(weights):
    before = torch.get_rng_state()
    with pytest.raises(IntractableError):
        SilentELBO().loss_and_grads(model_of(deep_tanh), gaussian_guide, torch.zeros(BATCH, DATA))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(leaf.grad is None for _, leaf in pyro.get_param_store().named_parameters())


def test_guide_law_without_known_moments_is_refused():
    new_parameters(rate=())

    def model() -> None:
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", dist.Gamma(3.0, P("rate").exp()))

    with pytest.raises(IntractableError, match="guide site 'z'.*Gamma") as caught:
        SilentELBO().loss(model, guide)
    assert caught.value.site == "z"
    assert caught.value.latents == ("z",)
    assert 'infer={"silent": False}' in str(caught.value)


def test_auxiliary_guide_law_without_known_moments_is_refused():
    """Being auxiliary does not make a noisy site silent."""
    new_parameters(rate=())

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        u = pyro.sample("u", dist.Gamma(3.0, P("rate").exp()), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(u, 1.0))

    with pytest.raises(IntractableError, match="guide site 'u'.*Gamma"):
        SilentELBO().loss(model, guide)


# Sampling: warnings, and noise that comes from one site alone


def sampled_warnings(elbo, model, guide, *args, times: int = 1) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            elbo.loss_and_grads(model, guide, *args)
    return [str(w.message) for w in caught if issubclass(w.category, SampledSiteWarning)]


def two_views(with_exact: bool = True, prior_scale: float = 1.0) -> Callable:
    """One observed site behind a deep decoder, and one that is linear in the same latent."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", BATCH):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), prior_scale).to_event(1))
            pyro.sample("deep", dist.Normal(deep_tanh(z), 0.5).to_event(1), obs=x)
            if with_exact:
                pyro.sample("linear", dist.Normal(z @ P("v"), 0.01).to_event(1), obs=x)

    return model


def test_one_warning_per_sampled_site(weights):
    elbo = sampling()
    x = torch.randn(BATCH, DATA)
    (message,) = sampled_warnings(elbo, model_of(deep_relu), gaussian_guide, x, times=3)
    assert "'x'" in message
    assert "relu" in message
    assert line_of(deep_relu, "hidden @") in message
    new_parameters(v=(CODE, DATA))
    messages = sampled_warnings(sampling(), two_views(), gaussian_guide, x, times=2)
    assert len(messages) == 1
    assert "'deep'" in messages[0]


def test_exact_models_do_not_warn(weights):
    x = torch.randn(BATCH, 4)
    assert not sampled_warnings(sampling(), model_of(lambda z: z @ P("w1")), gaussian_guide, x)


def test_an_exact_loss_draws_nothing(weights):
    """``intractable="sample"`` costs no draw where nothing is intractable."""
    x = torch.randn(BATCH, 4)
    before = torch.get_rng_state()
    sampling().loss_and_grads(model_of(lambda z: z @ P("w1")), gaussian_guide, x)
    assert torch.equal(torch.get_rng_state(), before)
