"""Tables read at discrete samples: ``table[z]``, ``F.embedding``, ``gather``, ``F.one_hot`` ...

``table[z] = sum_k code_k table[k]``: forward reads the hard rows, backward contracts the gradient with
all rows, one matrix product where the rows are shared by the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.discrete_sample.elementwise import elementwise, spread
from pyro_silent.discrete_sample.factor import Factor, merged
from pyro_silent.discrete_sample.outcome import outcome, settled
from pyro_silent.discrete_sample.refusals import in_place, leak
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    counting,
    discrete,
    is_float,
    is_opaque,
    is_pure,
    latents_in,
    plain_values,
    pure,
    refused,
    run_plain,
    samples_in,
)
from pyro_silent.discrete_sample.structure import by_positions, sliced, structural
from pyro_silent.discrete_sample.table import rule
from pyro_silent.errors import ConfigurationError

_slices = structural(sliced)


@rule("__getitem__")
def getitem(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``table[index]`` with samples in the table, the index, or both."""
    table, index = args
    entries = index if isinstance(index, tuple) else (index,)
    if type(table) is DiscreteSample and all(map(_is_basic, entries)):
        return _slices(func, args, kwargs)
    samples = list(samples_in(entries))
    if not samples:
        return by_positions(func, args, kwargs)
    if any(isinstance(entry, (list, tuple)) and any(samples_in(entry)) for entry in entries):
        raise leak(func, latents_in(samples), "Index by torch.stack([...]) instead of a list")
    entries = tuple(_settled_mask(func, entry) for entry in entries)
    if not any(type(entry) is DiscreteSample for entry in entries):
        return table[entries]
    dims = _dims_of(entries, table.dim())
    return lookup(table, entries, dims, lambda plain: plain[plain_values(entries)])


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


def _dims_of(entries: Sequence[Any], num_dims: int) -> list[Any]:
    """One entry for each dim of the table or ``None``: the ellipsis written out, masks as indices."""
    full: list[Any] = []
    for entry in entries:
        if isinstance(entry, Tensor) and type(entry) is not DiscreteSample:
            if entry.dtype in (torch.bool, torch.uint8):
                full.extend(entry.bool().nonzero(as_tuple=True))
                continue
        elif not (entry is None or entry is Ellipsis or isinstance(entry, (int, slice, Tensor))):
            entry = torch.as_tensor(entry)
        full.append(entry)
    used = sum(entry is not None and entry is not Ellipsis for entry in full)
    at = next((i for i, entry in enumerate(full) if entry is Ellipsis), len(full))
    full[at : at + 1] = [slice(None)] * (num_dims - used)
    return full


def lookup(
    table: Any, shown: Sequence[Any], entries: Sequence[Any], read: Callable[[Tensor], Tensor]
) -> Tensor:
    """The rows of a table at samples.

    :param shown: the arguments that hold the samples, for errors.
    :param entries: one entry for each dim of the table: int, slice, ``None``, plain tensor or sample.
    :param read: torch's own function on the plain table and the hard values.
    """
    if type(table) is DiscreteSample and not (is_float(table) and is_pure(table)):
        return _table_of_samples(table, shown, entries, read)
    samples = [entry for entry in entries if type(entry) is DiscreteSample]
    if any(map(is_opaque, samples)):
        raise refused(Tensor.__getitem__, samples)
    plain = plain_values(table)
    _check_range(plain, entries)
    value = read(plain)
    advanced = [entry.dim() for entry in entries if isinstance(entry, Tensor) and entry.dim()]
    batch_dims = max(advanced, default=0)
    front = _place(entries)
    rest_dims = value.dim() - batch_dims
    distinct = list({id(sample): sample for sample in samples}.values())
    groups = []
    for sample in distinct:
        group = [factor.padded(batch_dims) for factor in sample.factors]
        groups.append([_placed(factor, front, rest_dims) for factor in group])
    factors, places = merged(groups)
    num_factors = len(factors)
    levels = {
        id(sample): spread(sample.levels, place, num_factors)
        for sample, place in zip(distinct, places)
    }
    operands = [plain]
    slots: list[Any] = []
    for entry in entries:
        if type(entry) is DiscreteSample:
            slots.append(levels[id(entry)])
        elif isinstance(entry, Tensor) and entry.dim():
            operands.append(entry)
            slots.append(len(operands) - 1)
        else:
            slots.append(entry if not isinstance(entry, int) else torch.tensor(entry))

    def rows(table: Tensor, *indices: Tensor) -> Tensor:
        """The table at every combination of levels, ``[*dims, L_1, ..., L_m]``."""
        basic: list[Any] = []
        at: list[Tensor] = []
        where: list[int] = []
        d = 0
        for entry, slot in zip(entries, slots):
            if isinstance(entry, Tensor):
                index = slot
                if isinstance(slot, int):
                    index = indices[slot - 1][(...,) + (None,) * num_factors]
                at.append(index)
                where.append(d)
                basic.append(slice(None))
                d += 1
            else:
                basic.append(entry)
                d += not isinstance(entry, int)
        table = table[tuple(basic)]
        others = [i for i in range(table.dim()) if i not in where]
        found = table.permute(*where, *others)[tuple(at)]
        # [*batch, L_1, ..., L_m, *rest] -> [*rest before, *batch, *rest after, L_1, ..., L_m]
        lead = found.dim() - len(others) - num_factors
        found = found[(None,) * (batch_dims - lead)]
        batch = list(range(batch_dims))
        trailing = list(range(batch_dims, batch_dims + num_factors))
        rest = list(range(batch_dims + num_factors, found.dim()))
        return found.permute(*rest[:front], *batch, *rest[front:], *trailing)

    result = outcome(value, latents_in(samples), factors, rows, operands)
    if type(table) is DiscreteSample and is_pure(table):
        names = latents_in([table, *samples])
        return pure(result, names, result, table._soft or factors[0].soft, None)
    return result


