"""Surrogate: the one autograd function behind all estimators, and what its backward pass is told."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pyro_silent.errors import PyroSilentError
from pyro_silent.estimators.traced import is_traced


class Draw(NamedTuple):
    """One draw and the law it came from, in the dtype the gradient is computed in.

    :ivar log_probs: one-hot: normalised log probabilities, shape ``[*, n]``; Bernoulli: the logits.
    :ivar hard: the value that was returned, same shape.
    :ivar perturbed: ``log_probs`` plus the noise that decided (Gumbel or logistic), where it is kept.
    :ivar seed: of what is drawn in the backward pass, where anything is; a tensor while a graph is
        traced.
    """

    log_probs: Tensor
    hard: Tensor
    perturbed: Tensor | None
    seed: int | Tensor | None = None

    @property
    def noisy(self) -> Tensor:
        """``perturbed``, for a class that keeps it."""
        if self.perturbed is None:
            raise PyroSilentError("an estimator that reads the noise sets _keeps_noise = True.")
        return self.perturbed

    def generator(self) -> torch.Generator | None:
        """Where the backward pass draws from, on the device of the sample; None is torch's own.

        It leaves the global random state alone and gives the same numbers each time.
        """
        if self.seed is None:
            return None
        return torch.Generator(device=self.hard.device).manual_seed(int(self.seed))


def new_seed(like: Tensor) -> int | Tensor | None:
    """A seed from the global random state of the CPU, which no device has to wait for."""
    if isinstance(like, FakeTensor) or like.is_meta:
        return None
    seed = torch.empty((), dtype=torch.int64, device="cpu").random_()
    return seed if is_traced() else int(seed)


class Surrogate(torch.autograd.Function):
    """Forward: a draw; backward: the estimator's product."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        normalise: Any,
        draw: Any,
        product: Any,
        temperature: float,
        keeps_noise: bool,
        draws_in_backward: bool,
    ) -> Tensor:
        """Draw, and keep what the product reads."""
        log_probs = normalise(work_dtype(logits))
        value, perturbed = draw(log_probs, temperature)
        ctx.seed = new_seed(logits) if draws_in_backward else None
        value = value.to(logits.dtype)
        # the logits themselves are there for _FirstOrder
        ctx.save_for_backward(logits, log_probs, value, perturbed if keeps_noise else None)
        ctx.product, ctx.temperature = product, temperature
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The product, with 0 for the gradient at masked categories."""
        logits, log_probs, value, perturbed = ctx.saved_tensors
        with torch.no_grad():
            draw = Draw(log_probs, value.to(log_probs.dtype), perturbed, ctx.seed)
            # a masked category never occurs, so that what f would be there says nothing
            counted = torch.where(log_probs == -math.inf, 0.0, gradient.to(log_probs.dtype))
            result = ctx.product(draw, counted, ctx.temperature).to(logits.dtype)
        if torch.is_grad_enabled():
            result = _FirstOrder.apply(result, logits, gradient)
        return result, *[None] * 6


class _FirstOrder(torch.autograd.Function):
    """The identity on a surrogate gradient, which refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, *dependencies: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        raise PyroSilentError(
            "The surrogate gradient of a sample was differentiated once more. It estimates a first "
            "derivative, and its own derivative estimates nothing: detach it, or keep such samples out "
            "of what needs second derivatives."
        )


def work_dtype(logits: Tensor) -> Tensor:
    """The logits in the dtype that is computed in."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
