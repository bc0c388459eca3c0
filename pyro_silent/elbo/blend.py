"""The blend of two losses: one tensor whose backward pass hands out gradients found before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_silent.elbo.cuts import Cuts
from pyro_silent.elbo.leaves import graph_of, without_hooks


class Gradients(NamedTuple):
    """The gradient of one loss in everything it reaches.

    :ivar guide: by tensor of the guide.
    :ivar leaves: by parameter that the loss reaches past the guide.
    """

    guide: dict[Tensor, Tensor]
    leaves: dict[Tensor, Tensor]


NO_GRADIENTS = Gradients({}, {})


def gradients_of(loss: Tensor, cuts: Cuts, first: int) -> Gradients:
    """The gradients of a loss, found now; parameters' own ``.grad`` are not touched.

    :param first: number of the first node of the loss's own graph; the rest of its graph, if there is
        more, is kept for whoever else uses it.
    """
    if not loss.requires_grad:
        return NO_GRADIENTS
    leaves, is_shared = graph_of(loss, first)
    with without_hooks(leaves):
        found = torch.autograd.grad(loss, leaves, retain_graph=is_shared, allow_unused=True)
    gradients = dict(zip(leaves, found, strict=True))
    guide = {}
    for tensor, leaf in cuts.pairs:
        if (gradient := gradients.pop(leaf, None)) is not None:
            guide[tensor] = gradient
    return Gradients(guide, {leaf: g for leaf, g in gradients.items() if g is not None})


class Blend(NamedTuple):
    """A loss and its gradient, as they are handed out.

    :ivar tensors: what has a gradient; from there autograd goes on.
    :ivar silent_value: the silent loss, where it was computed.
    """

    value: Tensor
    tensors: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    silent_value: Tensor | None = None

    def tensor(self) -> Tensor:
        """The value, with a backward pass that hands out the gradients."""
        if not self.tensors:
            return self.value
        result: Tensor = _WithGradients.apply(self.value, self.gradients, *self.tensors)
        return result

    def backward(self, scale: float, retain_graph: bool | None) -> None:
        """Add ``scale`` x the gradients to the parameters', as ``backward`` of the tensor does."""
        if self.tensors:
            gradients = self.gradients
            if scale != 1:
                gradients = tuple(scale * gradient for gradient in gradients)
            torch.autograd.backward(self.tensors, gradients, retain_graph=retain_graph)


def alone(loss: Tensor) -> Blend:
    """One loss and its own graph."""
    if not loss.requires_grad:
        return Blend(loss, (), ())
    return Blend(loss.detach(), (loss,), (torch.ones_like(loss),))


def blended(value: Tensor, weight: float, silent: Gradients, stochastic: Gradients) -> Blend:
    """``value``, with the gradient of the blend.

    A tensor of the guide gets ``weight`` x silent + (1 - ``weight``) x stochastic, and so does a
    parameter that both losses reach; what one loss reaches alone gets its full gradient.
    """
    parts = [*_mixed(weight, silent.guide, stochastic.guide, alone=False)]
    parts += _mixed(weight, silent.leaves, stochastic.leaves, alone=True)
    tensors, gradients = zip(*parts) if parts else ((), ())
    return Blend(value, tensors, gradients)


def _mixed(
    weight: float, silent: dict[Tensor, Tensor], stochastic: dict[Tensor, Tensor], *, alone: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    for tensor in {**silent, **stochastic}:
        ours, theirs = silent.get(tensor), stochastic.get(tensor)
        if ours is not None and theirs is not None:
            yield tensor, ours if weight == 1 else weight * ours + (1 - weight) * theirs
        elif ours is not None:
            yield tensor, ours if alone else weight * ours
        elif theirs is not None:
            yield tensor, theirs if alone else _times(1 - weight, theirs)


def _times(weight: float, gradient: Tensor) -> Tensor:
    """Their product, 0 at weight 0 even where the gradient is infinite."""
    return weight * gradient if weight else torch.zeros_like(gradient)


class _WithGradients(torch.autograd.Function):
    """A value whose gradients are given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        return None, None, *(outer * gradient for gradient in ctx.gradients)
