"""Reductions without a derivative: the largest category, ``all``, ``any``, ``prod``, ``amax`` ..."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.dispatch import refused, run_plain
from pyro_silent.discrete_sample.elementwise import MAX_LEVELS
from pyro_silent.discrete_sample.outcome import settled
from pyro_silent.discrete_sample.refusals import operation_name
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    counting,
    discrete,
    is_float,
    is_opaque,
    opaque,
)
from pyro_silent.discrete_sample.table import INTEGRAL_RULES, register, rule

_VALIDATION = {getattr(torch, name, None) for name in ("_is_all_true", "_is_any_true")}


@rule("all", "any", "_is_all_true", "_is_any_true")
def condition(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Plain for a condition that is settled at every level; else only validation may read it."""
    sample = args[0]
    if is_float(sample) or sample._value.dtype != torch.bool:
        sample = sample != 0
    value = settled(sample)
    if value is None and func in _VALIDATION:
        value = sample._value
    if value is not None:
        return func(value, *args[1:], **kwargs)
    combine = torch.logical_or if "any" in operation_name(func) else torch.logical_and
    folded = _folded(combine, sample, *args[1:], **kwargs)
    if folded is not None:
        return folded
    value = func(sample._value, *args[1:], **kwargs)
    return opaque(value, [sample], operation_name(func))


def _folded(
    combine: Callable,
    sample: DiscreteSample,
    dim: int | None = None,
    keepdim: bool = False,
    **named: Any,
) -> Tensor | None:
    """A reduction as a function of all scalars along a dim, where their joint levels are few."""
    dim = named.pop("axis", dim)
    if is_opaque(sample) or isinstance(dim, (tuple, list)) or named:
        return None
    if dim is None:
        sample, dim = sample.reshape(-1), 0  # type: ignore[assignment]
    size = sample.shape[dim] if sample.dim() else 1
    num_levels = math.prod(factor.num_levels for factor in sample.factors)
    if size == 0 or size * math.log(num_levels) > math.log(MAX_LEVELS) + 1e-9:
        return None
    parts = sample.unbind(dim) if sample.dim() else (sample,)
    result = functools.reduce(combine, parts)
    return result.unsqueeze(dim) if keepdim else result


def _fold(combine: Callable) -> Callable:
    def apply(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        sample, *rest = args
        if combine is torch.mul and not is_float(sample) and sample._value.dtype != torch.int64:
            sample = sample.long()
        folded = _folded(combine, sample, *rest, **kwargs)
        if folded is None:
            raise refused(func, args)
        return folded

    return apply


register(_fold(torch.mul), "prod", table=INTEGRAL_RULES)
register(_fold(torch.maximum), "amax", table=INTEGRAL_RULES)
register(_fold(torch.minimum), "amin", table=INTEGRAL_RULES)


@rule("count_nonzero")
def count_nonzero(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The number of elements that are not 0."""
    sample, *dims = args
    dim = dims[0] if len(dims) == 1 else tuple(dims) or None
    return torch.sum(sample != 0, kwargs.get("dim", dim))


@rule("argmax")
def argmax(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The index of the category of one-hot rows."""
    return _category(func, *args, **kwargs)


def _category(
    func: Callable,
    sample: DiscreteSample,
    dim: int | None = None,
    keepdim: bool = False,
    **named: Any,
) -> Tensor:
    dim = named.get("axis", dim)
    rows = sample._rows
    if rows is None or dim is None or dim not in (-1, sample._value.dim() - 1):
        raise refused(func, sample)
    value = sample._value.detach().argmax(-1)
    index = discrete(value, sample._latents, (rows,), counting(rows.num_levels, value.device))
    return index.unsqueeze(-1) if keepdim else index


@rule("max", "min")
def extreme(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The larger of two tensors, the largest of all elements, or of one-hot rows with its index."""
    name = func.__name__
    other = args[1] if len(args) > 1 else kwargs.get("other")
    if isinstance(other, Tensor):
        return (torch.maximum if name == "max" else torch.minimum)(args[0], other)
    sample = args[0]
    if len(args) == 1 and not kwargs and not is_float(sample):
        return (torch.amax if name == "max" else torch.amin)(sample)
    dim = kwargs.get("dim", other)
    if name == "max" and sample._rows is not None and is_float(sample) and dim is not None:
        if dim in (-1, sample._value.dim() - 1):
            values = func(sample._value, *args[1:], **kwargs)
            keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
            return type(values)((values[0], _category(func, sample, -1, keepdim)))
    return run_plain(func, args, kwargs)
