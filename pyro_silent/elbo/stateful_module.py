"""The module form of our losses: it counts training steps and keeps the loss's state."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pyro.infer.elbo import ELBOModule


class StatefulELBOModule(ELBOModule):
    """What ``elbo(model, guide)`` returns: Pyro's :class:`ELBOModule`, with the state of the loss in it.

    A call in training mode with gradients enabled is a step for schedules of weights and temperatures,
    as ``loss_and_grads`` is; call ``.eval()`` or use ``torch.no_grad()`` to look at the loss between
    steps. ``state_dict()`` holds the loss's own ``state_dict`` as extra state.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The loss as a tensor, see ``differentiable_loss``."""
        loss = super().forward(*args, **kwargs)
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


def warn_if_changed(what: str, saved: float | None, now: float | None) -> None:
    """Say that a resumed run will not go on as it would have."""
    if saved != now:
        warnings.warn(
            f"load_state_dict: the state was saved at {what} {saved}, and this loss is at {now} after "
            "as many steps. To resume exactly, make the loss with the schedule it was made with.",
            stacklevel=3,
        )
