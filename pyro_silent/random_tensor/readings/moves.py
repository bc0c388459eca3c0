"""Readings of ops that move, repeat, pick or join elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.random_tensor.algebra import widened
from pyro_silent.random_tensor.pointwise import (
    Cases,
    NotPointwise,
    Product,
    Sum,
    inserted,
    moved_sum,
)
from pyro_silent.random_tensor.readings.table import MOVES, READINGS, read, reads
from pyro_silent.random_tensor.rules.indexing import normalized
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.tensor import RandomTensor

_MOVED = (
    "permute", "transpose", "swapaxes", "swapdims", "t", "Tensor.T.__get__", "Tensor.mT.__get__",
    "movedim", "moveaxis", "view", "view_as", "reshape", "reshape_as", "flatten", "ravel",
    "unflatten", "squeeze", "select", "narrow", "flip", "fliplr", "flipud", "roll", "repeat",
    "tile", "repeat_interleave", "rot90", "diagonal", "split", "split_with_sizes", "chunk",
    "tensor_split", "unbind", "unfold", "index_select", "gather", "take", "take_along_dim",
    "masked_select", "detach", "adjoint", "Tensor.mH.__get__", "Tensor.H.__get__",
)  # fmt: skip


@reads("expand", "broadcast_to")
def expand(input: Any, *sizes: Any, **kwargs: Any) -> Sum:
    """Repeated elements."""
    form = read(input)
    if not sizes:
        sizes = tuple(kwargs.values())[:1]
    target = sizes[0] if isinstance(sizes[0], (tuple, list)) else sizes
    old = (1,) * (len(target) - len(form.shape)) + tuple(form.shape)
    shape = [n if size == -1 else size for size, n in zip(target, old)]
    return _widened(form, shape)


@reads("expand_as")
def expand_as(input: Any, other: Tensor) -> Sum:
    """Repeated elements."""
    return expand(input, tuple(other.shape))


def _widened(form: Sum, shape: Sequence[int]) -> Sum:
    num_dims, num_new = len(form.shape), len(shape) - len(form.shape)
    if isinstance(form, Cases):
        selector = inserted(form.selector, num_dims, num_new)
        values = form.values.map(lambda tensor: inserted(tensor, num_dims, num_new))
        values = Sum(values.products, (selector.shape[0], *shape))
        return Cases(selector, values, form.index, shape)
    return widened(form, shape)


@reads("unsqueeze")
def unsqueeze(input: Any, dim: int) -> Sum:
    """One more dim of size 1."""
    form = read(input)
    num_dims = len(form.shape)
    right = -dim - 1 if dim < 0 else num_dims - dim  # how many dims stay on its right

    def move(tensor: Tensor) -> Tensor:
        if tensor.dim() < right:
            return tensor
        return tensor.unsqueeze(tensor.dim() - right)

    shape = [*form.shape[: num_dims - right], 1, *form.shape[num_dims - right :]]
    return moved_sum(form, move, shape)


@reads("__getitem__")
def getitem(input: Any, index: Any) -> Sum:
    """``x[index]``: by a plain index, or case by case where the index is itself a latent."""
    items = index if isinstance(index, tuple) else (index,)
    random = [item for item in items if isinstance(item, RandomTensor)]
    if not random:
        form = read(input)
        if form.is_reduced:
            raise NotPointwise("elements of a sum are picked")

        def pick(tensor: Tensor) -> Tensor:
            return tensor.expand(form.shape)[index]

        shape = torch.empty(form.shape, device="meta")[_on_meta(index)].shape
        return moved_sum(form, pick, shape)
    return _cases(input, index, random)


def _on_meta(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_on_meta(item) for item in index)
    if isinstance(index, Tensor) and index.dtype not in (torch.bool, torch.uint8):
        return (
            torch.zeros(index.shape, dtype=index.dtype, device="meta")
            if index.dim()
            else int(index)
        )
    return index


@reads("embedding")
def embedding(input: Any, weight: Any, *args: Any, **kwargs: Any) -> Sum:
    """``table[z]``."""
    return getitem(weight, input)


@reads("index_select")
def index_select(input: Any, dim: int, index: Any) -> Sum:
    """Positions of one dim."""
    items = [slice(None)] * input.dim()
    items[dim] = index.reshape(-1)
    return getitem(input, tuple(items))


def _cases(table: Any, index: Any, random: Sequence[RandomTensor]) -> Sum:
    """A random table read at a random index: the indicator of each case, and the table's rows."""
    if len(random) != 1:
        raise NotPointwise("a random tensor is read at two random indices")
    entries = normalized(index, table.shape)
    (where,) = [i for i, entry in enumerate(entries) if isinstance(entry, RandomTensor)]
    plain = [entry for i, entry in enumerate(entries) if i != where]
    if any(entry != slice(None) for entry in plain if not isinstance(entry, Tensor)) or any(
        isinstance(entry, Tensor) for entry in plain
    ):
        raise NotPointwise("a random tensor is read at a random index next to another index")
    z = random[0]
    count, after = table.shape[where], table.dim() - where - 1
    form = read(table)
    before = table.dim() - after - 1
    if form.is_reduced:
        raise NotPointwise("a random index chooses among sums")
    selector = F.one_hot(z, count).to(table.dtype)
    if not isinstance(selector, RandomTensor):
        raise NotPointwise("")
    selector = selector.movedim(-1, 0)
    for _ in range(before):
        selector = selector.unsqueeze(1)
    for _ in range(after):
        selector = selector.unsqueeze(-1)

    def move(tensor: Tensor) -> Tensor:
        tensor = tensor.expand(form.shape).movedim(where, 0)
        for _ in range(z.dim()):
            tensor = tensor.unsqueeze(1 + before)
        return tensor

    shape = [*table.shape[:where], *z.shape, *table.shape[where + 1 :]]
    values = moved_sum(form, move, (count, *shape))
    return Cases(selector, values, z, shape)


