"""Weighted squares have a backward of their own: every way torch can differentiate them agrees."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pyro_silent.random_tensor.squares import weighted_squares

# torch's own forward mode scripts its decompositions
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def operands(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    return x, torch.rand(shape[-1], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), (0, 3), (2, 0)])
def test_value_and_derivatives(shape):
    x, weight = operands(*shape)
    torch.testing.assert_close(weighted_squares(x, weight), (x.square() * weight).sum(-1))
    assert gradcheck(weighted_squares, (x, weight), check_forward_ad=True)
    assert gradgradcheck(weighted_squares, (x, weight))


def test_under_function_transforms():
    x, weight = (operand.detach() for operand in operands(5, 3))
    per_row = torch.func.vmap(torch.func.grad(weighted_squares), (0, None))(x, weight)
    torch.testing.assert_close(per_row, 2 * x * weight)
    hessian = torch.func.hessian(weighted_squares)(x[0], weight)
    torch.testing.assert_close(hessian, torch.diag(2 * weight))


def test_a_transposed_operand():
    x, weight = operands(3, 4)
    out = weighted_squares(x.t(), weight[:3])
    out.sum().backward()
    torch.testing.assert_close(x.grad, (2 * x * weight[:3, None]).detach())
