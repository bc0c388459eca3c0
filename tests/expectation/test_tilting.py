"""Exponentials of discrete latents at the edge: certain bits, impossible categories, huge exponents."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_silent import mean, random_tensor, variance
from tests.expectation import dense

W = torch.tensor([0.3, -1.2, 0.8, 2.0], dtype=torch.float64)

PROGRAMS = {
    "exp of a sum": lambda b: (b @ W).exp(),
    "exp of a negative sum": lambda b: (-3.0 * (b @ W)).exp(),
    "weighted": lambda b: b * (b @ W).exp().unsqueeze(-1),
    "square, weighted": lambda b: (b @ W) ** 2 * (b @ W.flip(0)).exp(),
    "exp of each": lambda b: (b * W).exp().sum(-1),
}

BITS = torch.tensor([0.0, 1.0, 0.4, 1.0], dtype=torch.float64)
CODE = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
LAWS = {
    "bits": lambda: (
        leaf := BITS.clone().requires_grad_(),
        dist.Bernoulli(leaf, validate_args=False).to_event(1),
    ),
    "codes": lambda: (
        leaf := CODE.clone().requires_grad_(),
        dist.OneHotCategorical(leaf, validate_args=False),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("law", LAWS)
def test_certain_and_impossible_values(law, name):
    """Values as by enumeration, and gradients of their probabilities, which are finite."""
    program = PROGRAMS[name]
    leaf, distribution = LAWS[law]()
    expected = dense.moments(program, distribution).mean
    z = random_tensor(distribution)
    torch.testing.assert_close(mean(program(z)), expected, rtol=1e-12, atol=1e-14)
    (gradient,) = torch.autograd.grad(mean(program(z)).sum(), leaf, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_logits(dtype):
    """Where a probability rounds to 0 or 1 the gradient of its logit is 0, not NaN."""
    w = W.to(dtype)
    for build in (
        lambda logits: dist.Bernoulli(logits=logits).to_event(1),
        lambda logits: dist.OneHotCategorical(logits=logits),
    ):
        logits = torch.tensor([1e3, -1e3, 0.5, -1e3], dtype=dtype, requires_grad=True)
        z = random_tensor(build(logits))
        for y in ((z @ w).exp(), z * (z @ w).exp(), (z @ w) * (-(z @ w)).exp()):
            value = mean(y)
            (gradient,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
            assert value.dtype is dtype
            assert value.isfinite().all() and gradient.isfinite().all()


def test_exponents_that_cancel_beyond_the_range_of_the_exponential():
    """e^(b - 1000) where b is 0 or 1005: neither factor alone is a number."""
    p = torch.tensor([0.3, 0.9], dtype=torch.float64)
    z = random_tensor(dist.Bernoulli(p).to_event(1))
    value = mean((1005.0 * z - 1000.0).exp())
    torch.testing.assert_close(value, p * torch.tensor(5.0).double().exp())
    total = mean((z @ torch.tensor([1005.0, -1e4]).double() - 1000.0).exp())
    torch.testing.assert_close(total, p[0] * (1 - p[1]) * torch.tensor(5.0).double().exp())
    code = random_tensor(dist.OneHotCategorical(torch.tensor([0.25, 0.75]).double()))
    tilted = mean(code * (code @ torch.tensor([1005.0, 1.0]).double() - 1000.0).exp())
    expected = torch.tensor([0.25 * torch.e**5, 0.0]).double()
    torch.testing.assert_close(tilted, expected)


def test_variance_of_an_exponential_of_certain_bits_is_zero():
    z = random_tensor(dist.Bernoulli(torch.tensor([0.0, 1.0, 1.0, 0.0])).to_event(1))
    found: Tensor = variance((z @ W).exp())
    assert found.abs() < 1e-12
