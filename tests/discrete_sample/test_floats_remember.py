"""Floats made of samples and constants alone: steps that follow carry the gradient, or are refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent import IntractableError, LeakError
from pyro_silent.discrete_sample import (
    DiscreteSample,
    bernoulli_sample,
    index_sample,
    one_hot_sample,
)

TABLE = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.double)
CONSTANTS = torch.arange(1.0, 4.0, dtype=torch.double)

FOLLOWED = {
    "two bits as an index": lambda z, t: t[(2 * z[0] + z[1]).long()],
    "and": lambda z, t: torch.where(z[1] * z[2] == 1, t, -t),
    "sum of two": lambda z, t: torch.where(z[1] + z[2] == 2, t, -t),
    "distance": lambda z, t: torch.where((z[1] - z[2]).abs() > 0.5, t, -t),
    "xor": lambda z, t: ((z[1] + z[2]) % 2) * t,
    "three": lambda z, t: torch.where(z[0] + z[1] + z[2] > 1.5, t, -t),
    "spins": lambda z, t: torch.where((2 * z[0] - 1) * (2 * z[2] - 1) > 0, t, -t),
    "floor": lambda z, t: torch.floor((z[0] + z[1]) / 2) * t,
}

REFUSED = {
    "sum as an index": lambda z, t: t[z.sum().long()],
    "branch on a sum": lambda z, t: t if z.sum() > 1 else -t,
    "number of a sum": lambda z, t: t[int(z.sum())],
    "threshold on a mean": lambda z, t: torch.where(z.mean() > 0.5, t, -t),
    "largest": lambda z, t: torch.where(z.max() == 1, t, -t),
    "product": lambda z, t: torch.where(z.prod() == 1, t, -t),
    "running sum": lambda z, t: torch.where(z.cumsum(0)[-1] > 1, t, -t),
    "inner product": lambda z, t: t[(z @ CONSTANTS / 2).long()],
    "weighed": lambda z, t: torch.where((z * CONSTANTS)[1] > 0, t, -t),
    "fixed layer": lambda z, t: torch.where(F.linear(z, CONSTANTS[None]) > 0, t, -t),
}


def multilinear(program: Callable, bits: Tensor) -> Tensor:
    """The sum over all values, each weighed with the product of its codes."""
    total: Tensor = torch.zeros((), dtype=torch.double)
    for values in itertools.product([0.0, 1.0], repeat=len(bits)):
        point = torch.tensor(values, dtype=torch.double)
        weight = torch.where(point == 1, bits, 1 - bits).prod()
        total = total + weight * program(point, TABLE).sum()
    return total


@pytest.mark.parametrize("values", list(itertools.product([0.0, 1.0], repeat=3)))
@pytest.mark.parametrize("name", FOLLOWED)
def test_gradient_follows(name, values):
    bits = torch.tensor(values, dtype=torch.double, requires_grad=True)
    result = FOLLOWED[name](bernoulli_sample(bits * 1, "z"), TABLE)
    assert torch.equal(result.detach(), FOLLOWED[name](bits.detach(), TABLE))
    (found,) = torch.autograd.grad(result.sum(), bits)
    (expected,) = torch.autograd.grad(multilinear(FOLLOWED[name], bits), bits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", FOLLOWED)
def test_there_is_a_gradient_to_lose(name):
    point = torch.full((3,), 0.3, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(multilinear(FOLLOWED[name], point), point)
    assert gradient.abs().max() > 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_is_refused(name):
    z = bernoulli_sample(torch.tensor([0.0, 1.0, 1.0]).double().requires_grad_(), "z")
    with pytest.raises((IntractableError, LeakError), match="latent 'z'"):
        REFUSED[name](z, TABLE)
    REFUSED[name](z.detach(), TABLE)


@pytest.mark.parametrize(
    "program",
    [
        lambda z, t: t[(z * torch.arange(4.0)).sum(-1).long()],
        lambda z, t: t[(z @ torch.arange(4.0)).long()],
        lambda z, t: t * (z.max() == 1),
    ],
)
def test_one_hot_codes_made_into_numbers_are_refused(program):
    z = one_hot_sample(torch.tensor([0.0, 0.0, 1.0, 0.0], requires_grad=True), "z")
    with pytest.raises((IntractableError, LeakError), match="latent 'z'"):
        program(z, TABLE.float())


def test_float_operations_go_on():
    bits = torch.tensor([0.0, 1.0, 1.0], requires_grad=True)
    z = bernoulli_sample(bits * 1, "z")
    result = torch.tanh(z.sum() * 0.5).exp()
    assert isinstance(result, DiscreteSample)
    (found,) = torch.autograd.grad(result, bits)
    (expected,) = torch.autograd.grad(torch.tanh(bits.sum() * 0.5).exp(), bits)
    torch.testing.assert_close(found, expected)


def test_parameters_make_it_an_ordinary_tensor():
    weight = torch.ones(2, 3, requires_grad=True)
    z = bernoulli_sample(torch.tensor([0.0, 1.0, 1.0], requires_grad=True), "z")
    assert type(F.linear(z, weight)) is Tensor
    assert type(z.sum() * weight) is Tensor


@pytest.mark.parametrize("validate", [True, False])
def test_distributions_may_look_at_their_parameters(validate):
    import pyro
    import pyro.distributions as dist

    bits = torch.tensor([0.0, 1.0, 1.0], requires_grad=True)
    z = bernoulli_sample(bits * 1, "z")
    with pyro.validation_enabled(validate):
        loc, scale = z.sum(), 1 + z.mean()
        density = dist.Normal(loc, scale).log_prob(torch.tensor(0.3))
        plain = dist.Normal(bits.sum(), 1 + bits.mean()).log_prob(torch.tensor(0.3))
    torch.testing.assert_close(torch.autograd.grad(density, bits), torch.autograd.grad(plain, bits))


@pytest.mark.parametrize(
    "function",
    [lambda z: z / (z + 1.0), lambda z: (z + 0.5) ** z],
)
def test_integers_and_floats_of_one_scalar_go_by_the_same_levels(function):
    code = torch.eye(4, dtype=torch.double)[[1, 3]].requires_grad_()
    result = function(index_sample(code, "z"))
    (found,) = torch.autograd.grad(result.sum(), code)
    torch.testing.assert_close(found, function(torch.arange(4)).double().expand(2, 4))


def test_samples_beside_constants_are_remembered():
    z = bernoulli_sample(torch.tensor([0.0, 1.0], requires_grad=True), "z")
    joined = torch.cat([z, torch.ones(1)])
    with pytest.raises(IntractableError, match="latent 'z'"):
        torch.where(joined == 1, 2.0, 3.0)
    (joined * 2).sum().backward()
