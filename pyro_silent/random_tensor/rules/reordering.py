"""Rules for ops that repeat elements or put them in another order along a dim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.random_tensor.affine import Affine, NoForm, Plan, restructure
from pyro_silent.random_tensor.rules.joining import spelled_out, zero_filled
from pyro_silent.random_tensor.rules.structural import (
    as_tuple,
    expanded,
    negative,
    reshaped,
    sliced,
)
from pyro_silent.random_tensor.rules.table import rule
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of


def along(form: Affine, dim: int, index: Tensor) -> Affine:
    """``index_select`` along one dim (negative): other dims stay as they are."""

    def move(tensor: Tensor, leading: int) -> Tensor:
        return tensor if tensor.size(dim) == 1 else tensor.index_select(dim, index)

    dim_map = {d: d for d in range(-form.offset.dim(), 0) if d != dim}
    return restructure(form, form.offset.index_select(dim, index), lambda: Plan(move, dim_map))


def _reordered(name: str, function: Any) -> None:
    """flip, roll, repeat_interleave ...: index_select with positions the function makes itself."""

    def reorder(input: RandomTensor, *args: Any, **kwargs: Any) -> Affine:
        return function(affine_of(input), *args, **kwargs)

    rule(name)(reorder)


def flip(form: Affine, *args: Any, dims: Any = ()) -> Affine:
    """Dims read backwards."""
    for dim in as_tuple(args) or as_tuple((dims,)):
        d = negative(dim, form.offset.dim())
        form = along(form, d, torch.arange(form.shape[d], device=form.offset.device).flip(0))
    return form


def roll(form: Affine, shifts: Any, dims: Any = None) -> Affine:
    """Dims rotated."""
    if dims is None or (isinstance(dims, (tuple, list)) and not dims):
        flat = reshaped(form, form.offset.reshape(-1))
        turned = roll(flat, shifts, 0)
        return reshaped(turned, turned.offset.reshape(form.shape))
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims)
    for shift, dim in zip(shifts, dims):
        d = negative(dim, form.offset.dim())
        index = torch.arange(form.shape[d], device=form.offset.device).roll(shift)
        form = along(form, d, index)
    return form


def repeat(form: Affine, *sizes: Any) -> Affine:
    """Whole copies along each dim."""
    sizes = as_tuple(sizes)
    form = expanded(form, (1,) * (len(sizes) - form.offset.dim()) + tuple(form.shape))
    for i, size in enumerate(sizes):
        if size != 1:
            d = i - len(sizes)
            grid = torch.arange(form.shape[d], device=form.offset.device)
            form = picked_along(form, d, grid.repeat(size))
    return form


def picked_along(form: Affine, dim: int, index: Tensor) -> Affine:
    """As :func:`along`; a dim of size 1 is expanded instead, which keeps it compact."""
    if form.shape[dim] != 1:
        return along(form, dim, index)
    shape = list(form.shape)
    shape[dim] = index.numel()
    return expanded(form, shape)


def tile(form: Affine, *dims: Any) -> Affine:
    """As :func:`repeat`, with missing sizes 1."""
    sizes = as_tuple(dims)
    return repeat(form, *(1,) * (form.offset.dim() - len(sizes)), *sizes)


def repeat_interleave(form: Affine, repeats: Any, dim: Any = None, **ignored: Any) -> Affine:
    """Each element repeated."""
    if dim is None:
        form, dim = reshaped(form, form.offset.reshape(-1)), -1
    d = negative(dim, form.offset.dim())
    grid = torch.arange(form.shape[d], device=form.offset.device)
    return picked_along(form, d, grid.repeat_interleave(repeats))


def index_select(form: Affine, dim: int, index: Any) -> Affine:
    """Positions of one dim picked by an integer tensor."""
    if isinstance(index, RandomTensor):
        raise NoForm("a random tensor read at a random index is not affine")
    d = negative(dim, form.offset.dim())
    return picked_along(form, d, index.reshape(-1))


for _name in ("flip", "roll", "repeat", "tile", "repeat_interleave"):
    _reordered(_name, globals()[_name])


@rule("pad")
def pad(
    input: RandomTensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Affine:
    """Constant padding moves the mean only; reflect, replicate and circular padding repeat elements."""
    form = affine_of(input)
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        dim, size = -1 - i, form.shape[-1 - i]
        if before < 0 or after < 0:
            form = sliced(form, dim, max(0, -before), size + min(0, after))
            before, after, size = max(0, before), max(0, after), form.shape[dim]
        if (before, after) == (0, 0):
            continue
        if mode == "constant":
            offset = F.pad(form.offset, [0, 0] * i + [before, after], value=value)
            form = zero_filled(form, offset, dim, before, after)
        else:
            grid = torch.arange(size, dtype=torch.float64, device=form.offset.device)
            index = F.pad(grid.view(1, 1, -1), [before, after], mode=mode).view(-1).long()
            form = picked_along(form, dim, index)
    return form


def moved_elements(input: RandomTensor, function: Any) -> Affine:
    """Any op that only moves elements, on positions spelled out in full: correct, not compact."""
    form = affine_of(input)
    offset = function(form.offset)
    shape = form.shape

    def move(tensor: Tensor, leading: int) -> Tensor:
        full = tensor.expand(*tensor.shape[:leading], *shape)
        if leading == 0:
            return function(full)
        flat = full.reshape(-1, *shape)
        moved = torch.stack([function(row) for row in flat])
        return moved.reshape(*tensor.shape[:leading], *moved.shape[1:])

    return restructure(spelled_out(form), offset, lambda: Plan(move, {}))


def _register_movers() -> None:
    names = (
        "rot90",
        "fliplr",
        "flipud",
        "diagonal",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "Tensor.unfold",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
    )
    for name in names:
        function = getattr(torch, name, None) or getattr(Tensor, name.rpartition(".")[2])

        def move(
            input: RandomTensor, *args: Any, function: Any = function, **kwargs: Any
        ) -> Affine:
            return moved_elements(input, lambda tensor: function(tensor, *args, **kwargs))

        rule(name)(move)


_register_movers()
