"""How rules get into the table: by the names a torch function goes by."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.random_tensor.program import RULES

_Rule = TypeVar("_Rule", bound=Callable)

_HOMES = (torch, Tensor, F, torch.fft, torch.linalg, torch.special, torch._C._nn, torch._C._fft)


def functions(*names: str) -> list[Callable]:
    """Every torch function, method and operator of these names; torch versions differ in a few."""
    found: list[Callable] = []
    for name in names:
        home, _, short = name.rpartition(".")
        homes = _HOMES if not home else (_attribute(torch, home.removeprefix("torch").split(".")),)
        for place in homes:
            function = getattr(place, short, None)
            if function is not None and function not in found:
                found.append(function)
    return found


def _attribute(place: Any, path: Sequence[str]) -> Any:
    return functools.reduce(
        lambda value, name: getattr(value, name, None) if name else value, path, place
    )


def rule(*names: str) -> Callable[[_Rule], _Rule]:
    """Decorator: the rule for all torch functions of these names."""

    def decorate(function: _Rule) -> _Rule:
        for torch_function in functions(*names):
            RULES[torch_function] = function
        return function

    return decorate
