"""Conditions under which a program is traced: nothing is looked at, nothing is left changed."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np
import pyro
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_silent.elbo.random_state import random_state, restore
from pyro_silent.errors import CaptureError


def _item(value: Any) -> Any:
    """A loss stays a tensor, where Pyro makes it a float."""
    return value if isinstance(value, Number) else value.detach()


def _no_warning(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


_SUBSTITUTES = {torch_item: _item, warn_if_nan: _no_warning}


@contextmanager
def without_looking() -> Iterator[None]:
    """Inside, losses read no value: no validation, no warning of NaN, no float of a loss."""
    changed = []
    for name, module in list(sys.modules.items()):
        if name.startswith(("pyro.", "pyro_silent.")) and module is not None:
            for attribute, value in list(vars(module).items()):
                if callable(value) and getattr(value, "__name__", "") in _NAMES:
                    for original, substitute in _SUBSTITUTES.items():
                        if value is original:
                            changed.append((module, attribute, original))
                            setattr(module, attribute, substitute)
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        for module, attribute, original in changed:
            setattr(module, attribute, original)


_NAMES = {original.__name__ for original in _SUBSTITUTES}


@contextmanager
def undone(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, parameters have no gradient; gradients, param store and random states come back.

    :raises CaptureError: if Python's or numpy's generator was drawn from, which no graph does.
    """
    gradients = [(parameter, parameter.grad) for parameter in parameters]
    store = pyro.get_param_store()
    kept = [
        (kind, dict(kind)) for kind in (store._params, store._param_to_name, store._constraints)
    ]
    state = random_state()
    others = random.getstate(), np.random.get_state()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        restore(state)
        drawn = random.getstate() != others[0] or not _same(np.random.get_state(), others[1])
        random.setstate(others[0])
        np.random.set_state(others[1])
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for entries, before in kept:
            if list(map(id, entries.values())) != list(map(id, before.values())):
                entries.clear()
                entries.update(before)
    if drawn:
        raise CaptureError(
            "the programs draw from Python's or numpy's random generator, and a graph would repeat what "
            "they drew. Draw from torch's, or pass the numbers as an argument."
        )


def _same(state: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(state, other, strict=True))
