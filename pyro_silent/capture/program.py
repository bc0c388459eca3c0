"""A program to be captured: a step on some parameters, in the two ways it can run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_silent.capture.backend import Run
from pyro_silent.capture.inputs import Doubtful, Stale
from pyro_silent.capture.schedule import doubts_of, forget_answers, silent_loss_of
from pyro_silent.capture.slots import Slot
from pyro_silent.errors import CaptureError


class Program(ABC):
    """What is captured: a step as operators on tensors, and what a user gets of it.

    Made when the step has run once, so that the parameters and the optimizer's state are there.

    :param parameters: those that the step visited, by name.
    :ivar loss: the object whose schedules the step follows.
    """

    loss: Any

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.parameters = dict(sorted(parameters.items()))
        self._constants: tuple = ()
        self.can_fail = self._tells_silent_loss = False
        self._silent_before: Tensor | None = None

    def begin(self) -> None:
        """Note what the trace takes for granted."""
        self._constants = self.constants()
        self._silent_before = silent_loss_of(self.loss)

    @abstractmethod
    def operators(self, args: tuple, kwargs: dict) -> list[Tensor]:
        """Take the step while it is traced; returns the results, the loss first.

        After them come the :meth:`asides`, which :meth:`trusted` takes off again.
        """

    @abstractmethod
    def expected(self, result: Any) -> list[Tensor]:
        """The same results, of a step that was taken eagerly, as far as they can be told."""

    @abstractmethod
    def replay(self, run: Run, inputs: list[Tensor]) -> Any:
        """Take the step by the graph; returns what the user gets."""

    def visited(self) -> dict[str, Tensor]:
        """The parameters of the last eager step."""
        return self.parameters

    def renew(self) -> None:
        """Meet the tensors of the last eager step, which may have replaced some.

        :raises Stale: if that step is not the one that was traced.
        """
        self.parameters = dict(sorted(self.visited().items()))
        if self.constants() != self._constants:
            raise Stale("what the step consists of")

    def constants(self) -> tuple:
        """What the graph takes for granted, besides what the programs read."""
        return (list(self.parameters),)

    def slots(self) -> list[Slot]:
        """The places of parameters, and of objects and tensors of the program's own."""
        store = pyro.get_param_store()
        places = store._params
        return [
            Slot(store.__getattribute__, "_params", places, "the param store"),
            *(
                Slot(places.__getitem__, name, p, f"parameter {name!r}")
                for name, p in places.items()
            ),
        ]

    def asides(self) -> list[Tensor]:
        """What the graph gives besides the results: a silent loss to remember, and a doubt.

        The doubt is true where the graph must not be relied on; there is none where it always may be.
        """
        doubt = doubts_of(self.loss)
        self.can_fail = doubt is not None
        silent = silent_loss_of(self.loss)
        self._tells_silent_loss = silent is not None and silent is not self._silent_before
        told = [silent.detach()] if silent is not None and self._tells_silent_loss else []
        return told + ([] if doubt is None else [doubt])

    def trusted(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results among the outputs of a run.

        :raises Doubtful: if there is reason for doubt.
        """
        if self.can_fail:
            if outputs[-1].item():
                forget_answers(self.loss)
                raise Doubtful("how a term has to be computed")
            outputs = outputs[:-1]
        if self._tells_silent_loss:
            self.loss._silent_value = outputs[-1]
            outputs = outputs[:-1]
        return outputs

    def check(self) -> None:
        """Look whether the graph may take this step.

        :raises Stale: if not, saying why.
        """
        return


def run_once(program: Any, parameters: dict[str, Tensor]) -> Any:
    """Run something that visits parameters, and see that it makes or replaces none.

    :raises CaptureError: if two runs differ in the parameters they visit, or one keeps a memory.
    """
    store = pyro.get_param_store()._params
    before = dict(store)
    with poutine.trace(param_only=True) as capture:
        result = program()
    if not capture.trace.nodes.keys() <= parameters.keys():
        raise CaptureError("two runs of the programs visit different parameters.")
    for name in store.keys() | before.keys():
        if store.get(name) is not before.get(name):
            raise CaptureError(f"the loss keeps {name!r} in the param store as its own memory.")
    return result


def parameters_of(trace: poutine.Trace) -> dict[str, Tensor]:
    """The unconstrained parameters that a run visited, by name."""
    return {name: _unconstrained(site["value"]) for name, site in trace.nodes.items()}


def _unconstrained(value: Any) -> Tensor:
    """A module's own parameter is none of the param store's."""
    tensor: Tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
    return tensor


def as_tensors(loss: Any) -> list[Tensor]:
    """One loss or a tuple of them."""
    return [torch.as_tensor(x) for x in (loss if isinstance(loss, tuple) else (loss,))]
