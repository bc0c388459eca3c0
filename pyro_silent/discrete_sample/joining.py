"""Samples put side by side: ``torch.cat`` and ``torch.stack``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.discrete_sample.dispatch import plain_values, refused, run_plain, run_torch
from pyro_silent.discrete_sample.factor import Factor
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    discrete,
    is_float,
    is_pure,
    latents_in,
    pure,
)
from pyro_silent.discrete_sample.table import register, rule


@rule("cat", "concat", "concatenate")
def cat(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Codes and levels are put side by side; a plain tensor has one level."""
    return _cat(func, *args, **kwargs)


def _cat(
    func: Callable, tensors: Sequence[Tensor], dim: int = 0, *, out: Any = None, axis: Any = None
) -> Any:
    dim = dim if axis is None else axis
    samples = [tensor for tensor in tensors if type(tensor) is DiscreteSample]
    if all(is_float(sample) for sample in samples):
        return _cat_floats(func, tensors, samples, dim)
    if out is not None or any(len(sample.factors) != 1 for sample in samples):
        raise refused(func, samples)
    tensors = [tensor for tensor in tensors if tensor.shape != (0,)]
    value = torch.cat([plain_values(tensor) for tensor in tensors], dim)
    if value.is_floating_point():
        floats = [t.to(value.dtype) for t in tensors]
        return _cat_floats(func, floats, [t for t in floats if type(t) is DiscreteSample], dim)
    dim %= value.dim()
    num_levels = max(sample.factors[0].num_levels for sample in samples)
    dtype = samples[0].factors[0].origin.dtype
    codes = [_full_code(tensor, num_levels, dtype) for tensor in tensors]
    code = torch.cat(codes, dim)
    first = samples[0].levels
    if len(samples) == len(tensors) and all(sample.levels is first for sample in samples):
        levels = first
    else:
        levels = torch.cat([_full_levels(t, num_levels, value.dtype) for t in tensors], dim)
    soft = any(sample.factors[0].soft for sample in samples)
    factor = Factor(code, code, binary=False, soft=soft)
    return discrete(value, latents_in(samples), (factor,), levels)


def _cat_floats(
    func: Callable, tensors: Sequence[Tensor], samples: Sequence[DiscreteSample], dim: int
) -> Tensor:
    if len(samples) < len(tensors) or not all(map(is_pure, samples)):
        return run_plain(torch.cat, (list(tensors), dim), {})
    result = run_torch(torch.cat, (list(tensors), dim), {})
    soft = any(sample._soft for sample in samples)
    rows = None
    if (
        all(sample._rows is not None for sample in samples)
        and dim % result.dim() != result.dim() - 1
    ):
        rows = Factor(result, result, binary=False, soft=soft)
    return pure(result, latents_in(samples), result, soft, rows)


def _full_code(tensor: Tensor, num_levels: int, dtype: torch.dtype) -> Tensor:
    if type(tensor) is DiscreteSample:
        (factor,) = tensor.factors
        code = factor.padded(tensor.dim()).code.to(dtype)
        code = code.expand(*tensor.shape, code.shape[-1])
        return F.pad(code, (0, num_levels - code.shape[-1]))
    code = torch.zeros(*tensor.shape, num_levels, dtype=dtype, device=tensor.device)
    code[..., 0] = 1
    return code


def _full_levels(tensor: Tensor, num_levels: int, dtype: torch.dtype) -> Tensor:
    if type(tensor) is not DiscreteSample:
        return tensor.to(dtype)[..., None].expand(*tensor.shape, num_levels)
    levels = tensor.levels.to(dtype)
    levels = levels.expand(*tensor.shape, levels.shape[-1])
    return torch.cat(
        [levels, levels[..., :1].expand(*tensor.shape, num_levels - levels.shape[-1])], -1
    )


@rule("stack")
def stack(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Concatenation along a new dim."""
    return _stack(*args, **kwargs)


def _stack(tensors: Sequence[Tensor], dim: int = 0, **named: Any) -> Tensor:
    return torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim, **named)


def _piled(dim: int, num_dims: int) -> Callable:
    """``hstack`` and its kin: concatenation along a dim, of tensors of at least ``num_dims`` dims."""

    def apply(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        widen = (torch.atleast_1d, torch.atleast_2d, torch.atleast_3d)[num_dims - 1]
        (tensors,) = (*args, *kwargs.values())
        wide = [widen(tensor) for tensor in tensors]
        return torch.cat(wide, 0 if wide[0].dim() == 1 else dim)

    return apply


register(_piled(1, 1), "hstack")
register(_piled(0, 2), "vstack", "row_stack")
register(_piled(2, 3), "dstack")
