"""Programs of the contract suite: latents first, then plain operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.ops.indexing import Vindex

from tests.devices import here

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One program; ``latents`` are (kind, shape, levels), ``operands`` shapes of float tensors."""

    name: str
    program: Callable
    latents: tuple[tuple[str, Shape, int], ...]
    operands: tuple[Shape, ...] = field(default=())

    def __str__(self) -> str:
        return self.name


def index(name: str, program: Callable, *operands: Shape, shape: Shape = (2, 3)) -> Row:
    """A program of integers 0 .. 3."""
    return Row(f"index {name}", program, (("index", shape, 4),), operands)


def binary(name: str, program: Callable, *operands: Shape, shape: Shape = (2, 3)) -> Row:
    """A program of 0/1 floats."""
    return Row(f"bernoulli {name}", program, (("bernoulli", shape, 2),), operands)


def coded(name: str, program: Callable, *operands: Shape, shape: Shape = (2, 3)) -> Row:
    """A program of one-hot vectors of 4 categories."""
    return Row(f"one_hot {name}", program, (("one_hot", shape, 4),), operands)


def pair(
    name: str, program: Callable, *operands: Shape, a: Shape = (2, 3), b: Shape = (2, 3)
) -> Row:
    """A program of two integer latents, 0 .. 3 and 0 .. 2."""
    return Row(f"pair {name}", program, (("index", a, 4), ("index", b, 3)), operands)


X: Shape = (2, 3)

COMPARISONS = [
    maker(f"{op}{suffix}", program, *operands)
    for maker in (index, binary)
    for op in ("eq", "ne", "lt", "le", "gt", "ge")
    for suffix, program, operands in [
        ("", lambda z, op=op: getattr(z, op)(1), ()),
        (" reflected", lambda z, op=op: getattr(torch, op)(z, torch.tensor(1)), ()),
        (" tensor", lambda z, x, op=op: getattr(z, op)((x > 0).long()), (X,)),
    ]
]