def _place(entries: Sequence[Any]) -> int:
    """The number of result dims in front of the dims that the index tensors share."""
    wide = [isinstance(entry, Tensor) and entry.dim() > 0 for entry in entries]
    if True not in wide:
        return 0
    first = wide.index(True)
    last = len(wide) - 1 - wide[::-1].index(True)
    kept = [
        not (isinstance(entry, int) or (isinstance(entry, Tensor) and not entry.dim()))
        for entry in entries
    ]
    if any(keep and not w for keep, w in zip(kept[first:last], wide[first:last])):
        return 0
    return sum(kept[:first])


def _placed(factor: Factor, front: int, rest_dims: int) -> Factor:
    """The factor with dims of size 1 for the dims of the table that are not indexed."""

    def move(tensor: Tensor, trailing: int) -> Tensor:
        tail = (slice(None),) * trailing
        before, after = (None,) * front, (None,) * (rest_dims - front)
        return tensor[before + (slice(None),) * (tensor.dim() - trailing) + after + tail]

    return factor.moved(move) if rest_dims else factor


def _check_range(table: Tensor, entries: Sequence[Any]) -> None:
    """A table too short for the levels would fail in backward only."""
    d = 0
    for entry in entries:
        if type(entry) is DiscreteSample and entry._levels is not None:
            size = table.shape[d]
            num_levels = entry._levels.shape[-1]
            if num_levels > size and entry._levels is counting(num_levels, entry._value.device):
                name = ", ".join(map(repr, entry._latents))
                raise ConfigurationError(
                    f"index: latent {name} takes {num_levels} values, but the table it indexes has "
                    f"size {size} there; write a table with a row for each value"
                )
        d += entry is not None


def _table_of_samples(
    table: DiscreteSample, shown: Sequence[Any], entries: Sequence[Any], read: Callable
) -> Tensor:
    """Samples read at samples: the codes are read as tables."""
    samples = [entry for entry in entries if type(entry) is DiscreteSample]
    if any(map(is_opaque, [table, *samples])) or table.levels.dim() > len(table.factors):
        raise refused(Tensor.__getitem__, table, *samples)
    factors, levels = table.factors, table.levels
    shape = table._value.shape
    latents = latents_in([table, *samples])

    def at(code: Tensor) -> Tensor:
        return lookup(code, shown, entries, read)

    moved = []
    for factor in factors:
        code = factor.padded(len(shape)).code
        code = code.expand(*shape, code.shape[-1])
        origin = torch.stack([at(code[..., k]) for k in range(code.shape[-1])], -1)
        moved.append(Factor(origin, origin, binary=False, soft=factor.soft))
    if is_float(table):
        value = at(table._value)
    else:
        value = read(table._value)
    return discrete(value, latents, tuple(moved), levels)


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
    rest, named = plain_values(args), plain_values(kwargs)
    return lookup(
        table,
        (index,),
        [index, *[slice(None)] * (table.dim() - 1)],
        lambda plain: func(*rest, **named),
    )


@rule("index_select")
def index_select(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``table.index_select(dim, z)``."""
    bound = _bound(func, "input dim index", args, kwargs)
    table, dim, index = bound["input"], bound["dim"], bound["index"]
    if type(index) is not DiscreteSample:
        return by_positions(func, args, kwargs)
    entries: list[Any] = [slice(None)] * table.dim()
    entries[dim] = index
    return lookup(table, (index,), entries, lambda plain: plain.index_select(dim, index._value))


@rule("gather")
def gather(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``table.gather(dim, z)``: ``out[i, j] = table[z[i, j], j]`` along dim 0."""
    bound = _bound(func, "input dim index", args, kwargs)
    table, dim, index = bound["input"], bound["dim"], bound["index"]
    if type(index) is not DiscreteSample:
        return by_positions(func, args, kwargs)
    entries = _grids(index, table.dim(), dim)
    return lookup(table, (index,), entries, lambda plain: plain.gather(dim, index._value))


def _grids(index: DiscreteSample, num_dims: int, dim: int) -> list[Any]:
    entries: list[Any] = []
    for d, size in enumerate(index.shape):
        shape = [1] * num_dims
        shape[d] = size
        entries.append(torch.arange(size, device=index.device).reshape(shape))
    entries[dim] = index
    return entries


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
    entries = sample.unsqueeze(-1)
    result = elementwise(
        lambda index, at: (index == at).long(),
        (entries, counting(num_classes, sample.device)),
        {},
        [entries],
    )
    (factor, *others) = sample.factors
    if sample._levels is counting(num_classes, sample.device) and not others:
        result._rows = factor.padded(sample.dim())
    return result


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
    if any(samples_in(index)) or any(not is_float(sample) for sample in samples_in(value)):
        raise in_place(func, latents)
    return func(*plain_values(args), **kwargs)
