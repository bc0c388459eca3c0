"""TwinDecoder: one decoder for exact expectations, another for samples, in one place of a model."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from pyro_silent.errors import ConfigurationError, LeakError
from pyro_silent.random_tensor.program import random_tensors

BRANCHES = ("analytic", "expressive")

_chosen: list[str | None] = []
"""Branches that losses have chosen, the innermost last, None where there is no choice to be made; no
context variable, because a backward pass that computes a decoder again may do so in its own thread."""


def branch(name: str) -> AbstractContextManager[None]:
    """Inside, every :class:`TwinDecoder` runs this branch, whatever it is fed.

    :param str name: ``"analytic"`` or ``"expressive"``.
    :raises ConfigurationError: for another name.
    """
    if name not in BRANCHES:
        raise ConfigurationError(f"name: got {name!r}, expected one of {BRANCHES}.")
    return _choice(name)


def no_branch() -> AbstractContextManager[None]:
    """Inside, a :class:`TwinDecoder` refuses to run: what it returns would be used for both branches.

    :raises LeakError: from the twin.
    """
    return _choice(None)


@contextmanager
def _choice(name: str | None) -> Iterator[None]:
    _chosen.append(name)
    try:
        yield
    finally:
        _chosen.pop()


_Calls: TypeAlias = "dict[str, list[_Shapes]]"
_watching: list[dict[TwinDecoder, _Calls]] = []


@contextmanager
def watched_twins() -> Iterator[dict[TwinDecoder, _Calls]]:
    """Inside, the twins' branches are compared; gives what ran, by twin and branch.

    :raises ConfigurationError: from a twin whose branches do not return the same shapes.
    """
    ran: dict[TwinDecoder, _Calls] = {}
    _watching.append(ran)
    try:
        yield ran
    finally:
        _watching.pop()


def forget_twins() -> None:
    """Begin to watch anew: what ran before ended half-way."""
    for ran in _watching:
        ran.clear()


def stop_resting_branches(ran: dict[TwinDecoder, _Calls]) -> None:
    """Take away gradients that are 0 from the branch of a twin of which only the other one ran.

    An optimizer with momentum moves a parameter whose gradient is 0 and leaves one without a gradient
    alone. Pyro's ``SVI`` sets gradients to 0 after a step, so a branch would go on moving while it rests,
    and would not in a run that was resumed.
    """
    for twin, calls in ran.items():
        if len(calls) == 1:
            moving = set((twin.analytic if "analytic" in calls else twin.expressive).parameters())
            for parameter in set(twin.parameters()) - moving:
                gradient = parameter.grad
                if gradient is not None and not gradient.is_sparse and not gradient.any():
                    parameter.grad = None


class TwinDecoder(nn.Module):
    """Two modules for one place in a model: which of them runs depends on what it is fed.

    ``analytic`` runs where an argument is a :class:`RandomTensor`, so under :class:`SilentELBO`, and
    ``expressive`` everywhere else. So one model serves a loss with exact expectations, which needs a
    decoder affine in the latents or close to it, and a loss of samples, which takes any. While
    :class:`AnnealedELBO` evaluates one of its parts the part decides: its ``silent`` part runs
    ``analytic`` whatever loss stands there, its ``stochastic`` part runs ``expressive``.

    Nothing forces the twins to be decoders. They may return a tensor, or a tuple, list or dict of
    tensors, and so may differ in likelihood: a learned scale per dimension in one, a scale that depends
    on the latents in the other. Only what they return must fit the same sample statement.

    :param torch.nn.Module analytic: for laws, such as ``nn.Linear``.
    :param torch.nn.Module expressive: for samples, any network.
    :raises ConfigurationError: for an argument that is no module; in a step of :class:`AnnealedELBO`, for
        twins whose outputs for inputs of one shape differ in shape (several tensors: do not broadcast).

    Both twins are submodules, so ``pyro.module`` and optimizers see the parameters of both. Use
    ``twin.analytic(z)`` and ``twin.expressive(z)`` to choose by hand.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> import pyro.distributions as dist
        >>> from pyro_silent import TwinDecoder, random_tensor
        >>> deep = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 5))
        >>> twin = TwinDecoder(analytic=nn.Linear(2, 5), expressive=deep)
        >>> z = dist.Normal(torch.zeros(3, 2), 1.0)
        >>> twin(random_tensor(z)).shape  # the linear one
        torch.Size([3, 5])
        >>> torch.equal(twin(torch.ones(3, 2)), deep(torch.ones(3, 2)))
        True
    """

    def __init__(self, analytic: nn.Module, expressive: nn.Module) -> None:
        super().__init__()
        for argument, module in (("analytic", analytic), ("expressive", expressive)):
            if not isinstance(module, nn.Module):
                raise ConfigurationError(
                    f"{argument}: got {type(module).__name__}, expected a torch.nn.Module, such as "
                    "nn.Linear(32, 784)."
                )
        self.analytic = analytic
        self.expressive = expressive

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the twin whose turn it is returns."""
        if _chosen:
            name = _chosen[-1]
            if name is None:
                raise LeakError("a TwinDecoder in a guide that runs once for two losses")
        else:
            name = BRANCHES[0] if random_tensors((args, kwargs)) else BRANCHES[1]
        output = (self.analytic if name == BRANCHES[0] else self.expressive)(*args, **kwargs)
        if _watching:
            self._check_shapes(name, _Shapes.of((args, kwargs), output))
        return output

    def _check_shapes(self, name: str, shapes: _Shapes) -> None:
        """Compare with what the other twin returned when it was called for as many times."""
        calls = _watching[-1].setdefault(self, {})
        mine, its = calls.setdefault(name, []), calls.get(BRANCHES[name == BRANCHES[0]], [])
        mine.append(shapes)
        if len(its) < len(mine) or not its[len(mine) - 1].differ(shapes):
            return
        outputs = [its[len(mine) - 1].outputs, shapes.outputs]
        analytic, expressive = outputs if name == BRANCHES[1] else reversed(outputs)
        raise ConfigurationError(
            f"TwinDecoder: analytic returned {_written(analytic)} and expressive returned "
            f"{_written(expressive)} for an input of shape {_written(shapes.inputs)}; expected outputs "
            "of one shape, since both are seen by the same sample statement."
        )


