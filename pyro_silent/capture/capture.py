"""One step of a training loop as a graph, with all that must hold for the graph to stand in for it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.capture.arguments import Arguments, kind_of
from pyro_silent.capture.backend import Run, prepare
from pyro_silent.capture.graph import Graph, trace
from pyro_silent.capture.inputs import Inputs, Stale, named, pattern_of
from pyro_silent.capture.program import Program
from pyro_silent.capture.schedule import forget_answers, uncounted
from pyro_silent.capture.surroundings import Surroundings
from pyro_silent.capture.tracing import undone, without_looking
from pyro_silent.capture.walk import CACHE
from pyro_silent.elbo.random_state import RandomState, random_state, restore, same
from pyro_silent.errors import CaptureError
from pyro_silent.looking import capturing


class Capture:
    """A graph that stands in for a step.

    The graph is traced from the state before a step, the step is taken as Pyro takes it, and the graph
    has to arrive at the same loss and the same tensors before it is used.

    :param program: the step.
    :param surroundings: what the programs read besides their arguments.
    :ivar trace_seconds: spent on the trace.
    :ivar compile_seconds: spent on the compiler.
    """

    def __init__(self, program: Program, surroundings: Surroundings) -> None:
        self.program = program
        self.trace_seconds = self.compile_seconds = 0.0
        self._surroundings = surroundings
        self._fresh = False  # whether the inputs below are those of the last eager step
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
        program.begin()
        slots = [*program.slots(), *self._surroundings.tensors]
        tensors = named(arguments, slots)
        trained = {id(parameter) for parameter in program.parameters.values()}
        leaves = [t for t in tensors.values() if t.requires_grad and t.is_leaf]
        changing = frozenset(name for name, tensor in tensors.items() if id(tensor) in trained)
        with (
            undone([*leaves, *program.parameters.values()]),
            uncounted(program.loss),
            without_looking(),
            capturing(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            self._graph = trace(lambda: program.operators(args, kwargs), tensors, changing)
        for name in self._graph.inputs:
            tensor = tensors.get(name)
            if tensor is not None and tensor.requires_grad and id(tensor) not in trained:
                raise CaptureError(
                    f"{name} requires a gradient and is no parameter that the step visits, so its "
                    "gradient would be lost. Register it with pyro.param or pyro.module, or detach it."
                )
        if self._graph.unowned and any(
            s.label.startswith(CACHE) for s in self._surroundings.guards
        ):
            raise CaptureError(
                "the programs take a tensor out of a cache, where it cannot be seen."
            )
        label = self._surroundings.changed() or self._surroundings.replaced()
        if label is not None:
            raise CaptureError(f"running the programs changes {label}, which a graph would not do.")
        self._written = frozenset(self._graph.before)
        for name, tensor in tensors.items():
            if id(tensor) in trained and name in self._graph.inputs:  # an optimizer may move it
                self._graph.before.setdefault(name, tensor.detach().clone())
        self._pattern = pattern_of(arguments, slots)
        self._fixed = {n: tensors[n].detach().clone() for n in self._graph.structural}
        self._kinds = [kind_of(tensors[name]) for name in self._graph.inputs if name in tensors]
        self._state = random_state()
        self.trace_seconds = time.perf_counter() - started

    def prepare(self, arguments: Arguments, backend: str, result: Any) -> None:
        """Compile the graph, and compare it with the step that was taken since the trace.

        :param result: what that step gave.
        :raises CaptureError: if the graph does not arrive where the step arrived.
        :raises Stale: if the step has changed what the graph takes for granted.
        """
        self._refresh(arguments)
        after = self.now(arguments)
        moving = self._inputs.moving
        plain, _ = prepare(self._graph.module, after, moving, "eager")
        drawn = self._compare(plain, after, result)
        if not same(drawn, random_state()):
            raise CaptureError("the programs set the state of torch's random generator.")
        if backend != "eager":
            self._run, self.compile_seconds = prepare(self._graph.module, after, moving, backend)
            self._compare(self._run, after, result)
        else:
            self._run = plain
        self._graph.before.clear()

    def _compare(self, run: Run, after: list[Tensor], result: Any) -> RandomState:
        """Run the graph from where the step began; returns where that leaves the random state."""
        written = self._graph.before
        before = [
            written[name].clone() if name in written else tensor
            for name, tensor in zip(self._graph.inputs, after)
        ]
        now = random_state()
        try:
            restore(self._state)
            with torch.no_grad():
                outputs = run(before)
            drawn = random_state()
        finally:
            restore(now)
        if self.program.can_fail and outputs[-1].item():
            forget_answers(self.program.loss)
            raise Stale("how a term has to be computed")
        compare_results(self.program.expected(result), outputs)
        names = self._graph.inputs
        for name, a, b in zip(names, after, before, strict=True):
            # an optimizer beside the graph moves parameters that the graph does not write
            if name in self._written and not _near(a.detach(), b.detach(), 1e-2):
                raise CaptureError(f"the graph leaves {name} in another state than the step.")
        return drawn

    def fits_again(self, arguments: Arguments) -> bool:
        """Whether the graph fits the next step, after one that was taken eagerly."""
        try:
            self._refresh(arguments)
            self.now(arguments)
        except Stale:
            return False
        return True

    def _refresh(self, arguments: Arguments) -> None:
        """Find the inputs anew, after a step that may have replaced some.

        :raises Stale: if they are not of the kind they were.
        """
        self._fresh = False
        self._surroundings = self._surroundings.again()
        self.program.renew()
        own = self.program.slots()
        slots = [*own, *self._surroundings.tensors]
        pinned = {id(parameter) for parameter in self.program.parameters.values()}
        pinned |= {id(slot.value) for slot in own}
        tensors = {**named(arguments, slots), **self._graph.unowned}
        for name in self._graph.inputs:
            if name not in tensors:
                raise Stale(name)
        kinds = [kind_of(tensors[n]) for n in self._graph.inputs if n not in self._graph.unowned]
        if kinds != self._kinds:
            raise Stale("a shape, a dtype or a device")
        if pattern_of(arguments, slots) != self._pattern:
            raise Stale("which places hold one and the same tensor")
        names = [f"argument {i}" for i in range(len(arguments.tensors))]
        self._inputs = Inputs(self._graph, tensors, names, slots, pinned, self._fixed)
        self._fresh = True

    def now(self, arguments: Arguments) -> list[Tensor]:
        """The inputs of a step that the graph may take.

        :raises Stale: if it may not, saying what changed.
        """
        if not self._fresh:
            raise Stale("what the step consists of")
        label = self._surroundings.changed()
        if label is not None:
            raise Stale(label)
        self.program.check()
        return self._inputs.now(arguments)

    def replay(self, inputs: list[Tensor]) -> Any:
        """Take the step."""
        return self.program.replay(self._run, inputs)


def compare_results(expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """Refuse a graph whose loss or gradients differ from those of the step by more than rounding.

    :raises CaptureError: with both losses.
    """
    for i, (a, b) in enumerate(zip(expected, found)):
        if not _near(a.detach().cpu(), b.detach().cpu(), 1e-3):
            what = f"the loss {b.item()} where the step gave {a.item()}" if i == 0 else "gradients"
            raise CaptureError(
                f"the graph gives other values than the step ({what}): the programs take something from "
                "where it cannot be seen, such as an iterator or another library's random numbers. "
                "Pass it as an argument."
            )


def _near(expected: Tensor, found: Tensor, tolerance: float) -> bool:
    """Whether two tensors are the same but for rounding, in the norm.

    After an update that is up to what an optimizer makes of rounding: Adam moves a parameter whose
    gradient is zero but for rounding by as much as any other.
    """
    if not expected.is_floating_point():
        return torch.equal(expected, found.to(expected.dtype))
    if not bool(expected.isfinite().all()):
        return True  # nothing can be said
    a, b = expected.double(), found.double()
    distance, size = torch.linalg.vector_norm(a - b), torch.linalg.vector_norm(a)
    return bool(distance <= tolerance * (size + 1e-3))
