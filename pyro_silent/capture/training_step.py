"""A training step of SVI as a program to capture: loss, gradients and the optimizers' updates."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.util import torch_item, zero_grads
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_silent.capture.backend import Run
from pyro_silent.capture.inputs import Doubtful, Stale
from pyro_silent.capture.optimizer import Updates
from pyro_silent.capture.program import Program, as_tensors, run_once
from pyro_silent.capture.schedule import count_step
from pyro_silent.capture.slots import Slot
from pyro_silent.errors import CaptureError

if TYPE_CHECKING:
    from pyro_silent.capture.compiled_svi import CompiledSVI


class TrainingStep(Program):
    """A step of SVI; the optimizers are part of the graph where there are rules for all of them."""

    def __init__(self, svi: CompiledSVI, parameters: dict[str, Tensor]) -> None:
        super().__init__(parameters)
        self._svi = svi
        self._kind: type | None = None  # of the loss, where it is a tuple
        self.loss = svi.loss_object
        self._meet()

    def visited(self) -> dict[str, Tensor]:
        """The parameters of the last eager step."""
        return self._svi.visited

    def renew(self) -> None:
        """Meet the parameters and optimizers of the last eager step."""
        self.parameters = dict(sorted(self.visited().items()))
        self._meet()
        super().renew()

    def constants(self) -> tuple:
        """Names, loss, and the optimizers' rules."""
        rules = None if self._updates is None else self._updates.constants()
        return list(self.parameters), list(self._trained), self._loss_and_grads, rules

    def _meet(self) -> None:
        self._optim = self._svi.optim
        self._loss_and_grads = self._svi.loss_and_grads
        # An optimizer passes by a parameter without gradient; one that was zeroed it follows.
        self._trained = {n: p for n, p in self.parameters.items() if p.grad is not None}
        possible = Updates.possible(self._optim, self._trained)
        self._updates = Updates(self._optim, self._trained) if possible else None
        self._note_gradients()

    def _note_gradients(self) -> None:
        """Gradients that are zero, or none; those of other steps are recognised as new."""
        self._all = list(self.parameters.values())
        gradients = [parameter.grad for parameter in self._all]
        self._left = gradients, [None if g is None else g._version for g in gradients]

    def operators(self, args: tuple, kwargs: dict) -> list[Tensor]:
        """The losses, after the updates; without rules for them, losses and gradients."""
        for name, parameter in self.parameters.items():
            if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
                raise CaptureError(
                    f"parameter {name!r} has a hook, which a graph would not call. Remove it, or take "
                    "steps with pyro.infer.SVI."
                )
        loss = run_once(lambda: self._loss_and_gradients(args, kwargs), self.parameters)
        gained = {name for name, p in self.parameters.items() if p.grad is not None}
        if not gained <= self._trained.keys():
            raise Stale("which parameters have had a gradient")
        self._kind = type(loss) if isinstance(loss, tuple) else None
        losses = as_tensors(loss)
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained.values()
        ]
        asides = self.asides()
        if self._updates is None:
            return losses + gradients + asides
        with torch.no_grad():
            self._updates.apply(gradients, asides[-1] if self.can_fail else None)
        return losses + asides

    def _loss_and_gradients(self, args: tuple, kwargs: dict) -> Any:
        svi = self._svi
        if isinstance(self.loss, TraceEnum_ELBO):  # its loss_and_grads makes floats on the way
            loss = self.loss.differentiable_loss(svi.model, svi.guide, *args, **kwargs)
            loss.backward()
            return loss.detach()
        return svi.loss_and_grads(svi.model, svi.guide, *args, **kwargs)

    def expected(self, result: Any) -> list[Tensor]:
        """The losses: gradients are gone."""
        return as_tensors(result)

    def slots(self) -> list[Slot]:
        """Parameters where Pyro keeps them, and the optimizers' objects."""
        return super().slots() + ([] if self._updates is None else self._updates.slots())

    def check(self) -> None:
        """Nothing but values has changed since the last step."""
        svi = self._svi
        if svi.optim is not self._optim or svi.loss_and_grads != self._loss_and_grads:
            raise Stale("the optimizer or the loss of the SVI object")
        gradients, versions = self._left
        now = [parameter.grad for parameter in self._all]
        if (
            not all(map(operator.is_, now, gradients))
            or [None if gradient is None else gradient._version for gradient in now] != versions
        ):
            if any(gradient is not None and bool(gradient.any()) for gradient in now):
                raise Stale("a gradient that was there before the step")
            for name, gradient in zip(self.parameters, now):
                if (gradient is not None) is not (name in self._trained):
                    raise Stale("which parameters have had a gradient")
            self._note_gradients()
        for parameter in self._all:
            if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
                raise Stale("hooks on parameters")
        if self._updates is not None and self._updates.changed():
            raise Stale("a setting of the optimizer")

    def replay(self, run: Run, inputs: list[Tensor]) -> Any:
        """Take the step; the loss is read once, at its end."""
        if self._updates is not None:
            self._updates.count()
        with torch.no_grad():
            outputs = run(inputs)
        try:
            outputs = self.trusted(outputs)
        except Doubtful:
            if self._updates is not None:
                self._updates.uncount()
            raise
        if self._updates is None:
            number = len(outputs) - len(self._trained)
            outputs, gradients = outputs[:number], outputs[number:]
            self._optimize(gradients)
        count_step(self.loss)
        if self._kind is not None:
            return self._kind(map(torch_item, outputs))
        loss = outputs[0].item()
        return loss if loss == loss else warn_if_nan(loss, "loss")

    def _optimize(self, gradients: Any) -> None:
        """Let the optimizers run as they are."""
        for parameter, gradient in zip(self._trained.values(), gradients, strict=True):
            parameter.grad = gradient
        parameters = set(self.parameters.values())
        self._optim(parameters)
        zero_grads(parameters)
        self._note_gradients()
