"""Soft codes: values and gradients are those of the multilinear extension, enumerated under autograd."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from pyro_silent.discrete_sample import (
    DiscreteSample,
    bernoulli_sample,
    index_sample,
    one_hot_sample,
)
from tests.devices import seeded
from tests.discrete_sample.oracle import Latent, latent, loss, outputs
from tests.discrete_sample.rows import CASTS, JOINING, OPERATORS, SUMS, TABLES, binary, index

_MAKE = {"index": index_sample, "bernoulli": bernoulli_sample, "one_hot": one_hot_sample}

ROWS = [row for row in CASTS + OPERATORS + JOINING + TABLES + SUMS if "half" not in row.name]


def softened(latent: Latent, generator: torch.Generator) -> tuple[torch.Tensor, list[int]]:
    """The one-hot code with up to two elements made soft, which are named."""
    code = F.one_hot(latent.hard, latent.num_levels).double()
    flat = code.view(-1, latent.num_levels)
    chosen = torch.randperm(len(flat), generator=generator)[:2].tolist()
    for p in chosen:
        noise = torch.rand(latent.num_levels, dtype=torch.double, generator=generator)
        flat[p] = (noise + 1.5 * flat[p]).div((noise + 1.5 * flat[p]).sum())
    return code, chosen


def extension(program, latents, codes, chosen, operands, weights):
    """``sum over assignments of prod code * loss(assignment)``, differentiable in codes and operands."""
    total = torch.zeros((), dtype=torch.double)
    places = [(i, p) for i, positions in enumerate(chosen) for p in positions]
    for levels in itertools.product(*(range(latents[i].num_levels) for i, _ in places)):
        probability = torch.ones((), dtype=torch.double)
        hard = [latent.hard.clone() for latent in latents]
        for (i, p), k in zip(places, levels):
            hard[i].view(-1)[p] = k
            probability = probability * codes[i].reshape(-1, latents[i].num_levels)[p, k]
        values = [latent.plain(value) for latent, value in zip(latents, hard)]
        total = total + probability * loss(program(*values, *operands), weights)
    return total


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row):
    torch.set_default_dtype(torch.float64)
    generator = seeded(5)
    latents = [latent(kind, shape, n, generator) for kind, shape, n in row.latents]
    operands = [torch.randn(shape, generator=generator).requires_grad_() for shape in row.operands]
    plain = outputs(row.program(*(latent.plain() for latent in latents), *operands))
    weights = [torch.randint(-16, 17, t.shape, generator=generator).double() / 8 for t in plain]
    codes, chosen, samples = [], [], []
    for latent_ in latents:
        code, places = softened(latent_, generator)
        codes.append(code.requires_grad_())
        chosen.append(places)
        value = code[..., 1] if latent_.kind == "bernoulli" else code
        samples.append(_MAKE[latent_.kind](value, "z", soft=True))
    result = outputs(row.program(*samples, *operands))
    for tensor, known in zip(result, plain):
        assert tensor.shape == known.shape
        assert tensor.dtype == known.dtype
    value = loss(result, weights)
    expected = extension(row.program, latents, codes, chosen, operands, weights)
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)

    tensors = [*codes, *operands]
    found = torch.autograd.grad(value, tensors, allow_unused=True)
    truth = torch.autograd.grad(expected, tensors, allow_unused=True)
    for i, (code, gradient, known) in enumerate(zip(tensors, found, truth)):
        gradient = torch.zeros_like(code) if gradient is None else gradient
        known = torch.zeros_like(code) if known is None else known
        if i < len(codes):  # only the soft elements are enumerated; constants over levels are free
            if latents[i].kind == "bernoulli":
                gradient = gradient - gradient[..., :1]
                known = known - known[..., :1]
            gradient, known = (g.reshape(-1, g.shape[-1])[chosen[i]] for g in (gradient, known))
            gradient = gradient - gradient.mean(-1, keepdim=True)
            known = known - known.mean(-1, keepdim=True)
        torch.testing.assert_close(gradient, known, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "row",
    [
        index("t[z]", lambda z, t: t[z], (4, 5)),
        index("(z == 1) * x", lambda z, x: (z == 1) * x, (2, 3)),
        index("one_hot", lambda z: F.one_hot(z, 4).float() @ torch.ones(4, 2)),
        index("z / 2", lambda z: z / 2),
        index("count", lambda z: (z == 1).sum(0).float()),
        binary("where", lambda z, x: torch.where(z == 1, x, 0.0), (2, 3)),
        binary("z @ w", lambda z, w: z @ w, (3, 2)),
    ],
    ids=str,
)
def test_values_do_not_depend_on_grad_mode(row):
    generator = seeded(5)
    (kind, shape, n) = row.latents[0]
    logits = torch.randn(*shape, n, generator=generator)
    operands = [torch.randn(shape, generator=generator) for shape in row.operands]

    def value(logits: torch.Tensor) -> torch.Tensor:
        code = logits.softmax(-1)
        code = code[..., 1] if kind == "bernoulli" else code
        return row.program(_MAKE[kind](code, "z", soft=True), *operands) * torch.ones(())

    with_gradient = value(logits.clone().requires_grad_())
    assert with_gradient.requires_grad
    without = value(logits)
    assert not without.requires_grad
    with torch.no_grad():
        inside = value(logits.clone().requires_grad_())
    assert torch.equal(without, with_gradient.detach())
    assert torch.equal(inside, with_gradient.detach())


def test_a_soft_index_shows_its_largest_entry():
    code = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    z = index_sample(code, "z", soft=True)
    assert isinstance(z, DiscreteSample)
    assert z.detach().tolist() == [1, 0]
    assert torch.equal((z == 1).detach(), torch.tensor([True, False]))
    torch.testing.assert_close(z.float().detach(), torch.tensor([1.1, 0.5]))


def test_zero_probability_ignores_an_infinite_level():
    code = torch.tensor([[0.25, 0.75, 0.0]], requires_grad=True)
    z = index_sample(code, "z", soft=True)
    table = torch.tensor([1.0, 2.0, -torch.inf])
    (value,) = table[z]
    assert value.item() == 1.75
    (gradient,) = torch.autograd.grad(value, code)
    assert torch.equal(gradient, table[None])
