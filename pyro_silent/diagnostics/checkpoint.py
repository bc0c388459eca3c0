"""A file from which an interrupted comparison of training runs goes on."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_silent.errors import ConfigurationError
from pyro_silent.estimators import Estimator

_FORMAT = 1
_OPTIM_SETTINGS = (
    "pt_optim_constructor",
    "pt_scheduler_constructor",
    "pt_optim_args",
    "pt_clip_args",
    "kwargs",
)
_PLAIN = (bool, int, float, str, type(None))


class Checkpoint:
    """Finished runs, and the one in progress at its last evaluation.

    One file: both must be of one moment, and the finished runs are no more than their curves. It is as
    large as parameters and optimizer state of one run. It is replaced as a whole, so that an
    interruption leaves the one before or the one after. It is read without running code from it.

    :param path: the file, in a folder that is made if there is none.
    :param setup: what the runs depend on, as plain values.
    :ivar finished: records of finished runs.
    :ivar current: the run that was in progress when the file was read, or None.
    :raises ConfigurationError: if the file is of another set-up, or none of ours.
    """

    def __init__(self, path: str | os.PathLike[str] | None, setup: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._setup = setup
        self.finished: list[dict[str, Any]] = []
        self.current: dict[str, Any] | None = None
        if self._path is None:
            return
        if self._path.is_dir():
            raise ConfigurationError(
                f"checkpoint: got the folder {self._path}, expected a file; write "
                f"checkpoint={str(self._path / 'comparison.pt')!r}."
            )
        if self._path.exists():
            self._read(self._path)

    def _read(self, path: Path) -> None:
        begin_anew = "write another path, or delete the file to begin anew"
        try:
            content = torch.load(path, weights_only=True)
            found, self.finished, self.current = (
                content[key] for key in ("setup", "finished", "current")
            )
            is_ours = content["format"] == _FORMAT and isinstance(found, dict)
        except OSError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"checkpoint: got {path}, which cannot be read ({type(error).__name__}), expected a "
                f"file that train_and_compare wrote; {begin_anew}."
            ) from error
        if not is_ours:
            raise ConfigurationError(
                f"checkpoint: got {path}, of another version of train_and_compare; {begin_anew}."
            )
        for key in dict.fromkeys([*found, *self._setup]):
            if found.get(key) != self._setup.get(key):
                raise ConfigurationError(
                    f"checkpoint: got {path}, of another comparison: {key} was {found.get(key)!r} and "
                    f"is {self._setup.get(key)!r}; {begin_anew}."
                )

    @property
    def is_kept(self) -> bool:
        """Whether there is a file at all."""
        return self._path is not None

    def finish(self, record: dict[str, Any]) -> None:
        """Keep a finished run."""
        self.finished.append(record)
        self.save(None)

    def save(self, current: dict[str, Any] | None) -> None:
        """Keep the run in progress."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        content = {
            "format": _FORMAT,
            "setup": self._setup,
            "finished": self.finished,
            "current": current,
        }
        try:
            torch.save(content, draft)
            draft.replace(self._path)
        finally:
            draft.unlink(missing_ok=True)


def described(value: Any) -> Any:
    """What an argument is, in plain values that compare equal in another process."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [described(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, PyroOptim):
        settings = vars(value)
        return {key: described(settings[key]) for key in _OPTIM_SETTINGS if key in settings}
    if isinstance(value, (ELBO, Estimator)):
        options = {
            key: described(item) for key, item in vars(value).items() if not key.startswith("_")
        }
        return {"class": type(value).__name__, **options}
    if isinstance(value, functools.partial):
        return [described(value.func), described(value.args), described(value.keywords)]
    if type(value).__repr__ is not object.__repr__ and not callable(value):
        return repr(value)
    if type(value).__module__.startswith("pyro_silent"):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def state_of_loss(loss: Any) -> dict[str, Any]:
    """What a loss needs in order to go on: its own state, or else its numbers and tensors."""
    if hasattr(loss, "state_dict"):
        state: dict[str, Any] = loss.state_dict()
        return state
    if not isinstance(loss, ELBO):
        return {}
    return {key: v for key, v in vars(loss).items() if isinstance(v, (*_PLAIN, Tensor))}


def load_loss(loss: Any, state: dict[str, Any]) -> None:
    """Go on from :func:`state_of_loss`."""
    if hasattr(loss, "load_state_dict"):
        loss.load_state_dict(state)
    else:
        vars(loss).update(state)


def state_of_optimizer(optimizer: Any) -> dict[str, Any]:
    """The state of one of the optimizers that a ``PyroOptim`` makes, one for each parameter."""
    if not hasattr(optimizer, "optimizer"):
        return {"optimizer": optimizer.state_dict()}
    return {"optimizer": optimizer.optimizer.state_dict(), "scheduler": optimizer.state_dict()}


def load_optimizer(optim: PyroOptim, leaf: Tensor, state: dict[str, Any]) -> None:
    """Make the optimizer of a parameter and let it go on from a state.

    ``PyroOptim.set_state`` knows parameters by their names in the param store, which those of a module
    need not have.
    """
    optimizer = optim.optim_objs[leaf] = optim._get_optim(leaf)
    optim.grad_clip[leaf] = optim._get_grad_clip(leaf)
    if "scheduler" in state:
        optimizer.load_state_dict(state["scheduler"])
        optimizer.optimizer.load_state_dict(state["optimizer"])
        optimizer.optimizer._opt_called = True  # else a scheduler warns that it comes before a step
    else:
        optimizer.load_state_dict(state["optimizer"])
