"""What a blended step runs and how often, and what hooks on parameters see of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

from pyro_silent import (
    AnnealedELBO,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    SilentELBO,
)
from tests.elbo.agreement import assert_close, leaves
from tests.elbo.annealed_programs import (
    CODE,
    DATA,
    ROWS,
    Program,
    Twins,
    assert_gradients,
    bottom_up,
    collect,
    combine,
    flat,
    mlp,
    observe,
    separate,
    tied,
    top_down,
)

WEIGHT = 0.3


class Calls:
    """Counts runs of modules, and gradients that come back to the outputs of the first."""

    def __init__(self, **modules: nn.Module) -> None:
        self.forward = dict.fromkeys(modules, 0)
        self.backward = 0
        self._first = next(iter(modules))
        for name, module in modules.items():
            module.register_forward_hook(
                lambda _, inputs, output, name=name: self._run(name, output)
            )

    def _run(self, name: str, output: Any) -> None:
        self.forward[name] += 1
        if name == self._first:
            output.register_hook(lambda _: self._back())

    def _back(self) -> None:
        self.backward += 1


def counted(program: Program) -> Calls:
    """The calls of a program's encoder and of both branches."""
    branches = {name: program.twins.branches[name] for name in ("analytic", "expressive")}
    return Calls(encoder=program.encoder, **branches)


STOCHASTIC: dict[str, tuple[str, Callable[[], Any], int]] = {
    # family, loss, runs of the expressive branch
    "trace": ("normal", Trace_ELBO, 1),
    "particles": ("normal", lambda: Trace_ELBO(num_particles=3), 3),
    "vectorized": (
        "normal",
        lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        1,
    ),
    "graph": ("bernoulli", lambda: TraceGraph_ELBO(num_particles=2), 2),
    "gumbel_rao": ("bernoulli", lambda: GumbelRaoELBO(num_gumbels=5, num_particles=2), 2),
    "leave_one_out": ("one_hot", lambda: LeaveOneOutELBO(3), 3),
    "leave_one_out_vectorized": (
        "categorical",
        lambda: LeaveOneOutELBO(3, vectorize_particles=True, max_plate_nesting=1),
        1,
    ),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_encoder_runs_once(name):
    """Forward and backward, however many particles the parts have; so does the analytic branch."""
    family, make, runs = STOCHASTIC[name]
    program = flat(family)
    calls = counted(program)
    elbo = AnnealedELBO(SilentELBO(), make(), WEIGHT)
    for step in range(1, 3):
        elbo.loss_and_grads(*program.run)
        assert calls.forward == {"encoder": step, "analytic": step, "expressive": runs * step}
        assert calls.backward == step


def test_the_encoder_runs_once_for_a_sampled_silent_part():
    program = flat("normal")
    calls = counted(program)
    control = AnnealedELBO(Trace_ELBO(num_particles=2), Trace_ELBO(num_particles=3), WEIGHT)
    control.loss_and_grads(*program.run)
    assert calls.forward == {"encoder": 1, "analytic": 2, "expressive": 3}
    assert calls.backward == 1


def test_blended_particles_run_the_encoder_once_each():
    program = flat("normal")
    calls = counted(program)
    AnnealedELBO(SilentELBO(), Trace_ELBO(), WEIGHT, num_particles=4).loss_and_grads(*program.run)
    assert calls.forward == {"encoder": 4, "analytic": 4, "expressive": 4}


def test_vectorized_blended_particles_run_everything_once():
    program = flat("normal")
    calls = counted(program)
    elbo = AnnealedELBO(
        SilentELBO(),
        Trace_ELBO(),
        WEIGHT,
        num_particles=4,
        vectorize_particles=True,
        max_plate_nesting=1,
    )
    elbo.loss_and_grads(*program.run)
    assert calls.forward == {"encoder": 1, "analytic": 1, "expressive": 1}
    assert calls.backward == 1


@pytest.mark.parametrize("warm_up", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("entry", ["loss_and_grads", "differentiable_loss"])
def test_a_part_without_a_say_does_not_run(entry, weight, warm_up):
    program = flat("normal")
    calls = counted(program)
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), weight, silent_warm_up=warm_up)
    getattr(elbo, entry)(*program.run)
    alone = warm_up and weight == 1
    assert calls.forward == {
        "encoder": 1,
        "analytic": int(weight > 0),
        "expressive": int(not alone),
    }


