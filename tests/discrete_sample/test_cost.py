"""Costs that are promised: one dispatch for a float operation, no tensor of all levels for a table."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_silent.discrete_sample import DiscreteSample, bernoulli_sample, index_sample


@pytest.mark.parametrize(
    "program",
    [
        lambda z, w: F.linear(z, w),
        lambda z, w: z @ w,
        lambda z, w: z * w,
        lambda z, w: torch.nn.Linear(3, 2)(z),
        lambda z, w: F.binary_cross_entropy_with_logits(w, z),
    ],
    ids=["linear", "matmul", "mul", "nn.Linear", "bce"],
)
def test_a_float_operation_is_one_dispatch_and_plain_torch_from_there(program, monkeypatch):
    calls = []
    dispatch = DiscreteSample.__torch_function__.__func__

    def counted(cls, func, types, args=(), kwargs=None):
        calls.append(func)
        return dispatch(cls, func, types, args, kwargs)

    monkeypatch.setattr(DiscreteSample, "__torch_function__", classmethod(counted))
    z = bernoulli_sample(torch.eye(3).requires_grad_(), "z")
    result = program(z, torch.randn(3, 3).requires_grad_())
    assert type(result) is torch.Tensor
    assert len(calls) == 1


class _Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view():
            self.numel = max(self.numel, result.numel())
        return result


BATCH, LEVELS, WIDTH = 60, 40, 50


@pytest.mark.parametrize(
    "read",
    [
        lambda z, t: t[z],
        lambda z, t: F.embedding(z, t),
        lambda z, t: t.index_select(0, z),
        lambda z, t: t.T[:, z],
        lambda z, t: t[z % LEVELS],
        lambda z, t: F.one_hot(z, LEVELS).to(t.dtype) @ t,
        lambda z, t: t[z[:, None], torch.arange(WIDTH)],
    ],
    ids=["getitem", "embedding", "index_select", "column", "levels", "one_hot", "two indices"],
)
def test_a_table_costs_a_matrix_product(read):
    """Nothing of size batch x levels x width is made, forward or backward."""
    code = F.one_hot(torch.randint(LEVELS, (BATCH,)), LEVELS).float().requires_grad_()
    table = torch.randn(LEVELS, WIDTH, requires_grad=True)
    with _Largest() as largest:
        rows = read(index_sample(code, "z"), table)
        gradients = torch.autograd.grad(rows, [code, table], torch.randn(rows.shape))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert largest.numel <= max(BATCH * LEVELS, BATCH * WIDTH, LEVELS * WIDTH)


def test_elementwise_operations_keep_nothing_of_all_levels():
    """Levels of a float result are made in backward only."""
    code = F.one_hot(torch.randint(LEVELS, (BATCH,)), LEVELS).float().requires_grad_()
    z = index_sample(code, "z")
    weight = torch.randn(BATCH)
    with _Largest() as largest:
        value = z * weight
    assert largest.numel <= BATCH
    (gradient,) = torch.autograd.grad(value.sum(), code)
    torch.testing.assert_close(gradient, weight[:, None] * torch.arange(float(LEVELS)))


def test_an_expanded_sample_shares_its_code():
    """Categorical.log_prob expands its value over the categories; the code does not follow."""
    code = F.one_hot(torch.randint(LEVELS, (BATCH,)), LEVELS).float().requires_grad_()
    logits = torch.randn(LEVELS, requires_grad=True)
    law = torch.distributions.Categorical(logits=logits)
    with _Largest() as largest:
        value = law.log_prob(index_sample(code, "z"))
        (gradient,) = torch.autograd.grad(value.sum(), code)
    assert largest.numel <= BATCH * LEVELS
    torch.testing.assert_close(gradient, law.logits.expand(BATCH, LEVELS))


def test_on_each_device(device):
    """Values and gradients on the GPU are those on the CPU."""
    hard = torch.tensor([0, 2, 1])
    table = torch.randn(3, 4)

    def run(device):
        code = torch.eye(3)[hard].to(device).requires_grad_()
        z = index_sample(code, "z")
        t = table.to(device)
        rows = t[z] + F.one_hot(z, 3).float() @ t + torch.where(z == 1, t[0, 0], 0.0)[:, None]
        log_prob = torch.distributions.Categorical(logits=t[:, :3]).log_prob(z)
        total = rows.sum() + log_prob.sum() + (z > 0).sum().float() + (z == z.flip(0)).float().sum()
        (gradient,) = torch.autograd.grad(total, code)
        return total.detach().cpu(), gradient.cpu()

    for found, expected in zip(run(device), run("cpu")):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_each_dtype(dtype):
    code = torch.eye(3, dtype=dtype).requires_grad_()
    z = index_sample(code, "z")
    value = torch.tensor([1.0, 2.0, 4.0])[z] + F.one_hot(z, 3).to(dtype).sum(-1)
    (gradient,) = torch.autograd.grad(value.sum(), code)
    assert gradient.dtype == dtype
    assert torch.equal(gradient, torch.tensor([2.0, 3.0, 5.0], dtype=dtype).expand(3, 3))


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0)])
def test_empty_batches(shape):
    code = torch.zeros(*shape, 3, requires_grad=True)
    z = index_sample(code, "z")
    table = torch.randn(3, 2, requires_grad=True)
    for value in (table[z], z * 0.5, (z == 1).float(), F.one_hot(z, 3).float() @ table):
        assert value.numel() == 0
        (gradient,) = torch.autograd.grad(value.sum(), code)
        assert gradient.shape == code.shape
