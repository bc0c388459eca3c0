"""The models whose losses are compared: a regression, and a binary code with two decoders."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import (
    ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from count_regression import poisson
from data import load_digits, load_doctor_visits
from pyro_silent import (
    ZGR,
    AnnealedELBO,
    Constant,
    DisARMELBO,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    ReinMax,
    RelaxedELBO,
    SilentELBO,
    StraightThrough,
    StraightThroughELBO,
    StraightThroughGumbelSoftmax,
)

Loss: TypeAlias = ELBO | Callable[..., Tensor]

NOISE_SCALE = 0.3
NUM_HIDDEN = 100
NUM_PARTICLES = 10
TEMPERATURES = (1.0, 0.5)


class Problem(NamedTuple):
    """A model and a guide with what they are called with, and the losses.

    :ivar title: what the pages call it.
    :ivar batch: the arguments at which losses are compared.
    :ivar batches: the arguments of each training step between two comparisons.
    :ivar reference: name of the exact loss, or None where ``compare`` finds it.
    :ivar exact: names of the losses without noise.
    :ivar unbiased: names of those that draw and whose mean gradient is the ELBO's.
    :ivar biased: names of those whose bias must be seen at the first parameters.
    """

    title: str
    model: Callable[..., None]
    guide: Callable[..., None]
    batch: tuple[Tensor, ...]
    batches: Callable[[int], tuple[Tensor, ...]]
    learning_rate: float
    losses: dict[str, Loss]
    reference: str | None
    exact: tuple[str, ...]
    unbiased: tuple[str, ...]
    biased: tuple[str, ...]


def regression(every: int) -> Problem:
    """Visits to a doctor: Poisson with group effects under Pyro's AutoNormal.

    :param every: rows of the data from one that is used to the next.
    """
    table = load_doctor_visits()
    batch = (table.covariates[::every], table.groups[::every], table.counts[::every])
    particles = {
        "num_particles": NUM_PARTICLES,
        "vectorize_particles": True,
        "max_plate_nesting": 1,
    }
    return Problem(
        title=f"Poisson regression, {len(batch[0])} person-years, AutoNormal",
        model=poisson,
        guide=AutoNormal(poisson),
        batch=batch,
        batches=lambda step: batch,
        learning_rate=0.03,
        losses={
            "SilentELBO": SilentELBO(),
            "Trace_ELBO": Trace_ELBO(),
            "Trace_ELBO, 10 particles": Trace_ELBO(**particles),
            "TraceMeanField_ELBO": TraceMeanField_ELBO(),
            "TraceGraph_ELBO": TraceGraph_ELBO(),
            "RenyiELBO, 10 particles": RenyiELBO(alpha=0.0, **particles),
            "ReweightedWakeSleep, 10 particles": ReweightedWakeSleep(**particles),
            "AnnealedELBO, half-way": AnnealedELBO(SilentELBO(), Trace_ELBO(), Constant(0.5)),
        },
        reference=None,
        exact=("SilentELBO",),
        unbiased=(
            "Trace_ELBO",
            "Trace_ELBO, 10 particles",
            "TraceGraph_ELBO",
            "AnnealedELBO, half-way",
        ),
        biased=("RenyiELBO, 10 particles", "ReweightedWakeSleep, 10 particles"),
    )


class BinaryVAE(nn.Module):
    """Grey digits from a few bits, each a sample site of its own, so that Pyro can enumerate them.

    :param deep: a decoder with a hidden layer, for which no expectation but enumeration is known.
    """

    def __init__(self, num_bits: int, mean_digit: Tensor, deep: bool) -> None:
        super().__init__()
        self.num_bits = num_bits
        self.encoder = nn.Sequential(
            nn.Linear(len(mean_digit), NUM_HIDDEN), nn.Tanh(), nn.Linear(NUM_HIDDEN, num_bits)
        )
        last = nn.Linear(NUM_HIDDEN if deep else num_bits, len(mean_digit))
        with torch.no_grad():
            last.bias.copy_(mean_digit)
        self.code = nn.Linear(num_bits, NUM_HIDDEN) if deep else last
        self.hidden = nn.Sequential(nn.Tanh(), last) if deep else nn.Sequential()

    def model(self, digits: Tensor) -> None:
        """Bits from a fair coin, a digit given the bits."""
        pyro.module("vae", self)
        with pyro.plate("digits", len(digits)):
            inputs = self.code.bias
            for k, weight in enumerate(self.code.weight.T):
                bit = pyro.sample(f"bit_{k}", dist.Bernoulli(0.5))
                inputs = inputs + bit.unsqueeze(-1) * weight
            pixels = dist.Normal(self.hidden(inputs), NOISE_SCALE).to_event(1)
            pyro.sample("digit", pixels, obs=digits)

    def guide(self, digits: Tensor) -> None:
        """Bits given a digit."""
        pyro.module("vae", self)
        logits = self.encoder(digits)
        with pyro.plate("digits", len(digits)):
            for k in range(self.num_bits):
                # the running mean is for TraceGraph_ELBO; other losses do not read it
                infer = {"baseline": {"use_decaying_avg_baseline": True}}
                pyro.sample(f"bit_{k}", dist.Bernoulli(logits=logits[:, k]), infer=infer)


def enumerated(loss: ELBO) -> Callable[..., Tensor]:
    """The loss with all values of the guide's bits side by side, as a function for ``SVI``."""

    def differentiable_loss(
        model: Callable[..., None], guide: Callable[..., None], digits: Tensor
    ) -> Tensor:
        value: Tensor = loss.differentiable_loss(model, config_enumerate(guide), digits)
        return value

    return differentiable_loss


