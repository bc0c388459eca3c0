"""Impossible values: scores of -inf, a table with infinite entries, levels outside a support."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F

from pyro_silent.discrete_sample import bernoulli_sample, index_sample, one_hot_sample

INFINITY = torch.inf
LOGITS = torch.tensor([0.3, -INFINITY, 1.2, -INFINITY])


def code(*hard: int) -> torch.Tensor:
    return torch.eye(4)[torch.tensor(hard)].requires_grad_()


def test_categorical_log_prob():
    """Finite at a possible value, -inf at an impossible one, as torch's own; the gradient says so too."""
    one_hot = code(0, 1, 2)
    z = index_sample(one_hot, "z")
    law = dist.Categorical(logits=LOGITS)
    value = law.log_prob(z)
    assert torch.equal(value.detach(), law.log_prob(z.detach()))
    (gradient,) = torch.autograd.grad(value[[0, 2]].sum(), one_hot)
    assert torch.equal(gradient[0], law.logits)
    assert torch.equal(gradient[1], torch.zeros(4))  # no gradient came: 0, not 0 * inf
    assert torch.equal(gradient[2], law.logits)


@pytest.mark.parametrize("spelling", ["getitem", "embedding", "gather", "where", "index_select"])
def test_tables(spelling):
    one_hot = code(0, 2)
    z = index_sample(one_hot, "z")
    value = {
        "getitem": lambda: LOGITS[z],
        "embedding": lambda: F.embedding(z, LOGITS[:, None])[:, 0],
        "gather": lambda: LOGITS.gather(0, z),
        "where": lambda: torch.where((z == 1) | (z == 3), -INFINITY, 1.0),
        "index_select": lambda: LOGITS.index_select(0, z),
    }[spelling]()
    assert value.detach().isfinite().all()
    (gradient,) = torch.autograd.grad(value, one_hot, torch.tensor([2.0, 0.0]))
    assert not gradient.isnan().any()
    assert torch.equal(gradient[1], torch.zeros(4))
    assert (gradient[0][[1, 3]] == -INFINITY).all()


def test_rows_with_infinite_entries():
    """A transition matrix with forbidden steps: no NaN, and the finite entries exact."""
    one_hot = code(0, 2, 2)
    z = index_sample(one_hot, "z")
    table = torch.randn(4, 5)
    table[1, 2] = table[3, 0] = -INFINITY
    rows = table[z]
    assert torch.equal(rows.detach(), table[z.detach()])
    upstream = torch.randn(3, 5)
    upstream[1] = 0
    upstream[2, [0, 2]] = 0
    (gradient,) = torch.autograd.grad(rows, one_hot, upstream)
    assert not gradient.isnan().any()
    assert torch.equal(gradient[1], torch.zeros(4))
    finite = table.masked_fill(table.isinf(), 0.0)
    torch.testing.assert_close(gradient[:, [0, 2]], (upstream @ finite.T)[:, [0, 2]])
    torch.testing.assert_close(gradient[2], (upstream @ finite.T)[2])
    assert (gradient[0, [1, 3]].abs() > 1e30).all()


def test_a_large_table_takes_the_matrix_product():
    """The same through the einsum, whose infinities are the largest finite number."""
    one_hot = torch.eye(4)[torch.randint(4, (50,))].requires_grad_()
    table = torch.randn(4, 30)
    table[1, 2] = -INFINITY
    upstream = torch.randn(50, 30)
    upstream[:, 2] = 0
    (gradient,) = torch.autograd.grad(table[index_sample(one_hot, "z")], one_hot, upstream)
    torch.testing.assert_close(gradient, upstream @ table.masked_fill(table.isinf(), 0).T)


def test_bernoulli_with_a_sure_value():
    bits = torch.tensor([0.0, 1.0]).requires_grad_()
    b = bernoulli_sample(bits, "b")
    value = torch.where(b == 1, torch.tensor([-INFINITY, 1.0]), torch.tensor([2.0, -INFINITY]))
    assert torch.equal(value.detach(), torch.tensor([2.0, 1.0]))
    (gradient,) = torch.autograd.grad(value.sum(), bits)
    assert torch.equal(gradient, torch.tensor([-INFINITY, INFINITY]))
    value = torch.where(b == 1, torch.tensor([-INFINITY, 1.0]), torch.tensor([2.0, -INFINITY]))
    (gradient,) = torch.autograd.grad(value, bits, torch.zeros(2))
    assert torch.equal(gradient, torch.zeros(2))


def test_one_hot_log_prob():
    one_hot = code(0, 2)
    law = dist.OneHotCategorical(logits=LOGITS)
    value = law.log_prob(one_hot_sample(one_hot, "d"))
    assert torch.equal(value.detach(), law.log_prob(one_hot.detach()))
    (gradient,) = torch.autograd.grad(value.sum(), one_hot)
    assert torch.equal(gradient, law.logits.expand(2, 4))


def test_a_level_outside_the_support():
    """1/z and log z at the level 0 that is not the value."""
    one_hot = code(1, 3)
    z = index_sample(one_hot, "z")
    for value, level in ((1 / z, INFINITY), (z.log(), -INFINITY)):
        assert value.isfinite().detach().all()
        (gradient,) = torch.autograd.grad(value.sum(), one_hot)
        assert (gradient[:, 0] == level).all()
        assert gradient[:, 1:].isfinite().all()
