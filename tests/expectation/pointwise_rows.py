"""Named programs of few random scalars, one row each, for every kind of pointwise expectation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from tests.devices import seeded
from tests.random_tensor.sources import Source

Program = Callable[..., Tensor]


def _leaf(seed: int, *shape: int) -> Tensor:
    generator = seeded(seed)
    return (0.6 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def _root(raw: Tensor) -> Tensor:
    diagonal = torch.diag_embed(0.5 * (0.5 * raw.diagonal(dim1=-2, dim2=-1)).exp())
    return raw.tril(-1) + diagonal


class Kind(NamedTuple):
    """A family and the shape of its value; standard deviations lie around 1/2."""

    family: str
    shape: tuple[int, ...]

    def source(self, seed: int) -> Source:
        """Fresh leaves and the distribution on them."""
        shape, event = self.shape, min(len(self.shape), 1)
        loc = _leaf(seed, *shape)
        if self.family == "normal":
            scale = _leaf(seed + 50, *shape)
            return Source(
                [loc, scale],
                lambda m, s: dist.Normal(m, 0.5 * (0.5 * s).exp()).to_event(event),
            )
        if self.family == "mvn":
            raw = _leaf(seed + 50, *shape, shape[-1])
            return Source([loc, raw], lambda m, r: dist.MultivariateNormal(m, scale_tril=_root(r)))
        if self.family == "bernoulli":
            return Source([loc], lambda r: dist.Bernoulli(logits=r).to_event(event))
        if self.family == "one_hot":
            return Source([loc], lambda r: dist.OneHotCategorical(logits=r))
        cardinality = int(self.family.removeprefix("index"))
        return Source([_leaf(seed, *shape, cardinality)], lambda r: dist.Categorical(logits=r))


def normal(*shape: int) -> Kind:
    return Kind("normal", shape)


def mvn(*shape: int) -> Kind:
    return Kind("mvn", shape)


def bernoulli(*shape: int) -> Kind:
    return Kind("bernoulli", shape)


def one_hot(*shape: int) -> Kind:
    return Kind("one_hot", shape)


def index(cardinality: int, *shape: int) -> Kind:
    return Kind(f"index{cardinality}", shape)


class Row(NamedTuple):
    """A program of latents, then operands; what it must give, and how the oracle integrates it.

    ``mean`` and ``variance`` say whether the moment is claimed; one that is not claimed may be
    refused, but if it is given it must be right. ``warns`` allows a :class:`QuadratureWarning`.
    """

    kinds: tuple[Kind, ...]
    program: Program
    operands: tuple[tuple[int, ...], ...] = ()
    mean: bool = True
    variance: bool = False
    gradients: bool = True
    kinks: tuple[Program, ...] = ()
    points: int | None = None
    tolerance: float = 1e-9
    warns: bool = False

    def sources(self) -> list[Source]:
        """Sources with fresh leaves."""
        return [kind.source(i) for i, kind in enumerate(self.kinds)]

    def plain_operands(self) -> list[Tensor]:
        """Operands, which are leaves as well."""
        return [_leaf(100 + i, *shape) for i, shape in enumerate(self.operands)]


QUADRATURE = 1e-7  # what 32 points give at standard deviations of about 1/2
I3 = tensor([0, 2, 1])
GROUP = tensor([0, 1, 1, 0])
OTHER = tensor([1, 1, 0, 0])
MASK = tensor([True, False, True])

POLYNOMIALS = {
    "square": Row((normal(3),), lambda x: x**2, variance=True, points=6),
    "torch.square": Row((mvn(3),), torch.square, variance=True, points=6),
    "cube": Row((normal(3),), lambda x: x**3, points=6),
    "fourth power": Row((normal(3),), lambda x: x**4, points=6),
    "x * x": Row((normal(2),), lambda x: x * x, variance=True, points=6),
    "shifted square": Row((normal(2),), lambda x, a: (x - a) ** 2, ((2,),), variance=True),
    "a square less another": Row((normal(2),), lambda x: x**2 - x[0] ** 2, variance=True),
    "product of correlated": Row((mvn(2),), lambda z: z[0] * z[1], variance=True, points=6),
    "all products of correlated": Row((mvn(3),), lambda z: z[:, None] * z, points=6),
    "cubic of correlated": Row((mvn(3),), lambda z: z[0] * z[1] * z[2], points=6),
    "quartic of correlated": Row((mvn(2),), lambda z: z[0] ** 3 * z[1], points=6),
    "square times square": Row((mvn(2),), lambda z: z[0] ** 2 * z[1] ** 2, points=6),
    "product of affine maps": Row(
        (mvn(3),), lambda z, w, v: (z @ w) * (z @ v), ((3, 2), (3, 2)), variance=True, points=6
    ),
    "square of an affine map": Row((mvn(3),), lambda z, w: (z @ w) ** 2, ((3, 2),), points=6),
    "square of a sum": Row((mvn(3),), lambda z: z.sum(-1) ** 2, variance=True, points=6),
    "sum of squares": Row((mvn(3),), lambda z: (z**2).sum(-1), variance=True, points=6),
    "square of a sum of squares": Row((mvn(3),), lambda z: (z**2).sum(-1) ** 2, mean=False),
    "centred sum of squares": Row((mvn(3),), lambda z: ((z - z.mean()) ** 2).sum(), points=6),
    "sum of squares of gathers": Row(
        (normal(2),), lambda z: (z[GROUP] ** 2).sum(), variance=True, points=6
    ),
    "sum of row sums times column sums": Row(
        (normal(2, 2),), lambda z: (z.sum(1) * z.sum(0)).sum(), variance=True, points=3
    ),
    "sum of squares of row and column sums": Row(
        (normal(2, 2),), lambda z: ((z.sum(1) + z.sum(0)) ** 2).sum(), variance=True, points=3
    ),
    "sum of a matrix times its transpose": Row(
        (normal(2, 2),), lambda z: (z * z.T).sum(), variance=True, points=3
    ),
    "matrix product with itself": Row((normal(2, 2),), lambda z: z @ z, points=3),
    "square of a difference of gathers": Row(
        (normal(3),), lambda z: (z[I3] - z[tensor([1, 2, 1])]) ** 2, variance=True, points=6
    ),
    "product of gathers": Row((normal(2),), lambda z: z[GROUP] * z[OTHER], variance=True, points=6),
    "product of gathers of correlated": Row((mvn(2),), lambda z: z[GROUP] * z[OTHER], points=6),
    "a product with its own row": Row((normal(2, 2),), lambda z: z * z[0], points=6),
    "a product with a sum that holds it": Row((normal(3),), lambda z: z * z.sum(), points=6),
    "a product of contracted and aligned": Row(
        (mvn(3),), lambda z, w: (z @ w) * z, ((3, 3),), points=6
    ),
    "two latents": Row((normal(2), normal(2)), lambda x, y: x * y, variance=True, points=6),
    "broadcast product": Row((normal(2, 1), normal(3)), lambda x, y: x * y, points=6),
    "square of a product": Row((normal(2), normal(2)), lambda x, y: (x * y) ** 2, points=6),
    "square of a shifted product": Row(
        (normal(2), normal(2)), lambda x, y, a: (a - x * y) ** 2, ((2,),), points=6
    ),
    "inner product": Row(
        (normal(2, 2), normal(2, 2)), lambda u, v: (u * v).sum(-1), variance=True, points=3
    ),
    "inner product of gathered factors": Row(
        (normal(2, 2), normal(2, 2)),
        lambda u, v: (u[GROUP] * v[OTHER]).sum(-1),
        variance=True,
        points=3,
    ),
    "square of an inner product": Row(
        (normal(2, 2), normal(2, 2)), lambda u, v: (u * v).sum(-1) ** 2, points=3
    ),
    "squared error of an inner product": Row(
        (mvn(2, 2), mvn(2, 2)), lambda u, v, a: (a - (u * v).sum(-1)) ** 2, ((2,),), points=3
    ),
    "matrix product": Row((normal(2, 2), normal(2, 2)), lambda u, v: u @ v.T, points=3),
    "square of a matrix product": Row(
        (normal(2, 2), mvn(2, 2)), lambda u, v: (u @ v.T) ** 2, points=3
    ),
    "einsum of two latents": Row(
        (normal(2, 2), normal(2, 2)),
        lambda u, v: torch.einsum("ik,jk->ij", u, v),
        mean=False,
        points=3,
    ),
    "difference of squares that cancel": Row(
        (mvn(2),), lambda z: (z[0] + z[1]) * (z[0] - z[1]) - z[0] ** 2 + z[1] ** 2, points=6
    ),
    "a polynomial less its own": Row((normal(2),), lambda x: x**2 - x * x, points=6),
}

BINARY = {
    "Bernoulli squared": Row((bernoulli(3),), lambda b: b**2, variance=True),
    "Bernoulli product": Row((bernoulli(3),), lambda b: b[:, None] * b),
    "Bernoulli differences": Row((bernoulli(3),), lambda b: (b - b[0]) ** 2),
    "Bernoulli sum squared": Row((bernoulli(4),), lambda b, w: (b @ w) ** 2, ((4, 2),)),
    "Bernoulli cube": Row((bernoulli(2),), lambda b: (b - 0.3) ** 3, mean=False),
    "one-hot product": Row((one_hot(3),), lambda h: h[:, None] * h),
    "one-hot squared": Row((one_hot(2, 3),), lambda h: h**2),
    "one-hot squared and summed": Row((one_hot(2, 3),), lambda h: (h**2).sum(-1), variance=True),
    "one-hot product summed": Row((one_hot(2, 3),), lambda h, w: (h * h * w).sum(-1), ((3,),)),
    "Bernoulli gathers summed": Row((bernoulli(2),), lambda b: (b[GROUP] * b[OTHER]).sum()),
    "two random indices": Row(
        (index(2, 2), index(2, 2), normal(2)), lambda z, w, mu: mu[z] * mu[w], points=6
    ),
    "one-hot map squared": Row((one_hot(2, 3),), lambda h, w: (h @ w) ** 2, ((3, 2),)),
    "Gaussian times Bernoulli": Row(
        (normal(2), bernoulli(2)), lambda x, b: x * b, variance=True, points=6
    ),
    "spike and slab": Row(
        (normal(2), bernoulli(2)), lambda x, b, a: (x * b - a) ** 2, ((2,),), points=6
    ),
    "mixture of two": Row((normal(2), bernoulli(3)), lambda x, b: b * x[0] + (1 - b) * x[1]),
    "squared mixture of two": Row(
        (normal(2), bernoulli(2)), lambda x, b: (b * x[0] + (1 - b) * x[1]) ** 2, points=6
    ),
    "Gaussian plus Bernoulli, squared": Row(
        (normal(2), bernoulli(2)), lambda x, b, a: (x + a * b) ** 2, ((2,),), variance=True
    ),
    "one-hot times means": Row((one_hot(2, 3), normal(3)), lambda h, m: h @ m, points=6),
    "one-hot times means, squared": Row(
        (one_hot(2, 3), normal(3)), lambda h, m: (h @ m - 1.0) ** 2, points=6
    ),
    "mean of a random index": Row((index(2, 3), normal(2)), lambda z, mu: mu[z], points=6),
    "squared mean of a random index": Row(
        (index(2, 3), normal(2)), lambda z, mu, a: (a - mu[z]) ** 2, ((3,),), points=6
    ),
    "correlated means of a random index": Row(
        (index(3, 2), mvn(3)), lambda z, mu: mu[z] ** 2, points=6
    ),
    "rows of a random index": Row((index(2, 2), normal(2, 2)), lambda z, mu: mu[z] ** 2, points=6),
    "squared index": Row((index(3, 2),), lambda z: (z.double() - 1.0) ** 2),
    "table at a random index, squared": Row((index(3, 2),), lambda z, t: t[z] ** 2, ((3,),)),
    "two readings of an index": Row((index(3, 2),), lambda z, t, s: t[z] * s[z], ((3,), (3,))),
}

EXPONENTIALS = {
    "exp": Row((normal(3),), torch.exp, variance=True),
    "exp of correlated": Row((mvn(2),), lambda z: (z[0] - 0.5 * z[1]).exp(), variance=True),
    "exp2": Row((normal(2),), torch.exp2, mean=False),
    "expm1": Row((normal(2),), torch.expm1, variance=True),
    "exp of a sum": Row((mvn(3),), lambda z: z.sum().exp(), points=36),
    "sum of exps": Row((mvn(3),), lambda z: z.exp().sum(-1), variance=True, points=20),
    "exp of a matrix product": Row((mvn(3),), lambda z, w: (z @ w).exp(), ((3, 2),), points=20),
    "exp of a gather": Row((normal(2),), lambda b: b[GROUP].exp(), variance=True),
    "x exp(x)": Row((normal(2),), lambda x: x * x.exp(), variance=True),
    "x^2 exp(-x)": Row((normal(2),), lambda x: x**2 * (-x).exp()),
    "x^4 exp(x)": Row((normal(2),), lambda x: x**4 * x.exp()),
    "x exp(y)": Row((mvn(2),), lambda z: z[0] * z[1].exp(), variance=True),
    "x y exp(x - y)": Row((mvn(2),), lambda z: z[0] * z[1] * (z[0] - z[1]).exp()),
    "squared error over a variance": Row(
        (mvn(2),), lambda z, a: (a - z[0]) ** 2 * (-2 * z[1]).exp(), ((2,),)
    ),
    "contracted polynomial, aligned exponent": Row(
        (mvn(3),), lambda z, w: (z @ w) ** 2 * z.exp(), ((3, 3),), points=20
    ),
    "aligned polynomial, contracted exponent": Row(
        (mvn(3),), lambda z, w: z**2 * (z @ w).exp(), ((3, 3),), points=20
    ),
    "gathered polynomial, gathered exponent": Row(
        (normal(2),), lambda z: z[GROUP] * z[OTHER].exp(), variance=True
    ),
    "gathers of correlated": Row((mvn(2),), lambda z: z[GROUP] ** 2 * z[OTHER].exp()),
    "difference of gathers in the exponent": Row(
        (normal(2),), lambda z: (z[GROUP] - z[OTHER]).exp(), variance=True
    ),
    "product of gathered exps": Row((normal(2),), lambda z: z[GROUP].exp() * z[OTHER].exp()),
    "sum of exps of gathers, each times its own": Row(
        (normal(2),), lambda z: (z[GROUP] * z[OTHER].exp()).sum()
    ),
    "exp of Bernoulli": Row((bernoulli(3),), lambda b, w: (b * w).exp(), ((3,),), variance=True),
    "exp of a sum of Bernoulli": Row((bernoulli(4),), lambda b, w: (b @ w).exp(), ((4, 2),)),
    "tilted Bernoulli": Row(
        (bernoulli(4),), lambda b, w, v: (b @ w) * (b @ v).exp(), ((4, 2), (4, 2))
    ),
    "tilted Bernoulli, squared": Row(
        (bernoulli(3),), lambda b, w, v: (b @ w) ** 2 * (b @ v).exp(), ((3, 2), (3, 2))
    ),
    "tilted Bernoulli, aligned": Row((bernoulli(3),), lambda b, v: b * (v * b).exp(), ((3,),)),
    "exp of one-hot": Row((one_hot(2, 3),), lambda h, w: (h @ w).exp(), ((3, 2),), variance=True),
    "tilted one-hot": Row(
        (one_hot(2, 3),), lambda h, w, v: (h @ w) * (h @ v).exp(), ((3, 2), (3, 2))
    ),
    "tilted one-hot, squared": Row(
        (one_hot(2, 3),), lambda h, w, v: (h @ w) ** 2 * (h @ v).exp(), ((3, 2), (3, 2))
    ),
    "tilted one-hot, elementwise": Row((one_hot(2, 3),), lambda h, v: h * (h @ v).exp(), ((3, 3),)),
    "tilted one-hot over two blocks": Row(
        (one_hot(2, 3),), lambda h, v: (h * v).sum().exp() * h, ((2, 3),)
    ),
    "exp of a table at a random index": Row((index(3, 2),), lambda z, t: t[z].exp(), ((3,),)),
    "a table times exp of another": Row(
        (index(3, 2),), lambda z, s, t: s[z] * t[z].exp(), ((3,), (3,))
    ),
    "exp of a random index's mean": Row(
        (index(2, 2), normal(2)), lambda z, mu: mu[z].exp(), points=30
    ),
    "Gaussian and Bernoulli in one exponent": Row(
        (normal(2), bernoulli(2)), lambda x, b, a: (x + a * b).exp(), ((2,),), variance=True
    ),
    "polynomial and exponent of both": Row(
        (normal(2), bernoulli(2)), lambda x, b, a: (x - b) * (x + a * b).exp(), ((2,),)
    ),
    "square over exp of another": Row(
        (normal(2), normal(2)), lambda x, y: x**2 / y.exp(), points=16
    ),
    "inner product over exp": Row(
        (normal(2), normal(2), normal()),
        lambda u, v, s: (u * v).sum() * (-s).exp(),
        points=8,
        tolerance=1e-8,
    ),
    "squared inner product over exp": Row(
        (normal(2), normal(2), normal()),
        lambda u, v, s: ((u * v).sum() - 1.0) ** 2 * (-2 * s).exp(),
        points=8,
        tolerance=1e-4,
    ),
}

FUNCTIONS = {
    "abs": Row((normal(),), torch.abs, variance=True, kinks=(lambda x: x,)),
    "abs of a map": Row((mvn(2),), lambda z: (z[0] - z[1]).abs(), kinks=(lambda z: z[0] - z[1],)),
    "relu": Row((normal(),), F.relu, variance=True, kinks=(lambda x: x,)),
    "clamp below": Row((normal(),), lambda x: x.clamp(min=0.2), kinks=(lambda x: x - 0.2,)),
    "clamp": Row(
        (normal(),), lambda x: x.clamp(-0.4, 0.3), kinks=(lambda x: x + 0.4, lambda x: x - 0.3)
    ),
    "leaky relu": Row((normal(),), lambda x: F.leaky_relu(x, 0.1), kinks=(lambda x: x,)),
    "elu": Row((normal(),), F.elu, kinks=(lambda x: x,), tolerance=QUADRATURE),
    "sin": Row((normal(2),), lambda x: (2 * x + 1).sin(), variance=True),
    "cos": Row((normal(2),), torch.cos, variance=True),
    "erf": Row((normal(2),), torch.erf),
    "normal cdf": Row((mvn(2),), torch.special.ndtr),
    "sigmoid": Row((normal(2),), torch.sigmoid, variance=True, tolerance=QUADRATURE),
    "softplus": Row((mvn(2),), F.softplus, variance=True, tolerance=QUADRATURE),
    "logsigmoid": Row((mvn(2),), F.logsigmoid, tolerance=QUADRATURE),
    "tanh": Row((mvn(2),), torch.tanh, variance=True, tolerance=QUADRATURE),
    "gelu": Row((normal(2),), F.gelu, tolerance=QUADRATURE),
    "silu": Row((normal(2),), F.silu, tolerance=QUADRATURE),
    "log1p of a square": Row((normal(2),), lambda x: (x**2).log1p(), tolerance=1e-5, warns=True),
    "reciprocal of 1 + x^2": Row(
        (normal(2),), lambda x: 1 / (1 + x**2), tolerance=1e-5, warns=True
    ),
    "function of a map": Row(
        (mvn(2),), lambda z, w: F.softplus(z @ w), ((2, 3),), tolerance=QUADRATURE
    ),
    "function of a gather": Row((mvn(2),), lambda z: z[GROUP].tanh(), tolerance=QUADRATURE),
    "x abs(x)": Row((normal(),), lambda x: x * x.abs(), kinks=(lambda x: x,)),
    "abs(x) exp(x)": Row((normal(),), lambda x: x.abs() * x.exp(), kinks=(lambda x: x,)),
    "abs(x) exp(y)": Row((mvn(2),), lambda z: z[0].abs() * z[1].exp(), kinks=(lambda z: z[0],)),
    "abs(x - a) y": Row(
        (mvn(2),), lambda z: (z[0] - 0.3).abs() * z[1], kinks=(lambda z: z[0] - 0.3,)
    ),
    "abs(x - y) exp(x)": Row(
        (mvn(2),), lambda z: (z[0] - z[1]).abs() * z[0].exp(), kinks=(lambda z: z[0] - z[1],)
    ),
    "sin(x) exp(y)": Row((mvn(2),), lambda z: z[0].sin() * z[1].exp(), tolerance=QUADRATURE),
    "sin(x) cos(x)": Row((normal(2),), lambda x: x.sin() * x.cos(), tolerance=QUADRATURE),
    "sin(x) cos(y), independent": Row(
        (normal(), normal()), lambda x, y: x.sin() * y.cos(), tolerance=QUADRATURE
    ),
    "sin(x) cos(y), correlated": Row(
        (mvn(2),), lambda z: z[0].sin() * z[1].cos(), tolerance=QUADRATURE
    ),
    "softplus(x) sigmoid(y), correlated": Row(
        (mvn(2),), lambda z: F.softplus(z[0]) * z[1].sigmoid(), tolerance=QUADRATURE
    ),
    "softplus(x) y": Row((mvn(2),), lambda z: F.softplus(z[0]) * z[1], tolerance=QUADRATURE),
    "softplus(x) y^2": Row((mvn(2),), lambda z: F.softplus(z[0]) * z[1] ** 2, tolerance=QUADRATURE),
    "tanh(x) y exp(y)": Row(
        (mvn(2),), lambda z: z[0].tanh() * z[1] * z[1].exp(), tolerance=QUADRATURE
    ),
    "softplus(x) exp(y), independent": Row(
        (normal(2), normal(2)), lambda x, y: F.softplus(x) * y.exp(), points=20, tolerance=1e-6
    ),
    "sigmoid squared": Row((normal(2),), lambda x: x.sigmoid() ** 2, tolerance=QUADRATURE),
    "p (1 - p)": Row((normal(2),), lambda x: x.sigmoid() * (1 - x.sigmoid()), tolerance=QUADRATURE),
    "square of a sum of functions": Row(
        (mvn(2),), lambda z: (z[0].tanh() + z[1].sin()) ** 2, mean=False, tolerance=QUADRATURE
    ),
    "sum of functions": Row(
        (mvn(2),), lambda z: z[0].tanh() + z[1].sin() + z[0] * z[1], tolerance=QUADRATURE
    ),
    "function of a function": Row((normal(2),), lambda x: x.tanh().exp(), tolerance=QUADRATURE),
    "log of 1 + exp": Row((normal(2),), lambda x: (1 + x.exp()).log(), tolerance=QUADRATURE),
    "function of a product": Row(
        (mvn(2),), lambda z: (z[0] * z[1]).tanh(), mean=False, tolerance=1e-5
    ),
    "function of a sum of a square and another": Row(
        (mvn(2),), lambda z: (z[0] ** 2 + z[1]).tanh(), mean=False, tolerance=1e-5
    ),
    "function of Gaussian and Bernoulli": Row(
        (normal(2), bernoulli(2)),
        lambda x, b, a: F.softplus(x + a * b),
        ((2,),),
        tolerance=QUADRATURE,
    ),
    "abs of Gaussian and Bernoulli": Row(
        (normal(), bernoulli()),
        lambda x, b: (x + b - 0.5).abs(),
        mean=False,
        kinks=(lambda x, b: x + b - 0.5,),
    ),
    "function of Bernoulli": Row((bernoulli(3),), lambda b, a: (a * b + 0.2).tanh(), ((3,),)),
    "function of three Bernoulli": Row((bernoulli(3),), lambda b, a: (b @ a).sigmoid(), ((3, 2),)),
    "function of one-hot": Row((one_hot(2, 3),), lambda h, w: (h @ w).tanh(), ((3, 2),)),
    "function of a table": Row((index(3, 2),), lambda z, t: F.softplus(t[z]), ((3,),)),
    "function of a random index's mean": Row(
        (index(2, 2), normal(2)), lambda z, mu: F.softplus(mu[z]), tolerance=QUADRATURE
    ),
    "exp of a gated Gaussian": Row(
        (bernoulli(2), mvn(2)), lambda b, x: (b * x).exp(), variance=True, points=30
    ),
    "softplus of a gated Gaussian": Row(
        (bernoulli(2), mvn(2)), lambda b, x: F.softplus(b * x), tolerance=QUADRATURE
    ),
    "where at a threshold": Row(
        (normal(),),
        lambda x: torch.where(x > 0.1, x - 0.1, x**2 - 0.01),
        kinks=(lambda x: x - 0.1,),
        tolerance=QUADRATURE,
        gradients=False,
    ),
    "minimum with a number": Row(
        (normal(),), lambda x: torch.minimum(x, tensor(0.3)), kinks=(lambda x: x - 0.3,)
    ),
    "maximum of two": Row(
        (mvn(2),),
        lambda z: torch.maximum(z[0], z[1]),
        mean=False,
        kinks=(lambda z: z[0] - z[1],),
        tolerance=1e-3,
        gradients=False,
        warns=True,
    ),
    "relu of a square": Row(
        (normal(),),
        lambda x: (x**2 - 0.09).relu(),
        mean=False,
        kinks=(lambda x: x - 0.3, lambda x: x + 0.3),
        tolerance=1e-4,
        gradients=False,
        warns=True,
    ),
    "relu of exp": Row(
        (normal(),),
        lambda x: (x.exp() - 1.0).relu(),
        mean=False,
        kinks=(lambda x: x,),
        tolerance=1e-4,
        gradients=False,
        warns=True,
    ),
    "exp of abs": Row((normal(),), lambda x: x.abs().exp(), kinks=(lambda x: x,)),
    "relu of tanh": Row(
        (normal(),),
        lambda x: x.tanh().relu(),
        kinks=(lambda x: x,),
        mean=False,
        tolerance=1e-4,
        gradients=False,
        warns=True,
    ),
    "abs to a power": Row(
        (normal(),),
        lambda x: x.abs() ** 1.5,
        mean=False,
        kinks=(lambda x: x,),
        tolerance=1e-6,
    ),
    "root of a square": Row(
        (normal(),),
        lambda x: (x**2).sqrt(),
        mean=False,
        kinks=(lambda x: x,),
        tolerance=1e-4,
        gradients=False,
        warns=True,
    ),
    "sign times x": Row((normal(),), lambda x: x.sign() * x, mean=False, kinks=(lambda x: x,)),
    "hardtanh": Row((normal(),), lambda x: F.hardtanh(x), kinks=(lambda x: x - 1, lambda x: x + 1)),
    "relu6": Row((normal(),), lambda x: F.relu6(5 * x), kinks=(lambda x: x, lambda x: x - 1.2)),
    "selu": Row((normal(),), F.selu, mean=False, kinks=(lambda x: x,), tolerance=QUADRATURE),
    "softshrink": Row(
        (normal(),),
        lambda x: F.softshrink(x, 0.2),
        mean=False,
        kinks=(lambda x: x - 0.2, lambda x: x + 0.2),
        tolerance=QUADRATURE,
    ),
    "product of functions of one Bernoulli": Row(
        (bernoulli(2),), lambda b: (b - 0.3).tanh() * (b + 0.4).exp()
    ),
}

REWRITES = {
    "log exp": Row((normal(2),), lambda x: x.exp().log(), variance=True),
    "log(a exp)": Row((normal(2),), lambda x: (3.0 * x.exp()).log(), variance=True),
    "log of scaled by an operand": Row(
        (normal(2),), lambda x, a: (a.exp() * x.exp()).log(), ((2,),), variance=True
    ),
    "log2, log10": Row((normal(2),), lambda x: x.exp().log2() + x.exp().log10(), mean=False),
    "1 / exp(2x)": Row((normal(2),), lambda x: 1 / (2 * x).exp(), variance=True),
    "exp ** 2": Row((normal(2),), lambda x: x.exp() ** 2, variance=True),
    "exp ** -2": Row((normal(2),), lambda x: x.exp() ** -2),
    "exp ** 0.5": Row((normal(2),), lambda x: x.exp() ** 0.5, variance=True),
    "exp ** operand": Row((normal(2),), lambda x, a: x.exp() ** a, ((2,),)),
    "sqrt exp": Row((normal(2),), lambda x: x.exp().sqrt()),
    "rsqrt exp": Row((normal(2),), lambda x: x.exp().rsqrt()),
    "reciprocal": Row((normal(2),), lambda x: x.exp().reciprocal()),
    "square of exp": Row((normal(2),), lambda x: x.exp().square()),
    "xlogy": Row((normal(2),), lambda x, a: torch.xlogy(a, x.exp()), ((2,),)),
    "xlogy of a latent": Row((normal(2),), lambda x: torch.xlogy(x, x.exp())),
    "xlogy of zero": Row((normal(2),), lambda x: torch.xlogy(tensor([0.0, 2.0]), x.exp())),
    "log1p exp": Row((normal(2),), lambda x: x.exp().log1p(), tolerance=QUADRATURE),
    "exp * exp": Row((mvn(2),), lambda z: z[0].exp() * z[1].exp(), variance=True),
    "exp / exp": Row((mvn(2),), lambda z: z[0].exp() / z[1].exp(), variance=True),
    "x / exp": Row((mvn(2),), lambda z: z[0] / z[1].exp(), variance=True),
    "(x / exp) ** 2": Row((mvn(2),), lambda z: ((z[0] - 1.0) / z[1].exp()) ** 2),
    "log of a product of exps": Row(
        (mvn(2),), lambda z: (z[0].exp() * z[1].exp()).log(), variance=True
    ),
    "log exp into a map": Row(
        (normal(3),), lambda x, w: x.exp().log() @ w, ((3, 2),), variance=True
    ),
    "logarithm of a square root": Row((normal(2),), lambda x: x.exp().sqrt().log(), variance=True),
    "exp of log": Row((normal(2),), lambda x: (x.exp().log() * 0.5).exp(), variance=True),
    "log normal density": Row(
        (mvn(2),),
        lambda z, a: -((a - z[0]) ** 2) / (2 * z[1].exp() ** 2) - z[1].exp().log(),
        ((3,),),
    ),
    "negative of exp squared": Row((normal(2),), lambda x: (-x.exp()) ** 2),
    "pow with a random exponent": Row((normal(2),), lambda x: 2.0**x, mean=False, variance=True),
    "torch.pow of an operand": Row(
        (normal(2),), lambda x, a: a.exp() ** x, ((2,),), mean=False, variance=True
    ),
    "exp(a) ** b of two latents": Row(
        (normal(), normal()),
        lambda x, y: x.exp() ** (0.3 * y),
        mean=False,
        points=90,
        tolerance=1e-6,
    ),
    "sigmoid as a quotient": Row(
        (normal(2),), lambda x: x.exp() / (1 + x.exp()), mean=False, tolerance=QUADRATURE
    ),
    "softmax": Row((normal(2),), lambda x: x.softmax(-1), mean=False, tolerance=QUADRATURE),
    "logsumexp": Row((normal(2),), lambda x: x.logsumexp(-1), mean=False, tolerance=QUADRATURE),
}


def _in_place_chain(x: Tensor) -> Tensor:
    y = x.exp() + 1.0
    y *= 2.0
    y -= 0.5
    return y


def _deep(x: Tensor) -> Tensor:
    y = x
    for _ in range(100):
        y = (y * 1.01 - 0.02).unsqueeze(0).squeeze(0)
    y = (0.5 * y).exp()
    for _ in range(100):
        y = y * 0.99 + 0.001
    return y


STRUCTURE = {
    "gather of exp": Row((normal(2),), lambda x: x.exp()[GROUP], variance=True),
    "gather of exp, then log": Row((normal(2),), lambda x: x.exp()[GROUP].log(), variance=True),
    "gather of exp, squared error": Row(
        (normal(2),), lambda x, a: a**2 / x.exp()[GROUP] ** 2, ((4,),)
    ),
    "two gathers of exp": Row((normal(2),), lambda x: x.exp()[GROUP] * x.exp()[OTHER]),
    "exp of x gathered, times a gather": Row((mvn(2),), lambda x: x.exp()[GROUP] * x[OTHER]),
    "index_select": Row((normal(2),), lambda x: x.exp().index_select(0, GROUP).sqrt()),
    "take along": Row((normal(2),), lambda x: x.exp().take_along_dim(GROUP, 0), mean=False),
    "unsqueeze": Row((normal(2),), lambda x, a: a * x.exp().unsqueeze(-1) ** 2, ((3,),)),
    "None index": Row((normal(2),), lambda x, a: x.exp()[:, None] * a, ((3,),)),
    "expand": Row((normal(2),), lambda x: x.exp().expand(3, 2) ** 2, variance=True),
    "expand, then sum": Row(
        (normal(2),), lambda x: (x.exp().expand(3, 2) ** 2).sum(0), variance=True
    ),
    "expand of an event": Row((normal(),), lambda x: x.exp().expand(3).log(), variance=True),
    "expand_as": Row((normal(2),), lambda x, a: x.exp().expand_as(a) * a, ((3, 2),)),
    "reshape": Row((normal(2, 2),), lambda x: x.exp().reshape(4) ** 2, points=18),
    "view and transpose": Row(
        (normal(2, 2),), lambda x: (x.exp().T.reshape(4) ** 2).view(2, 2), points=18
    ),
    "permute": Row((normal(1, 2, 2),), lambda x: x.exp().permute(2, 0, 1) ** 2, points=18),
    "flip": Row((normal(2),), lambda x: x.exp() * x.exp().flip(0)),
    "roll": Row((mvn(2),), lambda x: x**2 * x.roll(1, 0)),
    "cat": Row(
        (normal(), normal(2)),
        lambda x, y: torch.cat([x.exp()[None], y.exp(), y]) ** 2,
        mean=False,
        points=24,
    ),
    "stack": Row((normal(2),), lambda x: torch.stack([x.exp(), (-x).exp()]).log(), mean=False),
    "stack of affine, then exp": Row((normal(2),), lambda x: torch.stack([x, -x]).exp()),
    "cat of affine, then exp": Row(
        (normal(1), normal(2)), lambda x, y: torch.cat([x, y, y[:1]]).exp(), points=20
    ),
    "chunk": Row((normal(2),), lambda x: x.exp().chunk(2)[1] ** 2, mean=False),
    "unbind": Row((normal(2),), lambda x: x.exp().unbind()[0] * x.unbind()[1], mean=False),
    "slice": Row((normal(3),), lambda x: x.exp()[1:] * x[:-1], points=20),
    "row of a matrix": Row((normal(2, 2),), lambda x: x.exp()[:, 0] * x[0], points=12),
    "sum of exp by rows": Row((normal(2, 2),), lambda x: x.exp().sum(-1), points=14),
    "mean of exp": Row((normal(3),), lambda x: x.exp().mean(), variance=True, points=20),
    "matrix times exp": Row((normal(3),), lambda x, w: w @ x.exp(), ((2, 3),), points=20),
    "linear layer after exp": Row(
        (normal(3),), lambda x, w, b: F.linear(x.exp(), w, b), ((2, 3), (2,)), points=20
    ),
    "linear layer after tanh": Row(
        (mvn(2),), lambda x, w: F.linear(x.tanh(), w), ((3, 2),), tolerance=QUADRATURE
    ),
    "cumsum of exp": Row((normal(2),), lambda x: x.exp().cumsum(0)),
    "where with a plain mask": Row(
        (normal(3),), lambda x: torch.where(MASK, x.exp(), x**2), points=20
    ),
    "where with a number": Row((normal(3),), lambda x: torch.where(MASK, x.exp(), 0.0), points=20),
    "masked fill": Row((normal(3),), lambda x: x.exp().masked_fill(MASK, 0.5), points=20),
    "product with a mask": Row((normal(3),), lambda x: x.exp() * MASK, points=20),
    "batch dims": Row((normal(2, 1), normal(2)), lambda x, y: x.exp() * y**2, points=16),
    "size-1 dims": Row((normal(1), normal(2, 1)), lambda x, y: x.exp() * y + y.exp(), points=20),
    "scalars": Row((normal(), normal()), lambda x, y: x**2 * y.exp(), variance=True),
    "numbers on the left": Row((normal(2),), lambda x: 1.0 - 2.0 / x.exp() + 3.0 * x**2),
    "negative and subtraction": Row((mvn(2),), lambda z: -(z[0].exp()) - (-z[1]) ** 2),
    "rsub": Row((normal(2),), lambda x, a: torch.rsub(x.exp(), a), ((2,),), mean=False),
    "addcmul": Row((mvn(2),), lambda z: torch.addcmul(z, z, z.flip(0)), mean=False),
    "torch functions": Row((mvn(2),), lambda z: torch.mul(torch.exp(z[0]), torch.pow(z[1], 2))),
    "augmented assignment": Row((normal(2),), _in_place_chain, variance=True),
    "deep chain": Row((normal(2),), _deep),
    "polynomial by Horner": Row((normal(2),), lambda x: x * (x * (x + 1.0) - 2.0) + 0.5),
    "integer operand": Row((normal(2),), lambda x: x.exp() * tensor([1, 3])),
    "bool times bool": Row((bernoulli(3),), lambda b: b * MASK * b),
    "cast": Row((normal(2),), lambda x: x.exp().to(torch.float64) ** 2),
    "contiguous, clone": Row((normal(2),), lambda x: x.exp().clone().contiguous() ** 2),
}

ROWS: dict[str, Row] = {
    **POLYNOMIALS,
    **BINARY,
    **EXPONENTIALS,
    **FUNCTIONS,
    **REWRITES,
    **STRUCTURE,
}
