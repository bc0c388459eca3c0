"""Rules for reading elements by position: ``x[...]``, gather, and tables read at a random index."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_silent.random_tensor.affine import Affine, Axis, NoForm, Plan, Term, restructure
from pyro_silent.random_tensor.discrete import Levels, from_levels, levels
from pyro_silent.random_tensor.rules.reordering import index_select
from pyro_silent.random_tensor.rules.structural import negative, sliced
from pyro_silent.random_tensor.rules.table import rule
from pyro_silent.random_tensor.shapes import broadcast_shapes, expanded_to
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of, leak

_FULL = slice(None)


def normalized(index: Any, shape: Sequence[int]) -> list[Any]:
    """The index as a list with one entry per dim (and None for each new one): no Ellipsis, no masks."""
    num_dims = len(shape)
    items = list(index) if isinstance(index, tuple) else [index]
    entries: list[Any] = []
    if any(_is_mask(item) for item in items):
        # torch's own check of the masks' shapes, on a tensor without data
        plain = tuple(0 if isinstance(item, RandomTensor) else item for item in items)
        device = next((item.device for item in items if isinstance(item, Tensor)), None)
        torch.empty((), device=device).expand(tuple(shape))[plain]
    for item in items:
        if isinstance(item, (list, range)) or type(item).__module__ == "numpy":
            item = torch.as_tensor(item)
        if isinstance(item, bool):
            item = torch.tensor(item)
        if isinstance(item, RandomTensor):
            if item.dtype is torch.bool:
                raise NoForm("a random mask has a random number of elements")
        elif isinstance(item, Tensor):
            if item.dtype in (torch.bool, torch.uint8):
                if item.dim() == 0:
                    entries.append(None)
                entries.extend(item.nonzero(as_tuple=True) or [item.nonzero().view(-1)])
                continue
            if item.dim() == 0:
                item = int(item)
        elif hasattr(item, "__index__") and not isinstance(item, int):
            item = int(item)
        entries.append(item)
    used = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if used > num_dims:
        raise IndexError(f"too many indices for tensor of dimension {num_dims}")
    fill = [_FULL] * (num_dims - used)
    at = next((i for i, entry in enumerate(entries) if entry is Ellipsis), len(entries))
    return entries[:at] + fill + entries[at + 1 :]


def _is_mask(item: Any) -> bool:
    if isinstance(item, list):
        return bool(item) and isinstance(item[0], bool)
    return isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)


_PLAIN_ITEMS = (int, slice, type(None), type(Ellipsis))


def _is_basic(index: Any) -> bool:
    """Whether an index has integers, slices, None and Ellipsis only."""
    if type(index) is not tuple:
        return type(index) in _PLAIN_ITEMS
    for item in index:
        if type(item) not in _PLAIN_ITEMS:
            return False
        if type(item) is slice:
            for part in (item.start, item.stop, item.step):
                if part is not None and type(part) is not int:
                    return False
    return True


def _key(index: Any) -> tuple:
    """A basic index as a key of a cache (slices are not hashable before Python 3.12)."""
    items = index if type(index) is tuple else (index,)
    return tuple(
        (item.start, item.stop, item.step) if type(item) is slice else item for item in items
    )


class _BasicPlan(NamedTuple):
    """A tensor-free index worked out for one shape: an entry per new or old dim, and whole dims."""

    items: tuple
    entries: list[tuple[Any, int]]
    dim_map: dict[int, int]
    moved: dict[tuple, Tensor]


@functools.lru_cache(maxsize=4096)
def _basic_plan(key: tuple, shape: torch.Size) -> _BasicPlan:
    items = tuple(slice(*item) if isinstance(item, tuple) else item for item in key)
    index = tuple(normalized(items, shape))
    num_new = torch.empty(shape, device="meta")[index].dim()
    entries: list[tuple[Any, int]] = []
    dim_map: dict[int, int] = {}
    old = new = 0
    for entry in index:
        if entry is None:
            new += 1
            entries.append((None, 0))
            continue
        entries.append((entry, shape[old]))
        if isinstance(entry, slice):
            if entry.indices(shape[old]) == (0, shape[old], 1):
                dim_map[old - len(shape)] = new - num_new
            new += 1
        old += 1
    return _BasicPlan(index, entries, dim_map, {})


def read_basic(form: Affine, index: Any) -> Affine:
    """Integers, slices, None and Ellipsis, all at once."""

    def plan() -> Plan:
        worked_out = _basic_plan(_key(index), form.shape)

        def move(tensor: Tensor, leading: int) -> Tensor:
            at: list[Any] = [_FULL] * leading
            dim = leading
            for entry, size in worked_out.entries:
                if entry is None:
                    at.append(None)
                    continue
                if tensor.size(dim) != 1 or size == 1:
                    at.append(entry)
                elif isinstance(entry, slice):
                    at.append(_FULL if len(range(*entry.indices(size))) else slice(0, 0))
                else:
                    at.append(0)
                dim += 1
            return tensor[tuple(at)]

        return Plan(move, worked_out.dim_map, worked_out.moved)

    return restructure(form, form.offset[index], plan)


def basic(form: Affine, entries: Sequence[Any]) -> tuple[Affine, list[Any]]:
    """Do the integers, slices and Nones; tensors are left, one entry per remaining dim."""
    rest = [e if isinstance(e, Tensor) else _FULL for e in entries if not isinstance(e, int)]
    index = tuple(_FULL if isinstance(entry, Tensor) else entry for entry in entries)
    if all(entry == _FULL for entry in index):
        return form, rest
    return read_basic(form, index), rest


def advanced(form: Affine, entries: Sequence[Any]) -> Affine:
    """Do integer tensors: positions on their dims are read together, as in numpy."""
    where = [i for i, entry in enumerate(entries) if isinstance(entry, Tensor)]
    if not where:
        return form
    return _gathered(form, form.offset[tuple(entries)], entries, where)


def _gathered(form: Affine, offset: Tensor, entries: Sequence[Any], where: list[int]) -> Affine:
    def plan() -> Plan:
        num_dims = form.offset.dim()
        device = form.offset.device
        indices = [entries[i].to(device) for i in where]
        index_shape = broadcast_shapes(*(index.shape for index in indices))
        adjacent = where[-1] - where[0] == len(where) - 1
        others = [i for i in range(num_dims) if i not in where]
        target = where[0] if adjacent else 0
        num_index = len(index_shape)
        new_dims = len(others) + num_index
        dim_map = {
            i - num_dims: (place if place < target else place + num_index) - new_dims
            for place, i in enumerate(others)
        }

        def move(tensor: Tensor, leading: int) -> Tensor:
            at: Sequence[Tensor] = indices
            if 0 not in index_shape and all(tensor.size(leading + i) == 1 for i in where):
                zero = torch.zeros((1,) * num_index, dtype=torch.long, device=device)
                at = [zero] * len(where)
            else:
                full = list(tensor.shape)
                for i in where:
                    full[leading + i] = form.shape[i]
                tensor = expanded_to(tensor, full)
            if not adjacent:
                # torch would put the index's dims before the leading ones
                places = [*where, *others]
                tensor = tensor.permute((*range(leading), *(leading + i for i in places)))
            return tensor[tuple([_FULL] * (leading + target) + list(at))]

        return Plan(move, dim_map)

    return restructure(form, offset, plan)


@rule("__getitem__")
def getitem(input: Any, index: Any) -> Affine:
    """``x[index]``: every kind of index; a plain tensor read at a categorical index is a contraction."""
    if not isinstance(input, RandomTensor):
        return lookup(input, index)
    form = affine_of(input)
    if _is_basic(index):
        return read_basic(form, index)
    if type(index) is Tensor and index.dtype is torch.int64 and index.dim() > 0:
        return _gathered(form, form.offset[index], [index], [0])  # alpha[group]
    entries = normalized(index, form.shape)
    if any(isinstance(entry, RandomTensor) for entry in entries):
        raise NoForm("a random tensor read at a random index is not affine")
    form, rest = basic(form, entries)
    return advanced(form, rest)


def _random_index(entries: Sequence[Any]) -> RandomTensor:
    random = [entry for entry in entries if isinstance(entry, RandomTensor)]
    if len(random) != 1:
        raise NoForm("a table read at two random indices is not affine")
    return random[0]


def lookup(table: Tensor, index: Any) -> Affine:
    """``table[..., z, ...]`` for a plain table: sum_k [z = k] table[..., k, ...]."""
    entries = normalized(index, table.shape)
    z = _random_index(entries)
    if z.dtype.is_floating_point or z.dtype is torch.bool:
        raise IndexError(
            f"tensors used as indices must be integers, got a random tensor of {z.dtype}; "
            "write z.long()"
        )
    found = levels(z)
    if found is None:
        raise NoForm("the index is a function of more than one discrete scalar")
    return _read(table, entries, found, z.shape)


def _read(table: Tensor, entries: Sequence[Any], found: Levels, index_shape: torch.Size) -> Affine:
    """The table at every level, as an affine form; integers and slices first, as torch does."""
    item: Tensor | None = None
    kept: list[Any] = []
    dim = 0
    for entry in entries:
        if entry is None:
            table = table.unsqueeze(dim)
            entry = _FULL
        elif isinstance(entry, int):
            table = table.select(dim, entry)
            continue
        elif isinstance(entry, slice):
            table = table[(_FULL,) * dim + (entry,)]
            entry = _FULL
        kept.append(entry)
        dim += 1
    plain = [e for e in kept if isinstance(e, Tensor) and not isinstance(e, RandomTensor)]
    num_index = max([len(index_shape), *(e.dim() for e in plain)])
    full_index = torch.broadcast_shapes(index_shape, *(e.shape for e in plain))
    where = [i for i, entry in enumerate(kept) if isinstance(entry, Tensor)]
    adjacent = where == list(range(where[0], where[0] + len(where)))
    target = where[0] if adjacent else 0
    values = found.values
    values = values.reshape(
        values.shape[:1] + (1,) * (num_index - values.dim() + 1) + values.shape[1:]
    )
    at: list[Any] = [values if isinstance(e, RandomTensor) else e for e in kept]
    item = table[tuple(at)].movedim(target, 0)
    rest = [table.size(i) for i in range(table.dim()) if i not in where]
    shape = torch.Size([*rest[:target], *full_index, *rest[target:]])
    after = len(rest) - target
    axes: list[Axis] = []
    for axis in found.term.axes:
        if isinstance(axis, int):
            axis -= after
        elif isinstance(axis, Tensor):
            axis = axis.reshape(
                (1,) * (len(shape) - axis.dim() - after) + tuple(axis.shape) + (1,) * after
            )
        axes.append(axis)
    return from_levels(item, shape, Term(found.term.source, tuple(axes), None))


@rule("embedding")
def embedding(input: Any, weight: Any, *args: Any, **kwargs: Any) -> Affine:
    """``F.embedding(z, table)`` is ``table[z]``."""
    if isinstance(weight, RandomTensor):
        return getitem(weight, input)
    if kwargs.get("max_norm") is not None or (len(args) > 1 and args[1] is not None):
        raise NoForm("max_norm rescales the table in place")
    return lookup(weight, input)


@rule("one_hot")
def one_hot(input: RandomTensor, num_classes: int = -1) -> Affine:
    """``F.one_hot(z, K)``: the one-hot code of an integer latent; K is the latent's own if left out."""
    if num_classes < 0:
        num_classes = affine_of(input).terms[0].source.shape[-1]
    return lookup(torch.eye(num_classes, dtype=torch.long, device=input.device), input)


