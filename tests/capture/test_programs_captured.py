"""Captured steps of Pyro's kinds of programs, under each kind of loss, are those of SVI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.optim import SGD, AdagradRMSProp, Adam, AdamW, ClippedAdam, ExponentialLR, RMSprop
from torch import nn

from pyro_silent import (
    ZGR,
    AnnealedELBO,
    Constant,
    DisARMELBO,
    Exponential,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    Linear,
    RelaxedELBO,
    SampledSiteWarning,
    SilentELBO,
    StraightThrough,
    StraightThroughELBO,
    StraightThroughGumbelSoftmax,
)
from tests.capture import programs as P
from tests.capture.scenes import DATA, ROWS, guide, regression
from tests.capture.side_by_side import Training, assert_same, captured, compiled, eager, train

STEPS = 20


def rows(step: int) -> tuple:
    """A minibatch of four rows."""
    return ((ROWS + 0.1 * torch.sin(torch.tensor(float(step)))),)


def no_arguments(step: int) -> tuple:
    return ()


DETERMINISTIC: dict[str, Training] = {
    "AutoNormal": Training(P.under(AutoNormal)),
    "AutoDiagonalNormal": Training(P.under(AutoDiagonalNormal)),
    "AutoMultivariateNormal": Training(P.under(AutoMultivariateNormal)),
    "AutoLowRankMultivariateNormal": Training(P.under(AutoLowRankMultivariateNormal, rank=1)),
    "AutoDelta": Training(P.under(AutoDelta)),
    "scales, masks, factors": Training(P.handled),
    "partly observed": Training(P.partly_observed),
    "Gaussian code": Training(P.amortized(P.normal), rows),
    "binary code": Training(P.amortized(P.bits), rows),
    "one-hot code": Training(P.amortized(P.choices), rows),
    "BatchNorm": Training(P.amortized(P.normal, lambda: nn.BatchNorm1d(4, momentum=0.3)), rows),
    "enumerated": Training(P.enumerated, loss=lambda: SilentELBO(max_plate_nesting=1)),
    "nested plates": Training(P.nested_plates),
    "sequential plates": Training(P.sequential_plates),
    "two runs of a deterministic loss": Training(
        P.amortized(P.normal), rows, loss=lambda: SilentELBO(num_particles=2)
    ),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_program(name):
    assert_same(DETERMINISTIC[name], STEPS)


PARTICLES = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
RANDOM: dict[str, Training] = {
    "Trace_ELBO": Training(P.under(AutoNormal), loss=Trace_ELBO),
    "Trace_ELBO, particles": Training(
        P.under(AutoNormal), loss=lambda: Trace_ELBO(num_particles=2)
    ),
    "Trace_ELBO, vectorized": Training(P.under(AutoNormal), loss=lambda: Trace_ELBO(**PARTICLES)),
    "Trace_ELBO, low rank": Training(
        P.under(AutoLowRankMultivariateNormal, rank=1), loss=Trace_ELBO
    ),
    "Trace_ELBO, score function": Training(P.amortized(P.bits, deep=True), rows, loss=Trace_ELBO),
    "TraceMeanField_ELBO": Training(
        P.amortized(P.normal, deep=True), rows, loss=TraceMeanField_ELBO
    ),
    "subsampled": Training(P.subsampled),
    "subsampled local latents": Training(P.local_subsampled),
    "dropout": Training(P.amortized(P.normal, lambda: nn.Dropout(0.3)), rows),
    "GumbelRaoELBO": Training(
        P.amortized(P.choices, deep=True), rows, loss=lambda: GumbelRaoELBO(0.7, num_gumbels=5)
    ),
    "GumbelRaoELBO, exact": Training(
        P.amortized(P.bits, deep=True), rows, loss=lambda: GumbelRaoELBO(0.7, num_gumbels=None)
    ),
    "straight-through": Training(
        P.amortized(P.bits, deep=True), rows, loss=lambda: StraightThroughELBO(StraightThrough())
    ),
    "ST-GS": Training(
        P.amortized(P.choices, deep=True),
        rows,
        loss=lambda: StraightThroughELBO(StraightThroughGumbelSoftmax(0.7)),
    ),
    "ZGR": Training(
        P.amortized(P.choices, deep=True), rows, loss=lambda: StraightThroughELBO(ZGR())
    ),
    "LeaveOneOutELBO": Training(
        P.amortized(P.bits, deep=True), rows, loss=lambda: LeaveOneOutELBO(2)
    ),
    "DisARMELBO": Training(P.amortized(P.bits, deep=True), rows, loss=DisARMELBO),
    "RelaxedELBO": Training(P.amortized(P.choices, deep=True), rows, loss=lambda: RelaxedELBO(0.7)),
    "AnnealedELBO, half-way": Training(
        P.twins, rows, loss=lambda: AnnealedELBO(SilentELBO(), Trace_ELBO(), Constant(0.5))
    ),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_program(name):
    """The same random numbers as eager steps, in the same order, and fresh ones in each step."""
    training = RANDOM[name]
    if training.arguments(1):
        training = training._replace(arguments=lambda step: (ROWS,))
    expected, _ = assert_same(training, STEPS)
    resting = train(eager, training._replace(optim=lambda: Adam({"lr": 1e-9})), 4)
    assert len({str(loss) for loss in resting.losses}) == 4, "nothing is random here"


def test_sampled_term():
    training = Training(P.intractable, loss=lambda: SilentELBO(intractable="sample"))
    with pytest.warns(SampledSiteWarning):
        assert_same(training, STEPS)


@pytest.mark.parametrize("name", ["Trace_ELBO", "subsampled", "dropout"])
def test_seeds_are_followed(name):
    """Setting the seed in the middle repeats the random numbers."""
    training = RANDOM[name]._replace(
        optim=lambda: Adam({"lr": 0.0}),
        arguments=rows if name == "dropout" else no_arguments,
        change=lambda step, svi: pyro.set_rng_seed(step % 3) if step > 5 else None,
    )
    if name == "dropout":
        training = training._replace(arguments=lambda step: (ROWS,))
    _, found = assert_same(training, 18)
    assert found.losses[6:9] == found.losses[9:12] == found.losses[12:15]
    assert len(set(found.losses[6:9])) > 1


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "AdamW": lambda: AdamW({"lr": 0.05, "weight_decay": 0.1}),
    "Adam, amsgrad": lambda: Adam({"lr": 0.05, "amsgrad": True, "weight_decay": 0.1}),
    "Adam, maximize": lambda: Adam({"lr": 0.001, "maximize": True}),
    "ClippedAdam": lambda: ClippedAdam(
        {"lr": 0.05, "lrd": 0.99, "clip_norm": 0.5, "weight_decay": 0.1}
    ),
    "ClippedAdam, centered": lambda: ClippedAdam({"lr": 0.05, "centered_variance": True}),
    "SGD": lambda: SGD({"lr": 0.01}),
    "SGD, momentum": lambda: SGD({"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    "SGD, Nesterov": lambda: SGD({"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "SGD, dampened": lambda: SGD({"lr": 0.01, "momentum": 0.9, "dampening": 0.2}),
    "norms clipped": lambda: Adam({"lr": 0.05}, {"clip_norm": 0.5}),
    "values clipped": lambda: SGD({"lr": 0.05}, {"clip_value": 0.3}),
    "settings by parameter": lambda: Adam(lambda name: {"lr": 0.1 if "loc" in name else 0.01}),
    # beside the graph
    "RMSprop": lambda: RMSprop({"lr": 0.01}),
    "AdagradRMSProp": lambda: AdagradRMSProp({"eta": 0.1}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name):
    assert_same(Training(lambda: (regression, guide), optim=OPTIMIZERS[name]), STEPS)


def test_parameters_without_a_gradient():
    """Optimizers pass them by."""

    def programs() -> tuple:
        unused = nn.Linear(3, 1)

        def model() -> None:
            pyro.module("unused", unused)
            regression()

        return model, guide

    assert_same(Training(programs, optim=lambda: Adam({"lr": 0.05, "weight_decay": 0.1})), STEPS)


def test_annealing():
    """Eager while the weight moves, captured at its ends, the phases of the expensive kind."""
    fade = Linear(1.0, 0.0, num_steps=4, hold=6)
    training = Training(P.twins, rows, lambda: AnnealedELBO(SilentELBO(), Trace_ELBO(), fade))
    _, found = assert_same(training, 20, graphs=None)
    assert found.svi.statistics.graphs == 2
    assert found.svi.statistics.replays >= 9


def test_temperature_schedule():
    """A temperature that rests is a constant, one that moves is not."""
    cooling = Exponential(1.0, 0.5, num_steps=5)
    training = Training(
        P.amortized(P.choices, deep=True),
        rows,
        lambda: StraightThroughELBO(StraightThroughGumbelSoftmax(cooling)),
    )
    _, found = assert_same(training, 16, graphs=None)
    assert found.svi.statistics.replays >= 8


def single(programs: P.Programs) -> P.Programs:
    """The programs with float32 as the default type."""

    def make() -> tuple:
        torch.set_default_dtype(torch.float32)
        return programs()

    return make


def test_single_precision():
    training = Training(single(P.amortized(P.normal)), lambda step: (ROWS.float(),))
    assert_same(training, 100, tolerance=1e-4)


def scalar() -> tuple[Any, Any]:
    """As little as the compiler can be given."""

    def model(data: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=data)

    def guide(data: torch.Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.2))

    return model, guide


@pytest.mark.parametrize(("loss", "make"), [(SilentELBO, single), (Trace_ELBO, lambda p: p)])
def test_compiled(loss, make):
    """In single precision without random numbers, in double precision with them."""
    training = Training(
        make(scalar),
        lambda step: (torch.tensor(0.1 * step),),
        loss,
        lambda: ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
        ),
        change=lambda step, svi: svi.optim.step(),
    )
    assert_same(training, STEPS, tolerance=1e-4 if make is single else 1e-10, make_svi=compiled)


def test_evaluate_loss():
    """It takes no step, and sees the parameters of now."""
    losses: dict[str, list[float]] = {"eager": [], "captured": []}

    def training(name: str) -> Training:
        return Training(
            lambda: (regression, guide),
            lambda step: (DATA + 0.1 * step,),
            change=lambda step, svi: losses[name].append(svi.evaluate_loss(DATA - 0.1 * step)),
        )

    expected = train(eager, training("eager"), 10)
    found = train(captured, training("captured"), 10)
    assert found.losses == pytest.approx(expected.losses, rel=1e-10)
    assert losses["captured"] == pytest.approx(losses["eager"], rel=1e-10)
    assert len(set(losses["captured"])) == 10


def test_loss_as_a_function():
    def loss(model: Any, guide: Any, *args: Any) -> torch.Tensor:
        elbo = SilentELBO()
        return elbo.differentiable_loss(model, guide, *args)

    assert_same(Training(lambda: (regression, guide), loss=lambda: loss), STEPS)


class Pair(SilentELBO):
    """A loss of two numbers, as that of wake-sleep."""

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        first = super().loss_and_grads(model, guide, *args, **kwargs)
        return first, super().loss_and_grads(model, guide, *args, **kwargs)


def test_loss_of_two_numbers():
    expected, found = assert_same(Training(lambda: (regression, guide), loss=Pair), STEPS)
    assert type(found.losses[-1]) is tuple
    assert len(found.losses[-1]) == 2
