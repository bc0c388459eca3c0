"""One row per distribution and random argument: small programs for the table and for its tests.

In every program ``z`` (and ``y``) is a latent with three independent elements, and each element of the
log density depends on its own element of them, unless the row says that it is joint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, tensor
from torch.distributions import Distribution

from pyro_silent.expectation.coercion import without_validation

Program = Callable[..., tuple[Distribution, Tensor]]


class Row(NamedTuple):
    """A distribution with something random about it.

    :ivar name: the distribution's class, by its name in ``pyro.distributions``.
    :ivar argument: what is random.
    :ivar through: how it depends on Gaussian latents z and y, for the reader.
    :ivar program: makes the distribution and the value it is scored at.
    :ivar num_latents: how many latents the program takes.
    :ivar kink: where z is when the log density is not smooth, if anywhere.
    :ivar latent: the law of the latents: ``"normal"``, ``"bernoulli"`` or ``"categorical"`` (an index).
    :ivar joint: whether elements of the log density depend on several elements of z.
    :ivar refused: whether there is no expectation, so that the site's term is sampled.
    :ivar log_prob: the log density where torch's formula is not accurate far out, or makes no batches.
    :ivar tolerance: how far the distribution's own formula can be trusted, where that is not to rounding.
    """

    name: str
    argument: str
    through: str
    program: Program
    num_latents: int = 1
    kink: Callable[[], Tensor] | None = None
    latent: str = "normal"
    joint: bool = False
    refused: bool = False
    log_prob: Callable[..., Tensor] | None = None
    tolerance: float = 0.0


def real() -> Tensor:
    """Observed numbers."""
    return tensor([0.7, 1.3, 2.1]).to(torch.get_default_dtype())


def counts() -> Tensor:
    """Observed counts, one of them 0."""
    return tensor([0.0, 3.0, 5.0]).to(torch.get_default_dtype())


def bits() -> Tensor:
    """Observed bits."""
    return tensor([0.0, 1.0, 1.0]).to(torch.get_default_dtype())


def shares() -> Tensor:
    """Observed numbers between 0 and 1."""
    return tensor([0.2, 0.5, 0.9]).to(torch.get_default_dtype())


def _t(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.get_default_dtype())


def _eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.get_default_dtype())


def _pair(z: Tensor) -> Tensor:
    return torch.stack([z, -0.5 * z], -1)


def _mixture(loc: Tensor) -> Distribution:
    weights = dist.Categorical(tensor([0.3, 0.7]).to(loc.dtype))
    return dist.MixtureSameFamily(weights, dist.Normal(loc, 0.8))


def _normal_cdf(z: Tensor) -> Tensor:
    with without_validation():
        return dist.Normal(_t(0.0), 1.0).cdf(z)


_LINKS: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "logits z": lambda z: {"logits": z},
    "probs sigmoid(z)": lambda z: {"probs": torch.sigmoid(z)},
    "probs ndtr(z)": lambda z: {"probs": torch.special.ndtr(z)},
    "probs Normal(0, 1).cdf(z)": lambda z: {"probs": _normal_cdf(z)},
    "probs 1 - exp(-exp(z))": lambda z: {"probs": 1 - torch.exp(-torch.exp(z))},
    "probs exp(-exp(z))": lambda z: {"probs": torch.exp(-torch.exp(z))},
    "probs atan(z) / pi + 1/2": lambda z: {"probs": torch.atan(z) / math.pi + 0.5},
}


def _link_rows() -> list[Row]:
    rows = []
    for text, link in _LINKS.items():
        argument, _, through = text.partition(" ")

        def add(
            name: str, program: Program, argument: str = argument, through: str = through
        ) -> None:
            rows.append(Row(name, argument, through, program))

        add("Bernoulli", lambda z, link=link: (dist.Bernoulli(**link(z)), bits()))
        add("Binomial", lambda z, link=link: (dist.Binomial(_t(6.0), **link(z)), counts()))
        add(
            "NegativeBinomial",
            lambda z, link=link: (dist.NegativeBinomial(_t(6.0), **link(z)), counts()),
        )
        add("Geometric", lambda z, link=link: (dist.Geometric(**link(z)), counts()))
    return rows


def _location_scale_rows() -> list[Row]:
    families: dict[str, tuple[Callable[..., Distribution], bool]] = {
        "Laplace": (dist.Laplace, True),
        "AsymmetricLaplace": (lambda m, s: dist.AsymmetricLaplace(m, s, 1.7), True),
        "SoftLaplace": (dist.SoftLaplace, False),
        "SoftAsymmetricLaplace": (
            lambda m, s: dist.SoftAsymmetricLaplace(m, s, _t(1.7), _t(0.5)),
            False,
        ),
        "Logistic": (dist.Logistic, False),
        "SkewLogistic": (lambda m, s: dist.SkewLogistic(m, s, 1.7), False),
        "Cauchy": (dist.Cauchy, False),
        "StudentT": (lambda m, s: dist.StudentT(_t(3.0), m, s), False),
        "Gumbel": (dist.Gumbel, False),
        "StableWithLogProb": (
            lambda m, s: dist.StableWithLogProb(_t(1.5), _t(0.1), s, m),
            False,
        ),
    }
    rows = []
    for name, (make, kinked) in families.items():
        at_loc = (lambda: _t(0.1)) if kinked else None
        at_value = real if kinked else None
        rows += [
            Row(name, "value", "z", lambda z, make=make: (make(_t(0.1), _t(0.8)), z), kink=at_loc),
            Row(name, "loc", "z", lambda z, make=make: (make(z, _t(0.8)), real()), kink=at_value),
            Row(name, "scale", "exp(z)", lambda z, make=make: (make(_t(0.1), z.exp()), real())),
        ]
    # Pyro integrates a stable density on a grid of its own
    rows = [
        row._replace(tolerance=1e-4 if row.name == "StableWithLogProb" else 0.0) for row in rows
    ]
    soft = next(i for i, row in enumerate(rows) if row[:2] == ("SoftAsymmetricLaplace", "scale"))
    rows[soft] = rows[soft]._replace(log_prob=_soft_asymmetric_laplace)
    return rows


def _soft_asymmetric_laplace(z: Tensor) -> Tensor:
    """Pyro's formula with asymmetry 1.7 and softness 0.5, where its erfc would underflow."""
    a, soft = 1.7, 0.5
    x = (real() - 0.1) / z.exp()
    left = (0.5 * soft**2 + a * x) / a**2 + torch.special.log_ndtr(-(soft / a + x / soft))
    right = (0.5 * soft**2 - x / a) * a**2 + torch.special.log_ndtr(-(soft * a - x / soft))
    return torch.logaddexp(left, right) - math.log(a + 1 / a) - z


