"""What turns a sample into a Python value or writes into it: refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.metadata import plain
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    hard,
    in_place,
    is_float,
    is_opaque,
    latents_in,
    leak,
    levels_of,
    no_rule,
    samples_in,
)
from pyro_silent.discrete_sample.table import RULES, rule


def settled(sample: DiscreteSample) -> Tensor | None:
    """The plain value of a bool sample that is the same at every level, such as a support check."""
    if is_opaque(sample) or sample._value.dtype != torch.bool:
        return None
    levels = levels_of(sample)
    num_factors = len(sample._factors or ())
    flat = levels.flatten(levels.dim() - num_factors)
    if bool((flat == flat[..., :1]).all()):
        return hard(sample)
    return None


@rule(
    *("__bool__", "item", "tolist", "__int__", "__float__", "__index__", "__complex__", "numpy"),
    *("__array__", "nonzero", "argwhere", "unique", "unique_consecutive", "bincount", "equal"),
    *(
        "allclose",
        "is_nonzero",
        "__contains__",
        "histc",
        "histogram",
        "__reduce_ex__",
        "__reduce__",
    ),
    *("__dlpack__", "__setstate__", "__cuda_array_interface__", "nonzero_static", "is_storage_"),
)
def needs_value(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Python values and data-dependent shapes, unless the sample does not depend on its latents."""
    samples = list(samples_in((args, kwargs)))
    if len(args) == 1 and type(args[0]) is DiscreteSample:
        value = settled(args[0])
        if value is not None:
            return func(value, **kwargs)
    raise leak(func, latents_in(samples))


@rule("bernoulli", "poisson", "multinomial", "normal", "binomial", "dropout_")
def draws(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A draw has a derivative of zero."""
    raise no_rule(func, *samples_in((args, kwargs)))


def write(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An in-place method: a float sample may be written into a plain tensor, nothing into a sample."""
    samples = list(samples_in((args, kwargs)))
    if type(args[0]) is DiscreteSample or not all(is_float(sample) for sample in samples):
        raise in_place(func, latents_in(samples))
    return plain(func, args, kwargs)


_WRITES = "add sub mul div truediv floordiv mod pow and or xor lshift rshift matmul".split()
for _name in dir(Tensor):
    _method = getattr(Tensor, _name)
    _is_write = _name.endswith("_") and not _name.startswith("_") and _name != "requires_grad_"
    if callable(_method) and (_is_write or _name in {f"__i{verb}__" for verb in _WRITES}):
        RULES[_method] = write
