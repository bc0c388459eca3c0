"""Linear-decoder models: every code, decoder and scale against the expected ELBO by hand."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_silent import SilentELBO
from tests.elbo.agreement import assert_exact, new_parameters
from tests.elbo.codes import BATCH, CODE, CODES, DATA, Code
from tests.formulas import (
    dense_linear,
    expected_multivariate_normal,
    expected_normal,
    quadratic_form,
)


def _conv_transpose() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(-1, (2, CODE // 2)), nn.ConvTranspose1d(2, 2, 2), nn.Flatten(-2)
    )


DECODERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(CODE, DATA),
    "no_bias": lambda: nn.Linear(CODE, DATA, bias=False),
    "deep_2": lambda: nn.Sequential(nn.Linear(CODE, 5), nn.Linear(5, DATA)),
    "deep_3": lambda: nn.Sequential(nn.Linear(CODE, 5), nn.Linear(5, 3), nn.Linear(3, DATA)),
    "conv_transpose": _conv_transpose,
}

SCALES: dict[str, Callable[[Tensor], Tensor | float]] = {
    "fixed": lambda x: 0.3,
    "shared": lambda x: pyro.param("scale")[0].exp(),
    "per_dimension": lambda x: pyro.param("scale").exp(),
    "per_row": lambda x: (pyro.param("scale")[0] + x.mean(-1, keepdim=True)).exp(),
    "of_the_data": lambda x: F.softplus(x * pyro.param("scale")) + 0.1,
}


def check(code: Code, make_decoder: Callable[[], nn.Module], scale: Callable, elbo=None) -> None:
    pyro.set_rng_seed(5)
    new_parameters(prior=CODE, scale=DATA)
    encoder, decoder = nn.Linear(DATA, code.encoder_outputs), make_decoder()
    data = torch.randn(BATCH, DATA)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", code.prior())
            loc = decoder(code.to_decoder(z))
            pyro.sample("x", dist.Normal(loc, scale(x)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", code.posterior(encoder(x)))

    def formula() -> Tensor:
        h = encoder(data)
        mean, covariance = code.moments(h)
        matrix, offset = dense_linear(decoder, CODE)
        residual = data - mean @ matrix.T - offset
        spread = quadratic_form(matrix, covariance)
        return code.kl(h).sum() - expected_normal(residual, spread, scale(data)).sum()

    assert_exact(model, guide, formula, data, elbo=elbo)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("code", CODES)
def test_linear_decoder(code, scale):
    check(CODES[code], DECODERS["linear"], SCALES[scale])


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "linear"])
@pytest.mark.parametrize("code", CODES)
def test_decoders_that_compose_linear_layers(code, decoder):
    check(CODES[code], DECODERS[decoder], SCALES["per_dimension"])


@pytest.mark.parametrize("code", CODES)
def test_vectorized_particles(code):
    elbo = SilentELBO(num_particles=2, vectorize_particles=True)
    check(CODES[code], DECODERS["deep_2"], SCALES["per_row"], elbo)


@pytest.mark.parametrize("code", CODES)
def test_multivariate_normal_likelihood(code):
    """A full covariance of the data: the trace term couples all dimensions of the code."""
    family = CODES[code]
    new_parameters(prior=CODE, weights=(DATA, CODE), encoder=(DATA, family.encoder_outputs))
    noise = torch.randn(DATA, DATA)
    covariance = noise @ noise.T + torch.eye(DATA)
    data = torch.randn(BATCH, DATA)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", family.prior())
            loc = family.to_decoder(z) @ pyro.param("weights").T
            pyro.sample("x", dist.MultivariateNormal(loc, covariance), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", family.posterior(x @ pyro.param("encoder")))

    def formula() -> Tensor:
        h = data @ pyro.param("encoder")
        mean, spread = family.moments(h)
        weights = pyro.param("weights")
        residual = data - mean @ weights.T
        image = weights @ spread @ weights.T
        expected = expected_multivariate_normal(residual, image, covariance)
        return family.kl(h).sum() - expected.sum()

    assert_exact(model, guide, formula, data)
