"""Rows of the contract suite: one linear program each, of random tensors or of plain ones.

A program takes its latents first, then plain operands. ``"B"`` in a shape is the batch size, which
the suite also sets to 1 and 0 where the row allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from tests.devices import here

Shape = tuple["int | str", ...]


@dataclass(frozen=True)
class Row:
    """One program with the shape of its latent and of its plain operands."""

    name: str
    program: Callable[..., Tensor]
    operands: tuple[Shape, ...] = ()
    shape: Shape = ("B", 3)
    batched: bool = True

    def __str__(self) -> str:
        return self.name


def fixed(
    name: str, program: Callable[..., Tensor], *operands: Shape, shape: Shape = (2, 3)
) -> Row:
    """Row whose program names positions in the batch, so that the batch size cannot change."""
    return Row(name, program, operands, shape, batched=False)


def _iadd(z, w):
    z = z * 1
    z += w
    return z


def _isub(z, w):
    z = z * 1
    z -= w
    return z


def _imul(z, w):
    z = z * 1
    z *= w
    return z


def _itruediv(z, w):
    z = z * 1
    z /= w
    return z


def _iadd_random(z):
    total = z[:, :1] * 2
    total += z[:, 1:2]
    total -= z[:, 2:]
    return total


BW: Shape = ("B", 3)

ARITHMETIC = [
    Row("z", lambda z: z * 1),
    Row("add", lambda z, w: z + w, (BW,)),
    Row("radd", lambda z, w: w + z, (BW,)),
    Row("add_number", lambda z: z + 1.5),
    Row("radd_number", lambda z: 2 + z),
    Row("sub", lambda z, w: z - w, (BW,)),
    Row("rsub", lambda z, w: w - z, (BW,)),
    Row("rsub_number", lambda z: 1 - z),
    Row("mul", lambda z, w: z * w, (BW,)),
    Row("rmul", lambda z, w: w * z, (BW,)),
    Row("mul_number", lambda z: z * 3),
    Row("rmul_number", lambda z: -0.5 * z),
    Row("mul_zero", lambda z: z * 0.0),
    Row("div", lambda z, w: z / w.exp(), (BW,)),
    Row("div_number", lambda z: z / 4),
    Row("neg", lambda z: -z),
    Row("pos", lambda z: +z),
    Row("torch.add(alpha)", lambda z, w: torch.add(z, w, alpha=2), (BW,)),
    Row("torch.add(plain, z, alpha)", lambda z, w: torch.add(w, z, alpha=-3), (BW,)),
    Row("torch.sub(alpha)", lambda z, w: torch.sub(z, w, alpha=0.5), (BW,)),
    Row("torch.sub(plain, z, alpha)", lambda z, w: torch.sub(w, z, alpha=0.5), (BW,)),
    Row("torch.mul", lambda z, w: torch.mul(w, z), (BW,)),
    Row("torch.multiply", lambda z, w: torch.multiply(z, w), (BW,)),
    Row("torch.div", lambda z: torch.div(z, 4.0)),
    Row("torch.true_divide", lambda z, w: torch.true_divide(z, w.exp()), (BW,)),
    Row("torch.neg", lambda z: torch.neg(z)),
    Row("torch.negative", lambda z: torch.negative(z)),
    Row("torch.subtract", lambda z, w: torch.subtract(z, w), (BW,)),
    Row("torch.rsub", lambda z, w: torch.rsub(z, w), (BW,)),
    Row("methods", lambda z, w: z.add(w).sub(w * w).mul(w).div(2.0).neg(), (BW,)),
    Row("z+z", lambda z: z + z),
    Row("z-z", lambda z: z - z + 1.0),
    Row("z+z*w", lambda z, w: z + z * w, (BW,)),
    Row("broadcast_more_dims", lambda z, w: z * w, ((2, "B", 3),)),
    Row("broadcast_add", lambda z, w: z + w, ((2, 1, 3),)),
    Row("broadcast_keep", lambda z, w: z * w, (("B", 1),)),
    Row("broadcast_vector", lambda z, w: z * w, ((3,),)),
    Row("broadcast_scalar", lambda z, w: z * w, ((),)),
    Row("broadcast_self", lambda z: z[:, None, :] - 2 * z[:, :, None]),
    Row("broadcast_random", lambda z, w: z[:, :1] * w + z, (BW,)),
    Row("broadcast_batch", lambda z, w: (z * w)[0] + z, ((2, "B", 3),)),
    fixed("numpy_scalar", lambda z: z * np.float64(1.5) + np.float64(2)),
    Row("0-dim tensor", lambda z: z * tensor(1.5) + tensor(2)),
    Row("integer_tensor", lambda z: z * tensor([1, 2, 3]) - tensor([0, 1, 0])),
    Row("bool_tensor", lambda z: z * tensor([True, False, True])),
    Row("iadd", _iadd, (BW,)),
    Row("isub", _isub, (BW,)),
    Row("imul", _imul, (BW,)),
    Row("itruediv", lambda z, w: _itruediv(z, w.exp()), (BW,)),
    Row("iadd_random", _iadd_random),
    Row("lerp", lambda z, w: torch.lerp(w, z, 0.3), (BW,)),
    Row("addcmul", lambda z, w, v: torch.addcmul(w, z, v, value=0.5), (BW, BW)),
]

PRODUCTS = [
    Row("z@w", lambda z, w: z @ w, ((3, 4),)),
    Row("w@z", lambda z, w: w @ z, ((4, "B"),)),
    Row("z@vector", lambda z, w: z @ w, ((3,),)),
    Row("vector@z", lambda z, w: w @ z, (("B",),)),
    Row("z@zT", lambda z, w: w @ z.T, ((4, 3),)),
    Row("row@w", lambda z, w: z[0] @ w, ((3, 4),), shape=(2, 3), batched=False),
    Row("w@row", lambda z, w: w @ z[0], ((4, 3),), shape=(2, 3), batched=False),
    Row("row@vector", lambda z, w: z[0] @ w, ((3,),), shape=(2, 3), batched=False),
    Row("batched z@w", lambda z, w: z @ w, (("B", 3, 2),), shape=("B", 2, 3)),
    Row("batched w@z", lambda z, w: w @ z, (("B", 4, 2),), shape=("B", 2, 3)),
    Row("z@w broadcast", lambda z, w: z @ w, ((4, 3, 2),)),
    Row("w@z broadcast", lambda z, w: w @ z, ((4, 5, "B"),)),
    Row("unsqueezed z@w", lambda z, w: z.unsqueeze(-2) @ w, (("B", 3, 2),)),
    Row("unsqueezed w@z", lambda z, w: (w @ z.unsqueeze(-1)).squeeze(-1), (("B", 2, 3),)),
    Row("shared w@z", lambda z, w: (w @ z.unsqueeze(-1)).squeeze(-1), ((4, 3),)),
    Row("torch.matmul", lambda z, w: torch.matmul(z, w), ((3, 4),)),
    Row("torch.mm", lambda z, w: torch.mm(z, w), ((3, 4),)),
    Row("z.mm", lambda z, w: z.mm(w), ((3, 4),)),
    Row("z.matmul", lambda z, w: z.matmul(w), ((3, 4),)),
    Row("F.linear", lambda z, w, b: F.linear(z, w, b), ((4, 3), (4,))),
    Row("F.linear no bias", lambda z, w: F.linear(z, w), ((4, 3),)),
    Row("F.linear 3d", lambda z, w, b: F.linear(z, w, b), ((4, 3), (4,)), shape=("B", 2, 3)),
    Row("F.linear vector weight", lambda z, w: F.linear(z, w), ((3,),)),
    Row("F.linear random weight", lambda z, x: F.linear(x, z), ((4, 3),)),
    fixed("F.linear random bias", lambda z, x, w: F.linear(x, w, z[0]), (5, 4), (3, 4)),
    Row("linear after linear", lambda z, w, v: (z @ w + z @ v) @ w.T, ((3, 4), (3, 4))),
    Row("F.bilinear", lambda z, x, w, b: F.bilinear(z, x, w, b), (("B", 2), (4, 3, 2), (4,))),
    Row("F.bilinear second", lambda z, x, w: F.bilinear(x, z, w), (("B", 2), (4, 2, 3))),
    Row("einsum bi,ij", lambda z, w: torch.einsum("bi,ij->bj", z, w), ((3, 4),)),
    Row("einsum second", lambda z, w: torch.einsum("ij,bj->bi", w, z), ((4, 3),)),
    Row("einsum rows", lambda z, w: torch.einsum("bi,bi->b", z, w), (BW,)),
    Row("einsum keep", lambda z, w: torch.einsum("bi,bi->ib", z, w), (BW,)),
    Row("einsum per row", lambda z, w: torch.einsum("bi,bij->bj", z, w), (("B", 3, 2),)),
    Row("einsum batch", lambda z, w: torch.einsum("bi,bj->ij", z, w), (("B", 2),)),
    Row("einsum all", lambda z, w: torch.einsum("bi,bi->", z, w), (BW,)),
    Row("einsum implicit", lambda z, w: torch.einsum("bi,ij", z, w), ((3, 4),)),
    Row("einsum sum", lambda z: torch.einsum("bi->i", z)),
    Row("einsum transpose", lambda z: torch.einsum("bi->ib", z)),
    Row("einsum ellipsis", lambda z, w: torch.einsum("...i,ij->...j", z, w), ((3, 4),)),
    Row("einsum ellipsis both", lambda z, w: torch.einsum("...i,...i->...", z, w), ((2, "B", 3),)),
    Row("einsum outer", lambda z, w: torch.einsum("bi,j->bij", z, w), ((4,),)),
    Row(
        "einsum three",
        lambda z, w, v: torch.einsum("bi,ij,bj->bj", z, w, v),
        ((3, 4), ("B", 4)),
    ),
    Row("einsum list", lambda z, w: torch.einsum("bi,ij->bj", [z, w]), ((3, 4),)),
    fixed("einsum trace", lambda z: torch.einsum("ii->", z), shape=(3, 3)),
    fixed("einsum diagonal", lambda z, w: torch.einsum("ii,ij->j", z, w), (3, 2), shape=(3, 3)),
    Row("bmm", lambda z, w: torch.bmm(z, w), (("B", 3, 2),), shape=("B", 2, 3)),
    Row("bmm second", lambda z, w: torch.bmm(w, z), (("B", 4, 2),), shape=("B", 2, 3)),
    Row("z.bmm", lambda z, w: z.unsqueeze(1).bmm(w).squeeze(1), (("B", 3, 2),)),
    Row("baddbmm", lambda z, c, w: torch.baddbmm(c, z[:, None], w), (("B", 1, 2), ("B", 3, 2))),
    Row("tensordot 1", lambda z, w: torch.tensordot(z, w, dims=1), ((3, 4),)),
    Row("tensordot dims", lambda z, w: torch.tensordot(z, w, dims=([1], [1])), ((4, 3),)),
    Row("tensordot second", lambda z, w: torch.tensordot(w, z, dims=([0], [0])), (("B", 2),)),
    Row("tensordot two dims", lambda z, w: torch.tensordot(z, w, dims=2), (("B", 3, 2),)),
    Row("tensordot 0", lambda z, w: torch.tensordot(z, w, dims=0), ((2,),)),
    fixed("outer", lambda z, w: torch.outer(z[0], w), (4,)),
    fixed("outer second", lambda z, w: torch.outer(w, z[1]), (4,)),
    fixed("dot", lambda z, w: torch.dot(z[0], w), (3,)),
    fixed("dot second", lambda z, w: torch.dot(w, z[0]), (3,)),
    fixed("z.dot", lambda z, w: z[1].dot(w), (3,)),
    Row("inner", lambda z, w: torch.inner(z, w), ((4, 3),)),
    Row("mv", lambda z, w: torch.mv(z, w), ((3,),)),
    fixed("mv second", lambda z, w: torch.mv(w, z[0]), (4, 3)),
    Row("addmm", lambda z, b, w: torch.addmm(b, z, w), (("B", 4), (3, 4))),
    Row(
        "addmm beta alpha",
        lambda z, b, w: torch.addmm(b, z, w, beta=0.5, alpha=2),
        ((4,), (3, 4)),
    ),
    Row("addmm bias", lambda z, x, w: torch.addmm(z, x, w), (("B", 2), (2, 3))),
    Row("addmm second", lambda z, b, w: torch.addmm(b, w, z), ((3,), (4, "B"))),
    Row("addmv", lambda z, b, w: torch.addmv(b, z, w), (("B",), (3,))),
    Row("sum of products", lambda z, w: (z * w).sum(-1), (BW,)),
    Row("nn.Linear", lambda z: _module(torch.nn.Linear(3, 4), z)(z)),
]


def _module(module: torch.nn.Module, z: Tensor) -> torch.nn.Module:
    """Module in eval mode with deterministic parameters of the dtype of its input."""
    generator = torch.Generator().manual_seed(3)
    module = module.to(z.dtype)
    with torch.no_grad():
        for t in (*module.parameters(), *module.buffers()):
            if t.is_floating_point():
                t.copy_(torch.rand(t.shape, generator=generator, dtype=t.dtype) + 0.2)
    return module.eval()


C1, C2, C3 = ("B", 4, 5), ("B", 2, 3, 4), ("B", 2, 2, 3, 2)

CONVOLUTIONS = [
    Row("conv1d", lambda z, w, b: F.conv1d(z, w, b), ((3, 4, 2), (3,)), shape=C1),
    Row(
        "conv1d stride padding dilation",
        lambda z, w: F.conv1d(z, w, stride=2, padding=2, dilation=2),
        ((3, 4, 2),),
        shape=C1,
    ),
    Row(
        "conv1d groups",
        lambda z, w: F.conv1d(z, w, groups=2, padding="same"),
        ((2, 2, 3),),
        shape=C1,
    ),
    fixed("conv1d unbatched", lambda z, w: F.conv1d(z, w), (3, 2, 2), shape=(2, 5)),
    fixed("conv1d rows", lambda z, w: F.conv1d(z[:, None], w), (3, 1, 2), shape=(2, 5)),
    Row("conv2d", lambda z, w, b: F.conv2d(z, w, b), ((3, 2, 2, 2), (3,)), shape=C2),
    Row(
        "conv2d stride padding",
        lambda z, w: F.conv2d(z, w, stride=(2, 1), padding=(1, 0)),
        ((3, 2, 2, 2),),
        shape=C2,
    ),
    Row("conv2d depthwise", lambda z, w: F.conv2d(z, w, groups=2), ((4, 1, 2, 2),), shape=C2),
    Row("conv3d", lambda z, w, b: F.conv3d(z, w, b), ((3, 2, 2, 2, 2), (3,)), shape=C3),
    Row(
        "conv3d padding groups",
        lambda z, w: F.conv3d(z, w, padding=1, stride=2, groups=2),
        ((2, 1, 2, 2, 2),),
        shape=C3,
    ),
    Row("conv_transpose1d", lambda z, w: F.conv_transpose1d(z, w), ((4, 3, 2),), shape=C1),
    Row(
        "conv_transpose1d all",
        lambda z, w, b: F.conv_transpose1d(z, w, b, 2, 1, 1, 2, 2),
        ((4, 1, 3), (2,)),
        shape=C1,
    ),
    Row(
        "conv_transpose2d",
        lambda z, w, b: F.conv_transpose2d(z, w, b, stride=2, padding=1),
        ((2, 3, 2, 2), (3,)),
        shape=C2,
    ),
    Row(
        "conv_transpose2d groups",
        lambda z, w: F.conv_transpose2d(z, w, groups=2),
        ((2, 1, 2, 2),),
        shape=C2,
    ),
    Row("conv_transpose3d", lambda z, w: F.conv_transpose3d(z, w), ((2, 1, 2, 2, 2),), shape=C3),
    Row(
        "decoder",
        lambda z, w, v: F.conv_transpose2d((z @ w).reshape(-1, 2, 2, 2), v, stride=2).flatten(1),
        ((3, 8), (2, 1, 2, 2)),
    ),
    Row("nn.Conv1d", lambda z: _module(torch.nn.Conv1d(4, 2, 3, padding=1), z)(z), shape=C1),
    Row(
        "nn.ConvTranspose2d",
        lambda z: _module(torch.nn.ConvTranspose2d(2, 1, 2, stride=2), z)(z),
        shape=C2,
    ),
]

E = ("B", 3, 2)

REDUCTIONS = [
    Row("sum", lambda z: z.sum()),
    Row("sum(0)", lambda z: z.sum(0)),
    Row("sum(-1)", lambda z: z.sum(-1)),
    Row("sum keepdim", lambda z: z.sum(0, keepdim=True)),
    Row("sum two dims", lambda z: z.sum((0, 2)), shape=E),
    Row("sum two dims keepdim", lambda z: z.sum((0, -1), keepdim=True), shape=E),
    Row("sum middle", lambda z: z.sum(dim=1), shape=E),
    Row("torch.sum", lambda z: torch.sum(z, dim=1)),
    Row("sum dtype", lambda z: z.sum(-1, dtype=torch.float64)),
    fixed("mean", lambda z: z.mean()),
    fixed("mean(0)", lambda z: z.mean(0)),
    Row("mean(-1)", lambda z: z.mean(-1)),
    Row("mean keepdim", lambda z: z.mean(-1, keepdim=True)),
    Row("mean two dims", lambda z: z.mean((1, 2)), shape=E),
    Row("torch.mean", lambda z: torch.mean(z, 1)),
    Row("z-z.mean(-1)", lambda z: z - z.mean(-1, keepdim=True)),
    fixed("z-z.mean(0)", lambda z: z - z.mean(0)),
    Row("sum twice", lambda z, w: (z * w).sum(0).sum(0), (BW,)),
    Row("cumsum(0)", lambda z: z.cumsum(0)),
    Row("cumsum(-1)", lambda z: torch.cumsum(z, -1)),
    fixed("cumsum then slice", lambda z: z.cumsum(1)[:, 1:]),
    fixed("cumsum(0) then slice", lambda z: z.cumsum(0)[1:], shape=(3, 2)),
    Row("diff", lambda z: z.diff()),
    fixed("diff(0)", lambda z: torch.diff(z, dim=0)),
    Row("diff n=2", lambda z: z.diff(n=2, dim=-1)),
    Row("diff prepend", lambda z, w: z.diff(dim=1, prepend=w), (("B", 1),)),
    Row("diff append", lambda z, w: z.diff(dim=-1, append=w), (("B", 2),)),
    fixed("z[1:]-z[:-1]", lambda z: z[1:] - z[:-1], shape=(3, 3)),
    Row("trace", lambda z: z.trace(), shape=(3, 3), batched=False),
    fixed("weighted mean", lambda z, w: (z * w).sum(0) / w.exp().sum(0), (2, 3)),
]

STRUCTURE = [
    fixed("reshape", lambda z: z.reshape(3, 2)),
    Row("reshape(-1)", lambda z: z.reshape(-1)),
    Row("reshape split", lambda z: z.reshape(-1, 3, 2), shape=("B", 6)),
    Row("reshape merge", lambda z: z.reshape(z.shape[0], 6), shape=("B", 3, 2)),
    fixed("reshape mix", lambda z: z.reshape(2, 3, 2), shape=(3, 4)),
    Row("reshape tuple", lambda z: z.reshape((-1, 1, 3))),
    Row("torch.reshape", lambda z: torch.reshape(z, (-1, 3, 1))),
    Row("view", lambda z: z.view(-1, 3, 1)),
    fixed("view(6)", lambda z: z.view(6)),
    Row("view_as", lambda z, w: z.view_as(w), (("B", 1, 3),)),
    Row("reshape_as", lambda z, w: z.reshape_as(w), (("B", 1, 3),)),
    Row("flatten", lambda z: z.flatten()),
    Row("flatten(1)", lambda z: z.flatten(1), shape=E),
    Row("flatten(0,1)", lambda z: torch.flatten(z, 0, 1), shape=E),
    Row("nn.Flatten", lambda z: torch.nn.Flatten()(z), shape=E),
    Row("unflatten", lambda z: z.unflatten(-1, (2, 3)), shape=("B", 6)),
    Row("nn.Unflatten", lambda z: torch.nn.Unflatten(1, (2, 3))(z), shape=("B", 6)),
    Row("ravel", lambda z: z.ravel()),
    Row("squeeze(dim)", lambda z: z.squeeze(1), shape=("B", 1, 3)),
    fixed("squeeze", lambda z: z.squeeze(), shape=(1, 2, 1, 3)),
    fixed("squeeze tuple", lambda z: z.squeeze((0, 2)), shape=(1, 2, 1, 3)),
    Row("squeeze nothing", lambda z: z.squeeze(-1)),
    Row("unsqueeze(0)", lambda z: z.unsqueeze(0)),
    Row("unsqueeze(-1)", lambda z: z.unsqueeze(-1)),
    Row("torch.unsqueeze", lambda z: torch.unsqueeze(z, 1)),
    Row("expand", lambda z: z.unsqueeze(1).expand(-1, 4, 3)),
    Row("expand more dims", lambda z: z.expand(2, -1, -1)),
    Row("expand one", lambda z: z.sum(1, keepdim=True).expand(-1, 4)),
    fixed("expand source of size 1", lambda z: z.expand(4, 3), shape=(1, 3)),
    fixed("expand event of size 1", lambda z: z.expand(2, 4), shape=(2, 1)),
    Row("expand then sum", lambda z: z.expand(4, -1, -1).sum(0)),
    Row("expand_as", lambda z, w: z.expand_as(w), ((2, "B", 3),)),
    Row("broadcast_to", lambda z, w: torch.broadcast_to(z, w.shape), ((2, "B", 3),)),
    Row("broadcast_tensors", lambda z, w: torch.broadcast_tensors(w, z)[1], ((2, "B", 1),)),
    Row("repeat", lambda z: z.repeat(2, 1)),
    Row("repeat more dims", lambda z: z.repeat(2, 1, 3)),
    Row("repeat then sum", lambda z, w: (z.repeat(1, 2) * w).sum(-1), (("B", 6),)),
    Row("tile", lambda z: z.tile(1, 2)),
    Row("torch.tile", lambda z: torch.tile(z, (2,))),
    Row("repeat_interleave", lambda z: z.repeat_interleave(2, dim=1)),
    Row("repeat_interleave flat", lambda z: torch.repeat_interleave(z, 2)),
    fixed("repeat_interleave each", lambda z: z.repeat_interleave(tensor([1, 3]), dim=0)),
    Row("permute", lambda z: z.permute(2, 0, 1), shape=E),
    Row("torch.permute", lambda z: torch.permute(z, (1, 0, 2)), shape=E),
    Row("permute tuple negative", lambda z: z.permute((-1, 0, 1)), shape=E),
    Row("transpose", lambda z: z.transpose(0, 1)),
    Row("torch.transpose", lambda z: torch.transpose(z, -1, 0), shape=E),
    Row("t()", lambda z: z.t()),
    Row(".T", lambda z: z.T),
    Row(".mT", lambda z: z.mT, shape=E),
    Row("swapaxes", lambda z: z.swapaxes(0, 2), shape=E),
    Row("swapdims", lambda z: torch.swapdims(z, 0, 1), shape=E),
    Row("movedim", lambda z: z.movedim(0, -1), shape=E),
    Row("movedim tuples", lambda z: torch.movedim(z, (0, 1), (2, 0)), shape=E),
    Row("moveaxis", lambda z: torch.moveaxis(z, 1, 0), shape=E),
    Row("flip", lambda z: z.flip(0)),
    Row("flip two", lambda z: torch.flip(z, (0, 1))),
    Row("z+flip", lambda z: z + 2 * z.flip(-1)),
    Row("fliplr", lambda z: torch.fliplr(z)),
    Row("flipud", lambda z: z.flipud()),
    Row("roll", lambda z: z.roll(1, 1)),
    Row("roll batch", lambda z: z - torch.roll(z, 1, 0)),
    Row("roll tuple", lambda z: z.roll((1, -1), (0, 1))),
    Row("roll flat", lambda z: z.roll(2)),
    Row("pad", lambda z: F.pad(z, (1, 2))),
    Row("pad value", lambda z: F.pad(z, (1, 0, 2, 1), value=0.7)),
    Row("pad crop", lambda z: F.pad(z, (-1, 1))),
    Row("pad reflect", lambda z: F.pad(z, (2, 1), mode="reflect")),
    Row("pad replicate", lambda z: F.pad(z, (2, 1), mode="replicate")),
    Row("pad circular", lambda z: F.pad(z, (2, 1), mode="circular")),
    Row("pad reflect 2d", lambda z: F.pad(z, (1, 1, 0, 1), mode="reflect"), shape=C2),
    Row("pad replicate 2d", lambda z: F.pad(z, (1, 1, 2, 1), mode="replicate"), shape=C2),
    Row("pad circular 2d", lambda z: F.pad(z, (1, 1, 0, 1), mode="circular"), shape=C2),
    Row("pad then sum", lambda z, w: (F.pad(z, (1, 1), value=2.0) * w).sum(-1), (("B", 5),)),
    Row("diagonal", lambda z: z.diagonal(), shape=(3, 3), batched=False),
    Row("diag_embed", lambda z: torch.diag_embed(z)),
    Row("tril", lambda z: z.tril()),
    Row("triu", lambda z: torch.triu(z, 1)),
    fixed("unfold", lambda z: z.unfold(1, 2, 1)),
    Row("narrow", lambda z: z.narrow(1, 1, 2)),
    Row("select", lambda z: z.select(1, -1)),
    Row("new dims then linear", lambda z, w: z[:, None].expand(-1, 2, -1) @ w, ((3, 4),)),
]

IDX = tensor([2, 0, 2, 1])
GRID = tensor([[0, 2], [1, 1], [2, 0]])
R: Shape = (3, 3)
Q: Shape = (3, 2, 3)

INDEXING = [
    fixed("z[0]", lambda z: z[0]),
    fixed("z[-1]", lambda z: z[-1]),
    fixed("z[1, 2]", lambda z: z[1, 2]),
    Row("z[:, 1]", lambda z: z[:, 1]),
    Row("z[:, -2:]", lambda z: z[:, -2:]),
    Row("z[:, ::2]", lambda z: z[:, ::2]),
    fixed("z[::2]", lambda z: z[::2], shape=R),
    fixed("z[1:, None, 0]", lambda z: z[1:, None, 0], shape=R),
    Row("z[None]", lambda z: z[None]),
    Row("z[..., None]", lambda z: z[..., None]),
    Row("z[:, None]", lambda z: z[:, None]),
    Row("z[..., 0]", lambda z: z[..., 0], shape=E),
    Row("z[:, ..., 1:]", lambda z: z[:, ..., 1:], shape=E),
    Row("z[()]", lambda z: z[()]),
    Row("z[...]", lambda z: z[...]),
    Row("z[:0] empty", lambda z: z[:, :0]),
    fixed("z[list]", lambda z: z[[1, 0, 1]]),
    Row("z[:, list]", lambda z: z[:, [2, 0]]),
    fixed("z[range]", lambda z: z[range(2)]),
    fixed("z[numpy]", lambda z: z[np.array([1, 0])]),
    fixed("z[numpy int]", lambda z: z[np.int64(1)]),
    fixed("z[0-d tensor]", lambda z: z[tensor(1)]),
    fixed("z[:, 0-d tensor]", lambda z: z[:, tensor(2)]),
    fixed("z[idx]", lambda z: z[IDX], shape=R),
    fixed("z[negative idx]", lambda z: z[tensor([-1, 0, -3])], shape=R),
    Row("z[:, idx]", lambda z: z[:, IDX]),
    fixed("z[grid]", lambda z: z[GRID], shape=R),
    Row("z[:, grid]", lambda z: z[:, GRID]),
    fixed("z[i, j]", lambda z: z[IDX, tensor([0, 1, 0, 2])], shape=R),
    fixed("z[i, j] broadcast", lambda z: z[GRID, tensor([0, 2])], shape=R),
    fixed("z[i, j] grid", lambda z: z[IDX[:, None], tensor([0, 1])], shape=R),
    fixed("z[i, :, j] separated", lambda z: z[tensor([2, 0]), :, tensor([1, 1])], shape=Q),
    fixed("z[:, i, j] adjacent", lambda z: z[:, tensor([1, 0]), tensor([2, 2])], shape=Q),
    fixed("z[i, j, :]", lambda z: z[tensor([1, 0]), tensor([1, 1])], shape=Q),
    fixed("z[i, None, j]", lambda z: z[IDX, None, IDX.flip(0)], shape=R),
    fixed("z[0, :, idx]", lambda z: z[0, :, IDX], shape=Q),
    fixed("z[idx, 1]", lambda z: z[IDX, 1], shape=R),
    fixed("z[idx, 1:]", lambda z: z[IDX, 1:], shape=R),
    fixed("z[idx, None]", lambda z: z[IDX, None], shape=R),
    fixed("z[..., idx, 0]", lambda z: z[..., tensor([1, 0]), 0], shape=Q),
    fixed("z[idx][:, idx]", lambda z: z[IDX][:, IDX], shape=R),
    fixed("z[idx][1:]", lambda z: z[IDX][1:], shape=R),
    fixed("z[idx][idx]", lambda z: z[IDX][tensor([3, 1, 1])], shape=R),
    fixed("z[empty idx]", lambda z: z[tensor([], dtype=torch.long)], shape=R),
    fixed("z[mask 2d]", lambda z: z[tensor([[True, False, True], [False, True, True]])]),
    fixed("z[mask rows]", lambda z: z[tensor([True, False, True])], shape=R),
    Row("z[:, mask]", lambda z: z[:, tensor([True, False, True])]),
    fixed("z[mask, 0]", lambda z: z[tensor([True, False, True]), 0], shape=R),
    fixed("z[mask, idx]", lambda z: z[tensor([True, False, True]), tensor([0, 2])], shape=R),
    fixed("z[list of bool]", lambda z: z[[True, False, True]], shape=R),
    fixed("z[numpy mask]", lambda z: z[np.array([True, False, True])], shape=R),
    fixed("z[empty mask]", lambda z: z[tensor([False, False])]),
    fixed("gather of a linear map", lambda z, w: (z @ w)[IDX], (3, 2), shape=R),
    fixed("linear map of a gather", lambda z, w: z[IDX] @ w, (3, 2), shape=R),
    fixed("mix of gathered rows", lambda z, w: w @ z[IDX], (2, 4), shape=R),
    fixed("difference of gathers", lambda z: z[IDX] - z[IDX.flip(0)], shape=R),
    fixed("gathers weighted", lambda z, w: z[IDX] * w + z[1], (4, 1), shape=R),
    fixed("gather summed", lambda z, w: (z[IDX] * w).sum(0), (4, 3), shape=R),
    fixed("gather mean removed", lambda z: z[IDX] - z[IDX].mean(0), shape=R),
    fixed("index_select", lambda z: torch.index_select(z, 0, IDX), shape=R),
    Row("z.index_select", lambda z: z.index_select(1, IDX)),
    fixed("gather", lambda z: torch.gather(z, 1, tensor([[0, 2], [1, 1]]))),
    fixed("z.gather(0)", lambda z: z.gather(0, tensor([[0, 1, 1], [1, 1, 0], [0, 0, 0]]))),
    fixed("gather fewer rows", lambda z: z.gather(1, tensor([[2, 0]]))),
    fixed("take_along_dim", lambda z: torch.take_along_dim(z, tensor([[2], [0]]), 1)),
    fixed("take_along_dim broadcast", lambda z: z.take_along_dim(tensor([[2, 1]]), dim=1)),
    fixed("take_along_dim flat", lambda z: z.take_along_dim(tensor([5, 0, 3]))),
    fixed("take", lambda z: torch.take(z, tensor([5, 0, 0]))),
    fixed("masked_select", lambda z: z.masked_select(tensor([True, False, True]))),
    fixed("select_column", lambda z: torch.select(z, 0, 1)),
]

MASK = tensor([True, False, True])

JOINING = [
    Row("cat", lambda z, w: torch.cat([z, w]), (BW,)),
    Row("cat same", lambda z, w: torch.cat([w, z, 2 * z], 1), (("B", 2),)),
    Row("cat dim=-1", lambda z: torch.cat((z, z.flip(-1)), dim=-1)),
    Row("cat slices", lambda z: torch.cat([z[:, 1:], z[:, :1]], -1)),
    Row("cat ones", lambda z: torch.cat([z, torch.ones_like(z)], -1)),
    Row("torch.concat", lambda z, w: torch.concat([z, w], 0), (BW,)),
    Row("hstack", lambda z, w: torch.hstack([z, w]), (BW,)),
    Row("vstack", lambda z, w: torch.vstack([z, w]), (BW,)),
    Row("stack", lambda z, w: torch.stack([z, w]), (BW,)),
    Row("stack dim=1", lambda z: torch.stack([z, 3 * z, -z], dim=1)),
    Row("stack dim=-1", lambda z: torch.stack([z[:, 0], z.sum(-1)], -1)),
    fixed("stack scalars", lambda z: torch.stack([z[0, 0], z[1, 2], z.sum()])),
    Row("split", lambda z: torch.cat(torch.split(z, 2, dim=1)[::-1], 1)),
    Row("split sizes", lambda z: z.split([1, 2], -1)[1]),
    Row("chunk", lambda z: z.chunk(3, 1)[1] - z.chunk(3, 1)[0]),
    fixed("chunk rows", lambda z: torch.chunk(z, 2)[1]),
    Row("tensor_split", lambda z: z.tensor_split(2, dim=1)[0]),
    Row("unbind", lambda z: z.unbind(-1)[2] + z.unbind(-1)[0]),
    fixed("torch.unbind", lambda z: torch.unbind(z)[1]),
    fixed("iteration", lambda z: sum((k + 1) * row for k, row in enumerate(z))),
    fixed("unpacking", lambda z: (lambda a, b: a - 2 * b)(*z)),
    fixed("len", lambda z: z * len(z)),
    Row("where", lambda z, w: torch.where(MASK, z, w), (BW,)),
    Row("where second", lambda z, w: torch.where(MASK, w, z), (BW,)),
    Row("where number", lambda z: torch.where(MASK, z, 0.5)),
    Row("where both random", lambda z: torch.where(MASK, z, -z.flip(-1))),
    Row("z.where", lambda z, w: z.where(MASK, w), (BW,)),
    fixed("where rows", lambda z, w: torch.where(tensor([[True], [False]]), z, w), (2, 3)),
    fixed("where broadcast", lambda z: torch.where(MASK[:, None], z[0], z[1])),
    Row("masked_fill", lambda z: z.masked_fill(MASK, 1.5)),
    fixed("masked_fill rows", lambda z: torch.masked_fill(z, tensor([[True], [False]]), 0.0)),
    Row("masked_fill 0-d", lambda z: z.masked_fill(~MASK, tensor(2.0, dtype=z.dtype))),
]

CONVERSIONS = [
    Row("to(dtype)", lambda z: z.to(torch.float64)),
    Row("to(device)", lambda z: z.to("cpu").to(here())),
    Row("to(device, dtype)", lambda z: z.to("cpu", torch.float64).to(here())),
    Row("to(other)", lambda z, w: z.to(w), (BW,)),
    Row("type", lambda z: z.type(torch.float64)),
    Row("type_as", lambda z, w: z.type_as(w), (BW,)),
    Row("double", lambda z: z.double()),
    Row("cpu", lambda z: z.cpu().to(here())),
    Row("plain.to(z)", lambda z, w: z * w.detach().float().to(z), (BW,)),
    Row("plain.type_as(z)", lambda z, w: z + w.type_as(z), (BW,)),
    Row("plain.view_as(z)", lambda z, w: z + w.view_as(z), (("B", 1, 3),)),
    Row("plain.reshape_as(z)", lambda z, w: z + w.reshape_as(z), (("B", 1, 3),)),
    Row("plain.expand_as(z)", lambda z, w: z + w.expand_as(z), ((1, 3),)),
    Row("zeros_like", lambda z: torch.cat([z, torch.zeros_like(z), z.new_ones(1, 3)])),
    Row("clone", lambda z: z.clone()),
    Row("contiguous", lambda z: z.T.contiguous()),
    Row("dropout eval", lambda z: F.dropout(z, 0.5, training=False)),
    Row("nn.Dropout eval", lambda z: torch.nn.Dropout(0.3).eval()(z)),
    Row("nn.Dropout inplace eval", lambda z: torch.nn.Dropout(0.3, inplace=True).eval()(z * 2)),
    Row("dropout p=0", lambda z: F.dropout(z, 0.0, training=True)),
    Row("nn.Identity", lambda z: torch.nn.Identity()(z) * 2),
    Row(
        "batch_norm eval",
        lambda z, m, v, w, b: F.batch_norm(z, m.detach(), v.detach().exp(), w, b, training=False),
        ((3,), (3,), (3,), (3,)),
    ),
    Row(
        "batch_norm eval 2d",
        lambda z, m, v: F.batch_norm(z, m.detach(), v.detach().exp()),
        ((2,), (2,)),
        shape=C2,
    ),
    Row("nn.BatchNorm1d eval", lambda z: _module(torch.nn.BatchNorm1d(3), z)(z)),
    Row("nn.BatchNorm2d eval", lambda z: _module(torch.nn.BatchNorm2d(2), z)(z), shape=C2),
]

POOLING = [
    Row("avg_pool1d", lambda z: F.avg_pool1d(z, 2), shape=C1),
    Row("avg_pool1d stride padding", lambda z: F.avg_pool1d(z, 3, 2, 1), shape=C1),
    Row("avg_pool2d", lambda z: F.avg_pool2d(z, 2), shape=C2),
    Row(
        "avg_pool2d options",
        lambda z: F.avg_pool2d(z, 2, 1, 1, ceil_mode=True, count_include_pad=False),
        shape=C2,
    ),
    Row("avg_pool2d divisor", lambda z: F.avg_pool2d(z, 2, divisor_override=3), shape=C2),
    Row("avg_pool3d", lambda z: F.avg_pool3d(z, (1, 2, 2)), shape=C3),
    Row("adaptive_avg_pool1d", lambda z: F.adaptive_avg_pool1d(z, 2), shape=C1),
    Row("adaptive_avg_pool2d", lambda z: F.adaptive_avg_pool2d(z, (2, 3)), shape=C2),
    Row("adaptive_avg_pool3d", lambda z: F.adaptive_avg_pool3d(z, 1), shape=C3),
    Row("nn.AvgPool2d", lambda z: torch.nn.AvgPool2d(2)(z), shape=C2),
    Row("nn.AdaptiveAvgPool2d", lambda z: torch.nn.AdaptiveAvgPool2d(1)(z), shape=C2),
    Row("interpolate nearest", lambda z: F.interpolate(z, scale_factor=2), shape=C2),
    Row("interpolate nearest size", lambda z: F.interpolate(z, size=7), shape=C1),
    Row("interpolate nearest-exact", lambda z: F.interpolate(z, 7, mode="nearest-exact"), shape=C1),
    Row("interpolate linear", lambda z: F.interpolate(z, size=8, mode="linear"), shape=C1),
    Row(
        "interpolate bilinear",
        lambda z: F.interpolate(z, scale_factor=2, mode="bilinear", align_corners=False),
        shape=C2,
    ),
    Row(
        "interpolate bilinear corners",
        lambda z: F.interpolate(z, size=(5, 3), mode="bilinear", align_corners=True),
        shape=C2,
    ),
    Row("interpolate bicubic", lambda z: F.interpolate(z, size=(4, 6), mode="bicubic"), shape=C2),
    Row("interpolate trilinear", lambda z: F.interpolate(z, size=3, mode="trilinear"), shape=C3),
    Row("interpolate area", lambda z: F.interpolate(z, size=(2, 2), mode="area"), shape=C2),
    Row(
        "nn.Upsample",
        lambda z: torch.nn.Upsample(scale_factor=2, mode="bilinear")(z),
        shape=C2,
    ),
    Row("irfft(rfft)", lambda z: torch.fft.irfft(torch.fft.rfft(z), n=5), shape=("B", 5)),
    Row(
        "fft filter",
        lambda z, w: torch.fft.irfft(torch.fft.rfft(z) * torch.fft.rfft(w), n=5),
        ((5,),),
        shape=("B", 5),
    ),
    fixed(
        "irfft(rfft, dim=0)",
        lambda z: torch.fft.irfft(torch.fft.rfft(z, dim=0)[:2], n=4, dim=0),
        shape=(4, 2),
    ),
    Row(
        "rfft real part",
        lambda z: torch.fft.rfft(z).real - torch.fft.rfft(z).imag,
        shape=("B", 5),
    ),
]

IDX3 = tensor([0, 1, 1])

KEYWORDS = [
    Row("input= other=", lambda z, w: torch.add(input=z, other=w), (BW,)),
    Row("plain, other=z", lambda z, w: torch.sub(w, other=z), (BW,)),
    Row("sum dim= keepdim=", lambda z: torch.sum(input=z, dim=1, keepdim=True)),
    Row("sum axis=", lambda z: z.sum(axis=1)),
    Row("mean axis= keepdims=", lambda z: z.mean(axis=-1, keepdims=True)),
    Row("sum list", lambda z: z.sum([0, 1])),
    Row("sum no dims", lambda z: z.sum(())),
    Row("cumsum dim=", lambda z: z.cumsum(dim=0)),
    Row("reshape shape=", lambda z: z.reshape(shape=(-1,))),
    Row("view size=", lambda z: z.view(size=(-1, 3, 1))),
    Row("expand size=", lambda z: z.expand(size=(2, -1, 3))),
    Row("repeat tuple", lambda z: z.repeat((2, 1))),
    Row("permute dims=", lambda z: z.permute(dims=(1, 0))),
    Row("torch.permute dims=", lambda z: torch.permute(z, dims=(1, 0))),
    Row("transpose dim0= dim1=", lambda z: z.transpose(dim0=0, dim1=1)),
    Row("flip dims=", lambda z: torch.flip(z, dims=[0])),
    Row("roll shifts= dims=", lambda z: torch.roll(z, shifts=(1,), dims=(0,))),
    Row("unsqueeze dim=", lambda z: z.unsqueeze(dim=0)),
    Row("squeeze dim=", lambda z: z[None].squeeze(dim=0)),
    Row("unflatten dim= sizes=", lambda z: z.unflatten(dim=1, sizes=(3, 1))),
    Row("cat tensors= dim=", lambda z: torch.cat(tensors=[z, z], dim=1)),
    Row("stack tensors= dim=", lambda z: torch.stack(tensors=(z, z), dim=-1)),
    Row("split dim=", lambda z: torch.split(z, split_size_or_sections=1, dim=1)[2]),
    Row("chunk chunks=", lambda z: z.chunk(chunks=3, dim=1)[0]),
    Row("where names", lambda z, w: torch.where(condition=w > 0, input=z, other=w), (BW,)),
    Row("masked_fill names", lambda z: z.masked_fill(mask=MASK, value=0.5)),
    Row("matmul names", lambda z, w: torch.matmul(input=z, other=w), ((3, 2),)),
    Row("mm mat2=", lambda z, w: torch.mm(z, mat2=w), ((3, 2),)),
    Row("bmm mat2=", lambda z, w: torch.bmm(z[None], mat2=w[None]), ((3, 2),)),
    Row("mv vec=", lambda z, w: torch.mv(z, vec=w), ((3,),)),
    Row("addmm mat1= mat2=", lambda z, w: torch.addmm(w[0], mat1=z, mat2=w), ((3, 3),)),
    fixed("outer vec2=", lambda z, w: torch.outer(z[0], vec2=w), (2,)),
    fixed("dot tensor=", lambda z, w: torch.dot(z[0], tensor=w), (3,)),
    Row("linear names", lambda z, w, b: F.linear(z, weight=w, bias=b), ((2, 3), (2,))),
    Row("einsum equation first", lambda z, w: torch.einsum("ij,jk", z, w), ((3, 2),)),
    Row("einsum sublists", lambda z, w: torch.einsum(z, [0, 1], w, [1, 2], [0, 2]), ((3, 2),)),
    Row("tensordot names", lambda z, w: torch.tensordot(a=z, b=w, dims=1), ((3, 2),)),
    Row("conv1d names", lambda z, w: F.conv1d(input=z[:, None], weight=w), ((2, 1, 2),)),
    Row("pad names", lambda z: F.pad(input=z, pad=(1, 1), mode="constant", value=1.0)),
    Row("index_select names", lambda z: torch.index_select(input=z, dim=1, index=IDX3)),
    Row("gather names", lambda z: z.gather(dim=1, index=z.new_zeros(z.shape[0], 2).long())),
    Row("repeat_interleave names", lambda z: z.repeat_interleave(repeats=2, dim=1)),
    Row("avg_pool1d names", lambda z: F.avg_pool1d(z[None], kernel_size=2, stride=1)),
    Row("dropout names", lambda z: F.dropout(input=z, p=0.5, training=False)),
    Row(
        "interpolate recompute_scale_factor",
        lambda z: F.interpolate(
            z[:, None], scale_factor=1.5, mode="linear", recompute_scale_factor=True
        ),
    ),
]

ROWS = [
    *ARITHMETIC,
    *PRODUCTS,
    *CONVOLUTIONS,
    *REDUCTIONS,
    *STRUCTURE,
    *INDEXING,
    *JOINING,
    *CONVERSIONS,
    *POOLING,
    *KEYWORDS,
]
