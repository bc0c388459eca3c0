"""Mean-field guide sites with two parameters each."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

from tests.elbo.agreement import new_parameters

P = pyro.param


def normal_site(name: str, event_dim: int = 0) -> Tensor:
    """A mean-field guide site with parameters ``<name>_loc`` and ``<name>_log_scale``."""
    fn = dist.Normal(P(f"{name}_loc"), P(f"{name}_log_scale").exp())
    return pyro.sample(name, fn.to_event(event_dim))


def moments(name: str) -> tuple[Tensor, Tensor]:
    """Mean and scale of :func:`normal_site`."""
    return P(f"{name}_loc"), P(f"{name}_log_scale").exp()


def new_normal(**shapes) -> None:
    """Parameters of :func:`normal_site`."""
    for name, shape in shapes.items():
        new_parameters(**{f"{name}_loc": shape, f"{name}_log_scale": shape})
