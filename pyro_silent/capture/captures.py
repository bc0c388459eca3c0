"""All graphs of one step, by what its arguments are; and what stands in the way of more."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.poutine.runtime import _PYRO_STACK

from pyro_silent.capture.arguments import Arguments, flatten
from pyro_silent.capture.capture import Capture, Program
from pyro_silent.capture.inputs import Doubtful, Stale
from pyro_silent.capture.surroundings import Surroundings, surroundings
from pyro_silent.elbo.engine import check_positive_int
from pyro_silent.errors import CaptureError, CaptureWarning, ConfigurationError

MAX_SIGNATURES = 64
"""Kinds of arguments that are told apart, after which further ones are taken to change all the time."""

PATIENCE = 10
"""Eager steps in a row, each because something changed, before that is said."""

CHOICES = ("warn", "raise")


class CaptureStatistics(NamedTuple):
    """What became of the steps.

    :ivar graphs: how many were traced.
    :ivar replays: steps taken by a graph.
    :ivar eager_steps: steps taken as Pyro takes them.
    :ivar trace_seconds: spent on traces.
    :ivar compile_seconds: spent on the compiler.
    :ivar reasons: why steps are not captured, one for each signature that is refused.
    """

    graphs: int
    replays: int
    eager_steps: int
    trace_seconds: float
    compile_seconds: float
    reasons: tuple[str, ...]


class _Entry:
    """What is known of one signature."""

    def __init__(self) -> None:
        self.captures: list[Capture] = []
        self.surroundings: Surroundings | None = None
        self.refused: str | None = None
        self.moving = 0
        self.warned = False
        self.others: list[Any] = []  # alive, since signatures tell them by identity


class Captures:
    """Takes each step by a graph where there is one that fits, else eagerly.

    :param roots: places of the objects whose code runs in a step, by what to call them.
    :param make: makes the program once the first step has been taken.
    :param eagerly: takes a step as Pyro does.
    :param max_graphs: how many there may be; a step that none of them fits is then taken eagerly.
    """

    def __init__(
        self,
        roots: Mapping[str, tuple[Callable[[Any], Any], Any]],
        make: Callable[[], Program],
        eagerly: Callable[[tuple, dict], Any],
        backend: str,
        uncapturable: str,
        max_graphs: int,
    ) -> None:
        check_positive_int("max_graphs", max_graphs)
        if uncapturable not in CHOICES:
            raise ConfigurationError(
                f'uncapturable: got {uncapturable!r}, expected "warn" (take the step as Pyro does, '
                'and say why) or "raise".'
            )
        self._roots = dict(roots)
        self._make = make
        self._eagerly = eagerly
        self._backend = backend
        self._max_graphs = max_graphs
        self._raises = uncapturable == "raise"
        self._entries: dict[Hashable, _Entry] = {}
        self._replays = self._eager_steps = 0

    @property
    def statistics(self) -> CaptureStatistics:
        """What became of the steps so far."""
        captures = [c for entry in self._entries.values() for c in entry.captures]
        return CaptureStatistics(
            len(captures),
            self._replays,
            self._eager_steps,
            sum(capture.trace_seconds for capture in captures),
            sum(capture.compile_seconds for capture in captures),
            tuple(entry.refused for entry in self._entries.values() if entry.refused),
        )

    def __call__(self, args: tuple, kwargs: dict) -> Any:
        """Take a step."""
        arguments = flatten(args, kwargs)
        key = (arguments.signature, _ambient(arguments))
        entry = self._entries.get(key)
        if entry is None:
            entry = _Entry()
            if len(self._entries) < MAX_SIGNATURES:
                self._entries[key] = entry
                entry.others = arguments.others
        why = None
        prevented = _prevented()
        if prevented is not None:
            self._say_once(entry, prevented)
            return self._step(args, kwargs)
        for capture in entry.captures:
            try:
                inputs = capture.now(arguments)
            except Stale as stale:
                why = str(stale)
                continue
            try:
                result = capture.replay(inputs)
            except Doubtful as doubtful:
                entry.captures.remove(capture)
                why = str(doubtful)
                break
            self._replays += 1
            return result
        if entry.refused is None:
            entry.refused = _unfit(arguments)
        if entry.refused is not None:
            self._refuse(entry, entry.refused)
            return self._step(args, kwargs)
        return self._without_graph(entry, arguments, args, kwargs, why)

    def _without_graph(
        self, entry: _Entry, arguments: Arguments, args: tuple, kwargs: dict, why: str | None
    ) -> Any:
        """A step that no graph fits: eager, and traced if nothing has changed since the last one."""
        if entry.surroundings is not None:
            why = entry.surroundings.changed()
            if why is None:
                return self._captured(entry, arguments, args, kwargs)
        result = self._step(args, kwargs)
        self._observe(entry, arguments, why)
        return result

    def _observe(self, entry: _Entry, arguments: Arguments, why: str | None) -> None:
        """After an eager step: a graph may fit again; or else look around for the next one."""
        for capture in entry.captures:
            try:
                capture.refresh(arguments)
                capture.now(arguments)
                return
            except Stale:
                continue
        entry.moving += 1
        if entry.moving >= PATIENCE and not entry.warned:
            entry.warned = True
            _warn(f"steps are taken as Pyro takes them as long as {why} changes from step to step.")
        others = {f"argument {type(o).__name__}": o for o in arguments.others}
        try:
            entry.surroundings = surroundings(self._roots, others)
        except CaptureError as error:
            self._refuse(entry, str(error))

    def _captured(self, entry: _Entry, arguments: Arguments, args: tuple, kwargs: dict) -> Any:
        """A step that is traced and then taken eagerly; the next is taken by the graph."""
        assert entry.surroundings is not None
        around, entry.surroundings = entry.surroundings, None
        if self.statistics.graphs >= self._max_graphs:
            reason = f"there are {self._max_graphs} graphs already, and none fits"
            self._refuse(entry, f"{reason}. max_graphs=... allows more.")
            return self._step(args, kwargs)
        capture = None
        try:
            capture = Capture(self._make(), around, arguments)
            capture.trace(arguments, args, kwargs)
        except Exception as error:  # whatever a program cannot stand while it is traced
            capture = None
            self._refuse(entry, _reason(error))
        result = self._step(args, kwargs)
        if capture is not None:
            try:
                capture.prepare(arguments, self._backend, result)
                entry.captures.append(capture)
                entry.moving = 0
            except Exception as error:
                self._refuse(entry, _reason(error))
        return result

    def _step(self, args: tuple, kwargs: dict) -> Any:
        self._eager_steps += 1
        return self._eagerly(args, kwargs)

    def _refuse(self, entry: _Entry, reason: str) -> None:
        entry.refused = reason
        if self._raises:
            raise CaptureError(reason)
        self._say_once(entry, reason)

    @staticmethod
    def _say_once(entry: _Entry, reason: str) -> None:
        if not entry.warned:
            entry.warned = True
            _warn(f"steps are taken as Pyro takes them: {reason}")


def _reason(error: Exception) -> str:
    if isinstance(error, CaptureError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"the programs cannot be traced: {type(error).__name__}: {lines[0]}"


def _warn(text: str) -> None:
    warnings.warn(text, CaptureWarning, stacklevel=4)


def _ambient(arguments: Arguments) -> Hashable:
    """Modes of torch that decide what a program computes."""
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
    )


def _prevented() -> str | None:
    """What rules a graph out for one step."""
    if _PYRO_STACK:
        return "they are taken inside of Pyro's handlers, which a graph would not meet."
    if torch.is_inference_mode_enabled():
        return "torch's inference mode is on."
    return None


def _unfit(arguments: Arguments) -> str | None:
    """What rules a graph out for arguments of a kind."""
    for i, tensor in enumerate(arguments.tensors):
        if tensor.requires_grad:
            return f"argument {i} requires a gradient."
        if tensor.layout != torch.strided or type(tensor).__torch_dispatch__ is not _PLAIN:
            return f"argument {i} is not a plain dense tensor but {type(tensor).__name__}."
    return None


_PLAIN = torch.Tensor.__torch_dispatch__
