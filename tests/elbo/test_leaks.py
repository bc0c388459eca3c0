"""A latent turned into a number: refused under "raise", the latent sampled under "sample"."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.distribution import COERCIONS
from torch import Tensor

from pyro_silent import (
    LeakError,
    SampledSiteWarning,
    SilentELBO,
)
from tests.elbo.agreement import gaussian_guide, gaussian_model, new_parameters
from tests.elbo.chance import assert_unbiased
from tests.formulas import expected_normal, kl_normal, standard_normal_grid

P = pyro.param


def branch(z: Tensor) -> Any:
    return z if z[0] > 0 else -z


def write_into_a_buffer(z: Tensor) -> Any:
    buffer = torch.zeros(3)
    buffer[0] = z[0]
    return buffer


def copy_into_a_buffer(z: Tensor) -> Any:
    return torch.zeros(3).copy_(z)


def add_into_a_buffer(z: Tensor) -> Any:
    return torch.zeros(3).add_(z)


def out_argument(z: Tensor) -> Any:
    buffer = torch.zeros(3)
    torch.add(z, 1.0, out=buffer)
    return buffer


def out_argument_of_an_unknown_op(z: Tensor) -> Any:
    buffer = torch.zeros(3)
    torch.tanh(z, out=buffer)
    return buffer


LEAKS: dict[str, Callable[[Tensor], Any]] = {
    "if": branch,
    "while": lambda z: [None for _ in range(3) if z.sum() > 0],
    "assert": lambda z: bool((z == z).all()),
    "float": lambda z: float(z[0]),
    "int": lambda z: int(z[0]),
    "complex": lambda z: complex(z[0]),
    "item": lambda z: z[0].item(),
    "tolist": lambda z: z.tolist(),
    "numpy": lambda z: z.numpy(),
    "detach_numpy": lambda z: z.detach().cpu().numpy(),
    "asarray": lambda z: np.asarray(z),
    "math": lambda z: math.exp(z[0]),
    "format": lambda z: f"{z[0]:.3f}",
    "range": lambda z: range(z[0].long()),
    "setitem": write_into_a_buffer,
    "copy_": copy_into_a_buffer,
    "add_": add_into_a_buffer,
    "out": out_argument,
    "out_unknown": out_argument_of_an_unknown_op,
    "in_place": lambda z: z.tanh_(),
    "masked_by_itself": lambda z: torch.zeros(3)[z > 0],
    "nonzero": lambda z: z.nonzero(),
    "unique": lambda z: z.unique(),
    "equal": lambda z: torch.equal(z, z),
    "allclose": lambda z: torch.allclose(z, z),
    "isin": lambda z: 0.0 in z,
    "vmap": lambda z: torch.vmap(lambda t: t + 1)(z),
    "tensor": lambda z: torch.tensor([z[0], z[1], z[2]]),
    "numpy_array": lambda z: np.zeros(3) * z.__array__(),
    "storage": lambda z: z.data_ptr(),
    "fill": lambda z: torch.zeros(3).fill_(z[0]),
    "full": lambda z: torch.full((3,), z[0]),
    "grad": lambda z: torch.autograd.grad(z.sum(), P("loc")),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_leaks_are_refused(leak):
    """Never a wrong number: latent, line and remedy are named, the state is untouched."""
    use = LEAKS[leak]
    P("loc", torch.full((3,), 0.3))
    hooks, state = list(COERCIONS), torch.get_rng_state()
    with pytest.raises(LeakError) as caught:
        SilentELBO().loss_and_grads(gaussian_model(use), gaussian_guide)
    message = str(caught.value)
    assert "'z'" in message
    lines, start = inspect.getsourcelines(use)
    places = [f"{__file__}:{start + i}" for i in range(len(lines))]
    assert any(place in message for place in places), message
    assert 'infer={"silent": False}' in message
    assert hooks == COERCIONS
    assert torch.equal(torch.get_rng_state(), state)
    assert P("loc").grad is None
    assert torch.equal(P("loc"), torch.full((3,), 0.3))


def test_an_integer_latent_cannot_index_a_list():
    tables = [torch.zeros(2), torch.ones(2)]

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(tables[z], 0.5).to_event(1), obs=torch.zeros(2))

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=P("logits", torch.zeros(2))))

    with pytest.raises(LeakError, match="'z'"):
        SilentELBO().loss(model, guide)


def test_a_leak_in_the_guide():
    def guide() -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        loc = 1.0 if u > 0 else -1.0
        pyro.sample("z", dist.Normal(torch.full((3,), loc), 0.4).to_event(1))

    with pytest.raises(LeakError, match="'u'"):
        SilentELBO().loss(gaussian_model(lambda z: None), guide)


def test_a_leak_into_a_custom_autograd_function():
    """Its backward would be lost; refused, not ignored."""

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z: Tensor) -> Tensor:
            return 2.0 * z

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return 100.0 * gradient

    with pytest.raises(LeakError):
        SilentELBO().loss_and_grads(gaussian_model(Scale.apply), gaussian_guide)


@pytest.mark.parametrize("num_particles", [1, 10])
def test_a_leak_under_sample_samples_the_latent_and_says_so(num_particles):
    """The program gets one concrete value for every use of the latent, so nothing is mixed."""
    new_parameters(m=(), log_s=())

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z if z > 0 else 0.5 * z, 0.5), obs=torch.tensor(0.4))

    def guide() -> None:
        pyro.sample("z", dist.Normal(P("m"), P("log_s").exp()))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        elbo = SilentELBO(intractable="sample", num_particles=num_particles)
        elbo.loss(model, guide)
        elbo.loss(model, guide)
    (message,) = [str(w.message) for w in caught if issubclass(w.category, SampledSiteWarning)]
    assert "'z'" in message
    assert __file__ in message
    nodes, weights = standard_normal_grid()
    m, s = P("m"), P("log_s").exp()
    z = m + s * nodes
    inner = expected_normal(0.4 - torch.where(z > 0, z, 0.5 * z), 0.0, 0.5)
    truth = kl_normal(m, s) - (weights * inner).sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SampledSiteWarning)
        assert_unbiased(elbo, model, guide, truth)
