"""Rules for discrete Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_silent.random_tensor.affine import Affine, apply_linear
from pyro_silent.random_tensor.rules.structural import negative
from pyro_silent.random_tensor.rules.sums import along_dim, normalized_dims
from pyro_silent.random_tensor.rules.table import rule
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of


def _transform(function: Callable) -> Callable:
    """The rule of a Fourier transform along one dim."""

    def transform(input: RandomTensor, n: Any = None, dim: int = -1, norm: Any = None) -> Affine:
        form = affine_of(input)
        d = negative(dim, form.offset.dim())
        return along_dim(form, d, lambda tensor: function(tensor, n, d, norm))

    return transform


def _transform_all(function: Callable, default: Any) -> Callable:
    """The rule of a Fourier transform along several dims."""

    def transform(
        input: RandomTensor, s: Any = None, dim: Any = default, norm: Any = None
    ) -> Affine:
        form = affine_of(input)
        dims = normalized_dims(dim, form.offset.dim())
        dim_map = {d: d for d in range(-form.offset.dim(), 0) if d not in dims}
        offset = function(form.offset, s, dims, norm)
        return apply_linear(
            form, offset, dims, lambda tensor, leading: function(tensor, s, dims, norm), dim_map
        )

    return transform


for _name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"):
    rule(f"fft.{_name}")(_transform(getattr(torch.fft, _name)))

for _name in ("fft", "ifft", "rfft", "irfft"):
    rule(f"fft.{_name}2")(_transform_all(getattr(torch.fft, f"{_name}2"), (-2, -1)))
    rule(f"fft.{_name}n")(_transform_all(getattr(torch.fft, f"{_name}n"), None))


@rule("fft.fftshift")
def fftshift(input: RandomTensor, dim: Any = None) -> Affine:
    """The zero frequency moved to the middle."""
    dims = normalized_dims(dim, input.dim())
    return affine_of(torch.roll(input, [input.size(d) // 2 for d in dims], dims))


@rule("fft.ifftshift")
def ifftshift(input: RandomTensor, dim: Any = None) -> Affine:
    """The zero frequency moved back to the front."""
    dims = normalized_dims(dim, input.dim())
    return affine_of(torch.roll(input, [-(input.size(d) // 2) for d in dims], dims))
