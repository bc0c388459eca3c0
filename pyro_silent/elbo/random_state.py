"""torch's random state: a run that is begun again draws what it drew before."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

RandomState: TypeAlias = tuple[Any, Any]


def random_state() -> RandomState:
    """The state of torch's generators, on all devices in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), cuda


def same(state: RandomState, other: RandomState) -> bool:
    """Whether two states lead to the same numbers."""
    if not torch.equal(state[0], other[0]) or (state[1] is None) is not (other[1] is None):
        return False
    return state[1] is None or all(map(torch.equal, state[1], other[1]))


def restore(state: RandomState) -> None:
    """Go back to a state."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state_all(state[1])
