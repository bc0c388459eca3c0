"""Training steps of one case by every contender, from the same parameters."""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI, JitTrace_ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.nn.functional import softplus

from harness.models import LEARNING_RATE, VAE
from harness.peers import installed
from harness.programs import Case, Program
from pyro_silent import CompiledSVI, SilentELBO

SILENT = "SilentELBO"
TRACE = "Trace_ELBO"
MEAN_FIELD = "TraceMeanField_ELBO"
JIT = "JitTrace_ELBO"
BY_HAND = "hand-written, PyTorch"
CAPTURED = "captured SilentELBO"
NUMPYRO = "NumPyro, jit"
NUMPYRO_LOOP = "NumPyro, jitted loop"
PYRO_LOSSES: dict[str, Callable[[], ELBO]] = {
    SILENT: SilentELBO,
    TRACE: Trace_ELBO,
    MEAN_FIELD: TraceMeanField_ELBO,
    JIT: lambda: JitTrace_ELBO(ignore_jit_warnings=True),
}
STEPS_IN_LOOP = 20
CAPTURED_AFTER = 4  # steps, the first of which run eagerly

Call = Callable[[], object]
Leaves = dict[str, Tensor]


def fresh_programs(case: Case, prefix: str, seed: int) -> tuple[Program, Program]:
    """Return model and guide with their parameters in place, the same for every prefix."""
    pyro.set_rng_seed(seed)
    model, guide = case.programs(prefix)
    with torch.no_grad():
        guide(*next(case.batches()))
    return model, guide


def site_parameters(guide: AutoNormal) -> tuple[Leaves, Leaves]:
    """Return locations and scales of an ``AutoNormal`` by site."""
    suffix = "_unconstrained"
    names = [name.removesuffix(suffix) for name, _ in guide.locs.named_parameters()]
    locs = {name: getattr(guide.locs, name).detach().clone() for name in names}
    return locs, {name: getattr(guide.scales, name).detach().clone() for name in names}


def quietly(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the call without warnings: torch's tracer warns of its deprecation and of constants."""

    def quiet(*args: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(*args)

    return quiet


def pyro_step(case: Case, name: str, seed: int) -> Call:
    """Return a step of Pyro's ``SVI`` with Pyro's Adam."""
    model, guide = fresh_programs(case, f"{case.name} {name}".replace(".", ""), seed)
    optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})
    svi = SVI(model, guide, optimizer, loss=PYRO_LOSSES[name]())
    batches = case.batches()
    if name == JIT:
        quietly(svi.step)(*next(batches))
    return lambda: svi.step(*next(batches))


def captured_svi(case: Case, seed: int, backend: str, prefix: str = CAPTURED) -> CompiledSVI:
    """Return the captured training of a case with Pyro's Adam."""
    model, guide = fresh_programs(case, f"{case.name} {prefix}".replace(".", ""), seed)
    optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})
    return CompiledSVI(model, guide, optimizer, SilentELBO(), backend=backend)


def by_hand(case: Case, seed: int) -> tuple[Callable[..., Tensor], list[nn.Parameter]]:
    """Return a loss written by hand and its parameters, with the values Pyro's would have.

    :raises LookupError: if the case has no loss in closed form.
    """
    model, guide = fresh_programs(case, f"{case.name} {BY_HAND}".replace(".", ""), seed)
    module = getattr(model, "__self__", None)
    if case.closed_form is not None:
        locs, scales = site_parameters(guide)
        loc = {name: nn.Parameter(value) for name, value in locs.items()}
        raw = {name: nn.Parameter(value.expm1().log()) for name, value in scales.items()}
        closed_form = case.closed_form

        def loss(*args: Tensor) -> Tensor:
            return closed_form(loc, {name: softplus(leaf) for name, leaf in raw.items()}, *args)

        return loss, [*loc.values(), *raw.values()]
    if isinstance(module, VAE) and isinstance(module.decoder.mean, nn.Linear):
        return module.closed_form_loss, list(module.parameters())
    raise LookupError(f"{case.name} has no loss in closed form")


def by_hand_step(case: Case, seed: int) -> Call:
    """Return a step of plain PyTorch on the hand-written loss, with ``torch.optim.Adam``."""
    loss_of, parameters = by_hand(case, seed)
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    batches = case.batches()

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(*next(batches))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def numpyro_training(case: Case, seed: int, learning_rate: float = LEARNING_RATE) -> Any:
    """Return a ``harness.numpyro_programs.Training`` from the parameters of the others."""
    model, guide = fresh_programs(case, f"{case.name} {NUMPYRO}".replace(".", ""), seed)
    if case.closed_form is None:
        state = model.__self__.state_dict()
        parameters = {name: value.clone() for name, value in state.items()}
    else:
        locs, scales = site_parameters(guide)
        parameters = {f"{name}_auto_loc": value for name, value in locs.items()}
        parameters |= {f"{name}_auto_scale": value for name, value in scales.items()}
    programs = importlib.import_module("harness.numpyro_programs")
    return programs.Training(case.name, parameters, next(case.batches()), learning_rate, seed)


def numpyro_steps(case: Case, seed: int) -> dict[str, Call]:
    """Return one jitted update a call, and a jitted loop of :data:`STEPS_IN_LOOP` on one batch."""
    programs = importlib.import_module("harness.numpyro_programs")
    training = numpyro_training(case, seed)
    batches = case.batches()
    arrays = itertools.cycle([programs.to_jax(next(batches)) for _ in range(10)])
    return {
        NUMPYRO: lambda: training.step(arrays),
        NUMPYRO_LOOP: training.steps_in_one(next(batches), STEPS_IN_LOOP),
    }


def captured_step(case: Case, seed: int, backend: str) -> tuple[Call, float]:
    """Return a replayed step, and how far its loss is from that of ``SilentELBO``, relatively.

    :raises RuntimeError: if no step is replayed.
    """
    svi, batches = captured_svi(case, seed, backend), case.batches()
    for _ in range(CAPTURED_AFTER):
        svi.step(*next(batches))
    replays, args = svi.statistics.replays, next(batches)
    with torch.no_grad():
        exact = SilentELBO().loss(svi.model, svi.guide, *args)
    loss = svi.step(*args)
    if svi.statistics.replays == replays:
        raise RuntimeError(f"{case.name} is not captured: {svi.statistics}")
    return lambda: svi.step(*next(batches)), abs(loss - exact) / abs(exact)


def contenders(case: Case, seed: int) -> dict[str, Call]:
    """Return a training step per contender but ours that there is; each has its own parameters."""
    calls: dict[str, Call] = {name: pyro_step(case, name, seed) for name in PYRO_LOSSES}
    try:
        calls[BY_HAND] = by_hand_step(case, seed)
    except LookupError:
        pass
    if installed("numpyro"):
        calls |= numpyro_steps(case, seed)
    return calls
