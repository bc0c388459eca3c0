"""The module form of our losses: it counts training steps and keeps the loss's state."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro.infer.elbo import ELBOModule

from pyro_silent.elbo.processes import Steps, in_processes, noted, wrapper_of
from pyro_silent.errors import ConfigurationError


class StatefulELBOModule(ELBOModule):
    """What ``elbo(model, guide)`` returns: Pyro's :class:`ELBOModule`, with the state of the loss in it.

    A call in training mode with gradients enabled is a step for schedules of weights and temperatures,
    as ``loss_and_grads`` is; call ``.eval()`` or use ``torch.no_grad()`` to look at the loss between
    steps. ``state_dict()`` holds the loss's own ``state_dict`` as extra state.

    In ``DistributedDataParallel`` it works as it is, whichever parameters a step does without, and
    checks the set-up in its first step; see ``docs/several_processes.md``. For uneven inputs write
    ``Join([ddp, elbo])``.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The loss as a tensor, see ``differentiable_loss``."""
        step = functools.partial(super().forward, *args, **kwargs)
        loss = in_processes(self, functools.partial(noted, step))
        if self.training and torch.is_grad_enabled():
            self.elbo.num_steps += 1
        return loss

    def get_extra_state(self) -> dict[str, Any]:
        """The state of the loss."""
        state: dict[str, Any] = self.elbo.state_dict()
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state of the loss."""
        self.elbo.load_state_dict(state)

    # What torch.distributed.algorithms.Join asks of those it is given

    def join_hook(self, **kwargs: Any) -> Steps:
        """Keeps the counts of steps together."""
        return Steps(self)

    @property
    def join_device(self) -> torch.device:
        """Where processes talk to each other."""
        ddp = wrapper_of(self)
        return next(self.parameters(), torch.empty(0)).device if ddp is None else ddp.device

    @property
    def join_process_group(self) -> Any:
        """Those that talk: all, before the first step."""
        ddp = wrapper_of(self)
        return torch.distributed.group.WORLD if ddp is None else ddp.process_group


def known(number: Callable[[], float | None]) -> float | None:
    """A number that a schedule has for the next step; None if there is none, at the end of a table."""
    try:
        return number()
    except Exception:
        return None


def check_state(state: Any, keys: Iterable[str], loss: Any) -> None:
    """Look at a state before anything is loaded from it.

    :raises ConfigurationError: if it is not one of such a loss.
    """
    expected = sorted(keys)
    if not isinstance(state, Mapping) or sorted(state) != expected:
        got = f"the keys {sorted(map(str, state))}" if isinstance(state, Mapping) else repr(state)
        raise ConfigurationError(
            f"state: got {got}, expected {expected}: what {type(loss).__name__}.state_dict() returned."
        )


def warn_if_changed(what: str, saved: float | None, now: float | None) -> None:
    """Say that a resumed run will not go on as it would have."""
    if saved is not None and now is not None and saved != now:
        warnings.warn(
            f"load_state_dict: the state was saved at {what} {saved}, and this loss is at {now} after "
            "as many steps. To resume exactly, make the loss with the schedule it was made with.",
            stacklevel=3,
        )
