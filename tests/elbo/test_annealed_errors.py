"""What AnnealedELBO refuses, and that nothing has happened by then."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_silent import (
    AnnealedELBO,
    ConfigurationError,
    Constant,
    Cosine,
    IntractableError,
    LeakError,
    Linear,
    SilentELBO,
    TwinDecoder,
)
from tests.elbo.agreement import leaves
from tests.elbo.annealed_programs import (
    CODE,
    DATA,
    HIDDEN,
    ROWS,
    Program,
    Twins,
    flat,
    mlp,
    observe,
)

P = pyro.param


# Arguments


@pytest.mark.parametrize(
    "schedule",
    [1.5, -0.1, math.nan, math.inf, Constant(2.0), Linear(2.0, 0.0, 10), Cosine(1.0, -0.5, 10)],
    ids=repr,
)
def test_weights_lie_between_zero_and_one(schedule):
    """Seen when the loss is made, also where the schedule would leave the range only later."""
    with pytest.raises(
        ConfigurationError, match=r"^schedule: got .*, expected a number in \[0, 1\]"
    ):
        AnnealedELBO(SilentELBO(), Trace_ELBO(), schedule)


@pytest.mark.parametrize(
    "schedule",
    ["linear", None, [1.0, 0.5], True, Linear, object()],
    ids=lambda schedule: type(schedule).__name__,
)
def test_a_schedule_is_a_number_or_a_callable(schedule):
    with pytest.raises(ConfigurationError, match="^schedule: got .*, expected"):
        AnnealedELBO(SilentELBO(), Trace_ELBO(), schedule)


@pytest.mark.parametrize("weight", [1.01, -1e-3, math.nan, "0.5", None, True, 0.5j], ids=repr)
def test_what_a_callable_returns_is_checked_at_every_step(weight):
    """At the first when the loss is made, later before anything runs."""
    with pytest.raises(ConfigurationError, match=r"^schedule: got the weight .* at step 0"):
        AnnealedELBO(SilentELBO(), Trace_ELBO(), lambda step: weight)
    program = flat("normal")
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), lambda step: weight if step == 1 else 0.5)
    elbo.loss_and_grads(*program.run)
    for entry in ("loss_and_grads", "differentiable_loss", "loss"):
        with Untouched(), pytest.raises(ConfigurationError, match=r"at step 1, expected a number"):
            getattr(elbo, entry)(*program.run)
    assert elbo.num_steps == 1


@pytest.mark.parametrize("weight", [0, 1, 0.5, torch.tensor(0.25), Constant(1)], ids=repr)
def test_numbers_of_any_kind_are_weights(weight):
    schedule = weight if not isinstance(weight, Tensor) else (lambda step: weight)
    assert AnnealedELBO(SilentELBO(), Trace_ELBO(), schedule).weight == float(
        weight(0) if callable(weight) and not isinstance(weight, Tensor) else weight
    )


@pytest.mark.parametrize(
    "keywords", [{"num_steps": -1}, {"num_steps": 0}, {"num_steps": 5, "hold": -1}], ids=str
)
def test_steps_of_schedules_are_counted(keywords):
    with pytest.raises(ConfigurationError, match="^(num_steps|hold): got .*, expected an integer"):
        AnnealedELBO(SilentELBO(), Trace_ELBO(), Linear(1.0, 0.0, **keywords))


@pytest.mark.parametrize("part", ["Trace_ELBO", None, Trace_ELBO, SilentELBO, 0.5], ids=str)
@pytest.mark.parametrize("argument", ["silent", "stochastic"])
def test_parts_are_losses(argument, part):
    parts = {"silent": SilentELBO(), "stochastic": Trace_ELBO(), argument: part}
    example = {"silent": "SilentELBO", "stochastic": "Trace_ELBO"}[argument]
    with pytest.raises(ConfigurationError, match=rf"^{argument}: got .*{example}\(\)"):
        AnnealedELBO(**parts, schedule=0.5)


@pytest.mark.parametrize("argument", ["silent", "stochastic"])
def test_blends_do_not_nest(argument):
    inner = AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5)
    parts = {"silent": SilentELBO(), "stochastic": Trace_ELBO(), argument: inner}
    with pytest.raises(ConfigurationError, match=rf"^{argument}: got .*AnnealedELBO"):
        AnnealedELBO(**parts, schedule=0.5)


def test_one_object_is_not_both_parts():
    loss = Trace_ELBO()
    with pytest.raises(ConfigurationError, match="^stochastic: got the object that silent is"):
        AnnealedELBO(loss, loss, 0.5)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"], ids=repr)
def test_particles_are_counted(value):
    with pytest.raises(ConfigurationError, match="^num_particles: got"):
        AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5, num_particles=value)


@pytest.mark.parametrize("value", [1, "yes", None], ids=repr)
def test_a_warm_up_is_asked_for_or_not(value):
    with pytest.raises(ConfigurationError, match="^silent_warm_up: got .*, expected True or False"):
        AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5, silent_warm_up=value)


@pytest.mark.parametrize("argument", ["silent", "stochastic"])
def test_particles_are_vectorized_once(argument):
    parts = {"silent": SilentELBO(), "stochastic": Trace_ELBO()}
    parts[argument] = Trace_ELBO(num_particles=3, vectorize_particles=True)
    with pytest.raises(ConfigurationError, match=f"^{argument}: got 3 vectorized particles"):
        AnnealedELBO(**parts, schedule=0.5, num_particles=2, vectorize_particles=True)


# Programs: refused before the first update


class Untouched:
    """Parameters, gradients and the random state are after it what they were before."""

    def __enter__(self) -> None:
        self.values = {name: leaf.detach().clone() for name, leaf in leaves().items()}
        self.gradients = {
            name: None if leaf.grad is None else leaf.grad.clone()
            for name, leaf in leaves().items()
        }
        self.random = torch.get_rng_state()

    def __exit__(self, *error: Any) -> None:
        assert torch.equal(torch.get_rng_state(), self.random), "random numbers were drawn"
        assert leaves().keys() == self.values.keys(), "the param store has other parameters"
        for name, leaf in leaves().items():
            assert torch.equal(leaf, self.values[name]), name
            before = self.gradients[name]
            assert (leaf.grad is None) == (before is None), f"{name} has got a gradient"
            assert before is None or torch.equal(leaf.grad, before), name


def with_decoders(analytic: nn.Module, expressive: nn.Module) -> Program:
    """A Gaussian code and a pair of decoders."""
    twins, data = Twins(analytic, expressive), torch.randn(ROWS, DATA)

    def model(branch: str, x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            observe(twins(branch, "decoder", z), x)

    def guide(branch: str, x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            loc = P("loc", torch.full((ROWS, CODE), 0.3))
            pyro.sample("z", dist.Normal(loc, P("width", torch.tensor(0.4))).to_event(1))

    return Program(model, guide, data, twins)


def steps(program: Program, elbo: AnnealedELBO) -> list:
    """The ways to a first update."""
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), loss=elbo)
    return [
        lambda: elbo.loss_and_grads(*program.run),
        lambda: elbo.differentiable_loss(*program.run),
        lambda: svi.step(*program.run[2:]),
    ]


@pytest.mark.parametrize("warm_up", [False, True])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_an_analytic_branch_that_is_not_integrable(weight, warm_up):
    """The error names the site and says what to write."""
    deep = nn.Sequential(mlp(CODE, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, DATA))
    program = with_decoders(deep, mlp(CODE, DATA))
    Trace_ELBO().loss_and_grads(*program.run)  # parameters, and gradients of other origin
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), weight, silent_warm_up=warm_up)
    for step in steps(program, elbo):
        with Untouched():
            with pytest.raises(IntractableError) as caught:
                step()
            text = str(caught.value)
            assert "site 'x'" in text and caught.value.site == "x"
            assert "silent part of AnnealedELBO" in text
            assert "nn.Linear" in text and "TwinDecoder" in text
            assert caught.value.latents == ("z",)
    assert elbo.num_steps == 0


def test_a_guide_without_known_moments():
    """The guide's site is named, with what to write."""
    twins, data = Twins(nn.Linear(CODE, DATA), mlp(CODE, DATA)), torch.randn(ROWS, DATA)

    def model(branch: str, x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Gamma(torch.ones(CODE), 1.0).to_event(1))
            observe(twins(branch, "decoder", z), x)

    def guide(branch: str, x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            rate = P("rate", torch.ones(CODE), constraint=dist.constraints.positive)
            pyro.sample("z", dist.Gamma(2.0, rate).to_event(1))

    program = Program(model, guide, data, twins)
    Trace_ELBO().loss(*program.run)
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5)
    with Untouched(), pytest.raises(IntractableError, match="'z'.*silent"):
        elbo.loss_and_grads(*program.run)