@functools.cache
def digits_of(data_dir: str | None) -> tuple[Tensor, Tensor]:
    """Training and test digits, read once."""
    return load_digits(data_dir)


def binary_losses_by_kind(deep: bool) -> dict[str, dict[str, Loss]]:
    """The losses for bits: exact, unbiased, and the others.

    :param deep: whether the exact ones have to enumerate.
    """
    silent = SilentELBO()
    others: dict[str, Loss] = {"ST": StraightThroughELBO(StraightThrough())}
    for tau in TEMPERATURES:
        estimator = StraightThroughGumbelSoftmax(tau)
        others[f"ST-GS, tau {tau:g}"] = StraightThroughELBO(estimator)
        others[f"GumbelRaoELBO, tau {tau:g}"] = GumbelRaoELBO(tau)
    return {
        "exact": {
            "SilentELBO": enumerated(silent) if deep else silent,
            "TraceEnum_ELBO": enumerated(TraceEnum_ELBO(max_plate_nesting=1)),
        },
        "unbiased": {
            "Trace_ELBO": Trace_ELBO(),
            "TraceGraph_ELBO, baselines": TraceGraph_ELBO(),
            "LeaveOneOutELBO": LeaveOneOutELBO(),
            "DisARMELBO": DisARMELBO(),
        },
        "others": {
            **others,
            "ZGR": StraightThroughELBO(ZGR()),
            "ReinMax, tau 1.1": StraightThroughELBO(ReinMax(1.1)),
            "RelaxedELBO, tau 0.5": RelaxedELBO(0.5),
        },
    }


def binary_losses(deep: bool) -> dict[str, Loss]:
    """All of them by name."""
    kinds = binary_losses_by_kind(deep)
    return {name: loss for losses in kinds.values() for name, loss in losses.items()}


def binary_code(num_bits: int, num_digits: int, deep: bool, data_dir: str | None) -> Problem:
    """A VAE with a binary code.

    :param num_digits: in the minibatch where losses are compared, and in those of training.
    :param deep: with a hidden layer in the decoder.
    :param data_dir: a folder with IDX files, or None for the packaged digits.
    """
    train, _ = digits_of(data_dir)
    vae = BinaryVAE(num_bits, train.mean(0), deep)
    # the same for each problem and each random state
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    minibatches = train[order].split(num_digits)
    names = {kind: tuple(losses) for kind, losses in binary_losses_by_kind(deep).items()}
    # ZGR is unbiased where the ELBO is quadratic in the bits
    unbiased = names["unbiased"] if deep else (*names["unbiased"], "ZGR")
    decoder = "one hidden layer" if deep else "linear"
    return Problem(
        title=f"VAE with {num_bits} bits, decoder {decoder}, {num_digits} digits",
        model=vae.model,
        guide=vae.guide,
        batch=(minibatches[0],),
        batches=lambda step: (minibatches[step % len(minibatches)],),
        learning_rate=1e-3,
        losses=binary_losses(deep),
        # the deep decoder has an exact loss only where the guide is told to enumerate
        reference="SilentELBO" if deep else None,
        exact=names["exact"],
        unbiased=unbiased,
        biased=("GumbelRaoELBO, tau 1", "ST-GS, tau 1", "RelaxedELBO, tau 0.5"),
    )


def problems(args: argparse.Namespace) -> dict[str, Callable[[], Problem]]:
    """What makes each problem, by the name it has on the command line."""
    return {
        "regression": lambda: regression(args.every),
        "linear": lambda: binary_code(args.bits, args.digits, False, args.data),
        "deep": lambda: binary_code(args.bits, args.digits, True, args.data),
    }
