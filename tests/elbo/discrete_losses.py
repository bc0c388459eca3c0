"""The losses for discrete latents, and how a run of one is held against plain torch."""

from __future__ import annotations

from typing import Any

import pyro
import pytest

from pyro_silent import (
    ZGR,
    DisARMELBO,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    RelaxedELBO,
    StraightThroughELBO,
)
from tests.elbo.agreement import assert_close, evaluate, gradients_of
from tests.elbo.discrete_oracle import Program, Sampled

LOSSES = {
    "straight_through": lambda **keywords: StraightThroughELBO(ZGR(), **keywords),
    "gumbel_rao": GumbelRaoELBO,
    "relaxed": RelaxedELBO,
    "leave_one_out": LeaveOneOutELBO,
    "disarm": DisARMELBO,
}
SURROGATES = ("straight_through", "gumbel_rao", "relaxed")
each_loss = pytest.mark.parametrize("loss", LOSSES)

# Over so many runs of many particles each, a z-score follows Student's t with 24 degrees of freedom,
# which exceeds ``chance.Z_LIMIT`` with probability 3.4e-6. About 400 numbers are tested this way.
RUNS = 25

# Programs not all of whose latents are the estimator's.
MIXED = ("Scored", "Enumerated")


def many(program: Program, loss: Any, *arguments: Any, particles: int = 100) -> Any:
    """A loss over vectorized particles."""
    return loss(
        *arguments,
        num_particles=particles,
        vectorize_particles=True,
        max_plate_nesting=program.max_plate_nesting,
    )


def check_at_a_seed(program: Program, elbo: Any, estimator: Any) -> None:
    """Loss and gradients are those of a plain run with the same draws."""
    loss, gradients = evaluate(elbo, program.model, program.guide, seed=3)
    pyro.set_rng_seed(3)
    plain = program.plain(Sampled(estimator))
    assert_close(loss, plain, 1e-12, "loss")
    for name, truth in gradients_of(plain).items():
        assert_close(gradients[name], truth, 1e-12, f"gradient of {name}")
