"""The programs whose steps are timed: regressions, a hierarchy and VAEs, with their data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide, AutoNormal
from torch import Tensor

from harness.by_hand import (
    eight_schools_loss,
    line_loss,
    logistic_loss,
    poisson_loss,
)
from harness.examples import count_regression, data, eight_schools, logistic_regression
from harness.models import VAE, Sizes, minibatches

Program = Callable[..., Any]
Batches = Iterator[tuple[Tensor, ...]]
ClosedForm = Callable[..., Tensor]


class Case(NamedTuple):
    """A model with its guide and data.

    :ivar name: as in the tables.
    :ivar programs: from a prefix of the parameters' names to a fresh model and guide.
    :ivar batches: the arguments of step after step, without end.
    :ivar closed_form: the loss by hand, of locations, scales and data (regressions under AutoNormal).
    """

    name: str
    programs: Callable[[str], tuple[Program, Program]]
    batches: Callable[[], Batches]
    closed_form: ClosedForm | None = None


def line(covariate: Tensor, response: Tensor) -> None:
    """A line with Gaussian errors of unknown scale."""
    coefficient = pyro.sample("coefficient", dist.Normal(0.0, 1.0))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(response)):
        pyro.sample("response", dist.Normal(bias + coefficient * covariate, scale), obs=response)


def line_data(num_rows: int) -> tuple[Tensor, Tensor]:
    """Return made-up data of a line."""
    covariate = torch.randn(num_rows)
    return covariate, 0.5 * covariate - 1.0 + 0.3 * torch.randn(num_rows)


def named_auto_normal(model: Program, name: str) -> AutoGuide:
    """Return an ``AutoNormal`` whose parameters bear a name of their own."""
    guide = AutoNormal(model)
    guide._pyro_name = name
    return guide


def regression(name: str, model: Program, args: tuple[Tensor, ...], by_hand: ClosedForm) -> Case:
    """Return a case under ``AutoNormal``, with the same data at every step."""
    return Case(
        name,
        lambda prefix: (model, named_auto_normal(model, prefix)),
        lambda: itertools.repeat(args),
        by_hand,
    )


def schools() -> Case:
    """Eight schools, non-centered."""
    effects, standard_errors = data.load_eight_schools()
    args = (standard_errors, effects)
    return regression("eight schools", eight_schools.non_centered, args, eight_schools_loss)


def lines(num_rows: int = 1000) -> Case:
    """The regression of torch's and Pyro's tutorials: a line, a bias and a scale."""
    return regression("regression", line, line_data(num_rows), line_loss)


def tumours() -> Case:
    """Logistic regression on 569 rows of 30 covariates."""
    table = data.load_breast_cancer()
    args = (table.covariates, table.response)
    return regression("logistic regression", logistic_regression.model, args, logistic_loss)


def doctor_visits(every: int = 1) -> Case:
    """Poisson regression with group effects, on each so-many-th of 20,190 rows."""
    table = data.load_doctor_visits()
    args = (table.covariates[::every], table.groups[::every], table.counts[::every])
    return regression("Poisson hierarchy", count_regression.poisson, args, poisson_loss)


def vae(name: str, sizes: Sizes, batch_size: int, convolutional: bool = False) -> Case:
    """Return a VAE on minibatches of made-up data, a fresh one at every step."""
    decoder = "conv-transpose" if convolutional else "linear"

    def programs(prefix: str) -> tuple[Program, Program]:
        module = VAE(prefix, sizes, decoder, conv_encoder=convolutional)
        return module.model, module.guide

    def batches() -> Batches:
        return ((x,) for x in minibatches(batch_size, sizes.data_dim))

    return Case(name, programs, batches)


SMALL, LARGE, CONVOLUTIONAL = "VAE, 64-32-8", "VAE, 784-200-200", "VAE, convolutional"


def cases(tiny: bool = False) -> list[Case]:
    """Return every case of the table, or all of them at sizes for a smoke test."""
    large = Sizes(40, 20, 10) if tiny else Sizes()
    images = Sizes(64, 16, 4) if tiny else Sizes(784, 200, 32)
    batch_size = 10 if tiny else 200
    return [
        schools(),
        lines(50 if tiny else 1000),
        tumours(),
        doctor_visits(100 if tiny else 1),
        vae(SMALL, Sizes(64, 32, 8), 10 if tiny else 100),
        vae(LARGE, large, batch_size),
        vae(CONVOLUTIONAL, images, batch_size, convolutional=True),
    ]
