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
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    plain, pyros = exact_loss(program), pyro_loss(program.model, program.guide)
    assert_close(plain, pyros, 1e-12, "loss")
    truth = gradients_of(pyros)
    for parameter, gradient in gradients_of(plain).items():
        assert gradient.abs().max() > 1e-3, f"nothing depends on {parameter}"
        assert_close(gradient, truth[parameter], 1e-12, f"gradient of {parameter}")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_surrogate_is_exact_for_quadratic_losses_and_biased_for_others(name):
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    exact, surrogate = exact_loss(program), surrogate_loss(program)
    assert_close(surrogate, exact, 1e-12, "loss")
    truth = gradients_of(exact)
    error = max((g - truth[n]).abs().max().item() for n, g in gradients_of(surrogate).items())
    assert error < 1e-12 if name in QUADRATIC else error > 1e-4
    straight = gradients_of(surrogate_loss(program, straight_through_jacobian))
    assert max((g - truth[n]).abs().max().item() for n, g in straight.items()) > 1e-3
