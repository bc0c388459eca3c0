"""How an expectation was found, for those who ask: a list that quadrature and enumeration write into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_LISTENERS: list[list[str]] = []


def note(method: str) -> None:
    """Say that something else than a closed form was used: ``"quadrature(32)"``, ``"enumerated"``."""
    for methods in _LISTENERS:
        if method not in methods:
            methods.append(method)


@contextmanager
def recording() -> Iterator[list[str]]:
    """Collect the methods noted inside; the list stays empty where all was closed form."""
    methods: list[str] = []
    _LISTENERS.append(methods)
    try:
        yield methods
    finally:
        # by identity: two empty lists are equal
        _LISTENERS[:] = [kept for kept in _LISTENERS if kept is not methods]
