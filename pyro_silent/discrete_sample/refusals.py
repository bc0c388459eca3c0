"""The errors for operations that would lose the gradient of a discrete sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.errors import IntractableError, LeakError, user_location

_OTHERWISE = (
    'mark the guide site with infer={"silent": False} to have it sampled with a score-function term'
)


def operation_name(func: Callable) -> str:
    """The name by which a user knows a torch function."""
    name = getattr(func, "__name__", str(func))
    if "_local_scalar_dense" in name:
        return "a torch function that takes a number"
    if name == "apply":
        return "autograd.Function"
    owner = getattr(func, "__self__", None)
    if name in ("__get__", "__set__") and owner is not None:
        return f"Tensor.{owner.__name__}"
    for home, prefix in ((F, "F"), (torch, "torch")):
        if not name.startswith("_") and getattr(home, name, None) is func:
            return f"{prefix}.{name}"
    return f"Tensor.{name}" if hasattr(Tensor, name) else f"torch.{name}"


def _named(latents: Sequence[str]) -> str:
    return ", ".join(map(repr, latents))


def no_rule(func: Callable, latents: tuple[str, ...], lost: str | None = None) -> IntractableError:
    """The error for an operation that would lose the gradient for want of a rule.

    :param lost: the operation after which the levels of its argument were not known any more.
    """
    operation = operation_name(func)
    location = user_location()
    after = f" on the result of {lost}" if lost is not None and lost != operation else ""
    step = "comparisons, arithmetic, torch.where, table[z] or F.one_hot(z, n).float()"
    if after:
        step = "its float(), which has a gradient and derivatives as any float tensor"
    return IntractableError(
        f"{operation}{after} at {location} would lose the straight-through gradient of latent "
        f"{_named(latents)}: there is no rule for it on a discrete sample. Write the step with {step}, "
        f"call z.detach() if no gradient is wanted, or {_OTHERWISE}.",
        operation=operation,
        latents=latents,
        location=location,
    )


def too_many_levels(
    func: Callable, latents: tuple[str, ...], num_scalars: int, most: int
) -> IntractableError:
    """The error for a function of too many discrete scalars at once."""
    operation = operation_name(func)
    location = user_location()
    return IntractableError(
        f"{operation} at {location} is a function of {num_scalars} discrete scalars per element with "
        f"more than {most} joint levels, of latents {_named(latents)}. Combine fewer of them in one "
        f"operation, or {_OTHERWISE}.",
        operation=operation,
        latents=latents,
        location=location,
    )


def leak(func: Callable, latents: tuple[str, ...], remedy: str = "") -> LeakError:
    """The error for an operation that turns a sample into a Python value or a shape."""
    remedy = remedy or "Keep it in tensor operations (torch.where instead of if)"
    return LeakError(
        f"{operation_name(func)} at {user_location()} reads the value of latent {_named(latents)} as "
        f"plain numbers, and its straight-through gradient would be lost. {remedy}, call z.detach() "
        f"if no gradient is wanted, or {_OTHERWISE}.",
        latents=latents,
    )


def in_place(func: Callable, latents: tuple[str, ...]) -> LeakError:
    """The error for an in-place write that would lose the gradient."""
    return LeakError(
        f"{operation_name(func)} at {user_location()} writes in place with latent {_named(latents)}, "
        "and its straight-through gradient would be lost. Write the step out of place (z = z + 1 "
        "instead of z += 1, torch.where or torch.stack instead of writing into a buffer), or "
        f"{_OTHERWISE}.",
        latents=latents,
    )
