"""The inputs of a captured graph, read anew in each step from whoever keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_silent.capture.arguments import Arguments, kind_of
from pyro_silent.capture.graph import Graph
from pyro_silent.capture.slots import Look, Slot


class Stale(Exception):
    """The graph does not fit any more; the text says what changed."""


class Doubtful(Stale):
    """How the graph computes a term is not good enough any more at these values; it changed nothing."""


def named(arguments: Arguments, slots: Sequence[Slot]) -> dict[str, Tensor]:
    """Every tensor once, by a name: arguments first, then by the first place a tensor is kept in."""
    tensors = {f"argument {i}": tensor for i, tensor in enumerate(arguments.tensors)}
    known = {id(tensor) for tensor in tensors.values()}
    for slot in slots:
        if isinstance(slot.value, Tensor) and id(slot.value) not in known:
            known.add(id(slot.value))
            label = slot.label
            while label in tensors:
                label += "'"
            tensors[label] = slot.value
    return tensors


def pattern_of(arguments: Arguments, slots: Sequence[Slot]) -> list[int]:
    """Which places hold one tensor: for each the first one that holds the same."""
    tensors = arguments.tensors + [s.value for s in slots if isinstance(s.value, Tensor)]
    first: dict[int, int] = {}
    return [first.setdefault(id(tensor), i) for i, tensor in enumerate(tensors)]


_SMALL = 65_536


class _Fixed(NamedTuple):
    """An input whose values decided the structure: what they were."""

    position: int
    copy: Tensor


class Inputs:
    """Where the tensors of one graph are, and what was taken for granted of them.

    :param tensors: all that the step can reach, by name; see :func:`named`.
    :param arguments: names of the arguments among them, in the order of :class:`Arguments`.
    :param slots: the places of all others; a tensor may have several, which agree.
    :param fixed: what the tensors held whose values decided the structure.
    :param pinned: identities of those that no other tensor may replace: parameters, whose optimizers
        know them by identity.
    """

    def __init__(
        self,
        graph: Graph,
        tensors: dict[str, Tensor],
        arguments: Sequence[str],
        slots: Sequence[Slot],
        pinned: Set[int],
        fixed: Mapping[str, Tensor],
    ) -> None:
        self._pinned = pinned
        self._names = graph.inputs
        self.tensors = [tensors[name] for name in graph.inputs]
        position = {name: i for i, name in enumerate(graph.inputs)}
        self._arguments = [
            (position[name], i) for i, name in enumerate(arguments) if name in position
        ]
        self._slots = list(slots)
        of_arguments = {id(tensors[name]) for name in arguments}
        # An argument that is kept elsewhere as well has to be that very tensor again.
        kept = {id(slot.value) for slot in slots}
        self._shared = [(i, tensors[n]) for i, n in enumerate(arguments) if id(tensors[n]) in kept]
        self._at_rest = [i for i, t in enumerate(self.tensors) if id(t) not in of_arguments]
        self._kinds = [kind_of(tensor) for tensor in self.tensors]
        self._take()
        self._fixed = [_Fixed(position[name], copy) for name, copy in fixed.items()]
        self._last: list[tuple[Tensor | None, int]] = [(None, 0) for _ in self._fixed]

    @property
    def moving(self) -> frozenset[int]:
        """Positions of inputs that are other tensors in each step."""
        return frozenset(range(len(self.tensors))) - frozenset(self._at_rest)

    def now(self, arguments: Arguments) -> list[Tensor]:
        """The inputs of this step.

        :raises Stale: where one is of another kind, or has other values though they decide the structure.
        """
        for i, tensor in self._shared:
            if arguments.tensors[i] is not tensor:
                raise Stale(f"argument {i}")
        if not self._look.same():
            self._rebind()
        tensors = self.tensors
        if [t.data_ptr() for t in self._resting] != self._pointers or [
            t.requires_grad for t in self._resting
        ] != self._trained:
            self._check_kinds()
        for i, j in self._arguments:
            tensors[i] = arguments.tensors[j]
        if self._fixed:
            self._check_fixed()
        return tensors

    def _take(self) -> None:
        """Note the tensors that rest where they are."""
        self._look = Look(self._slots)
        # the optimizers' own tensors are theirs alone: nobody gives them other memory
        resting = (self.tensors[i] for i in self._at_rest)
        self._resting = [t for t in resting if t.requires_grad or id(t) not in self._pinned]
        self._pointers = [t.data_ptr() for t in self._resting]
        self._trained = [t.requires_grad for t in self._resting]

    def _rebind(self) -> None:
        """Take the tensors that stand in the places of others now."""
        replaced: dict[int, Tensor] = {}
        slots = []
        for slot in self._slots:
            try:
                now = slot.read(slot.key)
            except (LookupError, AttributeError, ValueError):
                raise Stale(slot.label) from None
            old = slot.value
            if id(old) in self._pinned or not isinstance(old, Tensor):
                if now is not old:
                    raise Stale(slot.label)
                slots.append(slot)
                continue
            if replaced.setdefault(id(old), now) is not now or type(now) is not type(old):
                raise Stale(slot.label)
            if now is not old and kind_of(now) != kind_of(old):
                raise Stale(slot.label)
            slots.append(slot._replace(value=now))
        if len({id(tensor) for tensor in replaced.values()}) < len(replaced):
            raise Stale("two tensors that have become one")
        self.tensors = [replaced.get(id(tensor), tensor) for tensor in self.tensors]
        self._slots = slots
        self._take()

    def _check_kinds(self) -> None:
        for i in self._at_rest:
            if kind_of(self.tensors[i]) != self._kinds[i]:
                raise Stale(self._names[i])
        self._take()

    def _check_fixed(self) -> None:
        for n, (position, copy) in enumerate(self._fixed):
            tensor = self.tensors[position]
            last, version = self._last[n]
            # memory may be shared with what counts no versions, such as an array
            if tensor.numel() > _SMALL and tensor is last and tensor._version == version:
                continue
            if not torch.equal(tensor, copy):
                raise Stale(f"the values of {self._names[position]}")
            self._last[n] = (tensor, tensor._version)
