"""Random programs of linear rules, for the property tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from tests.random_tensor.sources import Source, source

MAX_ELEMENTS = 48
CARDINALITY = 3
CATEGORICAL = f"categorical{CARDINALITY}"
VECTOR_KINDS = (
    "normal",
    "normal_plate",
    "mvn_covariance",
    "mvn_precision",
    "mvn_tril",
    "low_rank",
    "bernoulli_logits",
    "bernoulli_plate",
    "one_hot",
)

Values = list[Tensor]
Step = tuple[Any, ...]
"""Text, function of all values so far, and functions whose zeros are kinks or jumps of the step."""


class Program:
    """Straight-line program: latents ``v0, v1, ...``, then one value per step."""

    def __init__(self, kinds: list[tuple[str, tuple[int, ...]]]) -> None:
        self.kinds = kinds
        self.steps: list[Step] = []

    def sources(self) -> list[Source]:
        """Sources with fresh leaves."""
        return [source(kind, shape, seed=i) for i, (kind, shape) in enumerate(self.kinds)]

    def values(self, *latents: Tensor) -> Values:
        """All values of a run."""
        values = list(latents)
        for _, function, *_ in self.steps:
            values.append(function(values))
        return values

    def kinks(self) -> list[Callable[..., Tensor]]:
        """Programs of the latents whose zeros are where this one is not smooth."""
        found = []
        for _, _, *kinks in self.steps:
            found += [lambda *latents, kink=kink: kink(self.values(*latents)) for kink in kinks]
        return found

    def __call__(self, *latents: Tensor) -> Tensor:
        return self.values(*latents)[-1]

    def __repr__(self) -> str:
        lines = [f"v{i} ~ {kind}{shape}" for i, (kind, shape) in enumerate(self.kinds)]
        lines += [f"v{len(lines) + i} = {text}" for i, (text, *_) in enumerate(self.steps)]
        return "\n" + "\n".join(lines)


def plain(shape, seed: int) -> Tensor:
    """Plain operand; written ``w(seed, shape)`` in a program's repr."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