OPERATORS = [
    index("z == 1", lambda z: z == 1),
    index("1 == z", lambda z: 1 == z),
    index("z != 1", lambda z: z != 1),
    index("2 > z", lambda z: 2 > z),
    index("~(z == 1)", lambda z: ~(z == 1)),
    index("(z == 1) | (z == 2)", lambda z: (z == 1) | (z == 2)),
    index("(z > 0) & (z < 3)", lambda z: (z > 0) & (z < 3)),
    index("(z > 0) ^ (z < 3)", lambda z: (z > 0) ^ (z < 3)),
    index("logical_not", lambda z: torch.logical_not(z)),
    index("logical_and", lambda z, x: torch.logical_and(z, x > 0), X),
    index("z & 1", lambda z: z & 1),
    index("1 | z", lambda z: 1 | z),
    index("z << 1", lambda z: z << 1),
    index("+z", lambda z: +z),
    index("isin", lambda z: torch.isin(z, torch.tensor([1, 3]))),
    index("input=", lambda z: torch.add(input=z, other=2)),
    index("clamp input=", lambda z: torch.clamp(input=z, min=1)),
    binary("+z", lambda z: (+z) == 1),
    binary("dropout off", lambda z: F.dropout(z, 0.5, False) == 1),
    binary("sum input=", lambda z: torch.sum(input=z, dim=0)),
    index("z + 1", lambda z: z + 1),
    index("1 - z", lambda z: 1 - z),
    index("-z", lambda z: -z),
    index("2 * z", lambda z: 2 * z),
    index("z * z", lambda z: z * z),
    index("z ** 2", lambda z: z**2),
    index("2 ** z", lambda z: 2**z),
    index("z // 2", lambda z: z // 2),
    index("z % 2", lambda z: z % 2),
    index("5 // (z + 1)", lambda z: 5 // (z + 1)),
    index("abs", lambda z: (z - 2).abs()),
    index("abs()", lambda z: abs(z - 2)),
    index("clamp", lambda z: z.clamp(min=1, max=2)),
    index("clamp tensor", lambda z, x: torch.clamp(z, max=(x > 0).long()), X),
    index("minimum", lambda z, x: torch.minimum(z, (x > 0).long()), X),
    index("maximum", lambda z: torch.maximum(torch.tensor(2), z)),
    index("sign", lambda z: (z - 1).sign()),
    index("where z", lambda z: torch.where(z == 1, z + 2, 0)),
    index("plain where", lambda z, x: torch.where(x > 0, z, 7), X),
    index("z / 2", lambda z: z / 2),
    index("z * 0.5", lambda z: z * 0.5),
    index("z + x", lambda z, x: z + x, X),
    index("x - z", lambda z, x: x - z, X),
    index("x * z", lambda z, x: x * z, X),
    index("x / (z + 1)", lambda z, x: x / (z + 1), X),
    index("x ** z", lambda z, x: x.exp() ** z, X),
    index("z ** x", lambda z, x: (z + 1) ** x, X),
    index("exp", lambda z: z.exp()),
    index("lgamma", lambda z: torch.lgamma(z + 1)),
    index("log1p", lambda z: z.log1p()),
    index("sigmoid", lambda z: torch.sigmoid(z)),
    index("xlogy", lambda z, x: torch.xlogy(z, x.exp()), X),
    index("(z == k) * x", lambda z, x: (z == 2) * x, X),
    index("(z == arange)", lambda z: z[..., None] == torch.arange(4)),
    index("broadcast", lambda z, x: z[:, None] * x, (2, 5, 3)),
    index("broadcast scalar", lambda z, x: z * x, X, shape=()),
    index("broadcast row", lambda z, x: (z == 1) * x, (5, 3), shape=(3,)),
    index("where", lambda z, x, y: torch.where(z > 1, x, y), X, X),
    index("where scalar", lambda z, x: torch.where(z > 1, x, 0.0), X),
    index("Tensor.where", lambda z, x, y: x.where(z == 0, y), X, X),
    index("masked_fill", lambda z, x: x.masked_fill(z == 2, 9.0), X),
    index("masked_fill broadcast", lambda z, x: x.masked_fill((z == 2)[..., None], 9.0), (2, 3, 2)),
    index("z.masked_fill", lambda z, x: z.masked_fill(x > 0, 9), X),
    index("isnan", lambda z: torch.isnan(z)),
    index("lerp", lambda z, x, y: torch.lerp(x, y, (z == 1).double()), X, X),
    binary("z > 0.5", lambda z: z > 0.5),
    binary("0.5 < z", lambda z: 0.5 < z),
    binary("2 z - 1 > 0", lambda z: 2 * z - 1 > 0),
    binary("1 - z == 0", lambda z: (1 - z) == 0),
    binary("z * 3 // 2", lambda z: (z * 3) // 2),
    binary("(z + 1) % 2", lambda z: (z + 1) % 2),
    binary("floor", lambda z: (z * 2.5).floor()),
    binary("round", lambda z: torch.round(z * 0.7)),
    binary("sign", lambda z: (z - 0.5).sign()),
    binary("z * x", lambda z, x: z * x, X),
    binary("1 - z", lambda z: 1 - z),
    binary("where", lambda z, x, y: torch.where(z == 1, x, y), X, X),
    binary("where bool", lambda z, x, y: torch.where(z.bool(), x, y), X, X),
    binary("masked_fill", lambda z, x: x.masked_fill(z.bool(), 2.0), X),
    binary("z.isfinite", lambda z: z.isfinite()),
    coded("z == 1", lambda z: z == 1),
    coded("where", lambda z, x: torch.where(z == 1, x, 0.0), (2, 3, 4)),
    index("prod of neighbours", lambda z: z[:, :2] * z[:, 1:]),
    pair("z1 == z2", lambda z, w: z == w),
    pair("z1 * 3 + z2", lambda z, w: z * 3 + w),
    pair("z1 < z2 outer", lambda z, w: z[..., None] < w, a=(2,), b=(3,)),
    pair("(z1 == z2) & (z1 > 0)", lambda z, w: (z == w) & (z > 0)),
    pair("(z1 > 0) & (z2 > 0) | (z1 == 1)", lambda z, w: ((z > 0) & (w > 0)) | (z == 1)),
    pair("where(z1 == 1, z2, z1)", lambda z, w: torch.where(z == 1, w, z)),
    pair("z1 * z2 * x", lambda z, w, x: (z * w) * x, X),
    pair("z2 - z1", lambda z, w: w - z),
    pair("maximum", lambda z, w: torch.maximum(w, z)),
    Row(
        "mixed b == z",
        lambda b, z: b == z,
        (("bernoulli", (2, 3), 2), ("index", (2, 3), 4)),
    ),
    Row(
        "mixed (z == 1) * b",
        lambda b, z, x: (z == 1) * b * x,
        (("bernoulli", (2, 3), 2), ("index", (2, 3), 4)),
        (X,),
    ),
    Row(
        "mixed where(b1 == b2)",
        lambda a, b, x: torch.where(a == b, x, -x),
        (("bernoulli", (2, 3), 2), ("bernoulli", (2, 3), 2)),
        (X,),
    ),
]

CASTS = [
    maker(name, program)
    for maker in (index, binary, coded)
    for name, program in [
        ("float", lambda z: z.float()),
        ("double", lambda z: z.double()),
        ("half", lambda z: z.half()),
        ("long", lambda z: z.long()),
        ("int", lambda z: z.int()),
        ("bool", lambda z: z.bool()),
        ("to(float64)", lambda z: z.to(torch.float64)),
        ("to(dtype=int8)", lambda z: z.to(dtype=torch.int8)),
        ("to(cpu)", lambda z: z.to("cpu").to(here())),
        ("to(other)", lambda z: z.to(torch.zeros(1, dtype=torch.float32))),
        ("type", lambda z: z.type(torch.float32)),
        ("type_as", lambda z: z.type_as(torch.zeros(1))),
        ("float long", lambda z: z.double().long() == 1),
        ("float ==", lambda z: z.double() == 1.0),
        ("clone", lambda z: z.clone()),
    ]
]

_MOVES = [
    ("reshape", lambda z: z.reshape(3, 2)),
    ("view", lambda z: z.view(-1)),
    ("flatten", lambda z: z.flatten()),
    ("unsqueeze", lambda z: z.unsqueeze(-1)),
    ("unsqueeze(1)", lambda z: torch.unsqueeze(z, dim=1)),
    ("squeeze", lambda z: z.unsqueeze(1).squeeze(1)),
    ("squeeze()", lambda z: z[:1].squeeze()),
    ("permute", lambda z: z.permute(1, 0)),
    ("permute negative", lambda z: z.permute((-1, -2))),
    ("transpose", lambda z: z.transpose(0, 1)),
    ("T", lambda z: z.T),
    ("mT", lambda z: z.mT),
    ("t", lambda z: z.t()),
    ("movedim", lambda z: z.movedim(0, -1)),
    ("expand", lambda z: z.expand(4, 2, 3)),
    ("expand inner", lambda z: z[:, :1].expand(2, 5)),
    ("expand_as", lambda z: z.expand_as(torch.zeros(2, 2, 3))),
    ("broadcast_to", lambda z: torch.broadcast_to(z, (2, 2, 3))),
    ("broadcast_tensors", lambda z: torch.broadcast_tensors(z, torch.zeros(2, 1, 3))[0]),
    ("z[0]", lambda z: z[0]),
    ("z[-1, 1]", lambda z: z[-1, 1]),
    ("z[:, 1:]", lambda z: z[:, 1:]),
    ("z[..., :1]", lambda z: z[..., :1]),
    ("z[None, ..., 0]", lambda z: z[None, ..., 0]),
    ("z[:, None]", lambda z: z[:, None]),
    ("z[::2]", lambda z: z[::2]),
    ("expanded slice", lambda z: z[:, :1].expand(2, 5)[:, 1:3]),
    ("expanded reshape", lambda z: z[:, :1].expand(2, 5).reshape(-1)),
    ("expanded select", lambda z: z[:, None].expand(2, 4, 3)[:, 2]),
    ("expanded permute", lambda z: z[:, None].expand(2, 4, 3).permute(2, 1, 0)),
    ("z[idx]", lambda z: z[torch.tensor([1, 0, 1])]),
    ("z[:, idx]", lambda z: z[:, torch.tensor([[2, 0], [1, 1]])]),
    ("z[mask]", lambda z: z[torch.tensor([True, False])]),
    ("z[list]", lambda z: z[[1, 1, 0]]),
    ("index_select", lambda z: z.index_select(1, torch.tensor([2, 0]))),
    ("gather", lambda z: z.gather(1, torch.tensor([[2, 0], [1, 1]]))),
    ("take_along_dim", lambda z: z.take_along_dim(torch.tensor([[2, 0], [1, 1]]), 1)),
    ("flip", lambda z: z.flip(0)),
    ("roll", lambda z: z.roll(1, -1)),
    ("repeat", lambda z: z.repeat(2, 1)),
    ("repeat_interleave", lambda z: z.repeat_interleave(2, 0)),
    ("narrow", lambda z: z.narrow(1, 1, 2)),
    ("select", lambda z: z.select(1, 2)),
    ("diagonal", lambda z: z.diagonal()),
    ("unbind", lambda z: z.unbind(1)),
    ("iterate", lambda z: list(z)),
    ("split", lambda z: z.split(2, 1)),
    ("chunk", lambda z: z.chunk(2, dim=-1)),
    ("contiguous", lambda z: z.T.contiguous()),
    ("cat", lambda z: torch.cat([z, z[:1]])),
    ("cat dim", lambda z: torch.cat((z[:, :1], z), dim=-1)),
    ("stack", lambda z: torch.stack([z[0], z[1]], -1)),
    ("unfold", lambda z: z.unfold(1, 2, 1)),
]

STRUCTURE = [
    maker(f"{name}{suffix}", program, *operands)
    for maker in (index, binary)
    for name, move in _MOVES
    for suffix, program, operands in [
        ("", move, ()),
        (" == 1", lambda z, move=move: [m == 1 for m in _all(move(z))], ()),
        (
            " of levels",
            lambda z, x, move=move: [m > 1 for m in _all(move(z.long() * (x > 0)))],
            (X,),
        ),
        (" float", lambda z, move=move: [m * 1.5 for m in _all(move(z))], ()),
    ]
]


def _all(result):
    return list(result) if isinstance(result, (tuple, list)) else [result]


JOINING = [
    index("hstack", lambda z: torch.hstack([z, z])),
    index("vstack", lambda z: torch.vstack((z, z[0]))),
    index("dstack", lambda z: torch.dstack([z, z % 2])),
    index("meshgrid", lambda z: torch.meshgrid(z[0], z[1], indexing="ij")),
    index("meshgrid xy", lambda z: torch.meshgrid(z[0], torch.arange(2), indexing="xy")[0]),
    index("cat plain", lambda z: torch.cat([z, torch.tensor([[5, 6, 7]])])),
    index("cat levels", lambda z: torch.cat([z, z % 2, torch.tensor([[5, 6, 7]])])),
    pair("cat", lambda z, w: torch.cat([z, w], -1)),
    pair("cat table", lambda z, w, t: t[torch.cat([z, w], -1)], (4,)),
    pair("stack", lambda z, w: torch.stack([z, w], 0)),
    index("stack numbers", lambda z: torch.stack([z == 1, z > 2])),
    binary("cat x", lambda z, x: torch.cat([z, x]), X),
]

TABLES = [
    index("t[z]", lambda z, t: t[z], (4,)),
    index("t[z] rows", lambda z, t: t[z], (4, 5)),
    index("t[z] matrices", lambda z, t: t[z], (4, 5, 2)),
    index("t[z] scalar", lambda z, t: t[z], (4, 5), shape=()),
    index("t[:, z] scalar", lambda z, t: t[:, z], (5, 4), shape=()),
    index("t[z % 2]", lambda z, t: t[z % 2], (2, 5)),
    index("t[z + 1]", lambda z, t: t[z + 1], (5, 2)),
    index("t[z where]", lambda z, t: t[torch.where(torch.tensor([0, 1, 0]) > 0, z, 1)], (4, 2)),
    index("t[..., z]", lambda z, t: t[..., z], (5, 4)),
    index("t[:, z]", lambda z, t: t[:, z], (5, 4)),
    index("t[:, z, :]", lambda z, t: t[:, z, :], (5, 4, 2)),
    index("t[..., z, :]", lambda z, t: t[..., z, :], (3, 5, 4, 2)),
    index("t[1, z]", lambda z, t: t[1, z], (2, 4, 2)),
    index("t[z, 1]", lambda z, t: t[z, 1], (4, 2, 2)),
    index("t[z, :, 1]", lambda z, t: t[z, :, 1], (4, 2, 3)),
    index("t[1, :, z]", lambda z, t: t[1, :, z], (2, 3, 4)),
    index("t[None, z]", lambda z, t: t[None, z], (4, 2)),
    index("t[z, None]", lambda z, t: t[z, None], (4, 2)),
    index("t[z, 1:]", lambda z, t: t[z, 1:], (4, 3)),
    index("t[i, z]", lambda z, t: t[torch.arange(3), z], (3, 4)),
    index("t[z, i]", lambda z, t: t[z, torch.arange(2)[:, None]], (4, 2, 3)),
    index("t[i, :, z]", lambda z, t: t[torch.arange(3), :, z], (3, 2, 4)),
    index("t[:, i, z]", lambda z, t: t[:, torch.arange(3), z], (2, 3, 4)),
    index("t[:, z, :, i]", lambda z, t: t[:, z, :, torch.arange(3)], (2, 4, 2, 3)),
    index("t[z, z]", lambda z, t: t[z, z], (4, 4)),
    index("t[z, z % 2]", lambda z, t: t[z, z % 2], (4, 2)),
    index("t[z, mask]", lambda z, t: t[z[0], torch.tensor([True, True, False, True])], (4, 4)),
    index("t[z][z]", lambda z, t: (torch.tensor([1, 3, 0, 2])[z] == 3) * t, X),
    index("eye", lambda z: torch.eye(4, dtype=torch.double)[z]),
    index("int table", lambda z: torch.tensor([3, 1, 4, 1])[z]),
    index("int table rows", lambda z: torch.arange(8).reshape(4, 2)[z]),
    index("bool table", lambda z, x: torch.tensor([True, False, True, False])[z] * x, X),
    index("F.embedding", lambda z, t: F.embedding(z, t), (4, 5)),
    index("F.embedding padding", lambda z, t: F.embedding(z, t, padding_idx=0), (4, 5)),
    index("torch.embedding", lambda z, t: torch.embedding(t, z), (4, 5)),
    index("F.one_hot", lambda z: F.one_hot(z, 4)),
    index("F.one_hot float", lambda z: F.one_hot(z, 4).float()),
    index("F.one_hot @", lambda z, t: F.one_hot(z, num_classes=4).to(t.dtype) @ t, (4, 5)),
    index("F.one_hot wide", lambda z, t: F.one_hot(z, 6).to(t.dtype) @ t, (6, 5)),
    index("F.one_hot sum", lambda z: F.one_hot(z, 4).sum(0)),
    index("F.one_hot argmax", lambda z: F.one_hot(z, 4).argmax(-1) == 2),
    index("F.one_hot of levels", lambda z: F.one_hot(z % 2, 2)),
    index("index_select", lambda z, t: t.index_select(1, z), (2, 4), shape=(3,)),
    index("torch.index_select", lambda z, t: torch.index_select(t, 0, index=z), (4, 2), shape=(3,)),
    index("gather", lambda z, t: t.gather(-1, z), (2, 4)),
    index("gather 0", lambda z, t: torch.gather(t, 0, z), (4, 3)),
    index("gather narrow", lambda z, t: torch.gather(t, 1, z[:, :1]), (5, 4)),
    index("gather levels", lambda z, t: t.gather(-1, (z + torch.arange(3)) % 4), (2, 4)),
    index("take_along_dim", lambda z, t: t.take_along_dim(z, 1), (1, 4)),
    index("take_along_dim flat", lambda z, t: torch.take_along_dim(t, z), (2, 4)),
    index("take", lambda z, t: t.take(z), (2, 4)),
    index("Vindex t[z]", lambda z, t: Vindex(t)[z], (4,)),
    index("Vindex t[z, :]", lambda z, t: Vindex(t)[z, :], (4, 5)),
    index("Vindex t[..., z]", lambda z, t: Vindex(t)[..., z], (3, 4)),
    index("Vindex t[..., z, :]", lambda z, t: Vindex(t)[..., z, :], (3, 4, 5)),
    index("Vindex batch", lambda z, t: Vindex(t)[..., z, :], (2, 1, 4, 5)),
    pair("t[z1, z2]", lambda z, w, t: t[z, w], (4, 3)),
    pair("t[z1, z2] rows", lambda z, w, t: t[z, w], (4, 3, 2)),
    pair("t[z1, :, z2]", lambda z, w, t: t[z, :, w], (4, 2, 3)),
    pair("t[z1, z2] outer", lambda z, w, t: t[z[:, None], w], (4, 3, 2), a=(2,), b=(3,)),
    pair("t[scalar, z2]", lambda z, w, t: t[z, w], (4, 3, 2), a=(), b=(3,)),
    pair("t[z1 * 3 + z2]", lambda z, w, t: t[z * 3 + w], (12, 2)),
    pair("t[z1][z2]", lambda z, w, t: t[torch.where(w == 1, z, w)], (4, 2)),
    pair("Vindex", lambda z, w, t: Vindex(t)[..., z, w], (4, 3)),
    pair("Vindex t[z1, :, z2]", lambda z, w, t: Vindex(t)[..., z, :, w], (4, 2, 3)),
    pair("z1[z2]", lambda z, w: z[w], a=(3,), b=(2,)),
    pair("t[z1[z2]]", lambda z, w, t: t[z[w]], (4, 2), a=(3,), b=(2,)),
    pair("z1.gather(z2)", lambda z, w: z.gather(1, w)),
    Row("b[z]", lambda b, z, x: b[z] * x, (("bernoulli", (3,), 2), ("index", (2,), 3)), ((2,),)),
    Row("b[z] == 1", lambda b, z: b[z] == 1, (("bernoulli", (3,), 2), ("index", (2,), 3))),
    binary("t[z.long()]", lambda z, t: t[z.long()], (2, 5)),
    coded("t[argmax]", lambda z, t: t[z.argmax(-1)], (4, 5)),
    coded("t[max.indices]", lambda z, t: t[z.max(-1).indices], (4, 5)),
    coded(
        "max(-1)[1] gather",
        lambda z, t: t.gather(-1, z.max(-1)[1].unsqueeze(-1)),
        (2, 3, 4)[1:],
        shape=(3,),
    ),
    coded("argmax keepdim", lambda z: torch.argmax(z, dim=-1, keepdim=True)),
    coded("moved argmax", lambda z: z.transpose(0, 1)[1:].argmax(-1)),
    coded("expanded argmax", lambda z: z.expand(2, 2, 3, 4).argmax(-1) == 1),
    coded("long argmax", lambda z: z.long().argmax(-1)),
    coded("flat argmax", lambda z: z.reshape(6, 4).argmax(1)),
    coded("stack argmax", lambda z: torch.stack([z[0], z[1]]).argmax(-1)),
    coded("@", lambda z, t: z @ t, (4, 5)),
    coded("linear", lambda z, t: F.linear(z, t), (5, 4)),
    coded("z[..., 1] == 1", lambda z: z[..., 1] == 1),
    coded("select rows", lambda z, x: torch.where(z[..., 0] > 0, x, 0.0), X),
]

SUMS = [
    index("all", lambda z: (z > 0).all(-1)),
    index("any keepdim", lambda z: (z == 1).any(0, keepdim=True)),
    index("all of integers", lambda z: z.all(dim=1)),
    index("empty flip", lambda z: z[:0].flip(0) == 1),
    index("sum of products", lambda z: torch.tensordot(z, torch.tensor([1, 2, 3]), dims=1)),
    index("prod", lambda z: (z + 1).prod(0)),
    index("amax", lambda z: z.amax(-1)),
    index("amin all", lambda z: z[0].amin()),
    index("max all", lambda z: z[1].max()),
    index("max of two", lambda z: torch.max(z, torch.tensor(2))),
    index("min of two", lambda z, x: torch.min((x > 0).long(), z), X),
    binary("all", lambda z: (z == 1).all(-1)),
    binary("any all", lambda z: (z == 1).any()),
    pair("all pairs", lambda z, w: (z == w).all(0)),
    index("cross_entropy", lambda z, t: F.cross_entropy(t, z[0]), (3, 4)),
    index("cross_entropy none", lambda z, t: F.cross_entropy(t, z, reduction="none"), (2, 4, 3)),
    index("nll_loss", lambda z, t: F.nll_loss(t, z[0], reduction="sum"), (3, 4)),
    index("sum of ==", lambda z: (z == 1).sum(0)),
    index("sum all", lambda z: z.sum()),
    index("sum keepdim", lambda z: z.sum(-1, keepdim=True)),
    index("sum float", lambda z: (z == 1).sum(0, dtype=torch.float64)),
    index("mean float", lambda z: (z == 1).mean(dtype=torch.float64)),
    index("cumsum", lambda z: (z > 1).cumsum(-1)),
    index("count_nonzero", lambda z: z.count_nonzero(0)),
    index("sum - 1", lambda z: 1 - 2 * (z == 1).sum(0)),
    index("sum * x", lambda z, x: (z == 1).sum(0) * x, X),
    index("sum / n", lambda z: (z == 1).sum(0) / 2),
    index("sum float", lambda z: (z == 1).sum(0).double()),
    index("sum reshaped", lambda z: (z == 1).sum(0)[:2].unsqueeze(-1)),
    index("matmul", lambda z: z @ torch.tensor([[1, 2], [3, 4], [5, 6]])),
    pair("sum + sum", lambda z, w: (z == 1).sum(0) + (w == 1).sum(0)),
    binary("sum", lambda z: z.sum(0)),
    binary("sum bool", lambda z: z.bool().sum(-1)),
]


def _log_prob(make, *names, **fixed):
    return lambda z, *operands: make(*operands).log_prob(z)


DISTRIBUTIONS = [
    index("Categorical(logits)", lambda z, t: dist.Categorical(logits=t).log_prob(z), (4,)),
    index("Categorical batch", lambda z, t: dist.Categorical(logits=t).log_prob(z), (3, 4)),
    index(
        "Categorical plates",
        lambda z, t: dist.Categorical(logits=t).log_prob(z),
        (2, 1, 4),
    ),
    index("Categorical(probs)", lambda z, t: dist.Categorical(t.softmax(-1)).log_prob(z), (3, 4)),
    index("Poisson", lambda z, t: dist.Poisson(t.exp()).log_prob(z), (3,)),
    index("Geometric", lambda z, t: dist.Geometric(logits=t).log_prob(z), (3,)),
    index("Geometric probs", lambda z, t: dist.Geometric(t.sigmoid()).log_prob(z), (3,)),
    index("Poisson rate", lambda z, x: _poisson(z + 1, x), X),
    index("Delta", lambda z: dist.Delta(z.double()).log_prob(z.double())[:0]),
    index("mask", lambda z, x: dist.Normal(0.0, 1.0).expand([2, 3]).mask(z == 1).log_prob(x), X),
    binary("Bernoulli(logits)", lambda z, t: dist.Bernoulli(logits=t).log_prob(z), (3,)),
    binary("Bernoulli(probs)", lambda z, t: dist.Bernoulli(t.sigmoid()).log_prob(z), (2, 3)),
    binary("Bernoulli expand", lambda z, t: dist.Bernoulli(logits=t).to_event(1).log_prob(z), (3,)),
    coded("OneHot", lambda z, t: dist.OneHotCategorical(logits=t).log_prob(z), (3, 4)),
    coded("OneHot shared", lambda z, t: dist.OneHotCategorical(logits=t).log_prob(z), (4,)),
    pair(
        "transition",
        lambda z, w, t: dist.Categorical(logits=t.log_softmax(-1)[z]).log_prob(w)[..., :0],
        (4, 3),
    ),
]


def _poisson(rate, x):
    return torch.xlogy(x.abs().round(), rate) - rate - torch.lgamma(x.abs().round() + 1)


ROWS = COMPARISONS + OPERATORS + CASTS + STRUCTURE + JOINING + TABLES + SUMS + DISTRIBUTIONS
