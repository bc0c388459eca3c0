"""Losses in DistributedDataParallel: two processes train as one does on the joint batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

import ddp_vae
from pyro_silent import AnnealedELBO, Constant, GumbelRaoELBO, Linear, RelaxedELBO, SilentELBO
from pyro_silent.elbo import processes
from tests import ddp_programs as programs

ROOT = Path(__file__).parent.parent
SECONDS = 400  # for both processes, which need about 10 on idle cores

Results = Callable[[str], list[Any]]


@contextmanager
def as_in_the_processes() -> Iterator[None]:
    with pyro.settings.context(module_local_params=True):
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What one process and then two have left."""
    folder: Path = tmp_path_factory.mktemp("ddp")
    with as_in_the_processes():
        annealed = programs.vae(programs.annealed())
        programs.run(None, annealed, 0, programs.HALF, keep=folder / "one.pt")
    command = [sys.executable, "-W", "error", "-m", "tests.ddp_programs"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(programs.WORLD)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    return folder


@pytest.fixture(scope="module")
def results(folder) -> Results:
    """By check, what each of the two processes returned."""
    found = [torch.load(folder / f"results{rank}.pt") for rank in range(programs.WORLD)]

    def of(name: str) -> list[Any]:
        returned = [each[name] for each in found]
        for each in returned:
            assert not isinstance(each, str), each
        return returned

    return of


@pytest.fixture(scope="module")
def errors(folder) -> Results:
    """By check, the error that each of the two processes met."""
    found = [torch.load(folder / f"results{rank}.pt") for rank in range(programs.WORLD)]
    return lambda name: [each[name] for each in found]


def difference(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> float:
    """Relative, in the norm of all tensors; None is another value than 0."""
    assert [name for name in a if a[name] is None] == [name for name in b if b[name] is None]
    flat = [torch.cat([t.flatten() for t in each.values() if t is not None]) for each in (a, b)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


EXACT = 1e-10  # the same sums in another order, and a few steps of Adam


@pytest.mark.parametrize("program", programs.PROGRAMS)
def test_gradients_are_those_of_the_joint_batch(results, program):
    for returned in results("gradient"):
        assert difference(*returned[program]) < EXACT


def test_gradients_without_the_number_of_all_rows_are_wrong(results):
    """Each process counts the global latents' KL fully and half of the rows: the mean is off."""
    for returned in results("gradient_without_size"):
        assert difference(*returned) > 0.1


def test_rows_of_uneven_minibatches_are_weighted(results):
    for right, joint, wrong in results("gradient_of_uneven_minibatches"):
        assert difference(right, joint) < EXACT
        assert difference(wrong, joint) > 0.01


def test_a_module_around_the_loss_and_its_idle_parameters(results):
    """Methods as programs, pyro.module, and parameters that no loss reaches."""
    for ours, joint in results("gradient_of_a_wrapper"):
        assert joint["idle.weight"] is None
        ours = {name: None if "idle" in name else value for name, value in ours.items()}
        assert difference(ours, joint) < EXACT


def alone(warm_up: int = 0, checkpoint: Path | None = None) -> dict[str, Any]:
    """The run of one process."""
    with as_in_the_processes():
        module = programs.vae(programs.annealed(silent_warm_up=bool(warm_up)))
        start = programs.HALF if checkpoint else 0
        return programs.run(None, module, start, programs.STEPS, checkpoint)


@pytest.mark.parametrize(
    "options, warm_up",
    [
        *((options, warm_up) for options in ("as it is", "views", "search") for warm_up in (0, 1)),
        ("static", 0),
    ],
)
def test_both_ends_of_the_annealing_go_as_in_one_process(results, options, warm_up):
    unbroken = alone(warm_up)
    losses = []
    for returned in results("ends"):
        run = returned[options, warm_up]
        assert difference(run["parameters"], unbroken["parameters"]) < EXACT
        assert run["steps"] == programs.STEPS
        losses.append(run["losses"])
    joint = [sum(pair) / 2 for pair in zip(*losses, strict=True)]
    assert joint == pytest.approx(unbroken["losses"], rel=EXACT)


@pytest.mark.parametrize("name", ["regression", "annealed", "warm-up"])
def test_captured_losses_train_as_one_eager_process(results, name):
    with as_in_the_processes():
        if name == "regression":
            unbroken = programs.run(None, programs.regression())
        else:
            unbroken = alone(name == "warm-up")
    for returned in results("captured"):
        assert difference(returned[name]["parameters"], unbroken["parameters"]) < EXACT
        assert returned[name]["steps"] == unbroken["steps"] == programs.STEPS
        assert returned[name]["replays"] >= 2


def test_a_resting_branch_has_no_gradient(results):
    """The expressive branch in the warm-up, none at weight 1/2, the analytic branch at weight 0."""
    for steps in results("resting_gradients"):
        resting = [{name.split(".")[2] for name in names} for names in steps]
        assert resting == [{"expressive"}] * 3 + [set()] + [{"analytic"}] * 2


def test_accumulated_gradients_stay(results):
    """The analytic branch rests in the step that communicates, not in the one before."""
    for ours, joint in results("accumulated"):
        assert joint["model.decoder.analytic.scale"] is not None
        # both processes' sums of two steps
        assert difference(ours, joint) < EXACT


def test_the_checks_of_the_ends_can_fail(results, errors):
    for error in errors("ends_without_turns"):
        assert "Expected to have finished reduction" in error
    for returned in results("ends_with_zeros"):
        assert difference(returned["parameters"], alone()["parameters"]) > 1e-4


def test_one_process_begins_and_two_go_on(results):
    unbroken = alone()
    for returned in results("resumed"):
        assert difference(returned["parameters"], unbroken["parameters"]) < EXACT
        assert returned["steps"] == programs.STEPS


def test_two_processes_begin_and_one_goes_on(folder):
    resumed, unbroken = alone(checkpoint=folder / "two.pt"), alone()
    assert difference(resumed["parameters"], unbroken["parameters"]) < EXACT
    assert resumed["losses"] == pytest.approx(unbroken["losses"][programs.HALF :], rel=EXACT)


def test_replicas_stay_equal_where_random_numbers_differ(results):
    for ours, theirs in zip(*results("stochastic"), strict=True):
        assert all(map(torch.equal, ours["parameters"].values(), theirs["parameters"].values()))
        assert ours["losses"] != theirs["losses"]
        assert ours["steps"] == theirs["steps"] == programs.STEPS


def test_evaluations_are_no_steps(results):
    for before, after, num_entries in results("looked_at"):
        assert (before, after) == (0, 1)
        assert num_entries == 9  # eight parameters and the loss's own state


def test_uneven_inputs_keep_the_steps_together(results):
    """Three minibatches and five: five steps on both, then two more."""
    ours, theirs = results("uneven")
    assert ours["steps"] == theirs["steps"] == (5, 7)
    assert all(map(torch.equal, ours["parameters"].values(), theirs["parameters"].values()))
    assert results("uneven_wrapper") == [3, 3]
    ours, theirs = results("uneven_without_a_schedule")
    assert all(map(torch.equal, ours.values(), theirs.values()))


@pytest.mark.parametrize(
    "name, message",
    [
        ("lazy", "parameter 'AutoNormal.locs.slope'.*Call the loss once before it is wrapped"),
        ("in_param_store", "parameter 'stored'.*hold parameters in modules"),
        ("older_parameter", "parameter 'encoder.*module_local_params=True"),
        ("static_warm_up", "static_graph: got True.*Leave it out"),
        ("loaded_on_one", r"num_steps: got \[5, 0\] on the 2 processes.*on every process"),
        ("uneven_without_the_loss", r"join: got.*loss with a schedule.*Join\(\[ddp, elbo\]\)"),
        ("uneven_with_the_loss_first", r"joinables: got the loss before its wrapper"),
    ],
)
def test_what_would_go_wrong_silently_is_refused(errors, name, message):
    for error in errors(name):
        with pytest.raises(ValueError, match=message):
            raise ValueError(error)
        assert error.startswith("ConfigurationError")


@pytest.mark.parametrize(
    "loss, expected",
    [
        (Trace_ELBO(), False),
        (SilentELBO(), False),
        (GumbelRaoELBO(temperature=Constant(0.5)), False),
        (GumbelRaoELBO(temperature=Linear(1.0, 0.5, num_steps=5)), True),
        (AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5), False),
        (AnnealedELBO(SilentELBO(), Trace_ELBO(), lambda step: 0.5), True),
        (AnnealedELBO(SilentELBO(), RelaxedELBO(lambda step: 1.0), 0.5), True),
    ],
)
def test_losses_whose_steps_matter(loss, expected):
    assert processes._follows_schedule(loss) is expected


def shares(**changed: Any) -> tuple[ddp_vae.Share, list[ddp_vae.Share], ddp_vae.Run]:
    """What one process and two have done: the same, but for what is changed in the second process."""
    run = ddp_vae.Run(torch.ones(3), 1.0, [2.0], steps=4, test_losses=[3.0, 2.0])
    share = ddp_vae.Share(torch.ones(3), run, run, run)
    second = share._replace(**{k: v for k, v in changed.items() if k in share._fields})
    return share, [share, second], changed.get("back", run)


OFF = ddp_vae.Run(torch.tensor([1.0, 1.0, 1.1]), 1.0, [2.0], steps=4, test_losses=[3.0, 2.0])


def test_the_example_says_what_holds():
    lines = ddp_vae.check_claims(2, *shares())
    assert len(lines) == 5 and "bit-equal after 4 steps" in lines[-1]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"gradient": torch.tensor([1.0, 1.0, 1.1])}, "gradients differ from those of one"),
        ({"run": OFF}, "trainings differ from that of one process"),
        ({"resumed": OFF}, "trainings that one process began differ"),
        ({"back": OFF}, "trainings that one process ends differ"),
        ({"annealed": OFF}, "annealed replicas differ"),
        ({"annealed": OFF._replace(parameters=torch.ones(3), steps=3)}, r"steps \[3, 4\]"),
    ],
)
def test_the_example_fails_when_its_claims_do_not_hold(changed, message):
    with pytest.raises(SystemExit, match=message):
        ddp_vae.check_claims(2, *shares(**changed))


def test_without_lightning_its_example_says_so():
    code = (
        "import runpy, sys; sys.modules['lightning.pytorch'] = None; sys.argv[1:] = ['--smoke-test']; "
        f"sys.path.insert(0, {str(ROOT / 'examples')!r}); "
        f"runpy.run_path({str(ROOT / 'examples/lightning_vae.py')!r}, run_name='__main__')"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("skipped: lightning is not installed; pip install")