class _Shapes(NamedTuple):
    """Shapes of the tensors that went into a module and came out of it."""

    inputs: tuple[torch.Size, ...]
    outputs: tuple[torch.Size, ...]

    @classmethod
    def of(cls, inputs: Any, outputs: Any) -> _Shapes:
        """The shapes in two nests of tensors."""
        return cls(tuple(_shapes(inputs)), tuple(_shapes(outputs)))

    def differ(self, other: _Shapes) -> bool:
        """Whether outputs cannot stand for each other, where the inputs allow to tell."""
        if len(self.outputs) != len(other.outputs):
            return True
        same = operator.eq if len(self.outputs) == 1 else _broadcast
        pairs = zip(self._per_item(other), other._per_item(self), strict=True)
        return any(a is not None and b is not None and not same(a, b) for a, b in pairs)

    def _per_item(self, other: _Shapes) -> list[torch.Size | None]:
        """Output shapes without the batch, which samples may have more of than laws; None if unknown."""
        if self.inputs == other.inputs:
            return [*self.outputs]
        unknown: list[torch.Size | None] = [None] * len(self.outputs)
        if len(self.inputs) != 1 or len(other.inputs) != 1:
            return unknown
        (mine,), (its,) = self.inputs, other.inputs
        if not mine or not its or mine[-1] != its[-1]:
            return unknown
        batch = mine[:-1]
        return [
            shape[len(batch) :] if shape[: len(batch)] == batch else None for shape in self.outputs
        ]


def _shapes(value: Any) -> Iterator[torch.Size]:
    """Shapes of all tensors in a nest."""
    if isinstance(value, Tensor):
        yield value.shape
    elif isinstance(value, dict):
        for item in value.values():
            yield from _shapes(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _shapes(item)


def _broadcast(a: torch.Size, b: torch.Size) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b)))


def _written(shapes: tuple[torch.Size, ...]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes) or "no tensor"
