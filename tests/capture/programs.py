"""Programs for captured steps: what Pyro offers, each small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_silent import TwinDecoder
from tests.capture.scenes import DATA, ROWS, coefficients, guide, observe

Programs = Callable[[], tuple[Any, Any]]


def hierarchy() -> None:
    """A mean, a scale, and a latent for each group."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    spread = pyro.sample("spread", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", 3):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
    observe(effect @ ROWS.mT)


def under(autoguide: Callable[..., Any], **settings: Any) -> Programs:
    """The hierarchy under an autoguide."""
    return lambda: (hierarchy, autoguide(hierarchy, **settings))


def subsampled() -> tuple[Any, Any]:
    """Another part of the rows in each step."""
    rows = torch.linspace(-1.0, 2.0, 24).reshape(8, 3)
    data = torch.linspace(-2.0, 1.0, 8).cos()

    def model() -> None:
        z = coefficients()
        with pyro.plate("rows", 8, subsample_size=3) as index:
            pyro.sample("x", dist.Normal(rows[index] @ z, 0.5), obs=data[index])

    return model, guide


def local_subsampled() -> tuple[Any, Any]:
    """A latent for each row, of which a part is met in a step."""
    data = torch.linspace(-2.0, 1.0, 8).cos()

    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
        with pyro.plate("rows", 8, subsample_size=3) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=data[index])

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(8))
        pyro.sample("scale", dist.LogNormal(pyro.param("log_scale", torch.tensor(0.0)), 0.2))
        with pyro.plate("rows", 8, subsample_size=3) as index:
            pyro.sample("z", dist.Normal(loc[index], 0.5))

    return model, guide


def handled() -> tuple[Any, Any]:
    """Scales, masks, factors, partly observed data."""
    mask = torch.tensor([True, False, True, True])

    def model() -> None:
        with poutine.scale(scale=0.7):
            z = coefficients()
        with pyro.plate("rows", 4), poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(ROWS @ z, 0.5), obs=DATA)
        pyro.factor("penalty", -0.1 * z.square().sum())
        pyro.deterministic("sum", z.sum())

    def scaled() -> None:
        with poutine.scale(scale=0.7):
            guide()

    return model, scaled


def partly_observed() -> tuple[Any, Any]:
    """Two of four values are missing."""
    seen = torch.tensor([True, False, True, False])

    def model() -> None:
        z = coefficients()
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(ROWS @ z, 0.5), obs=DATA, obs_mask=seen)

    def guide_of_both() -> None:
        guide()
        with pyro.plate("rows", 4), poutine.mask(mask=~seen):
            loc = pyro.param("missing", torch.zeros(4))
            pyro.sample("x_unobserved", dist.Normal(loc, 0.5))

    return model, guide_of_both


class Encoder(PyroModule):
    """An amortized guide."""

    def __init__(self, law: Callable[[Tensor], dist.Distribution], size: int, *more: Any) -> None:
        super().__init__()
        self.law = law
        self.encoder = nn.Sequential(
            nn.Linear(3, 4, bias=False), *more, nn.Tanh(), nn.Linear(4, size)
        )

    def forward(self, rows: Tensor) -> None:
        """Codes given rows."""
        with pyro.plate("rows", len(rows)):
            pyro.sample("z", self.law(self.encoder(rows)))


class Decoder(PyroModule):
    """Rows given codes."""

    def __init__(self, prior: dist.Distribution, network: nn.Module) -> None:
        super().__init__()
        self.prior, self.decoder = prior, network
        self.scale = PyroParam(torch.tensor(0.5), constraint=constraints.positive)

    def forward(self, rows: Tensor) -> None:
        """Codes from the prior."""
        with pyro.plate("rows", len(rows)):
            z = pyro.sample("z", self.prior)
            mean = self.decoder(z if z.dim() == 2 else z.flatten(-2))
            pyro.sample("x", dist.Normal(mean, self.scale).to_event(1), obs=rows)


def normal(encoded: Tensor) -> dist.Distribution:
    """A Gaussian code."""
    loc, log_scale = encoded.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def bits(encoded: Tensor) -> dist.Distribution:
    """A binary code."""
    return dist.Bernoulli(logits=encoded).to_event(1)


def choices(encoded: Tensor) -> dist.Distribution:
    """A one-hot code."""
    return dist.OneHotCategorical(logits=encoded.unflatten(-1, (2, 3))).to_event(1)


def amortized(
    law: Callable[[Tensor], dist.Distribution], *more: Any, deep: bool = False
) -> Programs:
    """A VAE of rows of three numbers.

    :param more: makers of layers in the encoder.
    :param deep: a decoder that no expectation is known for.
    """
    outputs = {normal: 4, bits: 2, choices: 6}[law]
    inputs = 6 if law is choices else 2

    def programs() -> tuple[Any, Any]:
        linear = nn.Linear(inputs, 3)
        network: nn.Module = linear
        if deep:
            network = nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, 3))
        prior = law(torch.zeros(outputs))
        return Decoder(prior, network), Encoder(law, outputs, *(make() for make in more))

    return programs


def twins() -> tuple[Any, Any]:
    """A linear decoder for laws and a deep one for samples."""
    deep = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    network = TwinDecoder(nn.Linear(2, 3), deep)
    return Decoder(normal(torch.zeros(4)), network), Encoder(normal, 4)


def enumerated() -> tuple[Any, Any]:
    """A mixture whose groups are enumerated."""

    def model() -> None:
        means = pyro.sample("means", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", 4):
            group = pyro.sample("group", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(means[group], 0.5), obs=DATA)

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
        pyro.sample("means", dist.Normal(loc, 0.3).to_event(1))
        logits = pyro.param("logits", torch.zeros(4, 3))
        with pyro.plate("rows", 4):
            law = dist.Categorical(logits=logits)
            pyro.sample("group", law, infer={"enumerate": "parallel"})

    return model, guide


def intractable() -> tuple[Any, Any]:
    """One term has to be sampled."""

    def model() -> None:
        z = coefficients()
        observe(ROWS @ z)
        pyro.sample("y", dist.Normal(z.sin().cumsum(-1).sin().sum(), 1.0), obs=torch.tensor(0.3))

    return model, guide


def nested_plates() -> tuple[Any, Any]:
    """Rows by columns, in vectorized particles too."""
    data = torch.outer(DATA, torch.arange(1.0, 4.0))

    def model() -> None:
        rows, columns = pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1)
        with rows:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with columns:
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with rows, columns:
            pyro.sample("x", dist.Normal(a + b, 0.5), obs=data)

    return model, AutoNormal(model)


def sequential_plates() -> tuple[Any, Any]:
    """A loop over terms."""

    def model() -> None:
        z = coefficients()
        for i in pyro.plate("terms", 4):
            pyro.sample(f"x_{i}", dist.Normal(ROWS[i] @ z, 0.5), obs=DATA[i])

    return model, guide