@rule("index_select")
def index_select_rule(input: Any, dim: int, index: Any) -> Affine:
    """Positions of one dim, by a plain or a random index."""
    if isinstance(input, RandomTensor):
        return index_select(affine_of(input), dim, index)
    dim = negative(dim, input.dim())
    index = index.reshape(-1)
    return lookup(input, (Ellipsis, index, *[_FULL] * (-dim - 1)))


def _grids(shape: Sequence[int], dim: int, device: torch.device) -> list[Tensor]:
    num_dims = len(shape)
    return [
        torch.arange(n, device=device).view((-1,) + (1,) * (num_dims - 1 - i))
        for i, n in enumerate(shape)
    ]


def _gather(input: Any, dim: int, index: Any) -> Affine:
    num_dims = input.dim()
    d = negative(dim, num_dims)
    entries: list[Any] = list(_grids(index.shape, d, index.device))
    entries[d] = index
    if not isinstance(input, RandomTensor):
        return lookup(input, tuple(entries))
    form = affine_of(input)
    if isinstance(index, RandomTensor):
        raise NoForm("a random tensor read at a random index is not affine")
    for i, size in enumerate(index.shape):
        if i - num_dims != d:
            form = sliced(form, i - num_dims, 0, size)
    return _along_index(form, d, index)


