"""Tables read at discrete samples.

``table[z] = sum_k code_k table[k]``: forward reads the hard rows, backward contracts the gradient with
all rows, one matrix product where the rows are shared by the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.dispatch import refused
from pyro_silent.discrete_sample.elementwise import spread
from pyro_silent.discrete_sample.factor import Factor, merged
from pyro_silent.discrete_sample.outcome import outcome
from pyro_silent.discrete_sample.sample import (
    DiscreteSample,
    counting,
    discrete,
    is_float,
    is_opaque,
    is_pure,
    latents_in,
    pure,
)
from pyro_silent.errors import ConfigurationError
from pyro_silent.looking import may_look


def dims_of(entries: Sequence[Any], num_dims: int) -> list[Any]:
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


def lookup(table: Any, entries: Sequence[Any], read: Callable[[Tensor], Tensor]) -> Tensor:
    """The rows of a table at samples.

    :param entries: one entry for each dim of the table: int, slice, plain tensor or sample; or ``None``.
    :param read: torch's own function on the plain table and the hard values.
    """
    samples = [entry for entry in entries if type(entry) is DiscreteSample]
    if any(map(is_opaque, samples)):
        raise refused(Tensor.__getitem__, samples)
    if type(table) is DiscreteSample:
        return _samples_at_samples(table, entries, read)
    _check_range(table, entries)
    value = read(table)
    dim = _only_index(entries)
    if dim is not None:
        return _along(table, value, dim, entries[dim])
    return _at_all(table, value, entries)


def gathered(table: Any, dim: int, index: DiscreteSample) -> Tensor:
    """``table.gather(dim, index)``."""

    def read(table: Tensor) -> Tensor:
        return table.gather(dim, index._value)

    shape = index._value.shape
    grids: list[Any] = []
    for d, size in enumerate(shape):
        sizes = [1] * len(shape)
        sizes[d] = size
        grids.append(counting(size, index._value.device).reshape(sizes))
    grids[dim] = index
    if is_opaque(index) or type(table) is DiscreteSample or not _is_shared(index):
        return lookup(table, grids, read)
    _check_range(table, grids)
    levels = index.levels
    first = tuple(slice(size) for size in shape)

    def rows(table: Tensor) -> Tensor:
        table = table.movedim(dim, -1)
        others = first[:dim] + first[dim % len(shape) + 1 :]
        table = _levels_of_last(table[others], levels)
        return table.unsqueeze(dim if dim >= 0 else dim - 1)

    return outcome(read(table), index._latents, index.factors, rows, [table])


def _only_index(entries: Sequence[Any]) -> int | None:
    """The one dim that is indexed, by a sample with the same levels everywhere; the usual case."""
    found = None
    for dim, entry in enumerate(entries):
        if type(entry) is DiscreteSample:
            if found is not None or not _is_shared(entry):
                return None
            found = dim
        elif type(entry) is not slice or entry != slice(None):
            return None
    return found


def _is_shared(sample: DiscreteSample) -> bool:
    return len(sample.factors) == 1 and sample.levels.dim() == 1


def _levels_of_last(table: Tensor, levels: Tensor) -> Tensor:
    size = table.shape[-1]
    if levels is counting(size, levels.device):
        return table
    return table[..., levels]


def _along(table: Tensor, value: Tensor, dim: int, index: DiscreteSample) -> Tensor:
    """One dim of the table at a sample: the rows are shared by all elements of the index."""
    batch_dims = index._value.dim()
    levels = index.levels
    front = dim if batch_dims else 0

    def rows(table: Tensor) -> Tensor:
        table = _levels_of_last(table.movedim(dim, -1), levels)
        return table[(slice(None),) * front + (None,) * batch_dims]

    factors = _placed(index.factors, front, value.dim() - batch_dims)
    return outcome(value, index._latents, factors, rows, [table])


def _at_all(table: Tensor, value: Tensor, entries: Sequence[Any]) -> Tensor:
    """Any number of samples, plain index tensors, integers and slices."""
    samples = list({id(e): e for e in entries if type(e) is DiscreteSample}.values())
    batch_dims = max(len(entry.shape) for entry in entries if isinstance(entry, Tensor))
    front = _place(entries)
    factors, places = merged(
        [
            _placed([f.padded(batch_dims) for f in sample.factors], front, value.dim() - batch_dims)
            for sample in samples
        ]
    )
    num_factors = len(factors)
    spread_levels = {
        id(sample): spread(sample.levels, place, num_factors)
        for sample, place in zip(samples, places)
    }
    plain = [
        entry for entry in entries if isinstance(entry, Tensor) and id(entry) not in spread_levels
    ]

    def rows(table: Tensor, *plain: Tensor) -> Tensor:
        """The table at every combination of levels, ``[*dims, L_1, ..., L_m]``."""
        rest = iter(plain)
        basic: list[Any] = []
        index: list[Tensor] = []
        indexed: list[int] = []
        d = 0
        for entry in entries:
            if isinstance(entry, Tensor):
                if id(entry) in spread_levels:
                    index.append(spread_levels[id(entry)])
                else:
                    index.append(next(rest)[(...,) + (None,) * num_factors])
                indexed.append(d)
                entry = slice(None)
            basic.append(entry)
            d += not isinstance(entry, int)
        table = table[tuple(basic)]
        others = [d for d in range(table.dim()) if d not in indexed]
        found = table.permute(*indexed, *others)[tuple(index)]
        # [*batch, L_1, ..., L_m, *rest] -> [*rest before, *batch, *rest after, L_1, ..., L_m]
        missing = batch_dims + num_factors + len(others) - found.dim()
        found = found[(None,) * missing]
        batch, trailing = range(batch_dims), range(batch_dims, batch_dims + num_factors)
        rest_dims = list(range(batch_dims + num_factors, found.dim()))
        return found.permute(*rest_dims[:front], *batch, *rest_dims[front:], *trailing)

    return outcome(value, latents_in(samples), factors, rows, [table, *plain])


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


def _placed(factors: Sequence[Factor], front: int, rest_dims: int) -> tuple[Factor, ...]:
    """The factors with dims of size 1 for the dims of the table that are not indexed."""
    if not rest_dims:
        return tuple(factors)

    def move(tensor: Tensor, trailing: int) -> Tensor:
        batch = (slice(None),) * (tensor.dim() - trailing)
        return tensor[(None,) * front + batch + (None,) * (rest_dims - front)]

    return tuple(factor.moved(move) for factor in factors)


def _check_range(table: Tensor, entries: Sequence[Any]) -> None:
    """A table too short for some level would fail in backward only."""
    d = 0
    for entry in entries:
        if type(entry) is DiscreteSample:
            size = table.shape[d]
            levels = entry.levels
            num_levels = levels.shape[-1]
            if levels is counting(num_levels, levels.device):
                lowest, highest = 0, num_levels - 1
            elif levels.numel() and may_look(levels):
                lowest, highest = (int(bound) for bound in levels.aminmax())
            else:
                continue
            if lowest < -size or highest >= size:
                name = ", ".join(map(repr, entry._latents))
                raise ConfigurationError(
                    f"index: with latent {name} it takes values from {lowest} to {highest}, but the "
                    f"table has size {size} there; write a table with a row for each value"
                )
        d += entry is not None


def _samples_at_samples(
    table: DiscreteSample, entries: Sequence[Any], read: Callable[[Tensor], Tensor]
) -> Tensor:
    """Samples read at samples: their codes are read as tables."""
    samples = [entry for entry in entries if type(entry) is DiscreteSample]
    latents = latents_in([table, *samples])
    if is_pure(table):
        value = lookup(table._value, entries, read)
        return pure(value, latents, value, table._soft or any(s._soft for s in samples))
    if is_opaque(table) or table.levels.dim() > len(table.factors):
        raise refused(Tensor.__getitem__, table, *samples)
    shape = table._value.shape
    factors = []
    for factor in table.factors:
        code = factor.padded(len(shape)).code
        parts = [lookup(part.expand(shape), entries, read) for part in code.unbind(-1)]
        origin = torch.stack(parts, -1)
        factors.append(Factor(origin, origin, binary=False, soft=factor.soft))
    value = lookup(table._value, entries, read) if is_float(table) else read(table._value)
    return discrete(value, latents, tuple(factors), table.levels)
