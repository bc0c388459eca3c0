"""What ``train_and_compare`` takes, and what it says of the rest."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from pyro.optim import PyroOptim
from torch.optim import Optimizer

from pyro_silent.diagnostics.training_data import check_data
from pyro_silent.elbo.engine import check_positive_int
from pyro_silent.errors import ConfigurationError

_EVALUATIONS = 50


def check_initialize(initialize: Any) -> None:
    """Refuse what cannot be called.

    :raises ConfigurationError: naming the argument.
    """
    if initialize is not None and not callable(initialize):
        raise ConfigurationError(
            f"initialize: got {initialize!r}, expected a function without arguments, or None."
        )


def check_all_data(data: Any, held_out: Any) -> None:
    """Refuse data that cannot be iterated again, and endless ones for the yardstick.

    :raises ConfigurationError: naming the argument.
    """
    check_data("data", data)
    if held_out is not None:
        check_data("held_out", held_out)
    elif not hasattr(data, "__len__"):
        raise ConfigurationError(
            f"held_out: got None, and data, of type {type(data).__name__}, has no length and so may "
            "never end; write held_out=[...], a list of batches."
        )


def checked_steps(num_steps: Any, evaluate_every: Any, patience: Any) -> int:
    """After how many steps to evaluate.

    :raises ConfigurationError: for numbers that are no positive integers.
    """
    check_positive_int("num_steps", num_steps)
    if patience is not None:
        check_positive_int("patience", patience)
    if evaluate_every is None:
        return -(-int(num_steps) // _EVALUATIONS)
    check_positive_int("evaluate_every", evaluate_every)
    return int(evaluate_every)


def checked_seeds(seeds: Any) -> list[int]:
    """Seeds as a list.

    :raises ConfigurationError: unless they are different integers >= 0.
    """
    wanted = "expected different integers >= 0; write for example seeds=(0, 1, 2)"
    if not isinstance(seeds, Iterable) or isinstance(seeds, (str, bytes)):
        raise ConfigurationError(f"seeds: got {seeds!r}, {wanted}.")
    listed = list(seeds)
    good = all(isinstance(s, Integral) and not isinstance(s, bool) for s in listed)
    if not listed or not good or min(map(int, listed)) < 0 or len(set(listed)) < len(listed):
        raise ConfigurationError(f"seeds: got {listed!r}, {wanted}.")
    return [int(seed) for seed in listed]


def check_optim(optim: Any) -> None:
    """Refuse what is no fresh optimizer of Pyro.

    :raises ConfigurationError: with what to write.
    """
    wanted = "expected one of pyro.optim that has not been used"
    if isinstance(optim, Optimizer) or (isinstance(optim, type) and issubclass(optim, Optimizer)):
        name = optim.__name__ if isinstance(optim, type) else type(optim).__name__
        settings = {"lr": 0.01} if isinstance(optim, type) else {"lr": optim.defaults.get("lr")}
        raise ConfigurationError(
            f"optim: got {name} of torch.optim, {wanted}; write pyro.optim.{name}({settings})."
        )
    if not isinstance(optim, PyroOptim):
        raise ConfigurationError(
            f'optim: got {optim!r}, {wanted}; write pyro.optim.Adam({{"lr": 0.01}}).'
        )
    if optim.optim_objs:
        raise ConfigurationError(
            f"optim: got one that holds the state of {len(optim.optim_objs)} parameters, {wanted}; "
            'make it anew, for example pyro.optim.Adam({"lr": 0.01}).'
        )