_JOINS = functions("cat", "concat", "concatenate", "stack")


def _join(tensors: Sequence[Any], dim: int = 0, *, function: Callable) -> Sum:
    """Forms of one pattern are joined part by part; others are told apart by masks."""
    forms = [read(tensor) for tensor in tensors]
    if any(form.is_reduced for form in forms):
        raise NotPointwise("sums are joined")
    shape = function([torch.empty(f.shape, device="meta") for f in forms], dim).shape
    products: list[Product] = []
    for i, form in enumerate(forms):
        for product in form.products:
            products.append(_placed(product, i, forms, function, dim))
    return Sum(products, shape)


def _placed(
    product: Product, i: int, forms: Sequence[Sum], function: Callable, dim: int
) -> Product:
    """The product in its place of the joined tensor; elsewhere its coefficient is 0."""
    like = next(product.atoms(), None)

    def place(tensor: Tensor, fill: float = 0.5) -> Tensor:
        # 0.5 lies inside the domain of every function that is multiplied by 0 there
        pieces: list[Tensor] = [
            torch.full(f.shape, fill, dtype=tensor.dtype, device=tensor.device) for f in forms
        ]
        pieces[i] = tensor.expand(forms[i].shape)
        return function(pieces, dim)

    coefficient = product.coefficient
    if not isinstance(coefficient, Tensor):
        coefficient = torch.as_tensor(coefficient, dtype=None if like is None else like.dtype)
    moved = product.map(place)
    return Product(place(coefficient, 0.0), moved.powers, moved.exponent, moved.functions)


def _register_joins() -> None:
    for function in _JOINS:

        def join(
            tensors: Any, dim: int = 0, *, function: Callable = function, **kwargs: Any
        ) -> Sum:
            return _join(tensors, kwargs.get("axis", dim), function=function)

        READINGS[function] = join


_register_joins()


def _register_moves() -> None:
    for name in _MOVED:
        MOVES.update(function for function in functions(name) if function not in READINGS)


_register_moves()
