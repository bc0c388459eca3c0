"""Known wrong implementations, each caught by the checks of this suite."""

from __future__ import annotations

import pytest
import torch

from pyro_silent.discrete_sample import contraction, dispatch, structure
from pyro_silent.discrete_sample.factor import Factor
from tests.devices import seeded
from tests.discrete_sample.oracle import check, latent
from tests.discrete_sample.rows import ROWS

BY_NAME = {row.name: row for row in ROWS}


def run(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    generator = seeded(3)
    row = BY_NAME[name]
    latents = [latent(kind, shape, n, generator) for kind, shape, n in row.latents]
    check(row.program, latents, [torch.randn(shape, generator=generator) for shape in row.operands])


def gradient_dropped(monkeypatch):
    """The code's gradient is lost: the hole this class is there to close."""
    monkeypatch.setattr(
        contraction, "product_sum", lambda weight, levels, others, shape: torch.zeros(shape)
    )


def weight_ignored(monkeypatch):
    """The levels without the gradient that came from above."""
    true = contraction.product_sum
    monkeypatch.setattr(
        contraction,
        "product_sum",
        lambda weight, levels, others, shape: true(torch.ones_like(weight), levels, others, shape),
    )


def other_codes_ignored(monkeypatch):
    """A function of two scalars summed over the other one's levels instead of read at its value."""
    true = contraction.product_sum
    monkeypatch.setattr(
        contraction,
        "product_sum",
        lambda weight, levels, others, shape: true(
            weight, levels, [torch.ones_like(other) for other in others], shape
        ),
    )


def scalars_counted_twice(monkeypatch):
    """One scalar met on two ways is taken for two."""
    monkeypatch.setattr(Factor, "is_same", lambda self, other: False)


def scalars_mixed_up(monkeypatch):
    """All elements of one latent are taken for the same scalar."""
    monkeypatch.setattr(Factor, "is_same", lambda self, other: self.root is other.root)


def codes_left_in_place(monkeypatch):
    """The values are moved, the codes are not."""
    monkeypatch.setattr(Factor, "moved", lambda self, move: self)


def levels_left_in_place(monkeypatch):
    """The values and the codes are moved, the levels are not."""
    true = structure.moved

    def moved(z, value, move, keeps_last):
        result = true(z, value, move, keeps_last)
        if z._levels is not None:
            result._levels = z._levels
        return result

    monkeypatch.setattr(structure, "moved", moved)


def rule_forgotten(monkeypatch):
    """Comparisons run as torch's own on the hard values, as they would for a plain tensor."""
    for function in (torch.Tensor.__eq__, torch.Tensor.eq, torch.eq):
        monkeypatch.setitem(
            dispatch.RULES,
            function,
            lambda func, args, kwargs: func(*dispatch.plain_values(args), **kwargs),
        )


CAUGHT = [
    (gradient_dropped, "index t[z]"),
    (gradient_dropped, "index (z == k) * x"),
    (gradient_dropped, "bernoulli where"),
    (weight_ignored, "index t[z] rows"),
    (weight_ignored, "index where"),
    (other_codes_ignored, "pair z1 == z2"),
    (other_codes_ignored, "pair t[z1, z2]"),
    (scalars_counted_twice, "pair (z1 == z2) & (z1 > 0)"),
    (scalars_counted_twice, "index t[z, z % 2]"),
    (scalars_mixed_up, "index prod of neighbours"),
    (codes_left_in_place, "index permute == 1"),
    (codes_left_in_place, "index transpose == 1"),
    (levels_left_in_place, "index flip of levels"),
    (rule_forgotten, "index eq"),
    (rule_forgotten, "bernoulli where"),
]


@pytest.mark.parametrize("name", sorted({name for _, name in CAUGHT}))
def test_the_true_implementation_passes(name):
    run(name)


@pytest.mark.parametrize(
    ("wrong", "name"), CAUGHT, ids=[f"{w.__name__} {name}" for w, name in CAUGHT]
)
def test_caught(wrong, name, monkeypatch):
    wrong(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        run(name)
