"""What would lose the gradient is refused, by name and place, with what to write instead."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyro_silent.discrete_sample import (
    DiscreteSample,
    bernoulli_sample,
    index_sample,
    one_hot_sample,
)
from pyro_silent.errors import ConfigurationError, IntractableError, LeakError


def samples():
    """An index sample, a Bernoulli sample and a one-hot sample of non-leaf tensors."""
    code = torch.eye(4)[torch.tensor([0, 2, 1])].requires_grad_() * 1
    bits = torch.tensor([0.0, 1.0, 1.0]).requires_grad_() * 1
    return index_sample(code, "z"), bernoulli_sample(bits, "b"), one_hot_sample(code, "d")


def _iadd(z, b, d):
    z += 1


def _setitem(z, b, d):
    z[0] = 1


def _set_data(z, b, d):
    b.data = torch.zeros(3)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


LEAKS = {
    "if": lambda z, b, d: 1 if z[0] == 1 else 2,
    "if float": lambda z, b, d: 1 if b[0] else 2,
    "and": lambda z, b, d: (z[0] == 1) and True,
    "any": lambda z, b, d: bool((z == 1).any()),
    "all": lambda z, b, d: bool((z == 1).all()),
    "item": lambda z, b, d: z[0].item(),
    "item float": lambda z, b, d: b[0].item(),
    "tolist": lambda z, b, d: z.tolist(),
    "int()": lambda z, b, d: int(z[0]),
    "float()": lambda z, b, d: float(b[0]),
    "range": lambda z, b, d: range(z[0]),
    "list index": lambda z, b, d: [1, 2, 3][z[0]],
    "numpy": lambda z, b, d: z.numpy(),
    "np.asarray": lambda z, b, d: np.asarray(z),
    "mask": lambda z, b, d: torch.zeros(3)[z == 1],
    "mask float": lambda z, b, d: torch.zeros(3)[b.bool()],
    "masked_select": lambda z, b, d: torch.zeros(3).masked_select(z == 1),
    "list of samples": lambda z, b, d: torch.zeros(4)[[z[0], z[1]]],
    "nonzero": lambda z, b, d: z.nonzero(),
    "where condition": lambda z, b, d: torch.where(z == 1),
    "unique": lambda z, b, d: torch.unique(z),
    "bincount": lambda z, b, d: torch.bincount(z),
    "in": lambda z, b, d: 1 in z,
    "equal": lambda z, b, d: torch.equal(z, z),
    "allclose": lambda z, b, d: torch.allclose(b, b),
    "repeat_interleave": lambda z, b, d: torch.ones(3).repeat_interleave(z),
    "one_hot without classes": lambda z, b, d: F.one_hot(z),
    "full": lambda z, b, d: torch.full((2,), z[0]),
    "arange": lambda z, b, d: torch.arange(z[0]),
    "alpha": lambda z, b, d: torch.add(torch.ones(3), torch.ones(3), alpha=z[0]),
    "torch.tensor": lambda z, b, d: torch.tensor([z[0], z[1]]),
    "new_full": lambda z, b, d: torch.zeros(2).new_full((2,), z[0]),
    "full_like": lambda z, b, d: torch.full_like(torch.zeros(2), z[0]),
    "vmap": lambda z, b, d: torch.vmap(lambda i: torch.arange(4.0)[i])(z),
    "pickle": lambda z, b, d: pickle.dumps(z),
    "autograd.Function": lambda z, b, d: _Double.apply(z),
    "add_": lambda z, b, d: z.add_(1),
    "mul_": lambda z, b, d: b.mul_(2),
    "+=": _iadd,
    "z[0] =": _setitem,
    "data": _set_data,
    "x[z] =": lambda z, b, d: torch.zeros(4).__setitem__(z, 1.0),
    "x[0] = z": lambda z, b, d: torch.zeros(3, dtype=torch.long).__setitem__(0, z[0]),
    "masked_fill_": lambda z, b, d: torch.zeros(3).masked_fill_(z == 1, 1.0),
    "fill_": lambda z, b, d: torch.zeros(3).fill_(z[0]),
    "copy_": lambda z, b, d: torch.zeros(3, dtype=torch.long).copy_(z),
    "relu inplace": lambda z, b, d: F.relu(b, inplace=True),
    "relu inplace of integers": lambda z, b, d: F.relu(z, inplace=True),
    "dropout inplace": lambda z, b, d: F.dropout(b, 0.5, True, True),
    "out": lambda z, b, d: torch.add(z, 1, out=torch.zeros(3, dtype=torch.long)),
}

NO_RULES = {
    "sort": lambda z, b, d: z.sort(),
    "sort indices": lambda z, b, d: b.sort().indices + 1,
    "cumprod": lambda z, b, d: z.cumprod(0),
    "argmax": lambda z, b, d: z.argmax(),
    "argmax of another dim": lambda z, b, d: d.argmax(0),
    "argmax of bits": lambda z, b, d: b.argmax(-1),
    "topk": lambda z, b, d: z.topk(2),
    "scatter": lambda z, b, d: torch.zeros(5).scatter(0, z, 1.0),
    "index_add": lambda z, b, d: torch.zeros(5).index_add(0, z, torch.ones(3)),
    "bernoulli": lambda z, b, d: torch.bernoulli(b),
    "normal": lambda z, b, d: torch.normal(b, 1.0),
    "searchsorted": lambda z, b, d: torch.searchsorted(torch.arange(4.0), b),
    "bucketize": lambda z, b, d: torch.bucketize(z, torch.arange(4)),
    "view of bits": lambda z, b, d: z.view(torch.int32),
    "triu": lambda z, b, d: z[None].triu(),
    "count == 1": lambda z, b, d: (z == 1).sum() == 1,
    "count // 2.0": lambda z, b, d: (z == 1).sum() // 2.0,
    "count % 2": lambda z, b, d: (z == 1).sum() % 2,
    "where of a count": lambda z, b, d: torch.where(z == 1, (z == 2).sum(), 0.0),
    "isin": lambda z, b, d: torch.isin(torch.arange(3), z),
    "table of counts": lambda z, b, d: torch.zeros(4)[(z == 1).sum()],
    "any & mask": lambda z, b, d: z.repeat(5).gt(0).any() & True,
    "prod of many": lambda z, b, d: z.repeat(5).prod(),
    "many scalars": lambda z, b, d: (z * torch.stack([z] * 7)).prod(0),
    "division by a level": lambda z, b, d: 5 // z[1:],
    "division of a tensor": lambda z, b, d: torch.tensor([5, 6]) % z[1:],
    "cross_entropy with weights": lambda z, b, d: F.cross_entropy(
        torch.zeros(3, 4), z, weight=torch.ones(4)
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_leak(name):
    with pytest.raises(LeakError, match="straight-through gradient would be lost") as caught:
        LEAKS[name](*samples())
    assert caught.value.latents in [("z",), ("b",)]
    assert "test_refusals.py" in str(caught.value)
    assert 'infer={"silent": False}' in str(caught.value)


@pytest.mark.parametrize("name", NO_RULES)
def test_no_rule(name):
    with pytest.raises(IntractableError) as caught:
        NO_RULES[name](*samples())
    error = caught.value
    assert error.latents in [("z",), ("b",), ("d",)]
    assert "test_refusals.py" in error.location
    assert error.operation in str(error)
    assert error.location in str(error)


def test_the_operation_is_named():
    z, b, d = samples()
    with pytest.raises(IntractableError, match=r"torch\.searchsorted at .* of latent 'b'"):
        torch.searchsorted(torch.arange(4.0), b)
    with pytest.raises(IntractableError, match=r"Tensor\.__eq__ on the result of Tensor\.sum"):
        (z == 1).sum() == 1  # noqa: B015
    with pytest.raises(LeakError, match=r"autograd\.Function at"):
        _Double.apply(z)
    with pytest.raises(LeakError, match=r"F\.one_hot .*num_classes=n"):
        F.one_hot(z)
    with pytest.raises(LeakError, match=r"torch\.where\(mask, x, 0\.0\)"):
        torch.zeros(3)[z == 1]


def test_too_many_joint_levels():
    codes = [torch.eye(10)[torch.tensor([i])].requires_grad_() for i in range(5)]
    z = [index_sample(code, f"z{i}") for i, code in enumerate(codes)]
    with pytest.raises(IntractableError, match="4 discrete scalars .* more than 4096") as caught:
        z[0] * z[1] * z[2] * z[3]
    assert caught.value.latents == ("z0", "z1", "z2", "z3")
    total = z[0] + z[1] + z[2] + z[3] + z[4]  # a sum keeps a float surrogate
    assert total.dtype == torch.int64
    assert total.detach().item() == 10
    gradients = torch.autograd.grad(total.float().sum(), codes)
    for gradient in gradients:
        assert torch.equal(gradient - gradient[:, :1], torch.arange(10.0)[None])
    with pytest.raises(IntractableError, match="on the result of Tensor.add"):
        total == 10  # noqa: B015


def test_a_table_must_have_a_row_for_each_value():
    z, _, _ = samples()
    with pytest.raises(
        ConfigurationError, match="latent 'z' it takes values from 0 to 3, .* size 3"
    ):
        torch.zeros(3)[z]
    with pytest.raises(ConfigurationError, match="from 1 to 4, .* size 4"):
        torch.zeros(4)[z + 1]
    with pytest.raises(ConfigurationError, match="size 3"):
        torch.zeros(3, 3).gather(0, z[None])


def test_arguments_of_the_constructors():
    with pytest.raises(ConfigurationError, match="value: got torch.int64, expected a floating"):
        bernoulli_sample(torch.tensor([0, 1]), "b")
    with pytest.raises(ConfigurationError, match="value: got a scalar"):
        one_hot_sample(torch.tensor(1.0), "d")
    with pytest.raises(ConfigurationError, match="one_hot: got list"):
        index_sample([0.0, 1.0], "z")


def test_what_carries_no_gradient_is_plain():
    code = torch.eye(4)[:2]
    assert type(bernoulli_sample(code, "b")) is torch.Tensor
    assert type(one_hot_sample(code, "d")) is torch.Tensor
    plain = index_sample(code, "z")
    assert type(plain) is torch.Tensor
    assert plain.tolist() == [0, 1]
    z, b, d = samples()
    for sample in (z, b, d):
        assert type(sample.detach()) is torch.Tensor
        assert type(sample.data) is torch.Tensor
        with torch.no_grad():
            assert type(sample == 1) is torch.Tensor
            assert type(sample[0]) is torch.Tensor
            assert bool((sample == sample).all())
    with torch.no_grad():
        assert int(z[1]) == 2


def test_questions_are_answered():
    z, b, d = samples()
    for sample, plain in ((z, z.detach()), (b, b.detach()), (d, d.detach())):
        assert isinstance(sample, torch.Tensor)
        assert torch.is_tensor(sample)
        assert sample.shape == plain.shape == sample.size()
        assert sample.dim() == plain.dim() == sample.ndim
        assert len(sample) == len(plain)
        assert sample.dtype == plain.dtype
        assert sample.device == plain.device
        assert sample.is_floating_point() == plain.is_floating_point()
        assert torch.numel(sample) == plain.numel()
        assert sample.stride() == plain.stride()
        assert torch.result_type(sample, 1.0) == torch.result_type(plain, 1.0)
        for function in (torch.zeros_like, torch.ones_like, torch.empty_like):
            assert type(function(sample)) is torch.Tensor
        assert torch.equal(torch.full_like(sample, 2), torch.full_like(plain, 2))
        assert type(sample.new_zeros(2)) is torch.Tensor
        assert hash(sample) == id(sample)
        assert {sample: 1}[sample] == 1
        assert copy.copy(sample) is sample
        assert copy.deepcopy({"value": sample})["value"] is sample
    assert repr(z) == "DiscreteSample(tensor([0, 2, 1]), latent='z')"
    assert f"{z}" == repr(z)
    assert f"{b[1]:.2f}" == "1.00"
    assert not z.requires_grad
    assert b.requires_grad
    assert z.latents == ("z",)
    assert z.code.shape == (3, 4)
    assert torch.equal(z.levels, torch.arange(4))


def test_other_types_are_compared_as_torch_does():
    z, b, _ = samples()
    for sample in (z, b):
        assert (sample == None) is False  # noqa: E711
        assert (sample != "a") is True
    with pytest.raises(TypeError):
        z < "a"  # noqa: B015


def test_one_element_of_a_table_is_not_a_view():
    code = torch.eye(3)[1].requires_grad_()
    table = torch.zeros(3, 2)
    row = table[index_sample(code, "z")]
    row += 1
    assert table.sum() == 0


def test_support_checks_are_plain():
    z, b, _ = samples()
    for check in (
        (z >= 0).all(),
        ((b == 0) | (b == 1)).all(-1),
        (z == z).all(),
        torch.isnan(z).any(),
    ):
        assert type(check) is torch.Tensor
        assert check.shape == ()
    assert torch.zeros(3)[(z >= 0)].shape == (3,)


def test_joined_latents_are_all_named():
    z, b, _ = samples()
    with pytest.raises(LeakError) as caught:
        bool(z[0] == b[0])
    assert caught.value.latents == ("z", "b")


def test_float_samples_in_other_code():
    """Autograd, hooks, custom functions and vmap see a float sample as the tensor it is."""
    bits = torch.tensor([0.0, 1.0], requires_grad=True)
    value = bits + 0
    b = bernoulli_sample(value, "b")
    (gradient,) = torch.autograd.grad(_Double.apply(b).sum(), bits)
    assert torch.equal(gradient, torch.full((2,), 2.0))
    seen = []
    b.register_hook(seen.append)
    (gradient,) = torch.autograd.grad((b * torch.tensor([3.0, 4.0])).sum(), bits)
    assert torch.equal(gradient, torch.tensor([3.0, 4.0]))
    assert torch.equal(seen[0], gradient)
    (gradient,) = torch.autograd.grad((b * 5.0).sum(), b)
    assert torch.equal(gradient, torch.full((2,), 5.0))
    mapped = torch.vmap(lambda x: x * 2)(b)
    assert torch.equal(mapped.detach(), value.detach() * 2)
    target = torch.zeros(2)
    target.copy_(b)
    (gradient,) = torch.autograd.grad(target.sum(), bits)
    assert torch.equal(gradient, torch.ones(2))


@pytest.mark.parametrize(
    "module",
    [
        lambda: torch.nn.GRU(4, 2),
        lambda: torch.nn.LSTM(4, 2),
        lambda: torch.nn.MultiheadAttention(4, 2),
        lambda: torch.nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0),
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU(inplace=True)),
        lambda: torch.nn.Sequential(torch.nn.Dropout(), torch.nn.LayerNorm(4)).eval(),
        lambda: torch.nn.Conv1d(3, 2, 2),
        lambda: torch.nn.BatchNorm1d(3),
    ],
)
def test_modules_take_one_hot_samples(module):
    module = module()
    code = torch.eye(4)[torch.tensor([[0, 2, 1], [3, 1, 1]])].requires_grad_()

    def gradient(value):
        attends = isinstance(module, torch.nn.MultiheadAttention)
        result = module(value, value, value) if attends else module(value)
        result = result[0] if isinstance(result, tuple) else result
        return torch.autograd.grad((result * torch.arange(1.0, 1 + result.shape[-1])).sum(), code)[
            0
        ]

    found = gradient(one_hot_sample(code * 1, "d"))
    assert torch.equal(found, gradient(code * 1))


def test_second_derivatives_are_refused():
    code = torch.eye(3).requires_grad_()
    table = torch.arange(3.0).requires_grad_()
    value = (table[index_sample(code, "z")] ** 2).sum()
    (gradient,) = torch.autograd.grad(value, code, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_result_may_be_changed_in_place():
    code = torch.eye(3).requires_grad_()
    rows = torch.arange(3.0)[index_sample(code, "z")]
    rows += 1
    rows[0] = 5.0
    rows.sum().backward()
    assert torch.equal(code.grad, torch.tensor([0.0, 1.0, 1.0])[:, None] * torch.arange(3.0))


def test_sample_is_documented_type():
    assert isinstance(samples()[0], DiscreteSample)
