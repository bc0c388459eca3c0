"""How a loss is held against a formula: value, every gradient, three entry points, two seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_silent import SilentELBO

LOSS_TOLERANCE = 1e-9
GRADIENT_TOLERANCE = 1e-8


def new_parameters(**shapes: int | tuple[int, ...]) -> None:
    """Put unconstrained parameters into the param store, drawn around zero."""
    for name, shape in shapes.items():
        pyro.param(name, 0.5 * torch.randn(shape, dtype=torch.float64))


def leaves() -> dict[str, Tensor]:
    """The unconstrained leaf tensors of the param store."""
    return dict(pyro.get_param_store().named_parameters())


def evaluate(elbo, model, guide, *args, seed: int = 0, **kwargs) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of ``loss_and_grads`` at a seed; ``.grad`` is left empty."""
    for leaf in leaves().values():
        leaf.grad = None
    pyro.set_rng_seed(seed)
    loss = elbo.loss_and_grads(model, guide, *args, **kwargs)
    gradients = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves().items()
    }
    for leaf in leaves().values():
        leaf.grad = None
    return loss, gradients


def gradients_of(value: Tensor) -> dict[str, Tensor]:
    """Gradient of a formula with respect to everything in the param store."""
    named = leaves()
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(named.items(), found, strict=True)
    }


def assert_close(actual: float | Tensor, expected: float | Tensor, tolerance: float, what: str):
    """Agreement relative to ``max(1, |expected|)``."""
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    expected = torch.as_tensor(expected, dtype=torch.float64).detach()
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    if expected.numel() == 0:
        return
    error = ((actual - expected).abs() / expected.abs().clamp(min=1.0)).max().item()
    assert error <= tolerance, f"{what}: off by {error:.2e}\ngot {actual}\nexpected {expected}"


def assert_exact(model, guide, formula: Callable[[], Tensor], *args, elbo=None, **kwargs) -> None:
    """Loss and gradients are those of ``formula()``, a negative ELBO, and no seed changes a bit."""
    elbo = elbo or SilentELBO()
    loss, gradients = evaluate(elbo, model, guide, *args, seed=1, **kwargs)
    expected = formula()
    assert isinstance(loss, float)
    assert_close(loss, expected, LOSS_TOLERANCE, "loss")
    truth = gradients_of(expected)
    assert gradients.keys() == truth.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in truth.values() if gradient.numel())
    for name in truth:
        assert_close(gradients[name], truth[name], GRADIENT_TOLERANCE, f"gradient of {name}")

    again, gradients_again = evaluate(elbo, model, guide, *args, seed=2, **kwargs)
    assert again == loss, "the loss depends on the seed"
    for name in gradients:
        assert torch.equal(gradients[name], gradients_again[name]), f"{name} depends on the seed"
    assert_entry_points_agree(elbo, model, guide, *args, **kwargs)


def assert_entry_points_agree(elbo, model, guide, *args, seed: int = 3, **kwargs) -> None:
    """``loss``, ``differentiable_loss`` and ``loss_and_grads`` are one number with one gradient.

    The first call does not count: Pyro may guess ``max_plate_nesting`` in it, which draws samples.
    """
    evaluate(elbo, model, guide, *args, **kwargs)
    loss, gradients = evaluate(elbo, model, guide, *args, seed=seed, **kwargs)
    pyro.set_rng_seed(seed)
    assert_close(elbo.loss(model, guide, *args, **kwargs), loss, 1e-12, "loss")
    pyro.set_rng_seed(seed)
    differentiable = elbo.differentiable_loss(model, guide, *args, **kwargs)
    assert_close(differentiable, torch.tensor(loss), 1e-12, "differentiable_loss")
    for name, gradient in gradients_of(differentiable).items():
        assert_close(gradient, gradients[name], 1e-12, f"differentiable gradient of {name}")


def gaussian_model(use: Callable[[Tensor], Any]) -> Callable[[], None]:
    """A model that does something to its latent; a result of the latent's shape is the location."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        result = use(z)
        loc = result if isinstance(result, Tensor) and result.shape == z.shape else z
        pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=torch.zeros(3))

    return model


def gaussian_guide() -> None:
    """A diagonal Gaussian for :func:`gaussian_model`."""
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.full((3,), 0.3)), 0.4).to_event(1))
