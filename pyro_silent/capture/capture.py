"""One step of a training loop as a graph, with all that must hold for the graph to stand in for it."""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.capture.arguments import Arguments
from pyro_silent.capture.backend import Run, prepare
from pyro_silent.capture.graph import Graph, trace
from pyro_silent.capture.inputs import Inputs, Stale, named
from pyro_silent.capture.schedule import schedule_slots, uncounted
from pyro_silent.capture.surroundings import Slot, Surroundings
from pyro_silent.capture.tracing import undone, without_looking
from pyro_silent.elbo.random_state import random_state, restore
from pyro_silent.errors import CaptureError


class Program(ABC):
    """What is captured: a step on some parameters, in the two ways it can run.

    Made when the step has run once, so that the parameters and the optimizer's state are there.

    :ivar loss: the object whose schedules the step follows.
    :ivar parameters: those the step visits, by name.
    """

    loss: Any
    parameters: dict[str, Tensor]

    @abstractmethod
    def operators(self, args: tuple, kwargs: dict) -> list[Tensor]:
        """Take the step while it is traced; returns the results, the loss first."""

    @abstractmethod
    def slots(self) -> list[Slot]:
        """The places of parameters and of the program's own objects and tensors."""

    @abstractmethod
    def replay(self, run: Run, inputs: list[Tensor]) -> Any:
        """Take the step by the graph; returns what the user gets."""

    @abstractmethod
    def loss_of(self, result: Any) -> Any:
        """The loss in what the user gets, as a number or a tensor of one element."""

    @abstractmethod
    def check(self) -> None:
        """Look whether the graph may take this step.

        :raises Stale: if not, saying why.
        """

    @abstractmethod
    def renew(self) -> None:
        """Meet the tensors of the eager step just taken, which may have replaced some.

        :raises Stale: if they are not those of before.
        """


class Capture:
    """A graph that stands in for a step.

    The graph is traced from the state before a step, the step is taken as Pyro takes it, and the graph
    has to arrive at the same loss and the same tensors before it is used.

    :param program: the step.
    :param surroundings: what the programs read besides their arguments.
    :ivar trace_seconds: spent on the trace.
    :ivar compile_seconds: spent on the compiler.
    """

    def __init__(self, program: Program, surroundings: Surroundings, arguments: Arguments) -> None:
        self.program = program
        self.trace_seconds = self.compile_seconds = 0.0
        self._surroundings = surroundings
        self._others = arguments.others  # alive, since signatures tell them by identity
        self._schedules = schedule_slots(program.loss)
        self._graph: Graph
        self._inputs: Inputs
        self._run: Run
        self._state: Any = None

    def trace(self, arguments: Arguments, args: tuple, kwargs: dict) -> None:
        """Run the programs once for their operators; everything is left as it was.

        :raises CaptureError: with the reason why the step cannot be captured.
        """
        started = time.perf_counter()
        program = self.program
        tensors = named(arguments, self._slots())
        trained = {id(parameter) for parameter in program.parameters.values()}
        changing = frozenset(name for name, tensor in tensors.items() if id(tensor) in trained)
        with (
            undone(program.parameters.values()),
            uncounted(program.loss),
            without_looking(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            self._graph = trace(lambda: program.operators(args, kwargs), tensors, changing)
        label = self._surroundings.changed()
        if label is not None:
            raise CaptureError(f"running the programs changes {label}, which a graph would not do.")
        self._state = random_state()
        self.trace_seconds = time.perf_counter() - started

    def prepare(self, arguments: Arguments, backend: str, result: Any) -> None:
        """Compile the graph, and compare it with the step that was taken since the trace.

        :param result: what that step gave.
        :raises CaptureError: if the graph does not arrive where the step arrived.
        """
        try:
            self.refresh(arguments)
            after = self.now(arguments)
        except Stale as stale:
            raise CaptureError(f"the step changes {stale}, which a graph would not do.") from stale
        self._run, self.compile_seconds = prepare(self._graph.module, after, backend)
        written = self._graph.before
        before = [written.get(name, tensor) for name, tensor in zip(self._graph.inputs, after)]
        now = random_state()
        try:
            restore(self._state)
            with torch.no_grad():
                outputs = self._run(before)
        finally:
            restore(now)
        compare(self.program.loss_of(result), outputs[0], after, before, self._graph.inputs)
        written.clear()

    def refresh(self, arguments: Arguments) -> None:
        """Find the inputs anew, after a step that may have replaced some.

        :raises Stale: if they are not of the kind they were.
        """
        self._surroundings = self._surroundings.again()
        self.program.renew()
        slots = self._slots()
        tensors = {**named(arguments, slots), **self._graph.unowned}
        for name in self._graph.inputs:
            if name not in tensors:
                raise Stale(name)
        names = [f"argument {i}" for i in range(len(arguments.tensors))]
        self._inputs = Inputs(self._graph, tensors, names, slots)

    def now(self, arguments: Arguments) -> list[Tensor]:
        """The inputs of a step that the graph may take.

        :raises Stale: if it may not, saying what changed.
        """
        label = self._surroundings.changed()
        if label is not None:
            raise Stale(label)
        for read, key, value, label in self._schedules:
            if read(key) != value:
                raise Stale(label)
        self.program.check()
        return self._inputs.now(arguments)

    def replay(self, inputs: list[Tensor]) -> Any:
        """Take the step."""
        return self.program.replay(self._run, inputs)

    def _slots(self) -> list[Slot]:
        return [*self.program.slots(), *self._surroundings.tensors]


def compare(
    loss: Any, captured: Tensor, expected: list[Tensor], found: list[Tensor], names: Sequence[str]
) -> None:
    """Refuse a graph that does not do what the step did.

    The losses agree to rounding. Tensors agree up to what an optimizer makes of rounding: Adam moves a
    parameter whose gradient is zero but for rounding by as much as any other.

    :raises CaptureError: naming what differs.
    """
    loss = torch.as_tensor(loss, dtype=torch.float64)
    difference = (captured.detach().to("cpu", torch.float64) - loss.cpu()).abs()
    single = torch.finfo(torch.float32).eps
    if not (difference <= 1e4 * single * (1 + loss.abs())).item() and loss.isfinite().item():
        raise CaptureError(
            f"the graph gives the loss {captured.item()} where the step gave {loss.item()}: the programs "
            "take something from where it cannot be seen, such as an iterator or another library's "
            "random numbers. Pass it as an argument."
        )
    for name, a, b in zip(names, expected, found, strict=True):
        if not a.is_floating_point() or a.numel() == 0:
            same = torch.equal(a, b)
        else:
            distance = torch.linalg.vector_norm((a - b).double())
            same = bool(distance <= 1e-2 * (1e-6 + torch.linalg.vector_norm(a.double())))
        if not same and bool(a.isfinite().all()):
            raise CaptureError(f"the graph leaves another value than the step in {name}.")
