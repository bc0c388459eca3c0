"""Rules for convolutions, pooling, interpolation, and layers that are affine in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.random_tensor.affine import Affine, NoForm, apply_linear, scale_terms
from pyro_silent.random_tensor.program import DIRECT
from pyro_silent.random_tensor.rules.table import functions, rule
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of, retire


def batched(function: Callable[[Tensor], Tensor], width: int) -> Callable[[Tensor, int], Tensor]:
    """Run a function of ``[N, *width dims]`` on any number of leading dims."""

    def apply(tensor: Tensor, leading: int) -> Tensor:
        lead = tensor.shape[: tensor.dim() - width]
        result = function(tensor.reshape(-1, *tensor.shape[tensor.dim() - width :]))
        return result.reshape(*lead, *result.shape[1:])

    return apply


def on_trailing(
    form: Affine, width: int, function: Callable[[Tensor], Tensor], offset: Tensor
) -> Affine:
    """A linear map of the last ``width`` dims to as many new ones; the dims before are a batch."""
    dims = list(range(-width, 0))
    dim_map = {d: d for d in range(-form.offset.dim(), -width)}
    return apply_linear(form, offset, dims, batched(function, width), dim_map)


def _convolution(function: Callable, width: int) -> Callable:
    """The rule of a convolution whose kernel is plain; ``width`` counts channels and space."""

    def convolution(
        input: Any, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any
    ) -> Affine:
        if isinstance(weight, RandomTensor):
            raise NoForm("a convolution with a random kernel is not affine here")
        if isinstance(bias, RandomTensor):
            plain = function(input, weight, None, *args, **kwargs)
            return affine_of(plain + bias.reshape(-1, *(1,) * (width - 1)))
        form = affine_of(input)
        offset = function(form.offset, weight, bias, *args, **kwargs)
        return on_trailing(
            form, width, lambda x: function(x, weight, None, *args, **kwargs), offset
        )

    return convolution


def _pooling(function: Callable, width: int) -> Callable:
    """The rule of an average over windows."""

    def pooling(input: RandomTensor, *args: Any, **kwargs: Any) -> Affine:
        form = affine_of(input)
        offset = function(form.offset, *args, **kwargs)
        return on_trailing(form, width, lambda x: function(x, *args, **kwargs), offset)

    return pooling


for _n in (1, 2, 3):
    rule(f"conv{_n}d")(_convolution(getattr(F, f"conv{_n}d"), _n + 1))
    rule(f"conv_transpose{_n}d")(_convolution(getattr(F, f"conv_transpose{_n}d"), _n + 1))
    rule(f"avg_pool{_n}d")(_pooling(getattr(F, f"avg_pool{_n}d"), _n + 1))
    rule(f"adaptive_avg_pool{_n}d")(_pooling(getattr(F, f"adaptive_avg_pool{_n}d"), _n + 1))

_LINEAR_MODES = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area")


@rule("interpolate", "upsample")
def interpolate(
    input: RandomTensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    **kwargs: Any,
) -> Affine:
    """Resampling by weights that do not depend on the values."""
    if mode not in _LINEAR_MODES:
        raise NoForm(f"interpolation mode {mode!r} is not linear")
    form = affine_of(input)
    width = form.offset.dim() - 1

    def resample(tensor: Tensor) -> Tensor:
        return F.interpolate(tensor, size, scale_factor, mode, **kwargs)

    return on_trailing(form, width, resample, resample(form.offset))


def _refolding(function: Callable, width: int) -> Callable:
    """The rule of ``F.unfold`` and ``F.fold``, which know one batch dim."""

    def refold(input: RandomTensor, *args: Any, **kwargs: Any) -> Affine:
        form = affine_of(input)
        if form.offset.dim() == width:
            raise NoForm(f"{function.__name__} of an unbatched input; add a batch dim")
        offset = function(form.offset, *args, **kwargs)
        dim_map = {-width - 1: -offset.dim()}
        apply = batched(lambda x: function(x, *args, **kwargs), width)
        return apply_linear(form, offset, list(range(-width, 0)), apply, dim_map)

    return refold


rule("nn.functional.unfold")(_refolding(F.unfold, 3))
rule("nn.functional.fold")(_refolding(F.fold, 2))


@rule("batch_norm")
def batch_norm(
    input: RandomTensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *ignored: Any,
) -> Affine:
    """Affine where the statistics are the running ones: a scale and a shift per channel."""
    if training or running_mean is None or running_var is None:
        raise NoForm("batch norm in training mode divides by the batch's own deviation")
    form = affine_of(input)
    offset = F.batch_norm(
        form.offset, running_mean, running_var, weight, bias, False, momentum, eps
    )
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    num_dims = offset.dim()
    return Affine(offset, scale_terms(form, scale.reshape(-1, *(1,) * (num_dims - 2)), num_dims))


def _dropout(function: Callable) -> Callable:
    """Dropout: nothing in evaluation mode, a plain mask in training."""

    def dropout(
        input: RandomTensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Any:
        if not training or p == 0:
            return input
        # The mask is the program's own noise: drawn once, a plain factor ever after.
        blank = torch.ones((), dtype=input.dtype, device=input.device).expand(input.shape)
        result = torch.mul(input, function(blank, p, True))
        if inplace:
            retire(input)
        return result

    return dropout


for _name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"):
    for _place in functions(_name):
        DIRECT[_place] = _dropout(_place)
