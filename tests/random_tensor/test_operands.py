"""Plain operands that change, grad modes that change: the law of a tensor is that of its making."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from pyro_silent import LeakError, RandomTensor, covariance, mean, random_tensor, variance
from tests import oracles
from tests.random_tensor.agreement import assert_close
from tests.random_tensor.sources import source

FLOATS = {
    "mul": lambda z, w: z * w,
    "rmul": lambda z, w: w * z,
    "add": lambda z, w: z + w,
    "div": lambda z, w: z / w,
    "lerp": lambda z, w: torch.lerp(z, w, w),
    "addcmul": lambda z, w: torch.addcmul(w, z, w),
    "matmul": lambda z, w: z @ w,
    "rmatmul": lambda z, w: w @ z,
    "linear": lambda z, w: F.linear(z, w, w[0]),
    "linear keyword": lambda z, w: F.linear(z, weight=w, bias=w[0]),
    "einsum": lambda z, w: torch.einsum("bi,ij->bj", z, w),
    "einsum list": lambda z, w: torch.einsum("bi,ij->bj", [z, w]),
    "tensordot": lambda z, w: torch.tensordot(z, w, dims=1),
    "conv1d": lambda z, w: F.conv1d(z[None], w[:, :, None]),
    "conv_transpose1d": lambda z, w: F.conv_transpose1d(z[None], w[:, :, None]),
    "addmm": lambda z, w: torch.addmm(w, z, w),
    "addmm keyword": lambda z, w: torch.addmm(w, mat1=z, mat2=w),
    "baddbmm": lambda z, w: torch.baddbmm(w[None], z[None], w[None]),
    "mv": lambda z, w: torch.mv(z, w[0]),
    "where": lambda z, w: torch.where(tensor([True, False, True]), z, w),
    "cat": lambda z, w: torch.cat([z, w]) * 1,
    "stack": lambda z, w: torch.stack([w, z]),
    "batch_norm": lambda z, w: F.batch_norm(z, w[0].detach(), w[1].detach(), w[2], w[0]),
    "then sum": lambda z, w: (z * w).sum(0),
    "view of the operand": lambda z, w: z * w[1],
    "expanded operand": lambda z, w: z * w[:1].expand(3, 3),
    "twice": lambda z, w: (z * w) @ w,
}

INDICES = {
    "getitem": lambda z, i: z[i],
    "getitem column": lambda z, i: z[:, i],
    "getitem two": lambda z, i: z[i, i],
    "index_select": lambda z, i: z.index_select(0, i),
    "index_select keyword": lambda z, i: torch.index_select(z, dim=0, index=i),
    "gather": lambda z, i: z.gather(0, i[:, None].expand(3, 3)),
    "gather keyword": lambda z, i: z.gather(dim=0, index=i[:, None].expand(3, 3)),
    "take_along_dim": lambda z, i: z.take_along_dim(i[:, None], 0),
    "repeat_interleave": lambda z, i: z.repeat_interleave(i, dim=0),
    "linear after": lambda z, i: z[i].sum(0),
}

MASKS = {
    "getitem": lambda z, m: z[m],
    "where": lambda z, m: torch.where(m[:, None], z, 0.5),
    "z.where": lambda z, m: z.where(m, -z),
    "masked_fill": lambda z, m: z.masked_fill(m, 0.5),
    "masked_fill keyword": lambda z, m: z.masked_fill(mask=m, value=0.5),
    "masked_select": lambda z, m: z.masked_select(m[:, None]),
    "mul": lambda z, m: z * m,
}

CHANGES = [
    *((f"float {name}", program, "float") for name, program in FLOATS.items()),
    *((f"index {name}", program, "index") for name, program in INDICES.items()),
    *((f"mask {name}", program, "mask") for name, program in MASKS.items()),
]


def _operand(kind: str) -> Tensor:
    if kind == "float":
        generator = torch.Generator().manual_seed(2)
        return torch.rand(3, 3, generator=generator, dtype=torch.float64) + 0.5
    return tensor([2, 0, 1]) if kind == "index" else tensor([True, False, True])


@pytest.mark.parametrize("moment", ["mean", "variance", "covariance"])
@pytest.mark.parametrize("kind", ["normal", "mvn_tril"])
@pytest.mark.parametrize(("name", "program", "what"), CHANGES, ids=[c[0] for c in CHANGES])
def test_operand_changed_in_place_afterwards(name, program, what, kind, moment):
    """The law is that of the old operand, or the use is refused."""
    made, operand = source(kind, (3, 3)), _operand(what)
    before = operand.clone()
    expected = oracles.moments(lambda z: program(z, before), made.distribution())
    y = program(random_tensor(made.distribution()), operand)
    operand.zero_() if what != "mask" else operand.fill_(False)
    flat = expected.mean.numel()
    try:
        if moment == "mean":
            assert_close(mean(y), expected.mean, 1e-9, "mean")
        elif moment == "variance":
            assert_close(variance(y), expected.variance, 1e-9, "variance")
        else:
            vector = (y * 1).reshape(-1)
            found = covariance(vector[:, None], vector[None])
            assert found.shape == (flat, flat)
            assert_close(found, expected.covariance, 1e-9, "covariance")
    except LeakError as error:
        assert "in place" in str(error)


@pytest.mark.parametrize("name", FLOATS)
def test_gradient_survives_a_look_without_grad(name):
    """Printing a variance under ``no_grad`` must not take the gradient from a later use."""
    program = FLOATS[name]
    made, w = source("mvn_tril", (3, 3)), _operand("float").requires_grad_()
    leaves = [*made.parameters, w]

    def statistic(moments):
        return moments[0].sum() + (moments[1] * torch.arange(1.0, 4.0).double()).sum()

    expected = oracles.moments(lambda z: program(z, w).sum(0), made.distribution())
    wanted = torch.autograd.grad(statistic(expected), leaves, allow_unused=True)
    y = program(random_tensor(made.distribution()), w).sum(0)
    with torch.no_grad():
        assert not variance(y).requires_grad and not covariance(y, y).requires_grad
    found = torch.autograd.grad(statistic((mean(y), variance(y))), leaves, allow_unused=True)
    for got, want in zip(found, wanted, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            assert_close(got, want, 1e-8, "gradient")


@pytest.mark.parametrize("name", FLOATS)
def test_no_gradient_into_what_was_made_without_grad(name):
    program = FLOATS[name]
    made, w = source("mvn_tril", (3, 3)), _operand("float").requires_grad_()
    z = random_tensor(made.distribution())
    with torch.no_grad():
        y = program(z, w)
    expected = oracles.moments(lambda z: program(z, w), made.distribution())
    assert not mean(y).requires_grad and not variance(y).requires_grad
    assert_close(mean(y), expected.mean, 1e-9, "mean")
    assert_close(variance(y), expected.variance, 1e-9, "variance")
    assert mean(program(z, w)).requires_grad


def test_source_made_without_grad():
    made = source("normal", (2, 3))
    with torch.no_grad():
        z = random_tensor(made.distribution())
    w = _operand("float").requires_grad_()
    y = z @ w
    variance(y).sum().backward()
    assert w.grad is not None and all(p.grad is None for p in made.parameters)


def test_detached_operand_gets_no_gradient():
    made, w = source("normal", (3, 3)), _operand("float").requires_grad_()
    y = random_tensor(made.distribution()) @ w.detach()
    (mean(y).sum() + variance(y).sum()).backward()
    assert w.grad is None and all(p.grad is not None for p in made.parameters)


def test_second_derivative():
    made, w = source("normal", (3, 3)), _operand("float").requires_grad_()

    def first(y_mean, y_variance):
        total = (y_mean**2 + y_variance).sum()
        return torch.autograd.grad(total, w, create_graph=True)[0]

    y = random_tensor(made.distribution()) @ w
    expected = oracles.moments(lambda z: z @ w, made.distribution())
    found = torch.autograd.grad(first(mean(y), variance(y)).square().sum(), w)[0]
    wanted = torch.autograd.grad(first(expected.mean, expected.variance).square().sum(), w)[0]
    assert_close(found, wanted, 1e-8, "second derivative")


def test_two_backward_passes_of_two_programs_on_one_latent():
    made = source("mvn_tril", (2, 3))
    z = random_tensor(made.distribution())
    first, second = variance(z.sum(0)).sum(), variance(z.cumsum(0)).sum()
    first.backward(retain_graph=True)
    second.backward()
    loc, raw = made.parameters
    assert loc.grad is None and torch.isfinite(raw.grad).all() and raw.grad.any()


def test_operand_that_is_not_contiguous():
    made = source("mvn_tril", (2, 3))
    w = torch.arange(24.0).double().reshape(4, 3, 2).permute(1, 2, 0)[:, 1]
    assert not w.is_contiguous()
    y = random_tensor(made.distribution()) @ w
    assert isinstance(y, RandomTensor)
    expected = oracles.moments(lambda z: z @ w, made.distribution())
    assert_close(variance(y), expected.variance, 1e-9, "variance")


def test_expanded_operand_with_stride_zero():
    made = source("normal", (2, 3))
    w = tensor([2.0]).double().expand(2, 3)
    expected = oracles.moments(lambda z: z * w, made.distribution())
    y = random_tensor(made.distribution()) * w
    assert_close(variance(y), expected.variance, 1e-9, "variance")


def test_inference_mode():
    made, w = source("normal", (3, 3)), _operand("float")
    expected = oracles.moments(lambda z: z @ w, made.distribution())
    with torch.inference_mode():
        y = random_tensor(made.distribution()) @ (w * 1)
        found = mean(y), variance(y)
    assert_close(found[0], expected.mean, 1e-9, "mean")
    assert_close(found[1], expected.variance, 1e-9, "variance")


def _spread(z: Tensor, w: Tensor) -> Tensor:
    y = (z @ w)[[0, 1, 1]].cumsum(0)
    return variance(y).sum() + covariance(y, y[0]).sum() + mean(y).prod()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_function_transforms_over_plain_operands():
    """``torch.func`` may differentiate and batch over what is plain."""
    z = random_tensor(source("mvn_tril", (2, 3)).distribution())
    z = z.detach()
    stack = torch.stack([_operand("float"), _operand("float").T, 2 * _operand("float")])
    leaves = stack.clone().requires_grad_()
    each = torch.stack([_spread(z, w) for w in leaves])
    gradients = torch.autograd.grad(each.sum(), leaves)[0]
    assert_close(torch.vmap(lambda w: _spread(z, w))(stack), each.detach(), 1e-12, "vmap")
    found = torch.vmap(torch.func.grad(lambda w: _spread(z, w)))(stack)
    assert_close(found, gradients, 1e-9, "vmap of grad")
    jacobian = torch.func.jacfwd(lambda w: _spread(z, w))(stack[0])
    assert_close(jacobian, gradients[0], 1e-9, "jacfwd")


def test_random_result_cannot_leave_vmap():
    z = random_tensor(source("normal", (2, 3)).distribution())
    with pytest.raises(LeakError):
        torch.vmap(lambda w: z @ w)(torch.ones(4, 3, 2).double())
