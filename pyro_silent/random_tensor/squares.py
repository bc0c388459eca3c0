"""Weighted sums of squares, the shape in which means and variances enter a Gaussian log density."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _WeightedSquares(torch.autograd.Function):
    """``x.square() @ w``, whose backward is one scaled copy of x and keeps no squares.

    Composed from torch's own ops it keeps x^2, and its backward makes four more tensors of x's size.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return x.square() @ weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = x * (2 * grad).unsqueeze(-1) * weight
        if ctx.needs_input_grad[1]:
            grad_weight = grad.reshape(-1) @ x.square().reshape(grad.numel(), x.size(-1))
        return grad_x, grad_weight

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, weight_tangent: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        tangent = x.new_zeros(x.shape[:-1])
        if x_tangent is not None:
            tangent = tangent + (2 * x * x_tangent) @ weight
        if weight_tangent is not None:
            tangent = tangent + x.square() @ weight_tangent
        return tangent


def weighted_squares(x: Tensor, weight: Tensor) -> Tensor:
    """``sum_d weight_d x_d^2`` along the last dim."""
    return _WeightedSquares.apply(x, weight)
