"""Elementwise ops without an affine rule: their moments by dense quadrature, their place in the repr."""

from __future__ import annotations

import inspect

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent import RandomTensor, covariance, mean, random_tensor, variance
from tests.expectation import dense
from tests.random_tensor.agreement import assert_close

W = torch.tensor([[0.7, -1.2], [2.0, 0.4]], dtype=torch.float64)

# Programs of a 2 x 2 latent: polynomials and exponentials.
PROGRAMS = {
    "sin": lambda z: z.sin(),
    "exp": lambda z: z.exp(),
    "pow": lambda z: 2.0**z,
    "square": lambda z: z.square(),
    "__rmul__": lambda z: (W * z) * z.T,
    "matmul": lambda z: z @ z,
    "cosh": lambda z: (z / 2).cosh(),
}
# Functions of one scalar; kinks are affine, and cut the oracle's integral.
ONE_SCALAR = {
    "tanh": (lambda z: torch.tanh(z), ()),
    "sigmoid": (lambda z: z.sigmoid(), ()),
    "gelu": (lambda z: F.gelu(z), ()),
    "softplus": (lambda z: F.softplus(z), ()),
    "erf": (lambda z: z.erf(), ()),
    "relu": (lambda z: F.relu(z), (lambda z: z,)),
    "abs": (lambda z: z.abs(), (lambda z: z,)),
    "clamp": (lambda z: z.clamp(min=0.3), (lambda z: z - 0.3,)),
    "clamp both": (lambda z: z.clamp(-0.5, 0.3), (lambda z: z - 0.3, lambda z: z + 0.5)),
    "maximum": (lambda z: torch.maximum(z, torch.tensor(0.2).double()), (lambda z: z - 0.2,)),
    "gt": (lambda z: (z > 0.1).double(), (lambda z: z - 0.1,)),
    "where": (lambda z: torch.where(z > 0.1, z.exp(), -z), (lambda z: z - 0.1,)),
    "atan2": (lambda z: torch.atan2(z, torch.tensor(0.7).double()), (lambda z: z,)),
}


def law(*shape: int) -> dist.Distribution:
    """Independent, of different means and scales."""
    count = max(1, torch.Size(shape).numel())
    loc = torch.linspace(-0.5, 0.6, count).reshape(shape)
    return dist.Normal(loc, torch.linspace(0.4, 0.7, count).reshape(shape))


def check_moments(program, distribution: dist.Distribution, kinks=()) -> None:
    """Mean, variance and covariance with the latent itself."""

    def joint(z: Tensor) -> Tensor:
        return torch.cat([program(z).reshape(-1), z.reshape(-1)])

    expected = dense.moments(joint, distribution, kinks=kinks)
    z = random_tensor(distribution, name="z")
    y = program(z)
    assert isinstance(y, RandomTensor)
    n = y.numel()
    assert_close(mean(y), expected.mean[:n].reshape(y.shape), 1e-7, "mean")
    assert_close(variance(y), expected.variance[:n].reshape(y.shape), 1e-7, "variance")
    cross = expected.covariance[:n, n:].diagonal().reshape(y.shape)
    assert_close(covariance(y, z), cross, 1e-7, "covariance with z")


@pytest.mark.parametrize("name", PROGRAMS)
def test_moments_of_polynomials_and_exponentials(name):
    check_moments(PROGRAMS[name], law(2, 2))


@pytest.mark.parametrize("name", ONE_SCALAR)
def test_moments_of_functions_of_one_scalar(name):
    program, kinks = ONE_SCALAR[name]
    check_moments(program, law(), kinks)


@pytest.mark.parametrize("name", [*PROGRAMS, *ONE_SCALAR])
def test_the_place_where_the_affine_form_ended_stays_known(name):
    """There is a mean; the repr says where the affine form ended all the same."""
    program = PROGRAMS[name] if name in PROGRAMS else ONE_SCALAR[name][0]
    z = random_tensor(law(2, 2), name="z")
    y = program(z)
    plain = program(W)
    assert (y.shape, y.dtype) == (plain.shape, plain.dtype)
    line = program.__code__.co_firstlineno
    assert f"{inspect.getsourcefile(law)}:{line}" in repr(y)