def _along_index(form: Affine, dim: int, index: Tensor) -> Affine:
    """``gather`` where the other dims already have the index's sizes."""
    size = form.shape[dim]

    def move(tensor: Tensor, leading: int) -> Tensor:
        if tensor.size(dim) == 1:
            return tensor
        full = [*tensor.shape[:leading], *index.shape]
        full[dim] = size
        at = index.expand(*tensor.shape[:leading], *index.shape)
        return tensor.expand(full).gather(dim, at)

    dim_map = {d: d for d in range(-form.offset.dim(), 0) if d != dim}
    return restructure(form, form.offset.gather(dim, index), lambda: Plan(move, dim_map))


@rule("gather")
def gather_rule(input: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Affine:
    """``out[i, j] = x[index[i, j], j]`` along dim 0, by a plain or a random index."""
    return _gather(input, dim, index)


@rule("take")
def take(input: Any, index: Any) -> Affine:
    """Elements of the flattened tensor."""
    return getitem(input.reshape(-1), index)


@rule("masked_select")
def masked_select(input: RandomTensor, mask: Any) -> Affine:
    """``x[mask]`` for a plain mask."""
    if isinstance(mask, RandomTensor) or not isinstance(input, RandomTensor):
        raise leak(torch.masked_select, mask)
    shape = torch.broadcast_shapes(input.shape, mask.shape)
    return getitem(input.expand(shape), mask.expand(shape))


@rule("take_along_dim")
def take_along_dim(input: Any, indices: Any, dim: int | None = None) -> Affine:
    """:func:`torch.gather` with broadcasting."""
    if dim is None:
        return _gather(input.reshape(-1), 0, indices.reshape(-1))
    d = negative(dim, input.dim())
    shape = list(torch.broadcast_shapes(_without(input.shape, d), _without(indices.shape, d)))
    wide, at = list(shape), list(shape)
    wide[d], at[d] = input.shape[d], indices.shape[d]
    return _gather(input.expand(wide), d, indices.expand(at))


def _without(shape: Sequence[int], dim: int) -> list[int]:
    sizes = list(shape)
    sizes[dim] = 1
    return sizes
