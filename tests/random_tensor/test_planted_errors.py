"""The comparison of the other tests catches known wrong rules when they are planted."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from pyro_silent.random_tensor.affine import Affine, Term
from pyro_silent.random_tensor.program import RULES
from pyro_silent.random_tensor.tensor import affine_of
from tests.random_tensor.agreement import assert_program_agrees
from tests.random_tensor.sources import source

# The package exports a function of the same name.
second_moments = importlib.import_module("pyro_silent.random_tensor.covariance")

WINNER, LOSER = tensor([0, 1, 3, 2]), tensor([1, 0, 2, 0])


def drop_covariance_of_gathers(monkeypatch) -> None:
    """Two terms that read one source at different indices are taken for independent."""
    original = second_moments._pair

    def dropped(a, b, *rest):
        differ = not all(
            second_moments.same_position(x, y) for x, y in zip(a.axes, b.axes, strict=True)
        )
        if differ and any(isinstance(axis, Tensor) for axis in a.axes + b.axes):
            return []
        return original(a, b, *rest)

    monkeypatch.setattr(second_moments, "_pair", dropped)


def sum_without_contracting(monkeypatch) -> None:
    """A summed axis is read at its first position, as if all of its latents were one."""

    def merged(input, dim):
        form = affine_of(input)
        first = torch.zeros(1, dtype=torch.long)
        count = form.offset.new_full((1,), float(len(form.offset)))
        terms = tuple(Term(t.source, (first, *t.axes[1:]), count) for t in form.terms)
        return Affine(form.offset.sum(dim), terms)

    monkeypatch.setitem(RULES, Tensor.sum, merged)


def transpose_coefficient(monkeypatch) -> None:
    """``F.linear`` with a square weight moves the latents by the transposed weight."""
    original = RULES[F.linear]

    def transposed(input, weight, bias=None):
        right, wrong = original(input, weight, bias), original(input, weight.T, bias)
        return Affine(right.offset, wrong.terms)

    monkeypatch.setitem(RULES, F.linear, transposed)


PLANTS = {
    "dropped covariance of two gathers": (
        drop_covariance_of_gathers,
        lambda z: z[WINNER] - z[LOSER],
    ),
    "summed aligned axis without contracting it": (
        sum_without_contracting,
        lambda z: z.sum(0) + 1.0,
    ),
    "transposed coefficient": (
        transpose_coefficient,
        lambda z: F.linear(z, torch.arange(9.0, dtype=z.dtype).reshape(3, 3)),
    ),
}


@pytest.mark.parametrize("kind", ["normal", "mvn_tril"])
@pytest.mark.parametrize("name", PLANTS)
def test_planted_error_is_caught(name, kind, monkeypatch):
    plant, program = PLANTS[name]
    assert_program_agrees(program, [source(kind, (4, 3))])
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="variance|covariance"):
        assert_program_agrees(program, [source(kind, (4, 3))])


@pytest.mark.parametrize("name", PLANTS)
def test_planted_error_leaves_the_mean_alone(name, monkeypatch):
    """The mean is right in all three: only second moments can tell, so they must be compared."""
    plant, program = PLANTS[name]
    plant(monkeypatch)
    with pytest.raises(AssertionError) as caught:
        assert_program_agrees(program, [source("normal", (4, 3))])
    assert not str(caught.value).startswith("mean")


def test_missing_gradient_is_caught(monkeypatch):
    """A rule that detaches its operand has the right moments and no gradient."""
    original = RULES[F.linear]
    monkeypatch.setitem(RULES, F.linear, lambda x, w, b=None: original(x, w.detach(), b))
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert_program_agrees(F.linear, [source("normal", (4, 3))], [w], gradients=False)
    with pytest.raises(AssertionError, match="gradient of leaf 2"):
        assert_program_agrees(F.linear, [source("normal", (4, 3))], [w])
