"""Steps of the discrete VAE with the peers made for discrete variables: relaxit and reinmax."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pyro
from pyro.infer import Trace_ELBO
from torch import Tensor

from harness.discrete_models import DiscreteSizes, DiscreteVAE, not_validated
from harness.models import svi_step


def _relaxit() -> Any:
    return importlib.import_module("relaxit.distributions")


class RelaxitVAE(DiscreteVAE):
    """The discrete VAE whose guide draws from the straight-through Gumbel-softmax of ``relaxit``."""

    def __init__(self, name: str, sizes: DiscreteSizes, temperature: float) -> None:
        super().__init__(name, sizes)
        self.temperature = temperature
        self.family = _relaxit().DecoupledStraightThroughGumbelSoftmax

    def guide(self, x: Tensor) -> None:
        """Draw the code given the data."""
        pyro.module(f"{self.name}.encoder", self.encoder)
        with pyro.plate("data", len(x)):
            law = self.family(self.temperature, self.temperature, logits=self.logits(x))
            pyro.sample("code", law.to_event(1))


def relaxit_step(vae: RelaxitVAE) -> Callable[[Tensor], float]:
    """Return a step of Pyro's ``SVI`` under ``Trace_ELBO``, as relaxit's laws are used.

    Not validated: a code that carries rounding of the soft one fails the check of its support.
    """
    return not_validated(svi_step(vae, Trace_ELBO()))


def relaxit_binary_sample() -> Callable[[Tensor], Tensor]:
    """Return relaxit's straight-through Bernoulli, from logits to a hard code.

    It cannot be expanded, so it does not work in a plate of Pyro.
    """
    family = _relaxit().StraightThroughBernoulli
    return lambda logits: family(logits=logits).rsample()


def reinmax_sample(temperature: float) -> Callable[[Tensor], Tensor]:
    """Return ReinMax of the package ``reinmax``, from logits to a hard code."""
    reinmax: Any = importlib.import_module("reinmax").reinmax
    return lambda logits: reinmax(logits, temperature)[0]
