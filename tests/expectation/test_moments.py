"""Moments asked with and without gradients, in any order; arguments given by name; odd powers."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_silent import IntractableError, RandomTensor, covariance, mean, random_tensor, variance
from tests.expectation import dense

PROGRAMS = {
    "product": lambda z: (2 * z).exp() * z,
    "function": lambda z: z.tanh() * z,
    "linear in a function": lambda z: (0.5 * z).sigmoid().sum(0),
}


def _normal() -> tuple[Tensor, RandomTensor]:
    loc = torch.tensor([0.3, -0.2], requires_grad=True)
    return loc, random_tensor(dist.Normal(loc, torch.tensor([0.5, 0.4])))


@pytest.mark.parametrize("moment", [mean, variance, lambda y: covariance(y, y)])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_look_without_gradient_leaves_the_gradient_alone(name, moment):
    """As in a logging line between the forward and the backward pass."""
    loc, z = _normal()
    y = PROGRAMS[name](z)
    with torch.no_grad():
        looked_at = moment(y)
        moment(y.sum())
    assert not looked_at.requires_grad
    value = moment(y)
    (gradient,) = torch.autograd.grad(value.sum(), loc)
    torch.testing.assert_close(value.detach(), looked_at)
    loc, z = _normal()
    (expected,) = torch.autograd.grad(moment(PROGRAMS[name](z)).sum(), loc)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().min() > 1e-5


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_made_without_gradient_has_none(name):
    _, z = _normal()
    with torch.no_grad():
        y = PROGRAMS[name](z)
    assert not mean(y).requires_grad and not variance(y).requires_grad


T = torch.tensor([[0.1, 0.5], [-0.3, 0.2]], dtype=torch.float64)
BY_NAME = {
    "atan2": lambda x: torch.atan2(x.exp() + 1, other=T.exp()).T * x,
    "logaddexp": lambda x: torch.logaddexp(x, other=T).T * x,
    "pow": lambda x: torch.pow(x.exp(), exponent=T).T * x,
    "where": lambda x: torch.where(condition=T > 0, input=x.exp(), other=T).T,
}


@pytest.mark.parametrize("name", BY_NAME)
def test_tensors_given_by_name_move_with_the_others(name):
    law = dist.Normal(torch.tensor([0.3, -0.2]), torch.tensor([0.3, 0.2]))
    expected = dense.moments(BY_NAME[name], law)
    try:
        found = mean(BY_NAME[name](random_tensor(law)))
    except IntractableError:
        assert name == "where"  # given all by name, nobody knows which argument is which
        return
    torch.testing.assert_close(found, expected.mean, rtol=1e-7, atol=1e-9)


POWERS = {
    "0": lambda x: x**0,
    "0.0 of exp": lambda x: x.exp() ** 0.0,
    "of a tensor": lambda x: x ** torch.tensor([2.0, 3.0]),
    "tensor of exp": lambda x: (2.0 * x.exp()) ** torch.tensor([0.5, -1.0]),
    "-2 of a negative": lambda x: (-2.0 * x.exp()) ** -2,
    "3 of a negative": lambda x: (-2.0 * x.exp()) ** 3.0,
    "root of a square": lambda x: ((2.0 * x.exp()) ** 2).sqrt(),
}


@pytest.mark.parametrize("name", POWERS)
def test_powers(name):
    law = dist.Normal(torch.tensor([0.3, -0.2]), torch.tensor([0.3, 0.2]))
    y = POWERS[name](random_tensor(law))
    expected = dense.moments(POWERS[name], law)
    torch.testing.assert_close(mean(y), expected.mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(variance(y), expected.variance, rtol=1e-7, atol=1e-12)


def test_what_is_not_a_number_is_refused():
    _, z = _normal()
    with pytest.raises(IntractableError):
        mean((-2.0 * z.exp()) ** 0.5)
