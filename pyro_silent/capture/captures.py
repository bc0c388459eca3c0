"""All graphs of one step, by what its arguments are; and what stands in the way of more."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_silent.capture.arguments import Arguments, flatten
from pyro_silent.capture.capture import Capture, Program
from pyro_silent.capture.inputs import Doubtful, Stale
from pyro_silent.capture.slots import Slot
from pyro_silent.capture.surroundings import Surroundings, surroundings
from pyro_silent.elbo.engine import check_positive_int
from pyro_silent.errors import CaptureError, CaptureWarning, ConfigurationError

MAX_SIGNATURES = 64
"""Kinds of arguments that are remembered at a time."""

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
    """What is known of one signature.

    :ivar watched: what the programs read, as it was at the end of the last step.
    :ivar visited: the parameters that the last watched step visited.
    :ivar others: arguments, alive since signatures tell them by identity.
    """

    def __init__(self, others: list[Any]) -> None:
        self.others = others
        self.captures: list[Capture] = []
        self.watched: Surroundings | None = None
        self.visited: dict[str, Tensor] = {}
        self.refused: str | None = None
        self.calls = 0
        self.moving = 0


class Captures:
    """Takes each step by a graph where there is one that fits, else eagerly.

    :param roots: places of the objects whose code runs in a step, by what to call them.
    :param schedules: places of numbers that a loss takes from its schedules.
    :param make: makes the program of the parameters that a step has visited.
    :param eagerly: takes a step as Pyro does.
    :param visited: tells the parameters of that step, by name.
    :param max_graphs: how many there may be; a step that none of them fits is then taken eagerly.
    """

    def __init__(
        self,
        roots: Mapping[str, tuple[Callable[[Any], Any], Any]],
        schedules: Callable[[], list[Slot]],
        make: Callable[[dict[str, Tensor]], Program],
        eagerly: Callable[[tuple, dict], Any],
        visited: Callable[[], dict[str, Tensor]],
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
        self._schedules = schedules
        self._make = make
        self._eagerly = eagerly
        self._visited = visited
        self._backend = backend
        self._max_graphs = max_graphs
        self._raises = uncapturable == "raise"
        self._entries: dict[Hashable, _Entry] = {}
        self._replays = self._eager_steps = self._graphs = 0
        self._trace_seconds = self._compile_seconds = 0.0
        self._said: set[str] = set()

    def __getstate__(self) -> Any:
        raise CaptureError(
            "captured steps can be neither copied nor pickled: they belong to the objects they were "
            "captured from. Make a new one, and save param store, optimizer and loss instead."
        )

    @property
    def statistics(self) -> CaptureStatistics:
        """What became of the steps so far."""
        return CaptureStatistics(
            self._graphs,
            self._replays,
            self._eager_steps,
            self._trace_seconds,
            self._compile_seconds,
            tuple(entry.refused for entry in self._entries.values() if entry.refused),
        )

    def __call__(self, args: tuple, kwargs: dict) -> Any:
        """Take a step."""
        prevented = _prevented()
        if prevented is not None:
            self._say(prevented)
            return self._step(args, kwargs)
        arguments = flatten(args, kwargs)
        entry = self._entry(arguments)
        why = None
        for capture in entry.captures:
            try:
                inputs = capture.now(arguments)
                result = capture.replay(inputs)
            except Stale as stale:
                why = str(stale)
                if isinstance(stale, Doubtful):
                    entry.captures.remove(capture)
                    break
                continue
            self._replays += 1
            entry.calls = 0
            return result
        if entry.refused is None:
            entry.refused = _unfit(arguments)
        if entry.refused is not None:
            self._refuse(entry, entry.refused)
            return self._step(args, kwargs)
        return self._without_graph(entry, arguments, args, kwargs, why)

    def _entry(self, arguments: Arguments) -> _Entry:
        """What is known of arguments like these."""
        key = (arguments.signature, _ambient())
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= MAX_SIGNATURES:
                self._forget()
            entry = self._entries[key] = _Entry(arguments.others)
        return entry

    def _forget(self) -> None:
        """Drop what was met once."""
        self._entries = {key: entry for key, entry in self._entries.items() if entry.captures}
        self._say(
            f"there were {MAX_SIGNATURES} kinds of arguments so far, and plain numbers and objects tell "
            "kinds apart as shapes do. Pass what changes from step to step as tensors."
        )

    def _without_graph(
        self, entry: _Entry, arguments: Arguments, args: tuple, kwargs: dict, why: str | None
    ) -> Any:
        """A step that no graph fits: eager; traced as well if nothing has changed since the last one.

        The first step of a kind may set things up, or have a graph of before fit again. The second shows
        whether a step itself changes what the programs read. The third is traced.
        """
        if entry.calls == 0:
            entry.watched = None
            result = self._step(args, kwargs)
            fits = any(capture.fits_again(arguments) for capture in entry.captures)
            entry.calls = 0 if fits else 1
            return self._moved(entry, why, result) if entry.captures and not fits else result
        if entry.watched is not None:
            why = entry.watched.changed()
            if why is None:
                return self._captured(entry, entry.watched.again(), arguments, args, kwargs)
        try:
            entry.watched = self._look_around(entry, arguments)
        except Exception as error:  # a program may hold any object
            self._refuse(entry, _reason(error))
            return self._step(args, kwargs)
        result = self._step(args, kwargs)
        entry.visited = self._visited()
        replaced = entry.watched.replaced()
        if replaced is not None:
            self._refuse(entry, f"a step replaces {replaced}, which a graph would not do.")
        changed = entry.watched.changed()
        return result if changed is None else self._moved(entry, changed, result)

    def _moved(self, entry: _Entry, why: str | None, result: Any) -> Any:
        """Count steps after which something was other than before."""
        entry.moving += 1
        if entry.moving == PATIENCE:
            self._say(f"{why} changes from step to step.")
        return result

    def _look_around(self, entry: _Entry, arguments: Arguments) -> Surroundings:
        """What the programs read now; a walk, unless numbers alone have changed since the last one."""
        known = None if entry.watched is None else entry.watched.renewed()
        if known is not None:
            return known
        others = {f"argument {type(o).__name__}": o for o in arguments.others}
        return surroundings(self._roots, others, self._schedules())

    def _captured(
        self, entry: _Entry, around: Surroundings, arguments: Arguments, args: tuple, kwargs: dict
    ) -> Any:
        """A step that is traced and then taken eagerly; the next is taken by the graph."""
        if self._graphs >= self._max_graphs:
            reason = f"there are {self._max_graphs} graphs already, and none fits"
            self._refuse(entry, f"{reason}. max_graphs=... allows more.")
            return self._step(args, kwargs)
        entry.watched = None
        try:
            capture = Capture(self._make(entry.visited), around)
            capture.trace(arguments, args, kwargs)
        except Stale as stale:
            return self._moved(entry, str(stale), self._step(args, kwargs))
        except Exception as error:  # whatever a program cannot stand while it is traced
            if self._raises:
                entry.refused = _reason(error)
                raise CaptureError(entry.refused) from error
            result = self._step(args, kwargs)  # if this raises too, the error is the program's own
            self._refuse(entry, _reason(error))
            return result
        result = self._step(args, kwargs)
        try:
            capture.prepare(arguments, self._backend, result)
        except Stale as stale:
            return self._moved(entry, str(stale), result)
        except Exception as error:
            entry.refused = _reason(error)  # for the next step: this one has been taken
            return result
        entry.captures.append(capture)
        entry.moving = 0
        self._graphs += 1
        self._trace_seconds += capture.trace_seconds
        self._compile_seconds += capture.compile_seconds
        return result

    def _step(self, args: tuple, kwargs: dict) -> Any:
        self._eager_steps += 1
        return self._eagerly(args, kwargs)

    def _refuse(self, entry: _Entry, reason: str) -> None:
        entry.refused = reason
        if self._raises:
            raise CaptureError(reason)
        self._say(reason)

    def _say(self, reason: str) -> None:
        """Warn, once for each reason."""
        if reason not in self._said:
            self._said.add(reason)
            text = f"steps are taken as Pyro takes them: {reason}"
            warnings.warn(text, CaptureWarning, stacklevel=4)


def _reason(error: Exception) -> str:
    if isinstance(error, CaptureError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"the programs cannot be traced: {type(error).__name__}: {lines[0]}"


def _ambient() -> Hashable:
    """Modes of torch that decide what a program computes."""
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        *map(len, _GLOBAL_HOOKS),
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


_GLOBAL_HOOKS = [
    hooks
    for name, hooks in vars(torch.nn.modules.module).items()
    if name.startswith("_global_") and isinstance(hooks, dict)
]
_PLAIN = torch.Tensor.__torch_dispatch__
