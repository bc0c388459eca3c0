"""A run that stops at any step and goes on from its saved state is bit for bit the unbroken one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

from pyro_silent import (
    AnnealedELBO,
    Cosine,
    Exponential,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    Linear,
    RelaxedELBO,
    SilentELBO,
)
from tests.elbo.agreement import leaves
from tests.elbo.annealed_programs import (
    CODE,
    DATA,
    ROWS,
    Program,
    Twins,
    flat,
    mlp,
    observe,
    tied,
)
from tests.elbo.test_annealed_interface import Guide, Model

P = pyro.param
STEPS = 4
FADE = Linear(1.0, 0.0, num_steps=2, hold=1)  # weights 1, 1, 1/2, 0


def subsampled() -> Program:
    """Minibatches of three of eight rows."""
    twins, encoder = Twins(nn.Linear(CODE, DATA), mlp(CODE, DATA)), nn.Linear(DATA, CODE)

    def model(branch: str, x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            observe(twins(branch, "decoder", z), x[rows])

    def guide(branch: str, x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            pyro.sample("z", dist.Normal(encoder(x[rows]), 0.4).to_event(1))

    return Program(model, guide, torch.randn(2 * ROWS, DATA), twins, encoder)


def mixed() -> Program:
    """A site that is sampled, then one that is enumerated: the silent part finds out as it goes."""
    twins = Twins(nn.Linear(1, DATA), mlp(1, DATA))

    def model(branch: str, x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", ROWS):
            k = pyro.sample("k", dist.Bernoulli(0.4))
            observe(twins(branch, "decoder", k.unsqueeze(-1)) + shift, x)

    def guide(branch: str, x: Tensor) -> None:
        fn = dist.Normal(P("loc", torch.tensor(0.3)), 0.5)
        pyro.sample("shift", fn, infer={"silent": False})
        with pyro.plate("data", ROWS):
            logits = P("logits", torch.tensor([0.1, -0.4, 0.8, 0.0]))
            pyro.sample("k", dist.Bernoulli(logits=logits), infer={"enumerate": "parallel"})

    return Program(model, guide, torch.randn(ROWS, DATA), twins)


def switched() -> Program:
    """The guide needs a value, which the silent part finds out as it goes."""
    twins = Twins(nn.Linear(CODE, DATA), mlp(CODE, DATA))

    def model(branch: str, x: Tensor) -> None:
        switch = pyro.sample("switch", dist.Normal(0.0, 1.0))
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            observe(twins(branch, "decoder", z) + switch, x)

    def guide(branch: str, x: Tensor) -> None:
        switch = pyro.sample("switch", dist.Normal(P("loc", torch.tensor(0.1)), 1.0))
        with pyro.plate("data", ROWS):
            loc = P("high" if switch > 0 else "low", torch.zeros(ROWS, CODE))
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    return Program(model, guide, torch.randn(ROWS, DATA), twins)


AVERAGE = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.7}}

RUNS: dict[str, tuple[Callable[[], Program], Callable[[], AnnealedELBO]]] = {
    "trace": (tied, lambda: AnnealedELBO(SilentELBO(), Trace_ELBO(), FADE)),
    "warm_up": (
        tied,
        lambda: AnnealedELBO(SilentELBO(), Trace_ELBO(), FADE, silent_warm_up=True),
    ),
    "control": (
        tied,
        lambda: AnnealedELBO(Trace_ELBO(num_particles=2), Trace_ELBO(), FADE),
    ),
    "temperature": (
        lambda: flat("one_hot"),
        lambda: AnnealedELBO(
            SilentELBO(), GumbelRaoELBO(Exponential(1.0, 0.1, num_steps=STEPS), 5), FADE
        ),
    ),
    "relaxed": (
        lambda: flat("bernoulli"),
        lambda: AnnealedELBO(
            SilentELBO(), RelaxedELBO(Linear(2.0, 0.4, num_steps=STEPS)), Cosine(0.9, 0.1, 4)
        ),
    ),
    "baseline": (
        lambda: flat("bernoulli", lambda x: AVERAGE),
        lambda: AnnealedELBO(SilentELBO(), TraceGraph_ELBO(), FADE),
    ),
    "baselines": (
        lambda: flat("bernoulli", lambda x: AVERAGE),
        lambda: AnnealedELBO(TraceGraph_ELBO(), TraceGraph_ELBO(), FADE),
    ),
    # Pyro guesses how deep plates are nested, by a run that draws random numbers
    "vectorized": (
        lambda: flat("normal"),
        lambda: AnnealedELBO(
            SilentELBO(), Trace_ELBO(num_particles=2, vectorize_particles=True), FADE
        ),
    ),
    "all_vectorized": (
        lambda: flat("categorical"),
        lambda: AnnealedELBO(
            SilentELBO(), Trace_ELBO(), FADE, num_particles=2, vectorize_particles=True
        ),
    ),
    "leave_one_out": (
        lambda: flat("categorical"),
        lambda: AnnealedELBO(SilentELBO(), LeaveOneOutELBO(2, vectorize_particles=True), FADE),
    ),
    "subsampled": (subsampled, lambda: AnnealedELBO(SilentELBO(), Trace_ELBO(), FADE)),
    "mixed": (
        mixed,
        lambda: AnnealedELBO(SilentELBO(), SilentELBO(intractable="sample"), FADE),
    ),
    "switched": (
        switched,
        lambda: AnnealedELBO(SilentELBO(intractable="sample"), Trace_ELBO(), FADE),
    ),
}


class Run(NamedTuple):
    """Everything a training run consists of."""

    program: Program
    elbo: AnnealedELBO
    optim: Any
    svi: SVI


def begin(name: str) -> Run:
    """A run at its start: always from the same parameters."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    make, loss = RUNS[name]
    program, elbo, optim = make(), loss(), pyro.optim.Adam({"lr": 0.05})
    pyro.set_rng_seed(1)
    return Run(program, elbo, optim, SVI(program.model, program.guide, optim, loss=elbo))


