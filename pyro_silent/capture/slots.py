"""Places that hold values, and a quick look at many of them."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Slot(NamedTuple):
    """A place that holds a value: ``read(key)`` finds it there."""

    read: Callable[[Any], Any]
    key: Any
    value: Any
    label: str


def length_of(container: Any) -> int:
    """The reading of a place for how much a container holds."""
    return len(container)


class Look:
    """A quick look at many places, whether each still holds the very object it held.

    Places in one container are read together, by functions of C.
    """

    def __init__(self, slots: Iterable[Slot]) -> None:
        groups: dict[int, tuple[Any, list[Slot]]] = {}
        self._lengths: list[tuple[Any, int]] = []
        self._others: list[Slot] = []
        for slot in slots:
            container = getattr(slot.read, "__self__", None)
            if slot.read is length_of:
                self._lengths.append((slot.key, slot.value))
            elif getattr(slot.read, "__name__", "") == "__getitem__" and type(container) in (
                dict,
                OrderedDict,
            ):
                groups.setdefault(id(container), (container, []))[1].append(slot)
            else:
                self._others.append(slot)
        self._groups = [
            (operator.itemgetter(*(slot.key for slot in members)), container, members)
            for container, members in groups.values()
            if len(members) > 1
        ]
        self._values = [tuple(slot.value for slot in members) for _, _, members in self._groups]
        self._others += [m[0] for _, m in groups.values() if len(m) == 1]

    def same(self) -> bool:
        """Whether nothing has been replaced."""
        for container, length in self._lengths:
            if len(container) != length:
                return False
        try:
            for (get, container, _), values in zip(self._groups, self._values):
                if not all(map(operator.is_, get(container), values)):
                    return False
            for read, key, value, _ in self._others:
                if read(key) is not value:
                    return False
        except (LookupError, AttributeError, ValueError):
            return False
        return True