class Steps:
    """Each method draws one step for value ``i``, or None where the shape leaves no sense."""

    def __init__(self, random: Random, shapes: list[tuple[int, ...]], operands: list[int]) -> None:
        self.random = random
        self.shapes = shapes
        self.operands = operands
        self.i = operands[-1] if random.random() < 0.6 else random.choice(operands)
        self.shape = shapes[self.i]
        self.v = f"v{self.i}"

    def _dim(self) -> int:
        return self.random.randint(-len(self.shape), len(self.shape) - 1)

    def _weight(self, shape) -> tuple[str, Tensor]:
        seed = self.random.randint(0, 99)
        return f"w({seed}, {tuple(shape)})", plain(shape, seed)

    def _positions(self, size: int, shape) -> Tensor:
        count = math.prod(shape)
        values = [self.random.randint(-size, size - 1) for _ in range(count)]
        return torch.tensor(values, dtype=torch.long).reshape(shape)

    def _mask(self, shape) -> Tensor:
        count = math.prod(shape)
        bits = [self.random.random() < 0.5 for _ in range(count)]
        return torch.tensor(bits, dtype=torch.bool).reshape(shape)

    def _other(self) -> int | None:
        fitting = [j for j in self.operands if _broadcast(self.shape, self.shapes[j]) is not None]
        return self.random.choice(fitting) if fitting else None

    def number(self) -> Step:
        a = self.random.choice([-2.0, 0.5, 3])
        b = self.random.choice([-1.0, 2])
        i = self.i
        return self.random.choice(
            [
                (f"{self.v} * {a} + {b}", lambda v: v[i] * a + b),
                (f"{b} - {self.v} / {a}", lambda v: b - v[i] / a),
                (f"-{self.v}", lambda v: -v[i]),
            ]
        )

    def plain_operand(self) -> Step:
        sizes = [self.random.choice([1, n]) for n in self.shape]
        if len(sizes) < 3 and self.random.random() < 0.5:
            sizes = [2, *sizes]
        text, w = self._weight(sizes)
        i = self.i
        return self.random.choice(
            [
                (f"{self.v} * {text}", lambda v: v[i] * w),
                (f"{text} - {self.v}", lambda v: w - v[i]),
                (f"{text} * {self.v} + {text}", lambda v: w * v[i] + w),
            ]
        )

    def combine(self) -> Step | None:
        j = self._other()
        if j is None:
            return None
        i = self.i
        return self.random.choice(
            [
                (f"{self.v} + v{j}", lambda v: v[i] + v[j]),
                (f"{self.v} - 2 * v{j}", lambda v: v[i] - 2 * v[j]),
                (f"iadd({self.v}.clone(), v{j})", lambda v: _rebind(v[i] * 1 + 0 * v[j], v[j])),
            ]
        )

    def reduce(self) -> Step | None:
        if not self.shape:
            return None
        i, dim, keep = self.i, self._dim(), self.random.random() < 0.5
        return self.random.choice(
            [
                (f"{self.v}.sum({dim}, {keep})", lambda v: v[i].sum(dim, keep)),
                (f"{self.v}.mean({dim}, {keep})", lambda v: v[i].mean(dim, keep)),
                (
                    f"{self.v} - {self.v}.mean({dim}, True)",
                    lambda v: v[i] - v[i].mean(dim, True),
                ),
                (f"{self.v}.cumsum({dim})", lambda v: v[i].cumsum(dim)),
                (f"{self.v}.sum()", lambda v: v[i].sum()),
            ]
        )

    def neighbours(self) -> Step | None:
        if not self.shape:
            return None
        i, dim = self.i, self._dim()
        if self.shape[dim] < 2:
            return None
        n = self.shape[dim] - 1
        return self.random.choice(
            [
                (f"{self.v}.diff(dim={dim})", lambda v: v[i].diff(dim=dim)),
                (
                    f"{self.v}.narrow({dim}, 1, {n}) - {self.v}.narrow({dim}, 0, {n})",
                    lambda v: v[i].narrow(dim, 1, n) - v[i].narrow(dim, 0, n),
                ),
            ]
        )

    def basic_index(self) -> Step | None:
        if not self.shape:
            return None
        items, texts = [], []
        for size in self.shape:
            kind = self.random.choice(["all", "all", "int", "slice", "none"])
            if kind == "int":
                items.append(self.random.randint(-size, size - 1))
            elif kind == "slice":
                start = self.random.randint(0, size - 1)
                items.append(slice(start, None, self.random.choice([1, 2])))
            else:
                if kind == "none":
                    items.append(None)
                items.append(slice(None))
        texts = [repr(item) for item in items]
        i, index = self.i, tuple(items)
        return f"{self.v}[{', '.join(texts)}]", lambda v: v[i][index]

    def advanced_index(self) -> Step | None:
        if not self.shape:
            return None
        shape = self.random.choice([(2,), (3,), (2, 2), (2, 1)])
        dims = {self.random.randrange(len(self.shape)) for _ in range(2)}
        items: list = [slice(None)] * len(self.shape)
        for dim in dims:
            items[dim] = self._positions(self.shape[dim], shape)
            if len(dims) == 2 and dim == max(dims) and self.random.random() < 0.5:
                items[dim] = self._positions(self.shape[dim], shape[-1:])
        if self.random.random() < 0.5:
            items.insert(self.random.randint(0, len(items)), None)
        i, index = self.i, tuple(items)
        return f"{self.v}[{_text(index)}]", lambda v: v[i][index]

    def mask_index(self) -> Step | None:
        if not self.shape:
            return None
        depth = self.random.randint(1, len(self.shape))
        mask = self._mask(self.shape[:depth])
        i = self.i
        if not mask.any():
            return None
        return f"{self.v}[{mask.tolist()}]", lambda v: v[i][mask]

    def gather(self) -> Step | None:
        if not self.shape:
            return None
        i, dim = self.i, self._dim()
        size = self.shape[dim]
        shape = list(self.shape)
        shape[dim] = self.random.randint(1, 3)
        wide = self._positions(size, shape) % size
        flat = wide.reshape(-1)[:3]
        return self.random.choice(
            [
                (f"{self.v}.gather({dim}, {wide.tolist()})", lambda v: v[i].gather(dim, wide)),
                (
                    f"take_along_dim({self.v}, {wide.tolist()}, {dim})",
                    lambda v: torch.take_along_dim(v[i], wide, dim),
                ),
                (
                    f"{self.v}.index_select({dim}, {flat.tolist()})",
                    lambda v: v[i].index_select(dim, flat),
                ),
            ]
        )

    def move(self) -> Step | None:
        if not self.shape:
            return None
        i, dim, other = self.i, self._dim(), self._dim()
        shift = self.random.randint(-2, 2)
        order = tuple(self.random.sample(range(len(self.shape)), len(self.shape)))
        after = self.random.randint(-len(self.shape) - 1, len(self.shape))
        copies = self.random.randint(1, 2)
        left, right = self.random.randint(0, 2), self.random.randint(0, 2)
        return self.random.choice(
            [
                (f"{self.v}.flip({dim})", lambda v: v[i].flip(dim)),
                (f"{self.v}.roll({shift}, {dim})", lambda v: v[i].roll(shift, dim)),
                (f"{self.v}.transpose({dim}, {other})", lambda v: v[i].transpose(dim, other)),
                (f"{self.v}.permute({order})", lambda v: v[i].permute(order)),
                (f"{self.v}.reshape(-1)", lambda v: v[i].reshape(-1)),
                (f"{self.v}.unsqueeze({after})", lambda v: v[i].unsqueeze(after)),
                (f"{self.v}.squeeze()", lambda v: v[i].squeeze()),
                (
                    f"{self.v}.repeat_interleave(2, {dim})",
                    lambda v: v[i].repeat_interleave(2, dim),
                ),
                (f"{self.v}.tile(({copies}, 2))", lambda v: v[i].tile((copies, 2))),
                (
                    f"F.pad({self.v}, ({left}, {right}), value=0.5)",
                    lambda v: F.pad(v[i], (left, right), value=0.5),
                ),
                (f"{self.v}.expand(2, ...)", lambda v: v[i].expand(2, *v[i].shape)),
            ]
        )

    def regroup(self) -> Step | None:
        count = math.prod(self.shape)
        factors = [n for n in range(1, count + 1) if count % n == 0]
        i, n = self.i, self.random.choice(factors)
        return f"{self.v}.reshape({n}, -1)", lambda v: v[i].reshape(n, -1)

    def product(self) -> Step | None:
        if not self.shape:
            return None
        i, n, d = self.i, self.shape[-1], len(self.shape)
        right, w = self._weight((n, 2))
        vector, u = self._weight((n,))
        per_row, p = self._weight((*self.shape, 2))
        choices = [
            (f"{self.v} @ {right}", lambda v: v[i] @ w),
            (f"F.linear({self.v}, {right}.T)", lambda v: F.linear(v[i], w.T)),
            (f"{self.v} @ {vector}", lambda v: v[i] @ u),
            (
                f"einsum('...i,...ij->...j', {self.v}, {per_row})",
                lambda v: torch.einsum("...i,...ij->...j", v[i], p),
            ),
        ]
        if d >= 2:
            left, m = self._weight((2, self.shape[-2]))
            batch, b = self._weight((*self.shape[:-2], 2, self.shape[-2]))
            choices += [
                (f"{left} @ {self.v}", lambda v: m @ v[i]),
                (f"{batch} @ {self.v}", lambda v: b @ v[i]),
                (
                    f"tensordot({left}, {self.v}.mT, ([1], [-1]))",
                    lambda v: torch.tensordot(m, v[i].mT, ([1], [-1])),
                ),
            ]
        return self.random.choice(choices)

    def convolve(self) -> Step | None:
        if not self.shape or math.prod(self.shape) < 3:
            return None
        text, w = self._weight((2, 1, 2))
        i = self.i
        return self.random.choice(
            [
                (
                    f"conv1d({self.v}.reshape(1, 1, -1), {text})",
                    lambda v: F.conv1d(v[i].reshape(1, 1, -1), w),
                ),
                (
                    f"conv_transpose1d({self.v}.reshape(-1, 2?), {text})",
                    lambda v: F.conv_transpose1d(
                        v[i].reshape(1, -1, 1).repeat(1, 2, 1)[:, :2], w, stride=2
                    ),
                ),
            ]
        )

    def join(self) -> Step | None:
        same = [j for j in self.operands if self.shapes[j] == self.shape]
        i, j = self.i, self.random.choice(same)
        choices = [(f"stack([{self.v}, v{j}], -1)", lambda v: torch.stack([v[i], v[j]], -1))]
        if self.shape:
            dim = self._dim()
            text = f"cat([{self.v}, v{j}], {dim})"
            choices.append((text, lambda v: torch.cat([v[i], v[j]], dim)))
        return self.random.choice(choices)

    def separate(self) -> Step | None:
        if not self.shape:
            return None
        i, dim = self.i, self._dim()
        n = self.random.randint(0, self.shape[dim] - 1)
        return self.random.choice(
            [
                (f"{self.v}.unbind({dim})[{n}]", lambda v: v[i].unbind(dim)[n]),
                (f"{self.v}.split(1, {dim})[{n}]", lambda v: v[i].split(1, dim)[n]),
                (f"{self.v}.chunk(2, {dim})[0]", lambda v: v[i].chunk(2, dim)[0]),
            ]
        )

    def choose(self) -> Step | None:
        j = self._other()
        if j is None:
            return None
        i, mask = self.i, self._mask(self.shape)
        text = f"{mask.tolist()}"
        return self.random.choice(
            [
                (f"where({text}, {self.v}, v{j})", lambda v: torch.where(mask, v[i], v[j])),
                (f"where({text}, 1.5, {self.v})", lambda v: torch.where(mask, 1.5, v[i])),
                (f"{self.v}.masked_fill({text}, 2.0)", lambda v: v[i].masked_fill(mask, 2.0)),
            ]
        )


