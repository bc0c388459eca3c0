"""Places that hold values, and a quick look at many of them."""

from __future__ import annotations

import operator
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
    """A quick look at many places, whether each still holds the very object it held."""

    def __init__(self, slots: Iterable[Slot]) -> None:
        slots = list(slots)
        sized = [slot for slot in slots if slot.read is length_of]
        self._containers = [slot.key for slot in sized]
        self._lengths = [slot.value for slot in sized]
        others = [slot for slot in slots if slot.read is not length_of]
        self._places = [(slot.read, slot.key) for slot in others]
        self._values = [slot.value for slot in others]

    def same(self) -> bool:
        """Whether nothing has been replaced."""
        if [*map(len, self._containers)] != self._lengths:
            return False
        try:
            now = [read(key) for read, key in self._places]
        except (LookupError, AttributeError, ValueError):
            return False
        return all(map(operator.is_, now, self._values))
