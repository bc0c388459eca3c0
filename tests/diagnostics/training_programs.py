"""Programs that are trained, and losses that tell what they see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from pyro_silent import TrainingComparison, TwinDecoder, train_and_compare

X = torch.tensor([1.2, 0.7, 1.9, -0.3], dtype=torch.float64)


def adam(rate: float = 0.05) -> Any:
    return pyro.optim.Adam({"lr": rate})


def model(x: Tensor) -> None:
    """z ~ N(0, 1), each x ~ N(z, 1)."""
    z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    with pyro.plate("data", len(X), subsample_size=len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", lambda: torch.randn((), dtype=torch.float64))
    scale = pyro.param(
        "scale", lambda: torch.tensor(0.9, dtype=torch.float64), constraint=constraints.positive
    )
    pyro.sample("z", dist.Normal(loc, scale))


def log_evidence(x: Tensor) -> float:
    """Of the model: x is jointly normal with covariance I + 1 1^T."""
    covariance = torch.eye(len(x)).double() + 1
    return (
        torch.distributions.MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x).item()
    )


def shuffled(x: Tensor = X, batch_size: int = 1) -> DataLoader:
    return DataLoader(TensorDataset(x), batch_size=batch_size, shuffle=True)


class Watcher:
    """Losses that write down the batches they get and the parameters they begin with."""

    def __init__(self) -> None:
        self.batches: dict[str, list[list[float]]] = {}
        self.starts: dict[str, list[dict[str, Tensor]]] = {}

    def loss(self, name: str, particles: int = 1, tensors: Callable | None = None) -> Callable:
        elbo = Trace_ELBO(num_particles=particles)
        self.batches[name], self.starts[name] = [], []

        def loss(model: Callable, guide: Callable, *args: Tensor) -> Tensor:
            if not self.batches[name]:
                named = pyro.get_param_store().named_parameters() if tensors is None else tensors()
                self.starts[name].append({key: t.detach().clone() for key, t in named})
            self.batches[name].append([part for x in args for part in x.flatten().tolist()])
            return elbo.differentiable_loss(model, guide, *args)

        return loss


def untimed(comparison: TrainingComparison) -> list[dict[str, Any]]:
    """The curves but for the seconds."""
    return [
        {key: value for key, value in point.items() if key != "seconds"}
        for point in comparison.curves
    ]


def train(losses: dict[str, Any], data: Any = None, **options: Any) -> TrainingComparison:
    """A small run of the conjugate model."""
    options = {"num_steps": 6, "evaluate_every": 3, "held_out": [X], "progress": False, **options}
    return train_and_compare(model, guide, losses, adam(), data or [X], **options)


class TwinVAE(nn.Module):
    """A decoder for laws and one for samples, with batch norm and dropout in the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)
        deep = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 3))
        self.decoder = TwinDecoder(nn.Linear(2, 3), deep)

    def model(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.3).to_event(1))
