"""Sums, the largest category, and bool reductions of support checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_silent.discrete_sample.leaks import settled
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    counting,
    discrete,
    is_float,
    no_rule,
    opaque,
    operation_name,
    run_plain,
    samples_in,
)
from pyro_silent.discrete_sample.surrogates import linear
from pyro_silent.discrete_sample.table import rule


@rule(
    *("sum", "nansum", "cumsum", "diff", "mean", "matmul", "__matmul__", "__rmatmul__", "mm", "mv"),
    *("bmm", "dot", "inner", "outer", "ger", "tensordot", "einsum", "linear", "kron", "vdot"),
)
def linear_map(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Linear functions: integer results keep a float surrogate."""
    if all(is_float(sample) for sample in samples_in((args, kwargs))):
        return run_plain(func, args, kwargs)
    return linear(func, args, kwargs)


@rule("count_nonzero")
def count_nonzero(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The number of elements that are not 0."""
    sample, *rest = args
    return torch.sum(sample != 0, *rest, **kwargs)


@rule("all", "any", "_is_all_true", "_is_any_true")
def every(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Plain for a condition that is settled at every level; else only validation may read it."""
    sample = args[0]
    if is_float(sample):
        sample = sample != 0
    value = settled(sample)
    if value is None and func in _VALIDATION:
        value = sample._value
    if value is not None:
        return func(value, *args[1:], **kwargs)
    with torch.no_grad():
        value = func(sample._value, *args[1:], **kwargs)
    return opaque(value, sample._latents, operation_name(func))


_VALIDATION = {getattr(torch, name, None) for name in ("_is_all_true", "_is_any_true")}


@rule("argmax")
def argmax(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The index of the category of one-hot rows."""
    return _argmax(func, *args, **kwargs)


def _argmax(
    func: Callable, sample: Any, dim: int | None = None, keepdim: bool = False, **named: Any
) -> Any:
    if dim is None:
        dim = named.get("axis")
    rows = sample._rows
    num_dims = sample._value.dim()
    if rows is None or dim is None or dim not in (-1, num_dims - 1):
        raise no_rule(func, sample)
    value = sample._value.detach().argmax(-1)
    result = discrete(value, sample._latents, (rows,), counting(rows.num_levels, value.device))
    return result.unsqueeze(-1) if keepdim else result


@rule("max")
def largest(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``max(dim)`` of one-hot rows: the indices are an index sample."""
    sample = args[0]
    if type(sample) is DiscreteSample and sample._rows is not None and (len(args) > 1 or kwargs):
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if isinstance(dim, int) and dim in (-1, sample._value.dim() - 1) and is_float(sample):
            with torch._C.DisableTorchFunctionSubclass():
                values = func(*args, **kwargs)
            keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
            return type(values)((values[0], _argmax(func, sample, -1, keepdim)))
    return run_plain(func, args, kwargs)
