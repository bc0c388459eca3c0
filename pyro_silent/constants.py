"""Arrays of numbers that programs compute with, brought to a device once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pyro_silent.looking import can_look


def constant(like: Tensor, make: Callable[..., Any], *args: Any) -> Tensor:
    """``make(*args)``, an array or a number, as a tensor of the dtype and on the device of ``like``.

    It is kept, since to bring numbers to a device in the middle of a step waits for the device. So
    nobody writes into it, and ``make`` and its arguments are hashable.
    """
    dtype, device = like.dtype, like.device
    # what is made while a program is traced belongs to the trace
    return (_kept if can_look(like) else _kept.__wrapped__)(make, args, dtype, device)


@lru_cache(maxsize=512)
def _kept(
    make: Callable[..., Any], args: tuple, dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # it may be needed for gradients later
        return torch.as_tensor(make(*args), dtype=dtype, device=device)
