"""The oracles agree with each other, with torch, with draws and with numbers done by hand."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import tensor

from tests import oracles
from tests.random_tensor.sources import KINDS, source


def test_one_coin_by_hand():
    coin = dist.Bernoulli(probs=tensor(0.25).double())
    law = oracles.moments(lambda z: torch.stack([4 * z + 1, 1 - z]), coin)
    assert law.mean.tolist() == [2.0, 0.75]
    assert law.covariance.tolist() == [[3.0, -0.75], [-0.75, 0.1875]]


def test_two_correlated_normals_by_hand():
    covariance = tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    z = dist.MultivariateNormal(tensor([1.0, 2.0]).double(), covariance_matrix=covariance)
    law = oracles.moments(lambda z: z[0] - 2 * z[1], z)
    assert law.mean.item() == pytest.approx(-3.0)
    assert law.variance.item() == pytest.approx(2 - 4 * 0.5 + 4 * 1.0)


def test_mixture_by_hand():
    """Law of total covariance: k in {0, 1} chooses the mean 0 or 3 of a unit Normal."""
    k = dist.Categorical(probs=tensor([0.5, 0.5]).double())
    x = dist.Normal(tensor(0.0).double(), tensor(1.0).double())
    law = oracles.moments(lambda k, x: tensor([0.0, 3.0]).double()[k] + (1 + k) * x, k, x)
    assert law.mean.item() == pytest.approx(1.5)
    assert law.variance.item() == pytest.approx(0.5 * 1 + 0.5 * 4 + 2.25)


@pytest.mark.parametrize("kind", ["bernoulli_probs", "bernoulli_plate", "one_hot"])
def test_enumeration_agrees_with_dense_algebra(kind, monkeypatch):
    distribution = source(kind, (2, 3)).distribution()

    def program(z):
        return torch.cat([z.cumsum(0).reshape(-1), z[0] - 2 * z[1]])

    enumerated = oracles.moments(program, distribution)
    monkeypatch.setattr(oracles, "ENUMERATION_LIMIT", 0)
    dense = oracles.moments(program, distribution)
    for a, b in zip(enumerated, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_enumeration_is_not_limited_to_affine_programs():
    """XOR of two coins is a fair coin when one of them is."""
    coins = dist.Bernoulli(probs=tensor([0.5, 0.9]).double())
    law = oracles.moments(lambda z: z[0] + z[1] - 2 * z[0] * z[1], coins)
    assert law.mean.item() == pytest.approx(0.5) and law.variance.item() == pytest.approx(0.25)


def test_a_program_that_is_not_affine_is_refused():
    with pytest.raises(ValueError, match="not affine"):
        oracles.moments(torch.exp, source("normal", (2,)).distribution())


@pytest.mark.parametrize("kind", [*KINDS, "mvn_expanded", "normal_expanded"])
def test_source_moments_agree_with_those_of_torch(kind):
    distribution = source(kind, (2, 3)).distribution()
    location, spread = oracles.source_moments(distribution)
    torch.testing.assert_close(location.reshape(2, 3), distribution.mean)
    torch.testing.assert_close(spread.diagonal().reshape(2, 3), distribution.variance)
    if hasattr(distribution, "covariance_matrix"):
        torch.testing.assert_close(spread[:3, :3], distribution.covariance_matrix[0])
        assert not spread[:3, 3:].any()


@pytest.mark.parametrize("kind", [*KINDS, "mvn_expanded", "categorical3"])
def test_moments_agree_with_draws(kind):
    """Twelve statistics within 5 standard errors: by chance one seed in 1e5 fails."""
    shape = (2,) if kind.startswith("categorical") else (1, 3)
    distribution = source(kind, shape).distribution()
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def program(z):
        z = mix[z].sum(-2) if kind.startswith("categorical") else z
        return (z @ mix).reshape(-1)

    law = oracles.moments(program, distribution)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([program(distribution.sample()) for _ in range(4000)])
        centred = draws - law.mean
        products = centred[:, :, None] * centred[:, None, :]
        for sample, expected in ((draws, law.mean), (products, law.covariance)):
            error = sample.mean(0) - expected
            assert (error.abs() <= 5 * sample.std(0) / len(sample) ** 0.5 + 1e-12).all()


def test_gradients_agree_with_finite_differences():
    made = source("mvn_tril", (3,))

    def statistic(loc, raw):
        law = oracles.moments(lambda z: z.cumsum(0) * 2, made.build(loc, raw))
        return law.mean.sum() + law.covariance.sum()

    assert torch.autograd.gradcheck(statistic, made.parameters)