def test_a_chain_runs_what_does_not_depend_on_codes_once():
    """The encoder is not run again for q(z2 | z1, x)."""
    program = bottom_up()
    calls = counted(program)
    AnnealedELBO(SilentELBO(), Trace_ELBO(num_particles=2), WEIGHT).loss_and_grads(*program.run)
    assert (calls.forward["encoder"], calls.backward) == (1, 1)


class Normalized(nn.Module):
    """An encoder whose passes leave traces: batch statistics, and random numbers for its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(DATA, 2 * CODE), nn.BatchNorm1d(2 * CODE), nn.Dropout(0.3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_batch_statistics_and_dropout_of_the_encoder_count_once():
    """Both parts see one mask of the dropout."""
    program = with_encoder(Normalized())
    separate_grads = separate(program, SilentELBO(), Trace_ELBO(), seed=4)
    norm = program.encoder.net[1]
    before = int(norm.num_batches_tracked)
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), WEIGHT)
    _, actual = collect(elbo, *program.run, seed=4)
    assert norm.num_batches_tracked == before + 1
    assert_gradients(actual, combine(WEIGHT, separate_grads[0][1], separate_grads[1][1]))


def with_encoder(encoder: nn.Module, twins: Twins | None = None) -> Program:
    """A Gaussian code from some encoder."""
    twins = twins or Twins(nn.Linear(CODE, DATA), mlp(CODE, DATA))
    data = torch.randn(ROWS, DATA)

    def model(branch: str, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            observe(twins(branch, "decoder", z), x)

    def guide(branch: str, x: Tensor) -> None:
        pyro.module("encoder", encoder)
        loc, scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return Program(model, guide, data, twins, encoder)


@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize("make", [lambda: flat("normal"), tied, top_down])
@pytest.mark.parametrize("weight", [WEIGHT, 1.0])
def test_hooks_on_parameters_see_the_whole_gradient_once(make, particles, weight):
    """As in Pyro's tutorial, where they record gradient norms; also where model and guide share one."""
    program = make()
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(num_particles=particles), weight)
    _, expected = collect(elbo, *program.run, seed=2)
    seen: dict[str, list[Tensor]] = {name: [] for name in leaves()}
    after = dict.fromkeys(leaves(), 0)

    def count(name: str) -> None:
        after[name] += 1

    for name, leaf in leaves().items():
        leaf.register_hook(lambda g, name=name: seen[name].append(g.clone()))
        leaf.register_post_accumulate_grad_hook(lambda _, name=name: count(name))
    collect(elbo, *program.run, seed=2)
    for name, found in seen.items():
        assert len(found) == 1, name
        assert_close(found[0], expected[name], 1e-12, name)
        assert after[name] == 1


def test_hooks_that_change_a_gradient_act_once():
    program = flat("normal")
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), WEIGHT)
    _, expected = collect(elbo, *program.run, seed=2)
    for leaf in leaves().values():
        leaf.register_hook(lambda g: 3 * g)
    _, actual = collect(elbo, *program.run, seed=2)
    assert_gradients(actual, {name: 3 * found for name, found in expected.items()})


class Spiky(nn.Module):
    """A decoder whose derivative is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(CODE, DATA)

    def forward(self, z: Tensor) -> Tensor:
        h = self.linear(z)
        return h + (h - h.detach()).abs().sqrt()


def test_a_part_without_weight_does_no_harm():
    """At weight 1 the guide's gradient is the silent one, even where the other is not a number."""
    twins = Twins(nn.Linear(CODE, DATA), Spiky())
    program = with_encoder(nn.Linear(DATA, 2 * CODE), twins)
    first, second = separate(program, SilentELBO(), Trace_ELBO(), seed=1)
    assert second[1]["encoder$$$weight"].isnan().any()
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), 1.0)
    _, actual = collect(elbo, *program.run, seed=1)
    for name in ("encoder$$$weight", "encoder$$$bias", "decoder$$$analytic.weight"):
        assert_close(actual[name], first[1][name], 1e-9, name)
