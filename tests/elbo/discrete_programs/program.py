"""How a program is written and where it is listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.elbo.discrete_oracle import (
    Program,
)

P = pyro.param
PROGRAMS: dict[str, Program] = {}
THREE = torch.tensor([0.4, -0.7, 1.1], dtype=torch.float64)
GRID = torch.tensor([[0.3, -0.4], [0.9, 0.2]], dtype=torch.float64)


def program(plates: int = 0, **shapes: Any) -> Callable[[type], Program]:
    """Register a class of three functions, ``model``, ``guide`` and ``plain``."""

    def register(cls: type) -> Program:
        entry = Program(cls.__name__, cls.model, cls.guide, cls.plain, plates, shapes)
        PROGRAMS[entry.name] = entry
        return entry

    return register


def logit(p: float) -> Tensor:
    return torch.logit(torch.tensor(p, dtype=torch.float64))


def observe(name: str, loc: Tensor, value: Tensor | float, scale: float = 0.7) -> None:
    pyro.sample(name, dist.Normal(loc, scale), obs=torch.as_tensor(value))
