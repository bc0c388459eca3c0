"""The comparison all tests of the random tensor use: one program, random tensors and oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_silent import RandomTensor, covariance, mean, random_tensor, variance
from tests import oracles
from tests.random_tensor.sources import Source

Program = Callable[..., Tensor]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Relative to each entry, with a floor a thousand times lower for entries that are zero."""
    torch.testing.assert_close(
        actual.to(expected.dtype),
        expected,
        rtol=tolerance,
        atol=tolerance * 1e-3 * max(1.0, _largest(expected)),
        msg=lambda text: f"{what}: {text}",
    )


def _largest(value: Tensor) -> float:
    return value.detach().abs().max().item() if value.numel() else 0.0


def dense_moments(y: RandomTensor) -> oracles.Moments:
    """Moments as the random tensor gives them, the covariance of all pairs of elements included."""
    flat = y.reshape(-1)
    return oracles.Moments(mean(y), variance(y), covariance(flat[:, None], flat[None, :]))


def weighted_gradients(moments: oracles.Moments, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a fixed random linear function of all the moments; zero for an unused leaf."""
    generator = torch.Generator().manual_seed(5)
    loss = torch.zeros((), dtype=torch.float64)
    for moment in moments:
        weight = torch.randn(moment.shape, generator=generator, dtype=torch.float64)
        loss = loss + (weight * moment).sum()
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]


def assert_program_agrees(
    program: Program,
    sources: Sequence[Source],
    operands: Sequence[Tensor] = (),
    *,
    gradients: bool = True,
) -> None:
    """Compare moments (1e-9) and gradients (1e-8) of ``program(*latents, *operands)``."""

    def closed(*latents: Tensor) -> Tensor:
        return program(*latents, *operands)

    expected = oracles.moments(closed, *(s.distribution() for s in sources))
    y = closed(*(random_tensor(s.distribution()) for s in sources))
    assert isinstance(y, RandomTensor), f"the program returned {type(y).__name__}"
    actual = dense_moments(y)
    for name, got, wanted in zip(expected._fields, actual, expected, strict=True):
        assert got.shape == wanted.shape, f"{name} has shape {got.shape}, not {wanted.shape}"
        assert got.dtype is wanted.dtype, f"{name} has dtype {got.dtype}, not {wanted.dtype}"
        assert_close(got, wanted, 1e-9, name)
    if gradients:
        leaves = [p for s in sources for p in s.parameters] + list(operands)
        found = weighted_gradients(actual, leaves)
        for i, (got, wanted) in enumerate(
            zip(found, weighted_gradients(expected, leaves), strict=True)
        ):
            assert_close(got, wanted, 1e-8, f"gradient of leaf {i}")


def assert_metadata_agrees(program: Program, sources: Sequence[Source], operands: Sequence[Tensor]):
    """Shape, dtype and device are those of the plain program on a sample; the repr names them."""
    torch.manual_seed(0)
    distributions = [s.distribution() for s in sources]
    plain = program(*(d.sample() for d in distributions), *operands)
    y = program(*(random_tensor(d) for d in distributions), *operands)
    assert isinstance(y, RandomTensor)
    assert (y.shape, y.dtype, y.device) == (plain.shape, plain.dtype, plain.device)
    assert (y.ndim, y.dim(), y.numel()) == (plain.ndim, plain.dim(), plain.numel())
    assert y.size() == plain.size()
    assert y.is_floating_point() == plain.is_floating_point()
    moments = mean(y)
    assert type(moments) is torch.Tensor
    assert moments.shape == variance(y).shape == plain.shape
    assert "RandomTensor" in repr(y)
    assert str(tuple(plain.shape))[1:-1].rstrip(",") in repr(y)