NAMES = [name for name in vars(Steps) if not name.startswith("_")]


class WildSteps(Steps):
    """Also steps that are not linear, which may be refused or exact but never wrong."""

    def pointwise(self) -> Step:
        i = self.i
        return self.random.choice(
            [
                (f"{self.v}.exp()", lambda v: v[i].exp()),
                (f"{self.v} ** 2", lambda v: v[i] ** 2),
                (f"{self.v}.abs()", lambda v: v[i].abs(), lambda v: v[i]),
                (
                    f"({self.v} > 0.5).double()",
                    lambda v: (v[i] > 0.5).double(),
                    lambda v: v[i] - 0.5,
                ),
                (f"where({self.v} == 1, {self.v}, 2)", lambda v: torch.where(v[i] == 1, v[i], 2.0)),
                (
                    f"{self.v}.clamp(0, 1)",
                    lambda v: v[i].clamp(0, 1),
                    lambda v: v[i],
                    lambda v: v[i] - 1,
                ),
            ]
        )

    def multiply(self) -> Step | None:
        j = self._other()
        if j is None:
            return None
        i = self.i
        return self.random.choice(
            [
                (f"{self.v} * v{j}", lambda v: v[i] * v[j]),
                (f"{self.v} * (1 - v{j})", lambda v: v[i] * (1 - v[j])),
                (f"({self.v} == v{j}).double()", lambda v: (v[i] == v[j]).double()),
                (
                    f"where(v{j} > 0, {self.v}, 0)",
                    lambda v: torch.where(v[j] > 0, v[i], 0.0),
                    lambda v: v[j],
                ),
                (
                    f"maximum({self.v}, v{j})",
                    lambda v: torch.maximum(v[i], v[j]),
                    lambda v: v[i] - v[j],
                ),
            ]
        )

    def look_up(self) -> Step:
        i = self.i
        text, w = self._weight((2, 2))
        return self.random.choice(
            [
                (
                    f"{text}[({self.v} > 0.3).long()]",
                    lambda v: w[(v[i] > 0.3).long()],
                    lambda v: v[i] - 0.3,
                ),
                (f"{text}[:, ({self.v} == 1).long()]", lambda v: w[:, (v[i] == 1).long()]),
            ]
        )


