"""The multilinear extension by enumeration, and what a program on samples is compared with.

A loss that is linear in the results of the rules is multilinear in the codes, so that at a hard code its
derivative with respect to the entry of level k is, up to a constant over the levels, the loss with that
one scalar set to k. The oracle runs the program on plain tensors only, once for each element and level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_silent.discrete_sample import (
    DiscreteSample,
    bernoulli_sample,
    index_sample,
    one_hot_sample,
)
from tests.devices import seeded

KINDS = ("index", "bernoulli", "one_hot")


@dataclass(frozen=True)
class Latent:
    """A latent of one kind: its hard values before they become samples."""

    kind: str
    hard: (
        Tensor  # index: integers; bernoulli: 0/1 floats; one_hot: integers, coded along a last dim
    )
    num_levels: int

    def plain(self, hard: Tensor | None = None) -> Tensor:
        """The plain tensor a model would see."""
        hard = self.hard if hard is None else hard
        if self.kind == "one_hot":
            return torch.nn.functional.one_hot(hard, self.num_levels).double()
        return hard.double() if self.kind == "bernoulli" else hard

    def code(self) -> Tensor:
        """A leaf that carries the gradient."""
        if self.kind == "bernoulli":
            return self.hard.double().requires_grad_()
        code = torch.nn.functional.one_hot(self.hard, self.num_levels)
        return code.double().requires_grad_()

    def sample(self, code: Tensor, name: str) -> Tensor:
        """The sample."""
        if self.kind == "bernoulli":
            return bernoulli_sample(code, name)
        make = one_hot_sample if self.kind == "one_hot" else index_sample
        return make(code, name)


def latent(kind: str, shape: Sequence[int], num_levels: int, generator: torch.Generator) -> Latent:
    """A latent with random hard values."""
    high = 2 if kind == "bernoulli" else num_levels
    hard = torch.randint(high, tuple(shape), generator=generator)
    return Latent(kind, hard, high)


def outputs(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The tensors a program returns."""
    return [result] if isinstance(result, Tensor) else list(result)


def loss(result: Tensor | Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """A fixed linear function of the results, integers and bools as floats."""
    total = torch.zeros((), dtype=torch.double)
    for tensor, weight in zip(outputs(result), weights):
        total = total + (tensor.double() * weight).sum()
    return total._value if isinstance(total, DiscreteSample) else total


def enumerated_differences(
    program: Callable,
    latents: Sequence[Latent],
    operands: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> list[Tensor]:
    """For each latent ``[*shape, L]``: the loss with one scalar set to each level, minus the loss."""

    def at(values: Sequence[Tensor]) -> Tensor:
        return loss(program(*values, *operands), weights)

    base = at([latent.plain() for latent in latents])
    differences = []
    for i, latent_ in enumerate(latents):
        found = torch.zeros(latent_.hard.numel(), latent_.num_levels, dtype=torch.double)
        for p in range(latent_.hard.numel()):
            for k in range(latent_.num_levels):
                changed = latent_.hard.clone()
                changed.view(-1)[p] = k
                values = [other.plain() for other in latents]
                values[i] = latent_.plain(changed)
                found[p, k] = at(values) - base
        differences.append(found.reshape(*latent_.hard.shape, latent_.num_levels))
    return differences


def gradient_differences(latent: Latent, gradient: Tensor | None) -> Tensor:
    """The gradient of a code as differences to the hard level, ``[*shape, L]``."""
    if gradient is None:
        return torch.zeros(*latent.hard.shape, latent.num_levels, dtype=torch.double)
    if latent.kind == "bernoulli":
        gradient = torch.stack([torch.zeros_like(gradient), gradient], -1)
    return gradient - gradient.gather(-1, latent.hard[..., None])


def check(
    program: Callable, latents: Sequence[Latent], operands: Sequence[Tensor], atol: float = 1e-10
) -> None:
    """Values, gradients of the codes and gradients of the operands of one program."""
    operands = [op.clone().requires_grad_(op.is_floating_point()) for op in operands]
    plain_result = outputs(program(*(latent.plain() for latent in latents), *operands))
    generator = seeded(7)
    weights = [
        torch.randint(-16, 17, tensor.shape, generator=generator).double() / 8  # exact in float16
        for tensor in plain_result
    ]
    codes = [latent.code() for latent in latents]
    samples = [latent.sample(code, f"z{i}") for i, (latent, code) in enumerate(zip(latents, codes))]
    result = outputs(program(*samples, *operands))
    assert len(result) == len(plain_result)
    for tensor, plain in zip(result, plain_result):
        assert tensor.dtype == plain.dtype
        assert tensor.shape == plain.shape
        assert torch.equal(tensor.detach(), plain.detach())
    total = loss(result, weights)
    floats = [op for op in operands if op.requires_grad]
    gradients = torch.autograd.grad(total, codes + floats, allow_unused=True)
    with torch.no_grad():
        expected = enumerated_differences(program, latents, operands, weights)
    for latent, gradient, differences in zip(latents, gradients, expected):
        torch.testing.assert_close(
            gradient_differences(latent, gradient), differences, atol=atol, rtol=0
        )
    plain_total = loss(plain_result, weights)
    if plain_total.requires_grad:
        known = torch.autograd.grad(plain_total, floats, allow_unused=True)
        for operand, gradient, plain in zip(floats, gradients[len(codes) :], known):
            gradient = torch.zeros_like(operand) if gradient is None else gradient
            plain = torch.zeros_like(operand) if plain is None else plain
            torch.testing.assert_close(gradient, plain, atol=atol, rtol=0)