def test_a_guide_whose_control_flow_needs_a_value():
    """Only a silent part that may sample can be run."""
    program = with_decoders(nn.Linear(CODE, DATA), mlp(CODE, DATA))

    def guide(branch: str, x: Tensor) -> None:
        switch = pyro.sample("switch", dist.Normal(P("switch_loc", torch.tensor(0.3)), 1.0))
        P("extra", torch.zeros(()))
        if switch > 0:
            program.guide(branch, x)
        else:
            program.guide(branch, x)

    def model(branch: str, x: Tensor) -> None:
        pyro.sample("switch", dist.Normal(0.0, 1.0))
        program.model(branch, x)

    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5)
    Trace_ELBO().loss(model, guide, *program.run[2:])
    with Untouched(), pytest.raises(LeakError, match="switch"):
        elbo.loss_and_grads(model, guide, *program.run[2:])


@pytest.mark.parametrize(
    "shapes", [(DATA, 1), (1, DATA), (DATA, DATA + 1)], ids=lambda shapes: f"{shapes}"
)
@pytest.mark.parametrize("validate", [True, False])
def test_twins_of_different_shapes(shapes, validate):
    """Both shapes are named, where Pyro would broadcast one of them as well."""
    analytic, expressive = shapes
    program = with_decoders(nn.Linear(CODE, analytic), mlp(CODE, expressive))
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5)
    for name, module in program.twins.branches.items():
        if name == "twin":
            pyro.module("decoder", module)
    P("loc", torch.full((ROWS, CODE), 0.3))
    P("width", torch.tensor(0.4))
    with pyro.validation_enabled(validate):
        for step in steps(program, elbo):
            with Untouched(), pytest.raises((ConfigurationError, ValueError)) as caught:
                step()
            assert isinstance(caught.value, ConfigurationError)
            text = str(caught.value)
            assert f"analytic returned ({ROWS}, {analytic})" in text
            assert f"expressive returned ({ROWS}, {expressive})" in text
    assert elbo.num_steps == 0


