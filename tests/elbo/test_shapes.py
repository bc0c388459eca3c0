"""Sizes of one, where an axis can be mistaken for a repeated one; images and their feature maps."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from tests.elbo.agreement import assert_exact, new_parameters
from tests.elbo.codes import BATCH
from tests.formulas import (
    dense_linear,
    expected_normal,
    kl_bernoulli,
    kl_normal,
)


@pytest.mark.parametrize("law", ["normal", "bernoulli"])
@pytest.mark.parametrize("data_size", [1, 5])
@pytest.mark.parametrize("code_size", [1, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_sizes_of_one(batch, code_size, data_size, law):
    """Dims of size 1 broadcast, which is where an axis can be mistaken for a repeated one."""
    new_parameters(w=(code_size, data_size), h=(batch, code_size), log_scale=data_size)
    data = torch.randn(batch, data_size)

    def posterior() -> dist.Distribution:
        h = pyro.param("h")
        return dist.Normal(h, 0.3) if law == "normal" else dist.Bernoulli(logits=h)

    def model() -> None:
        prior = dist.Normal(0.0, 1.0) if law == "normal" else dist.Bernoulli(0.4)
        with pyro.plate("data", batch):
            z = pyro.sample("z", prior.expand([code_size]).to_event(1))
            scale = pyro.param("log_scale").exp()
            pyro.sample("x", dist.Normal(z @ pyro.param("w"), scale).to_event(1), obs=data)

    def guide() -> None:
        with pyro.plate("data", batch):
            pyro.sample("z", posterior().to_event(1))

    def formula() -> Tensor:
        w, h = pyro.param("w"), pyro.param("h")
        if law == "normal":
            mean, spread, kl = h, torch.full_like(h, 0.3**2), kl_normal(h, torch.tensor(0.3))
        else:
            mean = torch.sigmoid(h)
            spread, kl = mean * (1 - mean), kl_bernoulli(mean, 0.4)
        scale = pyro.param("log_scale").exp()
        return kl.sum() - expected_normal(data - mean @ w, spread @ w**2, scale).sum()

    assert_exact(model, guide, formula)


def test_images_from_transposed_convolutions():
    """Feature maps as a code, pixels as data (event dim 3 both), one noise per channel."""
    new_parameters(loc=(BATCH, 2, 2, 2), log_scale=(2, 2, 2), noise=(3, 1, 1))
    layers = nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2), nn.Conv2d(4, 3, 2))
    data = torch.randn(BATCH, 3, 4, 4)

    def model(x: Tensor) -> None:
        pyro.module("layers", layers)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, 2, 2), 1.0).to_event(3))
            noise = pyro.param("noise").exp()
            pyro.sample("x", dist.Normal(layers(z), noise).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scale = pyro.param("log_scale").exp()
            pyro.sample("z", dist.Normal(pyro.param("loc"), scale).to_event(3))

    def formula() -> Tensor:
        matrix, offset = dense_linear(lambda z: layers(z.reshape(-1, 2, 2, 2)), 8)
        loc, scale = pyro.param("loc").flatten(1), pyro.param("log_scale").exp().flatten()
        residual = data - (loc @ matrix.T + offset).reshape(data.shape)
        spread = (matrix**2 @ scale**2).reshape(data.shape[1:])
        noise = pyro.param("noise").exp()
        return kl_normal(loc, scale).sum() - expected_normal(residual, spread, noise).sum()

    assert_exact(model, guide, formula, data)