ROWS: list[Row] = [
    # Gaussians
    Row("Normal", "value", "z", lambda z: (dist.Normal(0.3, 0.8), z)),
    Row("Normal", "value", "exp(z)", lambda z: (dist.Normal(0.3, 0.8), z.exp())),
    Row("Normal", "loc", "z", lambda z: (dist.Normal(z, 0.8), real())),
    Row("Normal", "loc", "z * y", lambda z, y: (dist.Normal(z * y, 0.8), real()), 2),
    Row("Normal", "loc", "exp(z)", lambda z: (dist.Normal(z.exp(), 0.8), real())),
    Row("Normal", "loc", "tanh(z)", lambda z: (dist.Normal(z.tanh(), 0.8), real())),
    Row("Normal", "scale", "exp(z)", lambda z: (dist.Normal(0.3, z.exp()), real())),
    Row(
        "Normal", "scale", "softplus(z)", lambda z: (dist.Normal(0.3, F.softplus(z) + 0.1), real())
    ),
    Row("Normal", "loc, scale", "y, exp(z)", lambda z, y: (dist.Normal(y, z.exp()), real()), 2),
    Row("Normal", "loc, scale", "2 z, exp(z)", lambda z: (dist.Normal(2 * z, z.exp()), real())),
    Row("Normal", "scale", "z", lambda z: (dist.Normal(0.3, z), real()), refused=True),
    Row("NanMaskedNormal", "loc", "z", lambda z: (dist.NanMaskedNormal(z, 0.8), real())),
    Row(
        "NanMaskedNormal",
        "loc",
        "z, an entry is missing",
        lambda z: (dist.NanMaskedNormal(z, 0.8), torch.where(bits() > 0, real(), math.nan)),
    ),
    Row("LogNormal", "value", "exp(z)", lambda z: (dist.LogNormal(0.3, 0.8), z.exp())),
    Row("LogNormal", "loc", "z", lambda z: (dist.LogNormal(z, 0.8), real())),
    Row("LogNormal", "scale", "exp(z)", lambda z: (dist.LogNormal(0.3, z.exp()), real())),
    Row(
        "MultivariateNormal",
        "loc",
        "z",
        lambda z: (dist.MultivariateNormal(z, _eye(3) + 0.2), real()),
        joint=True,
    ),
    Row(
        "MultivariateNormal",
        "loc",
        "exp(z)",
        lambda z: (dist.MultivariateNormal(z.exp(), _eye(3) + 0.2), real()),
        joint=True,
    ),
    Row(
        "MultivariateNormal",
        "scale_tril",
        "diag(exp(z))",
        lambda z: (dist.MultivariateNormal(real(), scale_tril=torch.diag_embed(z.exp())), real()),
        joint=True,
        refused=True,
    ),
    Row(
        "LowRankMultivariateNormal",
        "loc",
        "z",
        lambda z: (
            dist.LowRankMultivariateNormal(z, real().unsqueeze(-1), torch.ones_like(real())),
            real(),
        ),
        joint=True,
    ),
    Row(
        "OMTMultivariateNormal",
        "value",
        "z",
        lambda z: (dist.OMTMultivariateNormal(real(), _eye(3) + 0.2 * _eye(3)), z),
        joint=True,
    ),
    Row(
        "AVFMultivariateNormal",
        "value",
        "z",
        lambda z: (
            dist.AVFMultivariateNormal(real(), _eye(3), torch.zeros(2, 1, 3, dtype=real().dtype)),
            z,
        ),
        joint=True,
    ),
    Row(
        "NanMaskedMultivariateNormal",
        "loc",
        "z",
        lambda z: (dist.NanMaskedMultivariateNormal(z, _eye(3) + 0.2), real()),
        joint=True,
    ),
    # Other laws of location and scale
    *_location_scale_rows(),
    Row("StudentT", "df", "exp(z)", lambda z: (dist.StudentT(z.exp(), _t(0.1), _t(0.8)), real())),
    Row(
        "StudentT",
        "loc, scale",
        "y, exp(z)",
        lambda z, y: (dist.StudentT(_t(3.0), y, z.exp()), real()),
        2,
    ),
    Row(
        "MultivariateStudentT",
        "loc",
        "z",
        lambda z: (dist.MultivariateStudentT(_t(3.0), z, _eye(3)), real()),
        joint=True,
        refused=True,
    ),
    Row(
        "SkewLogistic",
        "asymmetry",
        "exp(z)",
        lambda z: (dist.SkewLogistic(0.1, 0.8, z.exp()), real()),
    ),
    Row(
        "AsymmetricLaplace",
        "asymmetry",
        "exp(z)",
        lambda z: (dist.AsymmetricLaplace(0.1, 0.8, z.exp()), real()),
    ),
    # Counts
    *_link_rows(),
    Row("Poisson", "rate", "exp(z)", lambda z: (dist.Poisson(z.exp()), counts())),
    Row(
        "Poisson",
        "rate",
        "exp(z) + exp(y)",
        lambda z, y: (dist.Poisson(z.exp() + y.exp()), counts()),
        2,
    ),
    Row("Poisson", "rate", "softplus(z)", lambda z: (dist.Poisson(F.softplus(z)), counts())),
    Row("Poisson", "rate", "z", lambda z: (dist.Poisson(z), counts()), refused=True),
    Row(
        "NegativeBinomial",
        "total_count",
        "exp(z)",
        lambda z: (dist.NegativeBinomial(z.exp(), logits=_t(0.3)), counts()),
    ),
    Row(
        "NegativeBinomial",
        "total_count, logits",
        "exp(z), y",
        lambda z, y: (dist.NegativeBinomial(z.exp(), logits=y), counts()),
        2,
    ),
    Row(
        "GammaPoisson", "rate", "exp(z)", lambda z: (dist.GammaPoisson(_t(2.0), z.exp()), counts())
    ),
    Row(
        "GammaPoisson",
        "concentration",
        "exp(z)",
        lambda z: (dist.GammaPoisson(z.exp(), _t(0.4)), counts()),
    ),
    Row(
        "BetaBinomial",
        "concentration1",
        "exp(z)",
        lambda z: (dist.BetaBinomial(z.exp(), _t(2.0), _t(6.0)), counts()),
    ),
    Row(
        "BetaBinomial",
        "concentration1, concentration0",
        "exp(z), exp(y)",
        lambda z, y: (dist.BetaBinomial(z.exp(), y.exp(), _t(6.0)), counts()),
        2,
    ),
    Row(
        "ExtendedBetaBinomial",
        "concentration1",
        "exp(z)",
        lambda z: (dist.ExtendedBetaBinomial(z.exp(), _t(2.0), _t(6.0)), counts()),
    ),
    Row(
        "ExtendedBinomial",
        "logits",
        "z",
        lambda z: (dist.ExtendedBinomial(_t(6.0), logits=z), counts()),
    ),
    Row(
        "LogNormalNegativeBinomial",
        "logits",
        "z",
        lambda z: (dist.LogNormalNegativeBinomial(_t(3.0), z, _t(0.4)), counts()),
    ),
    Row(
        "ZeroInflatedPoisson",
        "rate",
        "exp(z)",
        lambda z: (dist.ZeroInflatedPoisson(z.exp(), gate=_t(0.3)), counts()),
    ),
    Row(
        "ZeroInflatedPoisson",
        "gate",
        "sigmoid(z)",
        lambda z: (dist.ZeroInflatedPoisson(_t(2.0), gate=z.sigmoid()), counts()),
    ),
    Row(
        "ZeroInflatedPoisson",
        "rate, gate_logits",
        "exp(z), y",
        lambda z, y: (dist.ZeroInflatedPoisson(z.exp(), gate_logits=y), counts()),
        2,
    ),
    Row(
        "ZeroInflatedNegativeBinomial",
        "logits",
        "z",
        lambda z: (dist.ZeroInflatedNegativeBinomial(_t(3.0), logits=z, gate=_t(0.3)), counts()),
    ),
    Row(
        "ZeroInflatedDistribution",
        "base_dist",
        "Geometric(logits=z)",
        lambda z: (dist.ZeroInflatedDistribution(dist.Geometric(logits=z), gate=_t(0.3)), counts()),
    ),
    # Categories
    Row("Bernoulli", "value", "z", lambda b: (dist.Bernoulli(_t(0.3)), b), latent="bernoulli"),
    Row(
        "Bernoulli",
        "logits",
        "2 z - 1",
        lambda b: (dist.Bernoulli(logits=2 * b - 1), bits()),
        latent="bernoulli",
    ),
    Row(
        "Bernoulli",
        "logits",
        "2 b + y, b a bit",
        lambda b, y: (dist.Bernoulli(logits=2 * b + y), bits()),
        2,
        latent="bernoulli, normal",
    ),
    Row(
        "Categorical",
        "logits",
        "two categories: (z, -z / 2)",
        lambda z: (dist.Categorical(logits=_pair(z)), bits().long()),
    ),
    Row(
        "Categorical",
        "probs",
        "softmax(z, -z / 2)",
        lambda z: (dist.Categorical(_pair(z).softmax(-1)), bits().long()),
    ),
    Row(
        "Categorical",
        "logits",
        "three categories: (z, y, 0)",
        lambda z, y: (dist.Categorical(logits=torch.stack([z, y, 0 * z], -1)), bits().long()),
        2,
    ),
    Row(
        "Categorical",
        "logits",
        "four categories: (z, y, 0, z + 1)",
        lambda z, y: (
            dist.Categorical(logits=torch.stack([z, y, 0 * z, z + 1], -1)),
            bits().long(),
        ),
        2,
        refused=True,
    ),
    Row(
        "Categorical",
        "probs",
        "table[k], k an index",
        lambda k: (dist.Categorical(_table()[k]), bits().long()),
        latent="categorical",
    ),
    Row(
        "Categorical",
        "value",
        "k, an index",
        lambda k: (dist.Categorical(_table()[0]), k),
        latent="categorical",
    ),
    Row(
        "OneHotCategorical",
        "logits",
        "two categories: (z, -z / 2)",
        lambda z: (dist.OneHotCategorical(logits=_pair(z)), _eye(2)[bits().long()]),
    ),
    Row(
        "OneHotCategoricalStraightThrough",
        "logits",
        "two categories: (z, -z / 2)",
        lambda z: (dist.OneHotCategoricalStraightThrough(logits=_pair(z)), _eye(2)[bits().long()]),
    ),
    Row(
        "Multinomial",
        "logits",
        "two categories: (z, -z / 2)",
        lambda z: (
            dist.Multinomial(5, logits=_pair(z)),
            torch.stack([counts(), 5 - counts()], -1),
        ),
    ),
    Row(
        "DirichletMultinomial",
        "concentration",
        "(exp(z), exp(y))",
        lambda z, y: (
            dist.DirichletMultinomial(torch.stack([z.exp(), y.exp()], -1), 5),
            torch.stack([counts(), 5 - counts()], -1),
        ),
        2,
    ),
    Row(
        "OrderedLogistic",
        "predictor",
        "z",
        lambda z: (dist.OrderedLogistic(z, real() - 1.5), tensor([0, 2, 3])),
    ),
    Row(
        "OrderedLogistic",
        "cutpoints",
        "(z, z + exp(y))",
        lambda z, y: (
            dist.OrderedLogistic(real(), torch.stack([z, z + y.exp()], -1)),
            tensor([0, 1, 2]),
        ),
        2,
    ),
    Row(
        "ContinuousBernoulli",
        "logits",
        "z",
        lambda z: (dist.ContinuousBernoulli(logits=z), shares()),
    ),
    Row(
        "RelaxedBernoulli",
        "logits",
        "z",
        lambda z: (dist.RelaxedBernoulli(_t(0.7), logits=z), shares()),
    ),
    Row(
        "RelaxedBernoulliStraightThrough",
        "logits",
        "z",
        lambda z: (dist.RelaxedBernoulliStraightThrough(_t(0.7), logits=z), shares()),
    ),
    Row(
        "RelaxedOneHotCategorical",
        "logits",
        "two categories: (z, -z / 2)",
        lambda z: (
            dist.RelaxedOneHotCategorical(_t(0.7), logits=_pair(z)),
            torch.stack([shares(), 1 - shares()], -1),
        ),
    ),
    Row(
        "RelaxedOneHotCategoricalStraightThrough",
        "logits",
        "two categories: (z, -z / 2)",
        lambda z: (
            dist.RelaxedOneHotCategoricalStraightThrough(_t(0.7), logits=_pair(z)),
            torch.stack([shares(), 1 - shares()], -1),
        ),
    ),
    # The positive half line
    Row("Exponential", "value", "exp(z)", lambda z: (dist.Exponential(0.7), z.exp())),
    Row("Exponential", "rate", "exp(z)", lambda z: (dist.Exponential(z.exp()), real())),
    Row("Gamma", "value", "exp(z)", lambda z: (dist.Gamma(2.0, 1.3), z.exp())),
    Row("Gamma", "value", "softplus(z)", lambda z: (dist.Gamma(2.0, 1.3), F.softplus(z))),
    Row("Gamma", "value", "z", lambda z: (dist.Gamma(2.0, 1.3), z), refused=True),
    Row("Gamma", "rate", "exp(z)", lambda z: (dist.Gamma(2.0, z.exp()), real())),
    Row("Gamma", "concentration", "exp(z)", lambda z: (dist.Gamma(z.exp(), 1.3), real())),
    Row("Chi2", "value", "exp(z)", lambda z: (dist.Chi2(_t(3.0)), z.exp())),
    Row("Chi2", "df", "exp(z)", lambda z: (dist.Chi2(z.exp()), real())),
    Row("InverseGamma", "value", "exp(z)", lambda z: (dist.InverseGamma(2.0, 1.3), z.exp())),
    Row("InverseGamma", "rate", "exp(z)", lambda z: (dist.InverseGamma(2.0, z.exp()), real())),
    Row(
        "InverseGamma",
        "concentration",
        "exp(z)",
        lambda z: (dist.InverseGamma(z.exp(), 1.3), real()),
    ),
    Row("HalfNormal", "value", "exp(z)", lambda z: (dist.HalfNormal(1.3), z.exp())),
    Row("HalfNormal", "scale", "exp(z)", lambda z: (dist.HalfNormal(z.exp()), real())),
    Row("HalfNormal", "value", "z", lambda z: (dist.HalfNormal(1.3), z), refused=True),
    Row("HalfCauchy", "value", "exp(z)", lambda z: (dist.HalfCauchy(1.3), z.exp())),
    Row("HalfCauchy", "scale", "exp(z)", lambda z: (dist.HalfCauchy(z.exp()), real())),
    Row(
        "FoldedDistribution",
        "value",
        "exp(z)",
        lambda z: (dist.FoldedDistribution(dist.Normal(0.3, 0.5)), z.exp()),
    ),
    Row(
        "FoldedDistribution",
        "base_dist",
        "Normal(z, 0.8)",
        lambda z: (dist.FoldedDistribution(dist.Normal(z, 0.8)), real()),
    ),
    Row("Weibull", "value", "exp(z)", lambda z: (dist.Weibull(1.3, 2.0), z.exp())),
    Row("Weibull", "scale", "exp(z)", lambda z: (dist.Weibull(z.exp(), 2.0), real())),
    Row(
        "Weibull",
        "concentration",
        "exp(z), x < scale",
        lambda z: (dist.Weibull(3.0, z.exp()), real()),
        log_prob=lambda z: (
            z + (z.exp() - 1) * (real() / 3).log() - math.log(3) - (real() / 3) ** z.exp()
        ),
    ),
    Row(
        "Weibull",
        "concentration",
        "exp(z), x > scale: the mean is infinite",
        lambda z: (dist.Weibull(1.0, z.exp()), real()),
        refused=True,
    ),
    Row(
        "Weibull",
        "concentration",
        "1 + exp(z), x > scale: the mean is infinite",
        lambda z: (dist.Weibull(1.0, 1 + z.exp()), real()),
        refused=True,
    ),
    Row(
        "Weibull",
        "concentration",
        "softplus(z)",
        lambda z: (dist.Weibull(1.0, F.softplus(z)), real()),
        log_prob=lambda z: (
            F.softplus(z).log()
            + (F.softplus(z) - 1) * real().log()
            - torch.exp(F.softplus(z) * real().log())
        ),
    ),
    Row("Pareto", "alpha", "exp(z)", lambda z: (dist.Pareto(0.5, z.exp()), real())),
    Row("Pareto", "value", "exp(z) + 0.5", lambda z: (dist.Pareto(0.5, 2.0), z.exp() + 0.5)),
    Row(
        "Pareto",
        "scale",
        "exp(z), may exceed x",
        lambda z: (dist.Pareto(z.exp(), 2.0), real()),
        refused=True,
    ),
    Row(
        "GeneralizedPareto",
        "value",
        "exp(z) + 0.5",
        lambda z: (dist.GeneralizedPareto(_t(0.5), _t(1.0), _t(0.3)), z.exp() + 0.5),
    ),
    Row(
        "GeneralizedPareto",
        "scale",
        "exp(z)",
        lambda z: (dist.GeneralizedPareto(_t(0.5), z.exp(), _t(0.3)), real()),
    ),
    Row("FisherSnedecor", "value", "exp(z)", lambda z: (dist.FisherSnedecor(3.0, 4.0), z.exp())),
    Row(
        "FisherSnedecor", "df1", "exp(z)", lambda z: (dist.FisherSnedecor(z.exp(), _t(4.0)), real())
    ),
    Row(
        "TruncatedPolyaGamma",
        "value",
        "sigmoid(z)",
        lambda z: (dist.TruncatedPolyaGamma(_t(1.0)), z.sigmoid()),
    ),
    # Intervals, simplices, circles
    Row(
        "Uniform",
        "value",
        "3 sigmoid(z) - 1",
        lambda z: (dist.Uniform(_t(-1.0), _t(2.0)), 3 * z.sigmoid() - 1),
    ),
    Row("Uniform", "value", "z", lambda z: (dist.Uniform(_t(-1.0), _t(2.0)), z), refused=True),
    Row(
        "Uniform", "high", "2.5 + exp(z)", lambda z: (dist.Uniform(_t(-1.0), 2.5 + z.exp()), real())
    ),
    Row(
        "Uniform",
        "high",
        "exp(z), may be exceeded",
        lambda z: (dist.Uniform(_t(-1.0), z.exp()), real()),
        refused=True,
    ),
    Row("Beta", "value", "sigmoid(z)", lambda z: (dist.Beta(2.0, 3.0), z.sigmoid())),
    Row("Beta", "concentration1", "exp(z)", lambda z: (dist.Beta(z.exp(), 3.0), shares())),
    Row(
        "Beta",
        "concentration1, concentration0",
        "exp(z), exp(y)",
        lambda z, y: (dist.Beta(z.exp(), y.exp()), shares()),
        2,
    ),
    Row(
        "AffineBeta",
        "value",
        "1 + 4 sigmoid(z)",
        lambda z: (dist.AffineBeta(2.0, 3.0, _t(1.0), _t(4.0)), 1 + 4 * z.sigmoid()),
    ),
    Row(
        "Kumaraswamy",
        "value",
        "sigmoid(z)",
        lambda z: (dist.Kumaraswamy(_t(2.0), _t(3.0)), z.sigmoid()),
    ),
    Row(
        "Kumaraswamy",
        "concentration1",
        "exp(z)",
        lambda z: (dist.Kumaraswamy(z.exp(), _t(3.0)), shares()),
        log_prob=lambda z: (
            z
            + math.log(3)
            + (z.exp() - 1) * shares().log()
            + 2 * (-(z.exp() * shares().log()).expm1()).log()
        ),
    ),
    Row(
        "Kumaraswamy",
        "concentration0",
        "exp(z)",
        lambda z: (dist.Kumaraswamy(_t(2.0), z.exp()), shares()),
        log_prob=lambda z: (
            z + math.log(2) + shares().log() + (z.exp() - 1) * (1 - shares().square()).log()
        ),
    ),
    Row(
        "Dirichlet",
        "concentration",
        "exp(z) (1, 1, 1)",
        lambda z: (dist.Dirichlet(z.exp().unsqueeze(-1) * torch.ones_like(real())), shares() / 1.6),
    ),
    Row(
        "Dirichlet",
        "concentration",
        "(exp(z), exp(y))",
        lambda z, y: (
            dist.Dirichlet(torch.stack([z.exp(), y.exp()], -1)),
            torch.stack([shares(), 1 - shares()], -1),
        ),
        2,
    ),
    Row(
        "Dirichlet",
        "value",
        "softmax(z)",
        lambda z: (dist.Dirichlet(real()), z.softmax(-1)),
        joint=True,
        refused=True,
    ),
    Row(
        "LogisticNormal",
        "value",
        "softmax(z)",
        lambda z: (dist.LogisticNormal(real()[:2], torch.ones_like(real()[:2])), z.softmax(-1)),
        joint=True,
        refused=True,
    ),
    Row("VonMises", "value", "z", lambda z: (dist.VonMises(_t(0.1), _t(2.0)), z)),
    Row("VonMises", "loc", "z", lambda z: (dist.VonMises(z, _t(2.0)), real())),
    Row("VonMises", "concentration", "exp(z)", lambda z: (dist.VonMises(_t(0.1), z.exp()), real())),
    Row(
        "VonMises3D",
        "value",
        "linear in z",
        lambda z: (dist.VonMises3D(real()), z),
        joint=True,
    ),
    Row(
        "ProjectedNormal",
        "value",
        "z, normalised",
        lambda z: (dist.ProjectedNormal(real()), z / z.square().sum(-1, keepdim=True).sqrt()),
        joint=True,
        refused=True,
    ),
    Row(
        "SineBivariateVonMises",
        "value",
        "(z, y)",
        lambda z, y: (
            dist.SineBivariateVonMises(_t(0.1), _t(0.2), _t(1.0), _t(1.5), correlation=_t(0.3)),
            torch.stack([z, y], -1),
        ),
        2,
    ),
    Row(
        "SineSkewed",
        "value",
        "(z, y)",
        lambda z, y: (
            dist.SineSkewed(dist.VonMises(real()[:2], real()[:2]).to_event(1), 0.2 * real()[:2]),
            torch.stack([z, y], -1),
        ),
        2,
    ),
    Row(
        "LKJCholesky",
        "concentration",
        "exp(z)",
        lambda z: (dist.LKJCholesky(3, z.exp()), torch.linalg.cholesky(_eye(3) + 0.2) / 1.2**0.5),
    ),
    # Mixtures and wrappers
    Row("MixtureSameFamily", "value", "z", lambda z: (_mixture(real()[:2]), z)),
    Row(
        "MixtureSameFamily",
        "component_distribution",
        "two locations: (z, y)",
        lambda z, y: (_mixture(torch.stack([z, y], -1)), real()),
        2,
    ),
    Row(
        "MixtureSameFamily",
        "component_distribution",
        "three locations: (z, 2 z, y)",
        lambda z, y: (
            dist.MixtureSameFamily(
                dist.Categorical(real()), dist.Normal(torch.stack([z, z * z, y], -1), 0.8)
            ),
            real(),
        ),
        2,
        refused=True,
    ),
    Row(
        "MaskedMixture",
        "component0, component1",
        "Normal(z, 0.5), Normal(-z, 1)",
        lambda z: (
            dist.MaskedMixture(bits() > 0, dist.Normal(z, 0.5), dist.Normal(-z, 1.0)),
            real(),
        ),
    ),
    Row(
        "MaskedMixture",
        "mask",
        "z > 1/2 for a bit z",
        lambda b: (
            dist.MaskedMixture(b > 0.5, dist.Normal(_t(0.0), 0.5), dist.Normal(_t(1.0), 1.0)),
            real(),
        ),
        latent="bernoulli",
    ),
    Row(
        "MixtureOfDiagNormals",
        "value",
        "z",
        lambda z: (
            dist.MixtureOfDiagNormals(_eye(3)[:2], torch.ones_like(_eye(3)[:2]), real()[:2]),
            z,
        ),
        joint=True,
        refused=True,
    ),
    Row(
        "MixtureOfDiagNormalsSharedCovariance",
        "value",
        "z",
        lambda z: (
            dist.MixtureOfDiagNormalsSharedCovariance(
                _eye(3)[:2], torch.ones_like(real()), real()[:2]
            ),
            z,
        ),
        joint=True,
        refused=True,
    ),
    Row(
        "GaussianScaleMixture",
        "value",
        "z",
        lambda z: (dist.GaussianScaleMixture(torch.ones_like(real()), real()[:2], real()[:2]), z),
        joint=True,
        refused=True,
    ),
    Row(
        "TransformedDistribution",
        "transforms",
        "AffineTransform(y, exp(z))",
        lambda z, y: (
            dist.TransformedDistribution(
                dist.Normal(_t(0.0), 1.0), [dist.transforms.AffineTransform(y, z.exp())]
            ),
            real(),
        ),
        2,
    ),
    Row(
        "TransformedDistribution",
        "value",
        "softplus(z) under SoftplusTransform",
        lambda z: (
            dist.TransformedDistribution(
                dist.Normal(_t(0.0), 1.0), [dist.transforms.SoftplusTransform()]
            ),
            F.softplus(z),
        ),
    ),
    Row(
        "TransformedDistribution",
        "value",
        "sigmoid(z) under SigmoidTransform",
        lambda z: (
            dist.TransformedDistribution(
                dist.Normal(_t(0.0), 1.0), [dist.transforms.SigmoidTransform()]
            ),
            z.sigmoid(),
        ),
    ),
    Row(
        "Independent",
        "base_dist",
        "Normal(z, 0.8)",
        lambda z: (dist.Normal(z, 0.8).to_event(1), real()),
        joint=True,
    ),
    Row(
        "MaskedDistribution",
        "base_dist",
        "Normal(z, 0.8)",
        lambda z: (dist.Normal(z, 0.8).mask(bits() > 0), real()),
    ),
    Row(
        "ExpandedDistribution",
        "base_dist",
        "Normal(z, 0.8)",
        lambda z: (dist.ExpandedDistribution(dist.Normal(z, 0.8), torch.Size([3])), real()),
        log_prob=lambda z: dist.Normal(z, 0.8).log_prob(real()),
    ),
    Row(
        "ImproperUniform",
        "value",
        "z",
        lambda z: (dist.ImproperUniform(dist.constraints.real, (), ()), z),
    ),
    Row(
        "Delta",
        "v, value",
        "z",
        lambda z: (dist.Delta(z, log_density=0.7 - 2 * z), z),
    ),
    Row("Delta", "value", "z, away from v", lambda z: (dist.Delta(real()), z), refused=True),
    Row("Unit", "log_factor", "z * z", lambda z: (dist.Unit(z * z), torch.zeros(3, 0))),
    # Chains, fields, groups, matrices
    Row("GaussianHMM", "value", "z", lambda z: (_chain(), z.unsqueeze(-1)), joint=True),
    Row(
        "IndependentHMM",
        "value",
        "z",
        lambda z: (dist.IndependentHMM(_chain().expand([1])), z.unsqueeze(-1)),
        joint=True,
    ),
    Row(
        "GammaGaussianHMM",
        "value",
        "z",
        lambda z: (
            dist.GammaGaussianHMM(dist.Gamma(_t(2.0), _t(1.0)), *_chain_arguments(), duration=3),
            z.unsqueeze(-1),
        ),
        joint=True,
        refused=True,
    ),
    Row(
        "GaussianMRF",
        "value",
        "z",
        lambda z: (
            dist.GaussianMRF(_standard(1), _standard(2).expand([3]), _standard(2).expand([3])),
            z.unsqueeze(-1),
        ),
        joint=True,
    ),
    Row(
        "DiscreteHMM",
        "observation_dist",
        "Normal(z, 0.8)",
        lambda z: (
            dist.DiscreteHMM(real()[:2], _eye(2), dist.Normal(z.unsqueeze(-1).expand(3, 2), 0.8)),
            real(),
        ),
        joint=True,
        refused=True,
    ),
    Row(
        "GroupedNormalNormal",
        "value",
        "z",
        lambda z: (
            dist.GroupedNormalNormal(real()[:2], real()[:2], _t(0.7), tensor([0, 1, 1])),
            z,
        ),
        joint=True,
        refused=True,
    ),
    Row(
        "Wishart",
        "value",
        "I + exp(z0) 11'",
        lambda z: (dist.Wishart(_t(3.0), _eye(2)), _eye(2) + z[..., :1, None].exp()),
        joint=True,
        refused=True,
    ),
    Row(
        "LKJ",
        "concentration",
        "exp(z)",
        lambda z: (dist.LKJ(3, z.exp()), (_eye(3) + 0.2) / 1.2),
    ),
    Row(
        "Empirical",
        "value",
        "z",
        lambda z: (dist.Empirical(real(), real()), z[0]),
        joint=True,
        refused=True,
    ),
    Row(
        "CoalescentTimes",
        "value",
        "z",
        lambda z: (dist.CoalescentTimes(real() - 0.5 * real()), -z[:2].exp()),
        joint=True,
        refused=True,
    ),
]


