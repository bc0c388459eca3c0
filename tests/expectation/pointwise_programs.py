"""Random pointwise programs of few random scalars, for the property tests."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from tests.expectation.pointwise_rows import Kind
from tests.random_tensor.programs import plain
from tests.random_tensor.sources import Source

MAX_ELEMENTS = 12
CARDINALITY = 3
INDEX = f"index{CARDINALITY}"
# family, shape, Gaussian scalars, joint values
LATENTS = (
    ("normal", (), 1, 1),
    ("normal", (1,), 1, 1),
    ("normal", (2,), 2, 1),
    ("normal", (2, 1), 2, 1),
    ("normal", (3,), 3, 1),
    ("mvn", (2,), 2, 1),
    ("mvn", (3,), 3, 1),
    ("bernoulli", (), 0, 2),
    ("bernoulli", (2,), 0, 4),
    ("bernoulli", (2, 2), 0, 16),
    ("one_hot", (3,), 0, 3),
    ("one_hot", (2, 3), 0, 9),
    (INDEX, (2,), 0, 9),
)
# Joint values allowed beside so many Gaussian scalars: the oracle's cost is their product.
MAX_VALUES = {0: 81, 1: 36, 2: 16, 3: 1}

Values = list[Tensor]


class Step:
    """One line of a program.

    :ivar positive: the value is exp of something: roots and logarithms of it are smooth.
    :ivar growth: 0 bounded, 1 as a straight line, 2 as a polynomial or exp of a straight line.
    :ivar kink: a value at whose zeros this one is not smooth.
    """

    def __init__(
        self,
        text: str,
        function: Callable[[Values], Tensor],
        *,
        positive: bool = False,
        growth: int = 1,
        kink: Callable[[Values], Tensor] | None = None,
    ) -> None:
        self.text = text
        self.function = function
        self.positive = positive
        self.growth = growth
        self.kink = kink

    def operands(self) -> set[int]:
        """Which values it is made of."""
        return {int(number) for number in re.findall(r"\bv(\d+)", self.text)}


class Program:
    """Straight-line program: latents ``v0, v1, ...``, then one value per step."""

    def __init__(self, kinds: list[Kind]) -> None:
        self.kinds = kinds
        self.steps: list[Step] = []

    def sources(self) -> list[Source]:
        """Sources with fresh leaves."""
        return [kind.source(i) for i, kind in enumerate(self.kinds)]

    def values(self, *latents: Tensor) -> Values:
        """All values of a run."""
        values = list(latents)
        for step in self.steps:
            values.append(step.function(values))
        return values

    def __call__(self, *latents: Tensor) -> Tensor:
        return self.values(*latents)[-1]

    def kinks(self) -> list[Callable[..., Tensor]]:
        """Programs whose zeros are where this one is not smooth."""
        return [
            lambda *latents, kink=step.kink: kink(self.values(*latents))
            for i, step in enumerate(self.steps)
            if step.kink is not None and len(self.kinds) + i in self.used()
        ]

    def used(self) -> set[int]:
        """The values that the last one depends on."""
        used = {len(self.kinds) + len(self.steps) - 1}
        for i in reversed(range(len(self.steps))):
            if len(self.kinds) + i in used:
                used |= self.steps[i].operands()
        return used

    def __repr__(self) -> str:
        lines = [f"v{i} ~ {kind.family}{kind.shape}" for i, kind in enumerate(self.kinds)]
        lines += [f"v{len(lines) + i} = {step.text}" for i, step in enumerate(self.steps)]
        return "\n" + "\n".join(lines)


class Drawer:
    """Each method draws one step for value ``i``, or None where the value leaves no sense."""

    def __init__(self, random: Random, program: Program, shapes: list[tuple[int, ...]]) -> None:
        self.random = random
        self.program = program
        self.shapes = shapes
        num_latents = len(program.kinds)
        usable = [
            i
            for i in range(len(shapes))
            if i >= num_latents or not program.kinds[i].family.startswith("index")
        ]
        self.usable = usable
        self.i = usable[-1] if random.random() < 0.7 else random.choice(usable)
        self.shape = shapes[self.i]
        self.v = f"v{self.i}"

    def _step(self, i: int) -> Step | None:
        at = i - len(self.program.kinds)
        return self.program.steps[at] if at >= 0 else None

    def _growth(self, i: int) -> int:
        step = self._step(i)
        return 1 if step is None else step.growth

    def _positive(self, i: int) -> bool:
        step = self._step(i)
        return step is not None and step.positive

    def _number(self) -> float:
        return self.random.choice([-1.3, -0.5, 0.4, 0.7, 1.0, 2.0])

    def _operand(self) -> tuple[str, Tensor]:
        """A plain tensor that broadcasts with the value."""
        start = self.random.randint(0, len(self.shape))
        shape = [self.random.choice([1, n]) for n in self.shape[start:]]
        if len(self.shape) < 2 and self.random.random() < 0.3:
            shape = [2, *([1] * (len(self.shape) - len(shape))), *shape]
        seed = self.random.randint(0, 20)
        return f"w({seed}, {shape})", plain(shape, seed)

    # Affine and structural

    def scaled(self) -> Step:
        i, a, b = self.i, self._number(), self._number()
        return Step(f"{a} * {self.v} + {b}", lambda v: a * v[i] + b, growth=self._growth(i))

    def shifted(self) -> Step:
        i, (text, w) = self.i, self._operand()
        return Step(f"{self.v} - {text}", lambda v: v[i] - w, growth=self._growth(i))

    def weighted(self) -> Step:
        i, (text, w) = self.i, self._operand()
        return Step(f"{self.v} * {text}", lambda v: v[i] * w, growth=self._growth(i))

    def mapped(self) -> Step | None:
        if not self.shape:
            return None
        i, n, seed = self.i, self.random.choice([1, 2, 3]), self.random.randint(0, 20)
        w = 0.6 * plain((self.shape[-1], n), seed)
        return Step(
            f"{self.v} @ 0.6 w({seed}, {[*w.shape]})", lambda v: v[i] @ w, growth=self._growth(i)
        )

    def summed(self) -> Step | None:
        if not self.shape:
            return None
        i, dim = self.i, self.random.randint(-len(self.shape), -1)
        keep, what = self.random.random() < 0.4, self.random.choice(["sum", "mean"])
        return Step(
            f"{self.v}.{what}({dim}, {keep})",
            lambda v: getattr(v[i], what)(dim, keep),
            growth=self._growth(i),
        )

    def gathered(self) -> Step | None:
        if not self.shape:
            return None
        i, size = self.i, self.shape[0]
        picks = [self.random.randrange(size) for _ in range(self.random.choice([1, 2, 3]))]
        index = torch.tensor(picks)
        return Step(
            f"{self.v}[{picks}]",
            lambda v: v[i][index],
            growth=self._growth(i),
            positive=self._positive(i),
        )

    def sliced(self) -> Step | None:
        if not self.shape:
            return None
        i, at = self.i, self.random.randrange(self.shape[-1])
        return Step(
            f"{self.v}[..., {at}]",
            lambda v: v[i][..., at],
            growth=self._growth(i),
            positive=self._positive(i),
        )

    def moved(self) -> Step | None:
        i, kwargs = self.i, {"growth": self._growth(self.i), "positive": self._positive(self.i)}
        how = self.random.choice(["unsqueeze", "expand", "flatten", "flip", "transpose"])
        if how == "unsqueeze":
            dim = self.random.randint(-len(self.shape) - 1, len(self.shape))
            return Step(f"{self.v}.unsqueeze({dim})", lambda v: v[i].unsqueeze(dim), **kwargs)
        if how == "expand":
            sizes = [2] + [self.random.choice([2, 3]) if n == 1 else n for n in self.shape]
            return Step(f"{self.v}.expand({sizes})", lambda v: v[i].expand(sizes), **kwargs)
        if how == "flatten":
            return Step(f"{self.v}.reshape(-1)", lambda v: v[i].reshape(-1), **kwargs)
        if len(self.shape) < 1:
            return None
        if how == "flip":
            return Step(f"{self.v}.flip(0)", lambda v: v[i].flip(0), **kwargs)
        return Step(f"{self.v}.transpose(0, -1)", lambda v: v[i].transpose(0, -1), **kwargs)

    def chosen(self) -> Step | None:
        """A row of the value at a latent index."""
        indices = [j for j, k in enumerate(self.program.kinds) if k.family == INDEX]
        if not indices or not self.shape or self.shape[0] < CARDINALITY:
            return None
        i, j = self.i, self.random.choice(indices)
        return Step(f"{self.v}[v{j}]", lambda v: v[i][v[j]], growth=self._growth(i))

    # Nonlinear

    def exponential(self) -> Step | None:
        if self._growth(self.i) > 1:
            return None
        i, a = self.i, self.random.choice([-0.7, 0.4, 0.5, 1.0])
        return Step(
            f"({a} * {self.v}).exp()",
            lambda v: (a * v[i]).exp(),
            positive=True,
            growth=2 * self._growth(i),
        )

    def power(self) -> Step | None:
        i = self.i
        if self._positive(i):
            p = self.random.choice([-1.0, 0.5, 2, -2.0, 1.5])
            return Step(
                f"{self.v} ** {p}", lambda v: v[i] ** p, positive=True, growth=self._growth(i)
            )
        p = self.random.choice([2, 2, 3])
        return Step(f"{self.v} ** {p}", lambda v: v[i] ** p, growth=2 * self._growth(i))

    def root_or_log(self) -> Step | None:
        if not self._positive(self.i):
            return None
        i, name = self.i, self.random.choice(["log", "sqrt", "rsqrt", "log1p", "reciprocal"])
        positive = name in ("sqrt", "rsqrt", "reciprocal")
        growth = self._growth(i) if positive else min(self._growth(i), 1)
        return Step(
            f"{self.v}.{name}()", lambda v: getattr(v[i], name)(), positive=positive, growth=growth
        )

    def smooth(self) -> Step | None:
        if self._growth(self.i) > 1:
            return None
        i, name = self.i, self.random.choice([*SMOOTH])
        function = SMOOTH[name]
        growth = 1 if name == "softplus" else 0
        return Step(f"{name}({self.v})", lambda v: function(v[i]), growth=growth)

    def bent(self) -> Step | None:
        if self._growth(self.i) > 1:
            return None
        i, name = self.i, self.random.choice(["abs", "relu"])
        function = getattr(torch, name)
        return Step(f"{name}({self.v})", lambda v: function(v[i]), kink=lambda v: v[i])

    def masked(self) -> Step | None:
        if not self.shape:
            return None
        i, seed = self.i, self.random.randint(0, 20)
        mask = plain(self.shape[-1:], seed) > 0
        return Step(
            f"where(w({seed}, {[*mask.shape]}) > 0, {self.v}, 0.5)",
            lambda v: torch.where(mask, v[i], 0.5),
            growth=self._growth(i),
        )

    def combined(self) -> Step | None:
        """Sum, difference, product or quotient of two values."""
        i, j = self.i, self.random.choice(self.usable)
        try:
            torch.broadcast_shapes(self.shapes[i], self.shapes[j])
        except RuntimeError:
            return None
        sign = self.random.choice("+-****/")
        growth = max(self._growth(i), self._growth(j))
        if sign in "*/":
            growth = 2 * min(growth, 1)
        if sign == "/" and not self._positive(j):
            return None
        operate = OPERATIONS[sign]
        positive = sign in "*/" and self._positive(i) and self._positive(j)
        return Step(
            f"{self.v} {sign} v{j}",
            lambda v: operate(v[i], v[j]),
            positive=positive,
            growth=growth,
        )


SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
}
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
}
NAMES = (
    "scaled",
    "shifted",
    "weighted",
    "mapped",
    "summed",
    "gathered",
    "sliced",
    "moved",
    "chosen",
    "exponential",
    "exponential",
    "power",
    "power",
    "root_or_log",
    "root_or_log",
    "smooth",
    "bent",
    "masked",
    "combined",
    "combined",
    "combined",
    "combined",
)


def random_program(random: Random, num_steps: int) -> Program:
    """One to three latents and up to ``num_steps`` steps on them."""
    kinds: list[Kind] = []
    scalars, joint = 0, 1
    while not kinds or (len(kinds) < 3 and random.random() < 0.5):
        family, shape, gaussian, values = random.choice(LATENTS)
        if joint * values > MAX_VALUES.get(scalars + gaussian, 0):
            if kinds:
                break
            continue
        scalars, joint = scalars + gaussian, joint * values
        kinds.append(Kind(family, shape))
    if all(kind.family == INDEX for kind in kinds):
        kinds.append(Kind("normal", (CARDINALITY,)))
    program = Program(kinds)
    samples: Values = [s.distribution().sample() for s in program.sources()]
    while len(program.steps) < num_steps:
        shapes = [tuple(value.shape) for value in samples]
        step = getattr(Drawer(random, program, shapes), random.choice(NAMES))()
        if step is None:
            continue
        value = step.function(samples)
        if value.dim() > 3 or math.prod(value.shape) > MAX_ELEMENTS:
            continue
        program.steps.append(step)
        samples.append(value)
    return program


@st.composite
def programs(draw: st.DrawFn, max_steps: int = 6) -> Program:
    """Random programs; they shrink in the number of steps."""
    num_steps = draw(st.integers(1, max_steps))
    seed = draw(st.integers(0, 2**32 - 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**31)
        return random_program(Random(seed), num_steps)
