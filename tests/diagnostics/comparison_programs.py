"""Programs whose gradients have known laws, and losses that are wrong by a known amount."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_silent import Comparison, compare
from pyro_silent.diagnostics import cost

REPLICAS = 200


def replicated(size: int) -> tuple[Callable, Callable]:
    """As many independent Gaussian programs as :data:`REPLICAS`, each with its parameter [size].

    A reparameterized gradient of -ELBO is 2 loc - x + e with e standard normal: its variance is 1 in
    each of ``size`` dims, and a group of :func:`compare` is one repetition of an experiment.
    """
    data = torch.linspace(-1.0, 1.0, REPLICAS * size).reshape(REPLICAS, size).double()

    def model() -> None:
        with pyro.plate("replicas", REPLICAS):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(data), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data)

    def guide() -> None:
        loc = stacked("loc", size)
        with pyro.plate("replicas", REPLICAS):
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    return model, guide


def replicated_bits(size: int = 3) -> tuple[Callable, Callable]:
    """The same with ``size`` bits each, under the score function: skewed, dependent gradients."""
    data = torch.linspace(0.0, 3.0, REPLICAS).double()

    def model() -> None:
        with pyro.plate("replicas", REPLICAS):
            b = pyro.sample(
                "b", dist.Bernoulli(torch.full((REPLICAS, size), 0.4).double()).to_event(1)
            )
            pyro.sample("x", dist.Normal(b.sum(-1), 1.0), obs=data)

    def guide() -> None:
        logits = stacked("logits", size)
        with pyro.plate("replicas", REPLICAS):
            pyro.sample("b", dist.Bernoulli(logits=logits).to_event(1))

    return model, guide


def stacked(name: str, size: int) -> Tensor:
    """A parameter of its own for each replica."""
    start = torch.full((size,), 0.3, dtype=torch.float64)
    return torch.stack([pyro.param(f"{name}_{k}", start.clone()) for k in range(REPLICAS)])


def shifted(shift: float | Tensor | dict[str, Tensor], elbo: Any = None) -> Callable:
    """A loss whose gradient is off by a constant: of each element, or of each parameter by name."""
    elbo = elbo or Trace_ELBO()

    def loss(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        value = elbo.differentiable_loss(model, guide, *args, **kwargs)
        for name, leaf in pyro.get_param_store().named_parameters():
            vector = shift.get(name, 0.0) if isinstance(shift, dict) else shift
            value = value + (leaf * vector).sum()
        return value

    return loss


def measure(
    model: Callable, guide: Callable, elbos: dict, *args: Any, **keywords: Any
) -> Comparison:
    """:func:`compare` without torch's profiler."""
    return compare(model, guide, elbos, args, measure_memory=False, **keywords)


def replicas_of(comparison: Comparison, name: str) -> list[dict[str, Any]]:
    """The figures of each replica, which has a parameter of its own."""
    rows = [
        group
        for group in comparison.groups
        if group["name"] == name and group["group"] not in ("guide", "model")
    ]
    assert len(rows) == REPLICAS
    return rows


def no_clock(monkeypatch: Any) -> None:
    """Time each loss as shortly as can be."""
    monkeypatch.setattr(cost, "_ROUND_SECONDS", 0.0)
    monkeypatch.setattr(cost, "_ROUNDS", 2)


class Bit:
    """One bit under the score function, its gradient written out: two values, two probabilities.

    z ~ Bernoulli(0.3), x ~ N(w z, 0.7); q(z = 1) = sigmoid(theta); -ELBO has the value
    log q(z) - log p(z) - log N(x; w z, 0.7) at z, and the gradient value (z - q) at theta.
    """

    theta, w, x, scale, prior = 1.0, 2.0, 1.5, 0.7, 0.3

    def model(self) -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(self.prior, dtype=torch.float64)))
        w = pyro.param("w", torch.tensor(self.w, dtype=torch.float64))
        pyro.sample(
            "x", dist.Normal(w * z, self.scale), obs=torch.tensor(self.x, dtype=torch.float64)
        )

    def guide(self) -> None:
        theta = pyro.param("theta", torch.tensor(self.theta, dtype=torch.float64))
        pyro.sample("z", dist.Bernoulli(logits=theta))

    @property
    def q(self) -> float:
        return 1 / (1 + math.exp(-self.theta))

    def probabilities(self) -> Tensor:
        return torch.tensor([1 - self.q, self.q], dtype=torch.float64)

    def losses(self) -> Tensor:
        """-ELBO at z = 0 and 1."""
        prior = torch.tensor([1 - self.prior, self.prior], dtype=torch.float64)
        return self.probabilities().log() - prior.log() - self._log_likelihood()

    def gradients(self) -> Tensor:
        """Of theta and w (columns) at z = 0 and 1 (rows)."""
        z = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return torch.stack([self.losses() * (z - self.q), self._of_w(z)], -1)

    def straight_through(self) -> Tensor:
        """The same of the straight-through estimator with the divergence in closed form."""
        z = torch.tensor([0.0, 1.0], dtype=torch.float64)
        slope = -(self.x - self.w * z) * self.w / self.scale**2
        prior_logit = math.log(self.prior / (1 - self.prior))
        variance = self.q * (1 - self.q)
        return torch.stack([variance * (slope + self.theta - prior_logit), self._of_w(z)], -1)

    def mean(self, values: Tensor) -> Tensor:
        return self.probabilities() @ values

    def _of_w(self, z: Tensor) -> Tensor:
        return -(self.x - self.w * z) * z / self.scale**2

    def _log_likelihood(self) -> Tensor:
        residual = self.x - self.w * torch.tensor([0.0, 1.0], dtype=torch.float64)
        return -0.5 * (residual / self.scale) ** 2 - math.log(self.scale * math.sqrt(2 * math.pi))
