"""The losses that are looked at side by side: what may stand there, and copies to run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pyro.infer import ELBO

from pyro_silent.errors import ConfigurationError
from pyro_silent.estimators import Estimator

Loss: TypeAlias = ELBO | Callable[..., Any]
"""What ``pyro.infer.SVI`` takes: an ELBO, or a function of model, guide and their arguments."""


def check_losses(elbos: Any) -> dict[str, Loss]:
    """The losses by name.

    :raises ConfigurationError: if they are not a mapping of names to losses.
    """
    if not isinstance(elbos, Mapping):
        raise ConfigurationError(
            f"elbos: got {elbos!r}, expected a dict from names to losses; write for example "
            '{"silent": SilentELBO(), "trace": Trace_ELBO()}.'
        )
    if not elbos:
        raise ConfigurationError("elbos: got an empty dict, expected at least one loss.")
    for name, loss in elbos.items():
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"elbos: got the name {name!r}, expected text.")
        check_loss(f"elbos[{name!r}]", loss)
    return dict(elbos)


def check_loss(argument: str, loss: Any) -> None:
    """Refuse what SVI would not take.

    :raises ConfigurationError: naming the argument.
    """
    if isinstance(loss, type):
        raise ConfigurationError(
            f"{argument}: got the class {loss.__name__}, expected an instance; write {loss.__name__}()."
        )
    if not isinstance(loss, ELBO) and not callable(loss):
        raise ConfigurationError(
            f"{argument}: got {loss!r}, expected an ELBO such as Trace_ELBO() or SilentELBO(), or a "
            "function of model, guide and their arguments."
        )


def check_programs(model: Any, guide: Any) -> None:
    """Refuse what cannot be called.

    :raises ConfigurationError: naming the argument.
    """
    for argument, program in (("model", model), ("guide", guide)):
        if not callable(program):
            raise ConfigurationError(f"{argument}: got {program!r}, expected a callable.")


def copy_of(loss: Any) -> Any:
    """A loss in the same state that can be run without a trace in the one given.

    Its counters, caches, estimators and the losses it is made of are copied; schedules, networks and
    functions that it holds are shared.
    """
    if not isinstance(loss, (ELBO, Estimator)):
        return loss
    double = copy.copy(loss)
    for key, value in vars(double).items():
        vars(double)[key] = _copy_of_value(value)
    return double


def _copy_of_value(value: Any) -> Any:
    if type(value) in (list, set):
        return type(value)(map(_copy_of_value, value))
    if type(value) is dict:
        return {key: _copy_of_value(item) for key, item in value.items()}
    return copy_of(value)


def one_line(error: Exception) -> str:
    """The kind of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip(' :')}" if lines else type(error).__name__
