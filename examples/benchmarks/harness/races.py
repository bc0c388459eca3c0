"""Runs of one case by every contender, as exact losses against seconds of processor time."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from harness.contenders import (
    CAPTURED,
    CAPTURED_AFTER,
    JIT,
    NUMPYRO_LOOP,
    PYRO_LOSSES,
    fresh_programs,
    numpyro_training,
    quietly,
    site_parameters,
)
from harness.examples import fitting
from harness.lbfgs import Minimisation
from harness.programs import Case
from pyro_silent import CompiledELBOModule, CompiledSVI, SilentELBO

STEPS_APART, HOLD = 5, 20  # an exact loss every 5 steps; to stay is to have 20 below the target
MAX_STEPS = 2000

Step = Callable[[], object]
Exact = Callable[[], float]


def closed_form_loss(case: Case, locs: dict[str, Tensor], scales: dict[str, Tensor]) -> float:
    """Return the exact loss, by hand, in double precision."""
    if case.closed_form is None:
        raise LookupError(f"{case.name} has no loss in closed form")
    args = [x.double() if x.is_floating_point() else x for x in next(case.batches())]
    double = [{name: leaf.double() for name, leaf in leaves.items()} for leaves in (locs, scales)]
    return case.closed_form(*double, *args).item()


def race(
    name: str, step: Step, exact: Exact, limit: float, target: float, head_start: float = 0.0
) -> fitting.Fit:
    """Take steps until the loss stays below the target, for the limit of seconds at most.

    And for :data:`MAX_STEPS` at most.

    The clock stands still while the exact loss is evaluated.

    :param head_start: seconds spent before.
    """
    fit, spent = fitting.Fit(name), head_start
    for _ in range(MAX_STEPS // STEPS_APART):
        if spent >= limit or fit.seconds_to(target, HOLD) < math.inf:
            break
        began = time.process_time()
        for _ in range(STEPS_APART):
            step()
        spent += time.process_time() - began
        fit.seconds.append(spent)
        fit.losses.append(exact())
        if not math.isfinite(fit.losses[-1]):
            break
    return fit


def pyro_race(case: Case, loss: str, target: float, rate: float, limit: float) -> fitting.Fit:
    """Adam in Pyro's ``SVI``."""
    pyro.clear_param_store()
    model, guide = fresh_programs(case, "guide", 0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": rate}), loss=PYRO_LOSSES[loss]())
    args = next(case.batches())
    step = partial(svi.step, *args)
    if loss == JIT:
        quietly(step)()  # traces: not counted
    exact = lambda: closed_form_loss(case, *site_parameters(guide))  # noqa: E731
    return race(f"Adam({rate:g}) + {loss}", step, exact, limit, target)


def captured_race(
    case: Case, rate: float, limit: float, target: float, backend: str
) -> tuple[fitting.Fit, float]:
    """Adam in ``CompiledSVI``, and the seconds of tracing and compiling.

    The first steps, which capture, count with the time of a replayed one.
    """
    pyro.clear_param_store()
    model, guide = fresh_programs(case, "guide", 0)
    optimizer = pyro.optim.Adam({"lr": rate})
    svi = CompiledSVI(model, guide, optimizer, SilentELBO(), backend=backend)
    step = partial(svi.step, *next(case.batches()))
    began = time.perf_counter()
    for _ in range(CAPTURED_AFTER):
        step()
    compiling = time.perf_counter() - began
    began = time.process_time()
    for _ in range(CAPTURED_AFTER):
        step()
    head_start = 2 * (time.process_time() - began)
    exact = lambda: closed_form_loss(case, *site_parameters(guide))  # noqa: E731
    return race(f"Adam({rate:g}) + {CAPTURED}", step, exact, limit, target, head_start), compiling


def captured_lbfgs(case: Case, backend: str) -> tuple[fitting.Fit, float]:
    """L-BFGS on the captured loss, and the seconds of tracing and compiling."""
    pyro.clear_param_store()
    model, guide = fresh_programs(case, "guide", 0)
    args = next(case.batches())
    objective = CompiledELBOModule(SilentELBO()(model, guide), backend=backend)
    leaves = [leaf for _, leaf in pyro.get_param_store().named_parameters()]
    began = time.perf_counter()
    for _ in range(CAPTURED_AFTER):
        objective(*args).backward()
    compiling = time.perf_counter() - began
    fit = fitting.Fit(f"L-BFGS + {CAPTURED}")
    minimisation = Minimisation(lambda: objective(*args), leaves)
    minimisation.run()
    fit.seconds = minimisation.seconds
    for point in minimisation.points:
        minimisation.move_to(point)
        fit.losses.append(closed_form_loss(case, *site_parameters(guide)))
    return fit, compiling


def numpyro_race(case: Case, name: str, target: float, rate: float, limit: float) -> fitting.Fit:
    """Adam in NumPyro's ``SVI``: jitted updates, or several of them in one jitted loop."""
    pyro.clear_param_store()
    programs = importlib.import_module("harness.numpyro_programs")
    training = numpyro_training(case, 0, rate)
    args = next(case.batches())
    arrays = programs.to_jax(args)
    start, looped = training.state, name == NUMPYRO_LOOP
    update = (
        training.steps_in_one(args, STEPS_APART)
        if looped
        else partial(training.step, iter(lambda: arrays, None))
    )
    update()  # compiles
    training.state = start
    steps = iter(range(10**9))

    def step() -> None:
        if not looped or next(steps) % STEPS_APART == 0:
            update()

    def exact() -> float:
        values = {
            name: torch.from_numpy(np.array(value)) for name, value in training.parameters().items()
        }
        leaves = [
            {name.removesuffix(end): v for name, v in values.items() if name.endswith(end)}
            for end in ("_auto_loc", "_auto_scale")
        ]
        return closed_form_loss(case, *leaves)

    return race(f"Adam({rate:g}) + {name}", step, exact, limit, target)
