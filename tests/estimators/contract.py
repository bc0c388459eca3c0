"""Every estimator at a few settings, as rows of the contract suite."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import pyro_silent
from pyro_silent import Estimator

ONE_HOT_AND_BERNOULLI = [
    pyro_silent.StraightThrough(),
    pyro_silent.StraightThrough(0.5),
    pyro_silent.StraightThroughGumbelSoftmax(),
    pyro_silent.StraightThroughGumbelSoftmax(0.1),
    pyro_silent.GumbelRao(1.0, 1),
    pyro_silent.GumbelRao(0.5, 10),
    pyro_silent.ZGR(),
    pyro_silent.ReinMax(),
    pyro_silent.ReinMax(2.0),
    pyro_silent.GappedStraightThrough(),
    pyro_silent.GappedStraightThrough(0.5, gap=0.0),
    pyro_silent.GumbelSoftmax(),
    pyro_silent.GumbelSoftmax(0.1),
]
BERNOULLI_ONLY = [pyro_silent.GumbelRao(0.1, None)]


class Case(NamedTuple):
    estimator: Estimator
    method: str

    def __call__(self, logits: Tensor, **kwargs) -> Tensor:
        return getattr(self.estimator, self.method)(logits, **kwargs)

    @property
    def soft(self) -> bool:
        return isinstance(self.estimator, pyro_silent.GumbelSoftmax)

    @property
    def categorical(self) -> bool:
        return self.method == "one_hot"

    def run(self, logits: Tensor, gradient: Tensor, seed: int = 0, **kwargs) -> tuple:
        """Value and surrogate gradient at a seed."""
        torch.manual_seed(seed)
        logits = logits.detach().requires_grad_()
        value = self(logits, **kwargs)
        (result,) = torch.autograd.grad(value, logits, gradient)
        return value.detach(), result

    def with_temperature(self, temperature) -> Case:
        names = inspect.signature(type(self.estimator)).parameters
        kept = {name: getattr(self.estimator, name) for name in names}
        return Case(type(self.estimator)(**{**kept, "temperature": temperature}), self.method)


def _id(case: Case) -> str:
    return f"{case.estimator!r}.{case.method}"


CASES = [Case(e, "one_hot") for e in ONE_HOT_AND_BERNOULLI] + [
    Case(e, "bernoulli") for e in [*ONE_HOT_AND_BERNOULLI, *BERNOULLI_ONLY]
]
over_all = pytest.mark.parametrize("case", CASES, ids=_id)
over_one_hot = pytest.mark.parametrize("case", [c for c in CASES if c.categorical], ids=_id)
over_schedulable = pytest.mark.parametrize(
    "case",
    [c for c in CASES if "temperature" in inspect.signature(type(c.estimator)).parameters],
    ids=_id,
)
