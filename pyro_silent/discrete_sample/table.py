"""How rules get into the table: by the names a torch function goes by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]
Rule = Callable[[Callable, Arguments, Keywords], Any]


class RuleTable(dict[Callable, Rule]):
    """Rules by torch function.

    :ivar fallback: the rule of every other function.
    :ivar without_gradient: the rule of all functions under ``torch.no_grad()``.
    :ivar below: the rule of all calls below the level of torch functions.
    """

    fallback: Rule
    without_gradient: Rule
    below: Rule

    def __missing__(self, function: Callable) -> Rule:
        return self.fallback


RULES = RuleTable()  # for all samples
INTEGRAL_RULES = RuleTable()  # where RULES has none, for functions with an integer or bool sample

_RuleType = TypeVar("_RuleType", bound=Callable)
_HOMES = (torch, Tensor, F, torch.special, torch.linalg, torch._C._nn)


def functions(*names: str) -> list[Callable]:
    """Every torch function, method and operator of these names; torch versions differ in a few."""
    found: list[Callable] = []
    for name in names:
        for home in _HOMES:
            function = getattr(home, name, None)
            if callable(function) and function not in found:
                found.append(function)
    return found


def properties(*names: str) -> list[Callable]:
    """The getters of these attributes of a tensor."""
    return [getattr(Tensor, name).__get__ for name in names if hasattr(Tensor, name)]


def register(rule: Rule, *names: str, table: RuleTable = RULES) -> None:
    """Make ``rule`` the rule for all torch functions of these names."""
    for function in functions(*names):
        table[function] = rule


def rule(*names: str, table: RuleTable = RULES) -> Callable[[_RuleType], _RuleType]:
    """Decorator: the rule for all torch functions of these names."""

    def decorate(function: _RuleType) -> _RuleType:
        register(function, *names, table=table)
        return function

    return decorate
