"""Tables read at discrete samples: ``table[z]``, ``F.embedding``, ``gather``, ``F.one_hot`` ...

Each spelling says which entry each dim of the table has; :mod:`.lookup` does the reading.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.discrete_sample.dispatch import (
    has_samples,
    plain_values,
    refused,
    run_plain,
    samples_in,
)
from pyro_silent.discrete_sample.lookup import dims_of, gathered, lookup
from pyro_silent.discrete_sample.outcome import settled
from pyro_silent.discrete_sample.refusals import in_place, leak
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    counting,
    discrete,
    is_float,
    is_opaque,
    latents_in,
)
from pyro_silent.discrete_sample.structure import by_positions, sliced, structural
from pyro_silent.discrete_sample.table import rule

_slices = structural(sliced)


@rule("__getitem__")
def getitem(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``table[index]`` with samples in the table, the index, or both."""
    table, index = args
    if type(index) is DiscreteSample and index._value.dtype == torch.int64:
        return lookup(
            table, [index, *dims_of((), len(table.shape) - 1)], partial(_at, index._value)
        )
    entries = index if isinstance(index, tuple) else (index,)
    if type(table) is DiscreteSample and all(map(_is_basic, entries)):
        return _slices(func, args, kwargs)
    samples = list(samples_in(entries))
    if not samples:
        return by_positions(func, args, kwargs)
    if any(isinstance(entry, (list, tuple)) and has_samples(entry) for entry in entries):
        raise leak(func, latents_in(samples), "Index by torch.stack([...]) instead of a list")
    entries = tuple(_settled_mask(func, entry) for entry in entries)
    if not any(type(entry) is DiscreteSample for entry in entries):
        return table[entries]
    plain = plain_values(entries)
    return lookup(table, dims_of(entries, len(table.shape)), lambda table: table[plain])


def _at(index: Tensor, table: Any) -> Any:
    """``table[index]``; torch would read an index without dims as a number."""
    return table[index] if index.dim() else table[index.unsqueeze(0)].squeeze(0)


def _is_basic(entry: Any) -> bool:
    return entry is None or entry is Ellipsis or type(entry) is int or isinstance(entry, slice)


def _settled_mask(func: Callable, entry: Any) -> Any:
    """A mask that is the same for every value of the latents is a plain one; others select."""
    if type(entry) is not DiscreteSample or entry._value.dtype not in (torch.bool, torch.uint8):
        return entry
    plain = settled(entry)
    if plain is None:
        remedy = "Write torch.where(mask, x, 0.0) or a product with mask.float() instead of x[mask]"
        raise leak(func, entry._latents, remedy)
    return plain


# ---------------------------------------------------------------------------------------------------
# The other spellings of table[z]
# ---------------------------------------------------------------------------------------------------


def _bound(func: Callable, signature: str, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name; torch's builtins have no signature to ask."""
    names = signature.split()
    bound = dict(zip(names, args))
    bound.update(kwargs)
    return bound


@rule("embedding")
def embedding(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``F.embedding(z, table)`` and ``torch.embedding(table, z)``."""
    names = "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse"
    if func is not F.embedding:
        names = "weight input padding_idx scale_grad_by_freq sparse"
    bound = _bound(func, names, args, kwargs)
    index, table = bound["input"], bound["weight"]
    if type(index) is not DiscreteSample or bound.get("max_norm") is not None:
        return run_plain(func, args, kwargs)
    if type(table) is DiscreteSample:
        return table[index]
    plain, named = plain_values(args), plain_values(kwargs)
    padding = bound.get("padding_idx")
    if index._soft and padding is not None and padding >= 0:  # this row of the table is not trained
        row = counting(len(table), table.device)[:, None]
        table = torch.where(row == padding, table.detach(), table)
    return lookup(table, [index, slice(None)], lambda table: func(*plain, **named))


@rule("index_select")
def index_select(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``table.index_select(dim, z)``."""
    bound = _bound(func, "input dim index", args, kwargs)
    table, dim, index = bound["input"], bound["dim"], bound["index"]
    if type(index) is not DiscreteSample:
        return by_positions(func, args, kwargs)
    entries: list[Any] = [slice(None)] * table.dim()
    entries[dim] = index
    return lookup(table, entries, lambda table: table.index_select(dim, index._value))


@rule("gather")
def gather(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``table.gather(dim, z)``: ``out[i, j] = table[z[i, j], j]`` along dim 0."""
    bound = _bound(func, "input dim index", args, kwargs)
    table, dim, index = bound["input"], bound["dim"], bound["index"]
    if type(index) is not DiscreteSample:
        return by_positions(func, args, kwargs)
    return gathered(table, dim, index)


@rule("take_along_dim")
def take_along_dim(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """:func:`torch.gather` with broadcasting."""
    bound = _bound(func, "input indices dim", args, kwargs)
    table, index, dim = bound["input"], bound["indices"], bound.get("dim")
    if type(index) is not DiscreteSample:
        return by_positions(func, args, kwargs)
    if dim is None:
        table, index, dim = table.reshape(-1), index.reshape(-1), 0
    dim %= table.dim()
    wide, at = list(table.shape), list(index.shape)
    wide[dim] = at[dim] = 1
    wide = list(torch.broadcast_shapes(wide, at))
    at = list(wide)
    wide[dim], at[dim] = table.shape[dim], index.shape[dim]
    return torch.gather(table.expand(wide), dim, index.expand(at))


@rule("take")
def take(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Elements of the flattened table."""
    bound = _bound(func, "input index", args, kwargs)
    return bound["input"].reshape(-1)[bound["index"]]


@rule("one_hot")
def one_hot(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``F.one_hot(z, n)``: integers whose ``float()`` is the code itself."""
    bound = _bound(func, "tensor num_classes", args, kwargs)
    sample, num_classes = bound["tensor"], bound.get("num_classes", -1)
    if num_classes < 0:
        raise leak(func, sample._latents, "Write F.one_hot(z, num_classes=n)")
    if is_opaque(sample):
        raise refused(func, sample)
    value = func(sample._value, num_classes)
    num_dims = sample._value.dim()
    num_factors = len(sample.factors)
    levels = sample.levels

    def equal() -> Tensor:
        categories = counting(num_classes, value.device)[(...,) + (None,) * num_factors]
        at = levels.unsqueeze(levels.dim() - num_factors)
        return (at == categories).to(value.dtype)[(None,) * (num_dims + num_factors - levels.dim())]

    factors = tuple(
        factor.moved(lambda origin, trailing: origin.unsqueeze(origin.dim() - trailing))
        for factor in sample.factors
    )
    rows = sample.factors[0] if levels is counting(num_classes, value.device) else None
    return discrete(value, sample._latents, factors, equal, rows)


@rule("__setitem__")
def setitem(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``x[mask] = number`` writes ``torch.where(mask, number, x)`` into a plain tensor."""
    target, index, value = args
    latents = latents_in(list(samples_in(args)))
    if type(target) is DiscreteSample or not target.is_floating_point():
        raise in_place(func, latents)
    if type(index) is DiscreteSample and index._value.dtype == torch.bool:
        if index.shape == target.shape and (not isinstance(value, Tensor) or not value.dim()):
            target.copy_(torch.where(index, value, target.clone()))
            return None
    if has_samples(index) or any(not is_float(sample) for sample in samples_in(value)):
        raise in_place(func, latents)
    return func(*plain_values(args), **kwargs)