WILD_NAMES = [*NAMES, *[name for name in vars(WildSteps) if not name.startswith("_")] * 4]
WILD_KINDS = ("bernoulli_plate", "bernoulli_logits", "one_hot", "one_hot", "normal_plate")


def _broadcast(a, b) -> torch.Size | None:
    try:
        shape = torch.broadcast_shapes(a, b)
    except RuntimeError:
        return None
    return shape if math.prod(shape) <= MAX_ELEMENTS else None


def _rebind(total: Tensor, value: Tensor) -> Tensor:
    total += value
    return total


def _text(index) -> str:
    return ", ".join(str(x.tolist()) if isinstance(x, Tensor) else repr(x) for x in index)


def _lookup(random: Random, i: int, shape: tuple[int, ...]) -> Step:
    """First step of a categorical latent: read a table at a possibly rearranged index."""
    seed = random.randint(0, 99)
    table = plain((CARDINALITY, 2), seed)
    text = f"w({seed}, {(CARDINALITY, 2)})"
    n = shape[0]
    group = torch.tensor([random.randrange(n) for _ in range(random.randint(1, 4))])
    return random.choice(
        [
            (f"{text}[v{i}]", lambda v: table[v[i]]),
            (f"F.embedding(v{i}, {text})", lambda v: F.embedding(v[i], table)),
            (f"{text}.T[:, v{i}]", lambda v: table.T[:, v[i]]),
            (f"{text}[v{i}, 1]", lambda v: table[v[i], 1]),
            (f"{text}[v{i}[{group.tolist()}]]", lambda v: table[v[i][group]]),
            (f"{text}[v{i}.expand(2, -1)]", lambda v: table[v[i].expand(2, -1)]),
            (f"(v{i} == 1).double()", lambda v: (v[i] == 1).double()),
            (f"one_hot(v{i})", lambda v: F.one_hot(v[i], CARDINALITY).double()),
        ]
    )


