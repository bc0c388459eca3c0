"""Sums of products of aligned tensors, and the gradient of a value with respect to its codes.

Tensors are *aligned* when they have the same number of dims and each dim has size 1 or the common size.
"""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def product_sum(
    weight: Tensor, levels: Tensor, others: Sequence[Tensor], shape: Sequence[int]
) -> Tensor:
    """The product of aligned tensors summed to ``shape``, where 0 times an infinite level is 0.

    Never builds the product where a matrix product does the same: an infinity then counts as the
    largest finite number.
    """
    tensors = (weight, levels, *others)
    plan = _plan(tuple([tensor.shape for tensor in tensors]), tuple(shape))
    if plan.equation is not None:
        limit = torch.finfo(levels.dtype).max
        tensors = (weight, levels.clamp(-limit, limit), *others)
        operands = [tensor.reshape(sizes) for tensor, sizes in zip(tensors, plan.sizes)]
        return torch.einsum(plan.equation, *operands).reshape(plan.kept).expand(tuple(shape))
    for other in others:
        weight = weight * other
    product = weight * levels
    product = product.masked_fill((weight == 0).expand(product.shape), 0)
    return product.expand(plan.full).sum_to_size(tuple(shape))


class _Plan(NamedTuple):
    """How aligned tensors of given shapes are multiplied and summed.

    :ivar full: the shape of the product.
    :ivar equation: for :func:`torch.einsum`, of the tensors without their dims of size 1; ``None`` where
        the product is hardly larger than the largest tensor, and elementwise functions are faster.
    :ivar kept: the shape of the result with size 1 along dims that no tensor has.
    """

    full: tuple[int, ...]
    equation: str | None = None
    sizes: tuple[tuple[int, ...], ...] = ()
    kept: tuple[int, ...] = ()


@functools.lru_cache(maxsize=4096)
def _plan(shapes: tuple[tuple[int, ...], ...], shape: tuple[int, ...]) -> _Plan:
    full = _common([shape, *shapes])
    if math.prod(full) <= 4 * max(map(math.prod, [shape, *shapes])):
        return _Plan(full)
    letters = string.ascii_letters
    terms = [[d for d, size in enumerate(sizes) if size != 1] for sizes in shapes]
    present = set().union(*terms)
    kept = [d for d, size in enumerate(shape) if size != 1 and d in present]
    equation = ",".join("".join(letters[d] for d in term) for term in terms)
    equation += "->" + "".join(letters[d] for d in kept)
    return _Plan(
        full,
        equation,
        tuple(tuple(sizes[d] for d in term) for sizes, term in zip(shapes, terms)),
        tuple(size if d in kept else 1 for d, size in enumerate(shape)),
    )


def _common(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(max(sizes) if min(sizes) else 0 for sizes in zip(*shapes))


class Attach(torch.autograd.Function):
    """A hard value whose gradient with respect to each code is the value at each level.

    ``levels_of(*operands)`` is called in backward only, so that nothing of the size of all levels is
    kept; it gives the levels aligned with the codes.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        value: Tensor,
        levels_of: Callable[..., Tensor],
        operands: Sequence[Tensor],
        *codes: Tensor,
    ) -> Tensor:
        """The value itself."""
        ctx.levels_of = levels_of
        ctx.num_operands = len(operands)
        ctx.save_for_backward(*operands, *codes)
        return value.detach().clone() if value._is_view() else value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient as it came to the value; times the levels to the codes."""
        saved = ctx.saved_tensors
        operands, codes = saved[: ctx.num_operands], saved[ctx.num_operands :]
        needed = ctx.needs_input_grad[3:]
        gradients: list[Tensor | None] = [None] * len(codes)
        if any(needed):
            levels = ctx.levels_of(*operands).to(gradient.dtype)
            rank = codes[0].dim()
            levels = levels[(None,) * (rank - levels.dim())]
            gradient_at = gradient[(...,) + (None,) * (rank - gradient.dim())]
            for i, code in enumerate(codes):
                if needed[i]:
                    others = [c.to(gradient.dtype) for c in codes[:i] + codes[i + 1 :]]
                    summed = product_sum(gradient_at, levels, others, code.shape)
                    gradients[i] = summed.to(code.dtype)
        return gradient, None, None, *gradients


class Expectation(torch.autograd.Function):
    """``sum_k code_k level_k`` over the trailing dims, for soft codes; 0 times an infinite level is 0."""

    @staticmethod
    def forward(ctx: FunctionCtx, levels: Tensor, num_dims: int, *codes: Tensor) -> Tensor:
        """Contract the dims from ``num_dims`` on."""
        ctx.save_for_backward(levels, *codes)
        shape = _common([levels.shape, *(code.shape for code in codes)])[:num_dims]
        summed = (1,) * (levels.dim() - num_dims)
        return product_sum(codes[0], levels, codes[1:], shape + summed).reshape(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The product with all other factors."""
        levels, *codes = ctx.saved_tensors
        gradient = gradient[(...,) + (None,) * (levels.dim() - gradient.dim())]
        to_levels = None
        if ctx.needs_input_grad[0]:
            to_levels = product_sum(gradient, codes[0], codes[1:], levels.shape)
        to_codes = [
            product_sum(gradient, levels, codes[:i] + codes[i + 1 :], code.shape)
            for i, code in enumerate(codes)
        ]
        return to_levels, None, *to_codes