def test_a_mean_field_loss_for_discrete_codes_is_refused_as_by_pyro():
    """Errors of a part come through as they are."""
    program = flat("bernoulli")
    Trace_ELBO().loss(*program.run)
    elbo = AnnealedELBO(SilentELBO(), TraceMeanField_ELBO(), 0.5)
    with pytest.raises(NotImplementedError, match="fully reparam"):
        TraceMeanField_ELBO().loss_and_grads(*program.run)
    with pytest.raises(NotImplementedError, match="fully reparam"):
        elbo.loss_and_grads(*program.run)
    assert elbo.num_steps == 0
    assert all(leaf.grad is None for leaf in leaves().values())


def test_a_warm_up_refuses_twins_of_different_shapes_when_the_second_one_runs():
    """Nothing is known of the expressive one before."""
    program = with_decoders(nn.Linear(CODE, DATA), mlp(CODE, 1))
    schedule = Linear(1.0, 0.0, num_steps=2, hold=1)
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), schedule, silent_warm_up=True)
    elbo.loss_and_grads(*program.run)
    elbo.loss_and_grads(*program.run)
    with pytest.raises(ConfigurationError, match="expressive returned"):
        elbo.loss_and_grads(*program.run)
    assert elbo.num_steps == 2


def test_a_module_is_needed_for_a_twin():
    with pytest.raises(ConfigurationError, match="^analytic: got .*expected a torch.nn.Module"):
        TwinDecoder(lambda z: z, nn.Linear(2, 2))
