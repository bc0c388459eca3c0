"""One training run: a model and a guide, one loss, one seed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import SVI
from pyro.infer.util import torch_item, zero_grads
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_silent.diagnostics.checkpoint import (
    load_loss,
    load_optimizer,
    state_of_loss,
    state_of_optimizer,
)
from pyro_silent.diagnostics.losses import Loss, copy_of, one_line
from pyro_silent.diagnostics.random_stream import go_to, random_now, seed_everything
from pyro_silent.diagnostics.trained_tensors import TrainedTensors, write
from pyro_silent.diagnostics.training_data import Batches, fingerprint
from pyro_silent.diagnostics.training_record import Record
from pyro_silent.diagnostics.yardstick import MeasureError, Yardstick
from pyro_silent.errors import ConfigurationError

_INITIAL_VALUES, _DATA, _NOISE = range(3)  # purposes of random numbers


@dataclass(frozen=True)
class Plan:
    """What all runs have in common; see ``train_and_compare``."""

    model: Callable
    guide: Callable
    losses: Mapping[str, Loss]
    optim: PyroOptim
    data: Iterable
    num_steps: int
    yardstick: Yardstick
    evaluate_every: int
    patience: int | None
    initialize: Callable[[], Any] | None


@dataclass
class Start:
    """What all runs of a seed begin with.

    :ivar parameters: values by name.
    :ivar others: of buffers, and of parameters of modules that Pyro does not know.
    :ivar batch: fingerprint of the first batch.
    """

    parameters: dict[str, Tensor]
    others: list[Tensor]
    batch: str


class Run:
    """A run that is about to begin, in the surroundings as they were found.

    What it changes is the caller's to put back. Everything random has its own random numbers: the
    initial values, the data and the noise of the loss; so the first two are the same for all losses.

    :param start: of the first run of this seed; None if this is the first.
    :param saved: :meth:`state` of an interrupted run to go on with.
    """

    def __init__(
        self,
        plan: Plan,
        name: str,
        seed: int,
        tensors: TrainedTensors,
        start: Start | None,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self._plan, self._tensors = plan, tensors
        self._loss = copy_of(plan.losses[name])
        self._optim = copy.deepcopy(plan.optim)
        svi = SVI(plan.model, plan.guide, self._optim, loss=self._loss)
        self._loss_and_grads: Callable[..., Any] = svi.loss_and_grads
        self.record = Record(name, seed)
        self._losses: list[float] = []  # since the last evaluation
        self._losses_of_pass: list[float] = []
        self._passes_seen = 0
        self._pending: dict[str, dict[str, Any]] = {}
        self._batches = Batches("data", plan.data, seed, _DATA)
        self.start = self._begin(start)
        self._on_cuda = any(leaf.is_cuda for leaf in tensors.parameters().values())
        self._resume(saved)

    # The beginning

    def _begin(self, start: Start | None) -> Start:
        """Make the parameters, with the values that every loss starts from."""
        plan, tensors, seed = self._plan, self._tensors, self.record.seed
        seed_everything(seed, _INITIAL_VALUES)
        if plan.initialize is not None:
            plan.initialize()
        args, kwargs = self._batches.first()
        tensors.meet(plan.model, plan.guide, args, kwargs)
        batch = fingerprint((args, kwargs))
        parameters, others = tensors.parameters(), tensors.others()
        if start is None:
            start = Start(
                {name: leaf.detach().clone() for name, leaf in parameters.items()},
                [tensor.detach().clone() for tensor in others],
                batch,
            )
        if batch != start.batch:
            raise ConfigurationError(
                f"data: got another first batch for {self.record.name!r} than for the loss before it, "
                f"at the same seed {seed}, expected the same; let it draw from torch's, numpy's or "
                "Python's global random state, or from the generator of a DataLoader."
            )
        if list(parameters) != list(start.parameters):
            raise ConfigurationError(
                f"model, guide: got the parameters {sorted(parameters)} for {self.record.name!r}, "
                f"expected those of the loss before it, {sorted(start.parameters)}."
            )
        write("initialize", list(parameters.values()), list(start.parameters.values()))
        write("initialize", others, start.others)
        seed_everything(seed, _NOISE)
        return start

    def _resume(self, saved: dict[str, Any] | None) -> None:
        if saved is None:
            return
        self.record = Record(**saved["record"])
        self._losses_of_pass, self._passes_seen = saved["losses_of_pass"], saved["passes_seen"]
        load_loss(self._loss, saved["loss"])
        write("checkpoint", self._tensors.others(), saved["others"])
        self._pending = dict(saved["parameters"])
        for name, leaf in self._tensors.parameters().items():
            self._claim(name, leaf)
        if self._pending:  # a loss made them on its way, and will make them again
            self._tensors.waiting = {n: saved["value"] for n, saved in self._pending.items()}
            self._tensors.on_met = self._claim
        self._batches.go_to(saved["batches"])
        go_to(saved["noise"])

    def _claim(self, name: str, leaf: Tensor) -> None:
        """Give a parameter what was saved of it."""
        saved = self._pending.pop(name, None)
        if saved is None:
            return
        write("checkpoint", [leaf], [saved["value"]])
        # an optimizer passes over a parameter without a gradient, and moves one whose gradient is 0
        leaf.grad = torch.zeros_like(leaf) if saved["has_gradient"] else None
        if saved["optimizer"] is not None:
            load_optimizer(self._optim, leaf, saved["optimizer"])

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        optimizers = self._optim.optim_objs
        met = {
            name: {
                "value": leaf.detach(),
                "has_gradient": leaf.grad is not None,
                "optimizer": state_of_optimizer(optimizers[leaf]) if leaf in optimizers else None,
            }
            for name, leaf in self._tensors.parameters().items()
        }
        return {
            "record": vars(self.record),
            "losses_of_pass": self._losses_of_pass,
            "passes_seen": self._passes_seen,
            "loss": state_of_loss(self._loss),
            "parameters": {**self._pending, **met},
            "others": [tensor.detach() for tensor in self._tensors.others()],
            "batches": self._batches.state(),
            "noise": random_now(),
        }

    # Training

    def train(self, evaluated: Callable[[Record], None], stepped: Callable[[], None]) -> Record:
        """Train to the end; what goes wrong in the loss is written into the record.

        :param evaluated: called after each evaluation.
        :param stepped: called after each step.
        """
        plan, record = self._plan, self.record
        if not record.curve and self._evaluate():
            evaluated(record)
        while record.steps < plan.num_steps and record.stopped is None and record.error is None:
            batch = self._batches.next()
            if self._step(*batch):
                stepped()
                due = record.steps % plan.evaluate_every == 0 or record.steps == plan.num_steps
                if due and self._evaluate():
                    self._stop_if_patience_ends()
                    evaluated(record)
        return record

    def _step(self, args: tuple, kwargs: dict) -> bool:
        """One step of Pyro's SVI, timed; whether it went well."""
        plan, record = self._plan, self.record
        try:
            self._end_pass()
            self._synchronize()
            began = time.perf_counter()
            self._tensors.clear_step()
            value = self._loss_and_grads(plan.model, plan.guide, *args, **kwargs)
            leaves = set(self._tensors.stepping.values())
            self._optim(leaves)
            zero_grads(leaves)
            loss = torch_item(value[0] if isinstance(value, tuple) else value)
            self._synchronize()
            record.seconds += time.perf_counter() - began
        except Exception as error:
            return self._fail(one_line(error), record.steps + 1)
        record.steps += 1
        if not math.isfinite(loss):
            return self._fail(f"the loss is {loss}", record.steps)
        self._losses.append(loss)
        self._losses_of_pass.append(loss)
        return True

    def _end_pass(self) -> None:
        """Step a scheduler of learning rates after a pass over the data, as Pyro's users do."""
        if self._batches.num_passes == self._passes_seen:
            return
        self._passes_seen = self._batches.num_passes
        if isinstance(self._optim, PyroLRScheduler):
            if self._optim.pt_scheduler_constructor is ReduceLROnPlateau:
                self._optim.step(math.fsum(self._losses_of_pass) / len(self._losses_of_pass))
            else:
                self._optim.step()
        self._losses_of_pass.clear()

    def _evaluate(self) -> bool:
        """One point more on the curve; whether there is one."""
        record, plan = self.record, self._plan
        try:
            value = plan.yardstick(plan.model, plan.guide, self._tensors.modules)
        except MeasureError as error:
            return self._fail(f"the yardstick fails: {one_line(error.cause)}", record.steps)
        record.curve.append(
            {
                "step": record.steps,
                "seconds": record.seconds,
                "loss": math.fsum(self._losses) / len(self._losses) if self._losses else None,
                "yardstick": value,
            }
        )
        self._losses.clear()
        if math.isnan(value):
            return self._fail("the yardstick is nan", record.steps)
        return True

    def _stop_if_patience_ends(self) -> None:
        record, patience, best = self.record, self._plan.patience, self.record.best
        if patience is None or record.steps == self._plan.num_steps:
            return
        best_step = 0 if best is None else best["step"]
        since = sum(point["step"] > best_step for point in record.curve)
        if since >= patience:
            record.stopped = (
                f"step {record.steps}: no new best in {since} evaluations since step {best_step}"
            )

    def _fail(self, error: str, step: int) -> bool:
        self.record.error = f"step {step}: {error}"
        return False

    def _synchronize(self) -> None:
        if self._on_cuda:
            torch.cuda.synchronize()