def _program(random: Random, count: int, wild: bool) -> Program:
    kinds: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(random.choice([1, 1, 2, 2, 3])):
        kind = random.choice([*(WILD_KINDS if wild else VECTOR_KINDS), CATEGORICAL])
        if kind == CATEGORICAL:
            shape: tuple[int, ...] = (random.randint(1, 3),)
        else:
            rank = random.choice([1, 2, 2, 2, 3] if not wild else [1, 1, 2])
            shape = tuple(random.choice([1, 2, 2, 3] if rank < 3 else [1, 2]) for _ in range(rank))
        kinds.append((kind, shape))
    program = Program(kinds)
    operands = []
    for i, (kind, shape) in enumerate(kinds):
        if kind == CATEGORICAL:
            program.steps.append(_lookup(random, i, shape))
            operands.append(len(kinds) + len(program.steps) - 1)
        else:
            operands.append(i)
    latents = [
        torch.zeros(shape, dtype=torch.long if kind == CATEGORICAL else torch.float64)
        for kind, shape in kinds
    ]
    for _ in range(count):
        shapes = [tuple(value.shape) for value in program.values(*latents)]
        steps = WildSteps if wild else Steps
        name = random.choice(WILD_NAMES if wild else NAMES)
        step = getattr(steps(random, shapes, operands), name)()
        if step is None:
            continue
        program.steps.append(step)
        if 0 < program(*latents).numel() <= MAX_ELEMENTS:
            operands.append(len(kinds) + len(program.steps) - 1)
        else:
            program.steps.pop()
    if not program.steps:
        program.steps.append(("v0 * 2", lambda v: v[0] * 2))
    return program


@st.composite
def programs(draw: Callable, wild: bool = False) -> Program:
    """Up to three sources, then up to nine steps; later steps may use any earlier value again.

    One seed decides all choices, evenly; a failing program shrinks by losing its last steps.
    """
    return _program(Random(draw(st.integers(0, 2**32 - 1))), draw(st.integers(2, 9)), wild)
