"""Programs that are explained: each with its guide, and marks at the lines that explanations point to."""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

COUNT = torch.tensor(3.0)
ONE = torch.tensor(1.0)
WEIGHTS = torch.zeros(3)


def line(mark: str) -> str:
    """``file:line`` of the one line of this file that ends with a comment of this text."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [k for k, text in enumerate(lines, 1) if text.endswith(f"  # {mark}")]
    return f"{__file__}:{number}"


def normal(name: str, loc: float | Tensor, scale: float = 0.4) -> Tensor:
    return pyro.sample(name, dist.Normal(pyro.param(f"{name}_loc", torch.as_tensor(loc)), scale))


def every_method() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    k = pyro.sample("k", dist.Bernoulli(0.3))
    pyro.deterministic("twice", 2 * z)
    pyro.sample("linear", dist.Normal(z, 0.5), obs=ONE)
    pyro.sample("count", dist.Poisson(z.exp()), obs=COUNT)
    pyro.sample("robust", dist.StudentT(3.0, z), obs=ONE)  # robust
    pyro.sample("switched", dist.Normal(z + k, 0.5), obs=ONE)
    pyro.sample("mixed", dist.StudentT(3.0, z + k), obs=ONE)  # mixed
    pyro.sample("waiting", dist.Exponential(rate), obs=ONE)
    pyro.factor("penalty", -z)


def every_method_guide() -> None:
    normal("z", 0.5)
    pyro.sample("rate", dist.Gamma(pyro.param("a", torch.tensor(3.0)), 2.0))  # rate
    pyro.sample("k", dist.Bernoulli(0.6), infer={"enumerate": "parallel"})


def ranked() -> None:
    w = pyro.sample("w", dist.Normal(WEIGHTS, 1.0).to_event(1))
    ordered = torch.sort(w)[0]  # sorted
    pyro.sample("ranks", dist.Normal(ordered, 0.5).to_event(1), obs=WEIGHTS)


def ranked_guide() -> None:
    loc = pyro.param("w_loc", torch.tensor([0.1, 0.2, 0.3]))
    pyro.sample("w", dist.Normal(loc, 0.4).to_event(1))


def unknown_law() -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("count", dist.Poisson(rate), obs=COUNT)
    pyro.sample("linear", dist.Normal(z, 0.5), obs=ONE)
    pyro.sample("both", dist.Normal(z, rate), obs=ONE)


def unknown_law_guide() -> None:
    pyro.sample("rate", dist.Gamma(pyro.param("a", torch.tensor(3.0)), 2.0))  # unknown law
    normal("z", 0.5)


def marked_guide() -> None:
    pyro.sample("rate", dist.LogNormal(0.2, 0.3), infer={"silent": False})  # marked
    normal("z", 0.5)


def leaking() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    v = pyro.sample("v", dist.Normal(0.0, 1.0))
    scale = 1.0 if z > 0 else 2.0  # leak
    pyro.sample("x", dist.Normal(v, scale), obs=ONE)
    pyro.sample("y", dist.Normal(v, 1.0), obs=ONE)


def leaking_guide() -> None:
    normal("z", 0.0, 1.0)
    normal("v", 0.5)


def positive() -> None:
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))  # prior of tau
    pyro.sample("x", dist.Normal(0.0, tau), obs=ONE)


def hierarchy() -> None:
    """A GuideMessenger has to see plain priors when it makes its parameters."""
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    z = pyro.sample("z", dist.Normal(0.0, tau))
    pyro.sample("x", dist.Normal(z, 1.0), obs=ONE)


def leaking_into_a_factor() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", -z if z > 0 else z)  # factor
