"""``random_tensor`` of transformed distributions."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, constraints
from torch.distributions import transforms as T

from pyro_silent import IntractableError, covariance, mean, random_tensor, variance
from tests.formulas import gauss_hermite, standard_normal_grid

LOC = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
SCALE = torch.tensor([0.4, 0.9], dtype=torch.float64, requires_grad=True)


LAWS = {
    "LogNormal": (lambda base: dist.LogNormal(LOC, SCALE), torch.exp),
    "affine": (
        lambda base: dist.TransformedDistribution(base, [T.AffineTransform(1.0, -2.0)]),
        lambda u: 1.0 - 2.0 * u,
    ),
    "sigmoid": (
        lambda base: dist.TransformedDistribution(base, [T.SigmoidTransform()]),
        torch.sigmoid,
    ),
    "interval": (
        lambda base: dist.TransformedDistribution(base, [biject_to(constraints.interval(-1, 3))]),
        lambda u: 4 * torch.sigmoid(u) - 1,
    ),
    "wrapped": (
        lambda base: dist.LogNormal(LOC, SCALE).mask(torch.tensor([True, False])).to_event(1),
        torch.exp,
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_moments(name):
    make, function = LAWS[name]
    y = random_tensor(make(dist.Normal(LOC, SCALE)))
    nodes, weights = gauss_hermite(100)
    values = function(LOC + SCALE * nodes[:, None])
    first = (weights[:, None] * values).sum(0)
    second = (weights[:, None] * (values - first) ** 2).sum(0)
    for ours, truth in ((mean(y), first), (variance(y), second)):
        assert torch.allclose(ours, truth, rtol=1e-9, atol=0)
        for leaf in (LOC, SCALE):
            (found,) = torch.autograd.grad(
                ours.sum(), leaf, retain_graph=True, materialize_grads=True
            )
            (expected,) = torch.autograd.grad(truth.sum(), leaf, retain_graph=True)
            assert torch.allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_a_folded_gaussian():
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    y = random_tensor(dist.HalfNormal(scale))
    assert torch.allclose(mean(y), scale * math.sqrt(2 / math.pi), rtol=1e-12)
    assert torch.allclose(variance(y), scale**2 * (1 - 2 / math.pi), rtol=1e-12)
    nodes, weights = standard_normal_grid()
    values = torch.sqrt(1 + scale[0] * nodes.abs())
    assert torch.allclose(mean((1 + y[0]).sqrt()), (weights * values).sum(), rtol=1e-7)


def test_correlated_elements():
    """exp of a correlated Gaussian: E y_i y_j = E y_i E y_j exp(S_ij)."""
    tril = torch.tensor([[0.5, 0.0], [0.3, 0.4]], dtype=torch.float64)
    base = dist.MultivariateNormal(LOC.detach(), scale_tril=tril)
    y = random_tensor(dist.TransformedDistribution(base, [T.ExpTransform()]))
    spread = (tril @ tril.T)[0, 1]
    first = mean(y)
    assert torch.allclose(covariance(y[0], y[1]), first[0] * first[1] * torch.expm1(spread))


def test_a_base_without_known_moments_is_refused():
    with pytest.raises(IntractableError, match="Uniform.*TransformedDistribution of one"):
        random_tensor(dist.Gumbel(torch.zeros(2), torch.ones(2)))