def _standard(size: int) -> Distribution:
    zero = torch.zeros(size, dtype=torch.get_default_dtype())
    return dist.MultivariateNormal(zero, _eye(size) + 0.2)


def _chain_arguments() -> tuple[Distribution, Tensor, Distribution, Tensor, Distribution]:
    """A local level model: first state, transition, its noise, observation, its noise."""
    return _standard(1), 0.9 * _eye(1), _standard(1), _eye(1), _standard(1)


def _chain() -> Distribution:
    return dist.GaussianHMM(*_chain_arguments(), duration=3)


EXCLUDED: dict[str, str] = {
    "Distribution": "abstract",
    "TorchDistribution": "abstract",
    "ExponentialFamily": "abstract",
    "Rejector": "made of two functions of the user's; its formula is run on random tensors",
    "Stable": "has no log_prob (StableWithLogProb has)",
    "CoalescentTimesWithRate": "as CoalescentTimes",
    "LinearHMM": "has no log_prob (it is there to be reparameterised)",
    "LKJCorrCholesky": "the deprecated name of LKJCholesky",
    "OneOneMatching": "a discrete structure, scored at values that are not tensors of numbers",
    "OneTwoMatching": "a discrete structure, scored at values that are not tensors of numbers",
    "SpanningTree": "a discrete structure, scored at values that are not tensors of numbers",
}


def _table() -> Tensor:
    return tensor([[0.2, 0.8], [0.6, 0.4]]).to(torch.get_default_dtype())
