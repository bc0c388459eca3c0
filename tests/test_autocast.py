"""Under autocast the program's matrix products are in half precision, expectations in single."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_silent import GumbelRaoELBO, SilentELBO, mean, random_tensor, variance
from pyro_silent.random_tensor.tensor import RandomTensor

ROWS, DATA, CODE = 16, 20, 4

# bfloat16 has 8 bits: one rounding is off by 2^-9 of a value at most
ROUNDING = 2.0**-9

LIKELIHOODS: dict[str, Callable[[Tensor], Any]] = {
    "normal": lambda h: dist.Normal(h, 0.5),
    "bernoulli": lambda h: dist.Bernoulli(logits=h),
    "poisson": lambda h: dist.Poisson(h.exp()),
    "student t": lambda h: dist.StudentT(3.0, h, 1.0),
    "quadrature": lambda h: dist.Normal(torch.cos(h) * h.tanh(), 0.5),
    "multivariate": lambda h: dist.MultivariateNormal(h, scale_tril=torch.eye(DATA)),
}
CODES: dict[str, Callable[[Tensor], Any]] = {
    "normal": lambda a: dist.Normal(a, 0.3).to_event(1),
    "bernoulli": lambda a: dist.Bernoulli(logits=a).to_event(1),
    "one hot": lambda a: dist.OneHotCategorical(logits=a),
}


def vae(likelihood: str, code: str = "normal") -> tuple[Any, Any, Tensor]:
    """An encoder of one layer, a linear decoder of two."""
    encoder = nn.Linear(DATA, CODE)
    decoder = nn.Sequential(nn.Linear(CODE, 6), nn.Linear(6, DATA))
    x = torch.randn(ROWS, DATA).abs().round().clamp(max=1)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("n", len(x)):
            z = pyro.sample("z", CODES[code](torch.zeros(len(x), CODE)))
            law = LIKELIHOODS[likelihood](decoder(z))
            pyro.sample("x", law.to_event(1 - law.event_dim), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("n", len(x)):
            pyro.sample("z", CODES[code](encoder(x)))

    return model, guide, x


def step(elbo: Any, model: Any, guide: Any, *args: Tensor, autocast: bool) -> tuple[float, Tensor]:
    guide(*args)
    model(*args)
    parameters = [p for _, p in pyro.get_param_store().named_parameters()]
    for parameter in parameters:
        parameter.grad = None
    pyro.set_rng_seed(1)
    with torch.autocast(torch.empty(()).device.type, torch.bfloat16, enabled=autocast):
        loss = elbo.loss_and_grads(model, guide, *args)
    assert all(p.grad.dtype == torch.float32 for p in parameters if p.grad is not None)
    gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
    return loss, torch.cat(gradients)


def distance(a: tuple[float, Tensor], b: tuple[float, Tensor]) -> tuple[float, float]:
    return abs(a[0] - b[0]) / abs(b[0]), float((a[1] - b[1]).norm() / b[1].norm())


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_and_gradient_are_as_near_as_half_precision_is(likelihood, code):
    """Warnings are errors: quadrature meets its own claim, in single precision."""
    program = vae(likelihood, code)
    half, single = (step(SilentELBO(), *program, autocast=a) for a in (True, False))
    of_loss, of_gradient = distance(half, single)
    assert half[1].isfinite().all()
    assert 0 < of_loss < ROUNDING and of_gradient < 16 * ROUNDING


@pytest.mark.parametrize("code", ["bernoulli", "one hot"])
def test_estimators_run(code):
    program = vae("normal", code)
    half, single = (step(GumbelRaoELBO(), *program, autocast=a) for a in (True, False))
    # a sample near to its threshold may fall to the other side, so no closer look
    assert half[1].isfinite().all() and half[0] == pytest.approx(single[0], rel=0.3)


def test_no_further_off_than_the_sampled_loss():
    """With one fixed draw in place of the expectation the same decoder loses as many digits."""
    program = vae("normal")
    errors = {}
    for name, elbo in (("silent", SilentELBO()), ("sampled", Trace_ELBO())):
        half, single = (step(elbo, *program, autocast=a) for a in (True, False))
        errors[name] = distance(half, single)
    assert errors["silent"][0] < 4 * ROUNDING and errors["sampled"][0] < 4 * ROUNDING
    assert errors["silent"][1] < 2 * errors["sampled"][1] + ROUNDING


def test_a_regression_loses_the_digits_of_its_predictor_alone():
    """The variance of X w is worked out after the program ran, outside of autocast."""
    inputs, responses = torch.randn(50, 3), torch.randn(50)

    def model(inputs: Tensor, responses: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("n", len(inputs)):
            pyro.sample("y", dist.Normal(inputs @ w, 1.0), obs=responses)

    guide = AutoNormal(model)
    half, single = (
        step(SilentELBO(), model, guide, inputs, responses, autocast=a) for a in (True, False)
    )
    assert distance(half, single)[0] < ROUNDING


def test_moments_are_in_single_precision():
    """``mean`` of a function of what a layer made in half precision, and its variance."""
    z = random_tensor(dist.Normal(torch.zeros(8, CODE), torch.ones(8, CODE)))
    layer = nn.Linear(CODE, 3)
    with torch.autocast(torch.empty(()).device.type, torch.bfloat16):
        h = layer(z)
    assert isinstance(h, RandomTensor) and h.dtype == torch.bfloat16
    assert mean(torch.tanh(h)).dtype == torch.float32
    exact = layer.weight.square().sum(-1).expand(8, 3)
    torch.testing.assert_close(variance(h), exact, rtol=1e-5, atol=0.0)
