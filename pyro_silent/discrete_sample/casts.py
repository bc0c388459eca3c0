"""Changes of dtype and device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.dispatch import plain_values
from pyro_silent.discrete_sample.elementwise import elementwise
from pyro_silent.discrete_sample.factor import Factor
from pyro_silent.discrete_sample.metadata import plain
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    discrete,
    is_float,
    is_opaque,
    is_pure,
    opaque,
    pure,
)
from pyro_silent.discrete_sample.surrogates import surrogate_of
from pyro_silent.discrete_sample.table import rule


@rule(
    *("to", "type", "type_as", "float", "double", "half", "bfloat16", "long", "int", "short"),
    *("char", "byte", "bool", "cpu", "cuda", "clone", "contiguous", "alias"),
)
def cast(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The same scalars, with levels of another dtype; integers become floats with their gradient."""
    sample = args[0]
    if type(sample) is not DiscreteSample:
        return plain(func, args, kwargs)
    args = (sample._value, *plain_values(args[1:]))
    value = func(*args, **plain_values(kwargs))
    if not isinstance(value, Tensor):
        return value
    if value is sample._value:
        return sample
    if is_opaque(sample):
        if value.is_floating_point():
            return surrogate_of(sample).to(value.dtype).to(value.device)
        return opaque(value, [sample], sample._lost, sample._surrogate)
    if value.device != sample._value.device:
        sample = _on(sample, value.device)
    if is_float(sample) and value.is_floating_point():
        if is_pure(sample):
            rows = sample._rows and Factor(value, value, binary=False, soft=sample._rows.soft)
            return pure(value, sample._latents, value, sample._soft, rows)
        levels = sample.levels.to(value.dtype)
        return discrete(value, sample._latents, sample.factors, levels, sample._rows)
    dtype = value.dtype
    if dtype == sample._value.dtype:
        return discrete(value, sample._latents, sample.factors, sample.levels, sample._rows)
    if sample._rows is not None and value.is_floating_point():
        code = sample._rows.origin.expand(value.shape).to(dtype)
        return pure(code, sample._latents, code, sample._rows.soft, sample._rows)
    result = elementwise(Tensor.to, (sample, dtype), {}, [sample])
    if sample._rows is not None:
        result._rows = sample._rows
    return result


def _on(sample: DiscreteSample, device: torch.device) -> DiscreteSample:
    factors = tuple(f.moved(lambda t, trailing: t.to(device)) for f in sample.factors)
    rows = sample._rows and sample._rows.moved(lambda t, trailing: t.to(device))
    return discrete(
        sample._value.to(device), sample._latents, factors, sample.levels.to(device), rows
    )
