"""Many regressions with a latent offset each: as many parameters as one likes in a cheap step."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def regressions(
    name: str, num_outcomes: int, num_features: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return model and guide, whose step builds one large tensor only, the gradient of the weights.

    :param name: prefix of the parameters' names.
    """
    x = torch.randn(num_features) / num_features**0.5
    y = torch.randn(num_outcomes)

    def weight() -> Tensor:
        return pyro.param(f"{name}.weight", lambda: torch.randn(num_outcomes, num_features))

    def model() -> None:
        linear = weight() @ x
        with pyro.plate("outcomes", num_outcomes):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(linear + offset, 1.0), obs=y)

    def guide() -> None:
        loc = pyro.param(f"{name}.loc", lambda: torch.zeros(num_outcomes))
        with pyro.plate("outcomes", num_outcomes):
            pyro.sample("offset", dist.Normal(loc, 0.7))

    return model, guide