def take(run: Run, steps: int) -> list[float]:
    """Some steps and their losses."""
    return [run.svi.step(*run.program.run[2:]) for _ in range(steps)]


def saved(run: Run) -> bytes:
    """The four things a checkpoint holds: parameters, optimizer, loss, random numbers."""
    state = {
        "parameters": pyro.get_param_store().get_state(),
        "optim": run.optim.get_state(),
        "elbo": run.elbo.state_dict(),
        "random": torch.get_rng_state(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def resumed(name: str, checkpoint: bytes) -> Run:
    """A run made anew, that goes on from a checkpoint."""
    run = begin(name)
    torch.rand(7)  # as if other things had happened
    state = torch.load(io.BytesIO(checkpoint), weights_only=False)
    pyro.get_param_store().set_state(state["parameters"])
    pyro.module("decoder", run.program.twins.branches["twin"], update_module_params=True)
    if run.program.encoder is not None:
        pyro.module("encoder", run.program.encoder, update_module_params=True)
    run.optim.set_state(state["optim"])
    run.elbo.load_state_dict(state["elbo"])
    torch.set_rng_state(state["random"])
    return run


def values() -> dict[str, Tensor]:
    """All parameters."""
    return {name: leaf.detach().clone() for name, leaf in leaves().items()}


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_at_any_step(name):
    unbroken = begin(name)
    checkpoints, losses = [], []
    for _ in range(STEPS):
        losses += take(unbroken, 1)
        checkpoints.append(saved(unbroken))
    truth, end = values(), torch.get_rng_state()
    assert len(set(losses)) == STEPS
    for step, checkpoint in enumerate(checkpoints[:-1], start=1):
        run = resumed(name, checkpoint)
        assert run.elbo.num_steps == step
        assert take(run, STEPS - step) == losses[step:], f"stopped after step {step}"
        found = values()
        assert found.keys() == truth.keys()
        for parameter, value in truth.items():
            assert torch.equal(found[parameter], value), (step, parameter)
        assert torch.equal(torch.get_rng_state(), end)


@pytest.mark.parametrize("name", ["temperature", "vectorized"])
def test_the_state_of_the_loss_matters(name):
    """Without it the same checkpoint leads elsewhere."""
    unbroken = begin(name)
    take(unbroken, 2)
    checkpoint = saved(unbroken)
    take(unbroken, 3)
    truth = values()
    run = resumed(name, checkpoint)
    run = run._replace(elbo=RUNS[name][1]())
    run = run._replace(svi=SVI(run.program.model, run.program.guide, run.optim, loss=run.elbo))
    take(run, 3)
    assert any(not torch.equal(value, truth[n]) for n, value in values().items())


# As a module


def module_run(steps: int, checkpoint: bytes | None = None) -> tuple[dict[str, Tensor], bytes]:
    """Train an ELBOModule, from the start or from a checkpoint that torch loads with its safe reader."""
    with pyro.settings.context(module_local_params=True):
        pyro.set_rng_seed(0)
        x = torch.randn(ROWS, DATA)
        model, guide = Model(), Guide()
        stochastic = Trace_ELBO(num_particles=2, vectorize_particles=True)
        module = AnnealedELBO(SilentELBO(), stochastic, FADE)(model, guide)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        if checkpoint is not None:
            pyro.set_rng_seed(9)
            state = torch.load(io.BytesIO(checkpoint), weights_only=True)
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"])
        for _ in range(steps):
            optimizer.zero_grad()
            module(x).backward()
            optimizer.step()
        buffer = io.BytesIO()
        state = {
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        torch.save(state, buffer)
        return dict(module.named_parameters()), buffer.getvalue()


@pytest.mark.parametrize("stop", range(STEPS + 1))
def test_a_module_resumes_at_any_step(stop):
    truth, _ = module_run(STEPS)
    _, checkpoint = module_run(stop)
    found, _ = module_run(STEPS - stop, checkpoint)
    for name, value in truth.items():
        assert torch.equal(found[name], value), name


def test_the_modules_state_follows_the_loss():
    """Steps taken by ``loss_and_grads`` of the loss itself are in the module's state too."""
    with pyro.settings.context(module_local_params=True):
        model, guide, x = Model(), Guide(), torch.randn(ROWS, DATA)
        elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), FADE)
        module = elbo(model, guide)
        elbo.loss_and_grads(model, guide, x)
        module(x)
        fresh = AnnealedELBO(SilentELBO(), Trace_ELBO(), FADE)
        fresh(Model(), Guide()).load_state_dict(module.state_dict())
        assert (fresh.num_steps, fresh.weight) == (2, FADE(2))


def test_in_another_process(tmp_path):
    """A checkpoint on disk: modules, optimizer, loss and random numbers."""
    truth, _ = module_run(STEPS)
    _, checkpoint = module_run(2)
    (tmp_path / "checkpoint.pt").write_bytes(checkpoint)
    root = Path(__file__).parents[2]
    code = (
        "import sys, torch, pathlib\n"
        "torch.set_num_threads(1)\n"
        "torch.set_default_dtype(torch.float64)\n"
        "from tests.elbo.test_annealed_resume import STEPS, module_run\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "found, _ = module_run(STEPS - 2, (folder / 'checkpoint.pt').read_bytes())\n"
        "torch.save({name: p.detach() for name, p in found.items()}, folder / 'found.pt')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, value in truth.items():
        assert torch.equal(found[name], value), name


def test_another_schedule_warns():
    """The state holds the weight it was saved at; a schedule that is elsewhere there is a mistake."""
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), FADE)
    program = tied()
    for _ in range(3):
        elbo.loss_and_grads(*program.run)
    other = AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5)
    with pytest.warns(UserWarning, match="saved at weight 0.0.*this loss is at 0.5"):
        other.load_state_dict(elbo.state_dict())
