"""CompiledSVI: Pyro's SVI with the whole training step as one graph."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.util import torch_item, zero_grads
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_silent.capture.backend import Run, check_backend
from pyro_silent.capture.capture import Program
from pyro_silent.capture.captures import Captures, CaptureStatistics
from pyro_silent.capture.inputs import Stale
from pyro_silent.capture.optimizer import Updates
from pyro_silent.capture.schedule import count_step
from pyro_silent.capture.surroundings import Slot
from pyro_silent.errors import CaptureError


class CompiledSVI(SVI):
    """..."""

    def __init__(
        self,
        model: Any,
        guide: Any,
        optim: Any,
        loss: Any,
        loss_and_grads: Any = None,
        *,
        backend: str = "inductor",
        uncapturable: str = "warn",
        **kwargs: Any,
    ) -> None:
        check_backend(backend)
        super().__init__(model, guide, optim, loss, loss_and_grads, **kwargs)
        self._loss = loss
        self._visited: dict[str, Tensor] = {}
        roots = {"the model": model, "the guide": guide, "the loss": loss}
        self._steps = Captures(roots, lambda: TrainingStep(self), self._step, backend, uncapturable)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a gradient step; returns the loss before it, as Pyro does."""
        return self._steps(args, kwargs)

    @property
    def statistics(self) -> CaptureStatistics:
        """How many steps were taken by graphs, and how many were not and why."""
        return self._steps.statistics

    def _step(self, args: tuple, kwargs: dict) -> Any:
        """A step of Pyro's own, which notes the parameters it visits."""
        with poutine.trace(param_only=True) as capture:
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        nodes = capture.trace.nodes
        self._visited = {name: site["value"].unconstrained() for name, site in nodes.items()}
        parameters = set(self._visited.values())
        self.optim(parameters)
        zero_grads(parameters)
        return _floats(loss)


class TrainingStep(Program):
    """A step of SVI; the optimizers are part of the graph where there are rules for all of them."""

    def __init__(self, svi: CompiledSVI) -> None:
        self._svi = svi
        self._kind: type | None = None  # of the loss, where it is a tuple
        self.loss = svi._loss
        self.parameters = dict(svi._visited)
        self._meet(self.parameters)

    def renew(self) -> None:
        """Meet the parameters of the last step."""
        if self._svi._visited.keys() != self.parameters.keys():
            raise Stale("which parameters are visited")
        self._meet(dict(self._svi._visited))

    def _meet(self, parameters: dict[str, Tensor]) -> None:
        self.parameters = parameters
        self._optim = self._svi.optim
        self._loss_and_grads = self._svi.loss_and_grads
        # An optimizer passes by a parameter without gradient; one that was zeroed it follows.
        self._trained = {name: p for name, p in parameters.items() if p.grad is not None}
        possible = Updates.possible(self._optim, self._trained)
        self._updates = Updates(self._optim, self._trained) if possible else None
        self._gradients = [
            (p, p.grad, None if p.grad is None else p.grad._version) for p in parameters.values()
        ]

    def operators(self, args: tuple, kwargs: dict) -> list[Tensor]:
        """Loss, gradients by ``loss_and_grads``, updates."""
        for name, parameter in self.parameters.items():
            if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
                raise CaptureError(
                    f"parameter {name!r} has a hook, which a graph would not call. Remove it, or take "
                    "steps with pyro.infer.SVI."
                )
        svi = self._svi
        store = pyro.get_param_store()._params
        before = dict(store)
        with poutine.trace(param_only=True) as capture:
            loss = svi.loss_and_grads(svi.model, svi.guide, *args, **kwargs)
        visited = capture.trace.nodes.keys()
        if visited != self.parameters.keys():
            raise CaptureError("two runs of the programs visit different parameters.")
        for name in store.keys() | before.keys():
            if store.get(name) is not before.get(name):
                raise CaptureError(f"the loss keeps {name!r} in the param store as its own memory.")
        gained = [n for n, p in self.parameters.items() if p.grad is not None]
        if not set(gained) <= self._trained.keys():
            raise CaptureError("two runs of the programs give gradients to different parameters.")
        self._kind = type(loss) if isinstance(loss, tuple) else None
        losses = [torch.as_tensor(x) for x in (loss if isinstance(loss, tuple) else (loss,))]
        if self._updates is None:
            gradients = [p.grad for p in self._trained.values()]
            zeros = [torch.zeros_like(p) for p in self._trained.values()]
            return losses + [z if g is None else g for g, z in zip(gradients, zeros)]
        with torch.no_grad():
            self._updates.apply()
        return losses

    def slots(self) -> list[Slot]:
        """Parameters where Pyro keeps them, and the optimizers' objects."""
        slots = [
            Slot(_stored, name, parameter, f"parameter {name!r}")
            for name, parameter in self.parameters.items()
            if _stored(name) is parameter
        ]
        return slots + (self._updates.slots() if self._updates is not None else [])

    def check(self) -> None:
        """Nothing but parameters' values has changed since the last step."""
        svi = self._svi
        if svi.optim is not self._optim or svi.loss_and_grads != self._loss_and_grads:
            raise Stale("the optimizer or the loss of the SVI object")
        for parameter, gradient, version in self._gradients:
            now = parameter.grad
            if now is not gradient or (now is not None and now._version != version):
                raise Stale("a gradient that was there before the step")
            if parameter._backward_hooks:
                raise Stale("hooks on parameters")
        if self._updates is not None and self._updates.changed():
            raise Stale("a setting of the optimizer")

    def replay(self, run: Run, inputs: list[Tensor]) -> Any:
        """Take the step; the loss is read once, at its end."""
        if self._updates is not None:
            self._updates.count()
            self._updates.fill()
        with torch.no_grad():
            outputs = run(inputs)
        if self._updates is None:
            self._beside(outputs[-len(self._trained) :])
        count_step(self.loss)
        if self._kind is not None:
            return self._kind(map(torch_item, outputs[: len(outputs)]))
        loss: float = outputs[0].item()
        warn_if_nan(loss, "loss")
        return loss

    def _beside(self, gradients: Any) -> None:
        """Let the optimizers run as they are."""
        for parameter, gradient in zip(self._trained.values(), gradients, strict=True):
            parameter.grad = gradient
        parameters = set(self.parameters.values())
        self._optim(parameters)
        zero_grads(parameters)
        self._gradients = [
            (p, p.grad, p.grad._version) for p in self.parameters.values() if p.grad is not None
        ]

    def loss_of(self, result: Any) -> Any:
        """The first loss, where there are several."""
        return result[0] if isinstance(result, tuple) else result


def _stored(name: str) -> Any:
    return pyro.get_param_store()._params.get(name)


def _floats(loss: Any) -> Any:
    if isinstance(loss, tuple):
        return type(loss)(map(torch_item, loss))
    return torch_item(loss)
