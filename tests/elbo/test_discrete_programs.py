"""The oracle of the losses for discrete latents, held against Pyro's own traces."""

from __future__ import annotations

import pytest

from tests.elbo.agreement import assert_close, gradients_of, new_parameters
from tests.elbo.discrete_oracle import (
    exact_loss,
    pyro_loss,
    straight_through_jacobian,
    surrogate_loss,
)
from tests.elbo.discrete_programs import PROGRAMS

QUADRATIC = ("ObservedInPart", "MaskedBySample", "Subsampled")  # in the latents of each site


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_two_ways_of_writing_a_program_agree(name):
    """And the surrogate has the same value; its gradient is exact for quadratic losses only."""
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    plain, pyros = exact_loss(program), pyro_loss(program.model, program.guide)
    assert_close(plain, pyros, 1e-12, "loss")
    truth = gradients_of(pyros)
    for parameter, gradient in gradients_of(plain).items():
        assert gradient.abs().max() > 1e-3, f"nothing depends on {parameter}"
        assert_close(gradient, truth[parameter], 1e-12, f"gradient of {parameter}")
    surrogate = surrogate_loss(program)
    assert_close(surrogate, plain, 1e-12, "loss")
    error = max((g - truth[n]).abs().max().item() for n, g in gradients_of(surrogate).items())
    assert error < 1e-12 if name in QUADRATIC else error > 1e-4


def test_straight_through_is_biased_for_quadratic_losses_too():
    """Its matrix is right for linear ones only: the oracle tells the two apart."""
    program = PROGRAMS["Subsampled"]
    new_parameters(**program.shapes)
    truth = gradients_of(exact_loss(program))
    straight = gradients_of(surrogate_loss(program, straight_through_jacobian))
    assert (straight["logits"] - truth["logits"]).abs().max() > 1e-3
