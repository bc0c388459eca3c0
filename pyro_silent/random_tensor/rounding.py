"""Values of discrete latents that are known up to rounding, and functions that jump.

A value of an affine tensor is put together from its mean and what each level adds: 1 may come out as
1 - 1e-16. Continuous functions do not mind; ``b1 + b2 == 2`` and ``(b1 + b2).long()`` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor.rules.table import functions

STEPS = frozenset(
    functions(
        "round", "floor", "ceil", "trunc", "fix", "frac", "fmod", "remainder", "__mod__", "floor_divide",
        "__floordiv__", "int", "long", "short", "bool", "sign", "sgn", "heaviside", "eq", "ne", "gt",
        "ge", "lt", "le", "__eq__", "__ne__", "__gt__", "__ge__", "__lt__", "__le__", "greater", "less",
        "greater_equal", "less_equal", "not_equal", "logical_not", "logical_and", "logical_or",
        "logical_xor",
    )
)  # fmt: skip
"""Functions that are constant, or straight, between jumps."""


def snapped(args: Sequence[Any]) -> list[Any]:
    """The floating tensors among arguments, and numbers beside them, on one grid far above rounding."""
    floating = [arg for arg in args if _is_floating(arg) and arg.numel()]
    if not floating:
        return list(args)
    like = floating[0]
    args = [torch.as_tensor(a).to(like) if isinstance(a, float) else a for a in args]
    with torch.no_grad():
        sizes = [_finite(arg).abs().amax() for arg in args if _is_floating(arg) and arg.numel()]
        largest = torch.stack([size.to(like) for size in sizes]).amax()
        tiny, eps = torch.finfo(like.dtype).tiny, max(torch.finfo(a.dtype).eps for a in floating)
        spacing = largest.clamp_min(tiny / eps).log2().ceil().exp2() * (eps * 2**8)
    return [_on_grid(arg, spacing) if _is_floating(arg) else arg for arg in args]


def _is_floating(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point()


def _finite(tensor: Tensor) -> Tensor:
    return torch.nan_to_num(tensor, 0.0, 0.0, 0.0)


def _on_grid(tensor: Tensor, spacing: Tensor) -> Tensor:
    with torch.no_grad():
        moved = (tensor / spacing).round() * spacing - tensor
        moved = torch.where(moved.isfinite(), moved, 0.0)
    return tensor + moved.to(tensor.dtype)
