"""What a program reads besides its arguments: Python values, and tensors, each where it is kept."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyro_silent.capture.slots import Look, Slot
from pyro_silent.capture.walk import ATOMS, Walk

_TENSORS = (Tensor, nn.Parameter)


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Everything that a set of programs can reach.

    :ivar guards: places of Python values; another value there may mean another graph.
    :ivar tensors: places of tensors; another tensor of the same kind there is another input.
    :ivar contents: arrays and long lists with copies of what they held.
    """

    guards: tuple[Slot, ...]
    tensors: tuple[Slot, ...]
    contents: tuple[tuple[Any, Any, str], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_look", Look(self.guards))

    def changed(self) -> str | None:
        """The label of a Python value that is no longer what it was; None if there is none."""
        if not self.contents and self._look.same():
            return None
        for read, key, value, label in self.guards:
            try:
                now = read(key)
            except (LookupError, AttributeError, ValueError):
                return label
            if now is not value and not _same(now, value):
                return label
        for container, copy, label in self.contents:
            if not _equal(container, copy):
                return label
        return None

    def replaced(self) -> str | None:
        """The label of a place that has got another tensor; None if there is none."""
        for read, key, value, label in self.tensors:
            if read(key) is not value:
                return label
        return None

    def renewed(self) -> Surroundings | None:
        """The same places with what is there now; None if that may lead to other places."""
        try:
            guards = [slot._replace(value=slot.read(slot.key)) for slot in self.guards]
        except (LookupError, AttributeError, ValueError):
            return None
        for old, new in zip(self.guards, guards):
            if new.value is not old.value and not isinstance(new.value, ATOMS):
                return None
        if any(not _equal(container, copy) for container, copy, _ in self.contents):
            return None
        return dataclasses.replace(self.again(), guards=tuple(guards))

    def again(self) -> Surroundings:
        """The same places with the tensors that are there now."""
        tensors = tuple(slot._replace(value=slot.read(slot.key)) for slot in self.tensors)
        return dataclasses.replace(self, tensors=tensors)


def surroundings(
    roots: Mapping[str, tuple[Callable[[Any], Any], Any]],
    others: Mapping[str, Any],
    numbers: Sequence[Slot],
) -> Surroundings:
    """Walk from programs and other objects to all that their code can read.

    A function is followed to its closure, its defaults and the globals that its code names; an object to
    the attributes that some code on the way names; a module of torch to its parameters, buffers,
    children and settings. Values inside objects without attributes of their own (iterators, files,
    extension types) cannot be seen.

    :param roots: places of programs, by what to call them.
    :param others: objects to walk from besides.
    :param numbers: further places of numbers.
    :raises CaptureError: if there are too many to look at in each step.
    """
    walk = Walk()
    for label, (read, key) in roots.items():
        walk.slot(read, key, label)
    for label, other in others.items():
        walk.visit(other, label)
    walk.finish()
    return Surroundings(
        (*(slot for slot in walk.slots if type(slot.value) not in _TENSORS), *numbers),
        tuple(slot for slot in walk.slots if type(slot.value) in _TENSORS),
        tuple(walk.contents),
    )


def _same(now: Any, value: Any) -> bool:
    """Whether another object is the same value."""
    if type(now) is not type(value):
        return False
    if isinstance(value, types.MethodType):
        return now.__func__ is value.__func__ and now.__self__ is value.__self__
    return isinstance(value, (*ATOMS, tuple)) and _is_plain(value) and bool(now == value)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, tuple) or all(isinstance(item, ATOMS) for item in value)


def _equal(container: Any, copy: Any) -> bool:
    if isinstance(copy, bytes):
        return bytes(container) == copy
    if isinstance(copy, np.ndarray):
        return np.array_equal(container, copy, equal_nan=copy.dtype.kind in "fc")
    return len(container) == len(copy) and type(copy)(container) == copy
