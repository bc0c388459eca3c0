"""The error of expected log densities over a grid of means and standard deviations.

Each likelihood is reduced to the function of one Gaussian scalar ``u ~ N(mean, std^2)`` that it is, with
means from -10 to 10 and stds from 0.01 to 10. What ``expected_log_prob`` gives at its default settings,
value and gradient, is compared with a dense integral of the distribution's own ``log_prob``; the
Gauss-Hermite rule of 32 nodes stands beside it. Claim: no error is above 1e-6 of E|log p| unless a
``QuadratureWarning`` says so, and no likelihood of the list needs one.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import pyro_silent
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent.expectation.method import recording
from pyro_silent.expectation.quadrature import QuadratureWarning

CLAIMED = 1e-6


class Likelihood(NamedTuple):
    """A density as a function of one scalar, an observation, and where it is not smooth."""

    name: str
    given: Callable[[Any], Any]
    observed: float
    kinks: tuple[float, ...] = ()
    exactly: Callable[[Tensor], Tensor] | None = None  # where torch's own formula loses digits


LIKELIHOODS = [
    Likelihood("Bernoulli(logits=u)", lambda u: dist.Bernoulli(logits=u), 1.0),
    Likelihood(  # torch holds probabilities of less than 1e-16 for 1e-16
        "Bernoulli(ndtr(u))",
        lambda u: dist.Bernoulli(torch.special.ndtr(u)),
        1.0,
        exactly=torch.special.log_ndtr,
    ),
    Likelihood("Binomial(10, logits=u)", lambda u: dist.Binomial(10, logits=u), 3.0),
    Likelihood("Geometric(logits=u)", lambda u: dist.Geometric(logits=u), 3.0),
    Likelihood("NegativeBinomial(3, logits=u)", lambda u: dist.NegativeBinomial(3, logits=u), 4.0),
    Likelihood("Poisson(exp(u))", lambda u: dist.Poisson(u.exp()), 4.0),
    Likelihood("Poisson(softplus(u))", lambda u: dist.Poisson(F.softplus(u)), 4.0),
    Likelihood("Exponential(exp(u))", lambda u: dist.Exponential(u.exp()), 1.3),
    Likelihood("Gamma(2, exp(u))", lambda u: dist.Gamma(2.0, u.exp()), 1.3),
    Likelihood("Gamma(exp(u), 1)", lambda u: dist.Gamma(u.exp(), 1.0), 1.3),
    Likelihood("Normal(u, 1)", lambda u: dist.Normal(u, 1.0), 0.3),
    Likelihood("Normal(0, exp(u))", lambda u: dist.Normal(0.0, u.exp()), 0.3),
    Likelihood("Normal(0, softplus(u))", lambda u: dist.Normal(0.0, F.softplus(u)), 0.3),
    Likelihood("LogNormal(u, 1)", lambda u: dist.LogNormal(u, 1.0), 0.3),
    Likelihood("LogNormal(0, exp(u))", lambda u: dist.LogNormal(0.0, u.exp()), 0.3),
    Likelihood("Laplace(u, 1)", lambda u: dist.Laplace(u, 1.0), 0.3, (0.3,)),
    Likelihood("Laplace(0, exp(u))", lambda u: dist.Laplace(0.0, u.exp()), 0.3),
    Likelihood("Cauchy(u, 1)", lambda u: dist.Cauchy(u, 1.0), 0.3),
    Likelihood("Cauchy(0, exp(u))", lambda u: dist.Cauchy(0.0, u.exp()), 0.3),
    Likelihood("HalfCauchy(exp(u))", lambda u: dist.HalfCauchy(u.exp()), 0.3),
    Likelihood("StudentT(1.5, u, 1)", lambda u: dist.StudentT(1.5, u, 1.0), 0.3),
    Likelihood("StudentT(4, u, 1)", lambda u: dist.StudentT(4.0, u, 1.0), 0.3),
    Likelihood("StudentT(4, u, 0.1)", lambda u: dist.StudentT(4.0, u, 0.1), 0.3),
    Likelihood("StudentT(30, u, 1)", lambda u: dist.StudentT(30.0, u, 1.0), 0.3),
    Likelihood("StudentT(4, 0, exp(u))", lambda u: dist.StudentT(4.0, 0.0, u.exp()), 0.3),
    Likelihood("Beta(exp(u), 2)", lambda u: dist.Beta(u.exp(), 2.0), 0.3),
]


class Row(NamedTuple):
    """The worst of a likelihood over the grid."""

    name: str
    methods: str
    error: float
    at: tuple[float, float]
    gradient: float
    rival: float
    silent: float  # the worst error that no warning told of
    warned: int


def dense(
    likelihood: Likelihood, mean: float, std: float
) -> tuple[float, float, float, float, float]:
    """E, E|.|, both gradients and their scale, from panels of 16 Gauss-Legendre points.

    The panels are cut at every quarter of a standard deviation, at the numbers of unit spacing around
    the observation, whose poles are nearest, and at kinks. The gradients are those of the density.
    """
    near = likelihood.observed + np.concatenate([np.arange(-40.0, 40.5), np.linspace(-1, 1, 41)])
    low, high = mean - 38 * std, mean + 38 * std
    inside = np.concatenate([near, np.arange(-40.0, 40.5), likelihood.kinks])
    inside = inside[(inside > low) & (inside < high)]
    edges = np.unique(np.concatenate([np.linspace(low, high, 305), inside]))
    points, lengths = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    u = torch.from_numpy((edges[:-1, None] + half * (points + 1)).ravel())
    z = (u - mean) / std
    density = torch.from_numpy((half * lengths).ravel()) * torch.exp(-0.5 * z * z)
    density = density / (std * math.sqrt(2 * math.pi))
    with torch.no_grad():
        values = plain_log_prob(likelihood, u).masked_fill(density == 0, 0.0)
        center = plain_log_prob(likelihood, torch.tensor(mean))
    change = torch.where(density > 0, values - center, 0.0) * density
    scores = (z / std, (z * z - 1) / std)
    in_mean, in_std = (float((change * score).sum()) for score in scores)
    scale = max(float((change * score).abs().sum()) for score in scores)
    return float(center + change.sum()), float(values.abs() @ density), in_mean, in_std, scale


def plain_log_prob(likelihood: Likelihood, u: Tensor) -> Tensor:
    """The distribution's own formula, unless it is inexact."""
    if likelihood.exactly is not None:
        return likelihood.exactly(u)
    return likelihood.given(u).log_prob(torch.tensor(likelihood.observed))


def hermite(likelihood: Likelihood, mean: float, std: float, nodes: int = 32) -> float:
    """The rival: Gauss-Hermite quadrature of the same formula."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    values = plain_log_prob(likelihood, mean + std * torch.from_numpy(points))
    return float(values @ torch.from_numpy(weights / weights.sum()))


def measure(likelihood: Likelihood, means: Sequence[float], stds: Sequence[float]) -> Row:
    """The worst over the grid, each point by itself."""
    error = gradient = rival = silent = 0.0
    at, warned = (math.nan, math.nan), 0
    used: set[str] = set()
    for mean in means:
        for std in stds:
            loc = torch.tensor(mean, requires_grad=True)
            scale = torch.tensor(std, requires_grad=True)
            with recording() as methods, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                u = pyro_silent.random_tensor(dist.Normal(loc, scale))
                value = pyro_silent.expected_log_prob(
                    likelihood.given(u), torch.tensor(likelihood.observed)
                )
            slopes = torch.autograd.grad(value, (loc, scale))
            exact, size, *in_both, slope_size = dense(likelihood, mean, std)
            if not math.isfinite(size) or size > 1e250:
                continue
            off = abs(value.item() - exact) / size
            told = any(issubclass(warning.category, QuadratureWarning) for warning in caught)
            used.update(methods)
            warned += told
            if off > error:
                error, at = off, (mean, std)
            if not told:
                silent = max(silent, off)
            for slope, known in zip(slopes, in_both):
                # the integral of the reference loses digits where the slope is a small difference
                lost = 1e-14 * size / std
                beyond = abs(slope.item() - known) - lost
                gradient = max(gradient, beyond / slope_size if slope_size else beyond)
            rival = max(rival, abs(hermite(likelihood, mean, std) - exact) / size)
    return Row(likelihood.name, summary(used), error, at, gradient, rival, silent, warned)


def summary(methods: set[str]) -> str:
    """The least and the greatest number of nodes."""
    if not methods:
        return "closed form"
    counts = sorted(int(method.removeprefix("quadrature(").rstrip(")")) for method in methods)
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return f"quadrature({span})"


HEAD = """# The error of quadrature

Expected log densities at default settings in double precision, against dense integrals. Made by
`examples/benchmarks/quadrature_error.py`: every likelihood at all pairs of {means} means from
-10 to 10 and {stds} standard deviations from 0.01 to 10 of the Gaussian scalar u. Errors are
relative to E|log p|, those of the gradient to its own scale. The last column is what the
Gauss-Hermite rule of 32 nodes would give.

| likelihood | method | worst error | at (mean, std) | of the gradient | 32-node rule |
| --- | --- | --- | --- | --- | --- |
"""

NOTES = """
The worst error of all is {error:.0e}, of {name}; {warned} of the points raised a
`QuadratureWarning`.

How it comes about:

- Functions with closed expectations (exp, square, abs, relu, erf, log(1 + x^2), ...) need no nodes.
- Softplus and the sigmoid (Bernoulli, Binomial, Geometric and NegativeBinomial with logits) are
  scale mixtures of normal distribution functions to 1e-11, and those have closed expectations:
  one cost and one error for every mean and std. They are reported as `quadrature`, with the count
  asked for.
- Any other function of one Gaussian scalar is integrated by the trapezoidal rule, with 33 nodes
  to begin with. The number is doubled, keeping the old nodes, until that changes the result by
  less than 1e-6 and the rate of convergence leaves 1e-9. What is still uncertain at about 1000
  nodes raises a `QuadratureWarning`: no inexact answer is given in silence.
- A kink at a known place (abs, relu, clamp, a comparison) inside a larger function splits the
  integral.
- In single precision the same holds with 1e-5.

Under `torch.compile`, `make_fx` and `vmap` values cannot be looked at. The number of nodes is then
the first one, `quadrature_points`, whatever the std; the last column says what that means.
"""


def page(rows: Sequence[Row], num_means: int, num_stds: int) -> str:
    """The page for the documentation."""
    lines = []
    for row in rows:
        place = f"({row.at[0]:g}, {row.at[1]:.2g})" if row.error > 1e-13 else ""
        lines.append(
            f"| {row.name} | {row.methods} | {row.error:.0e} | {place} "
            f"| {max(row.gradient, 0.0):.0e} | {row.rival:.0e} |"
        )
    worst = max(rows, key=lambda row: row.error)
    warned = sum(row.warned for row in rows) or "none"
    notes = NOTES.format(error=worst.error, name=worst.name, warned=warned)
    return HEAD.format(means=num_means, stds=num_stds) + "\n".join(lines) + "\n" + notes


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--page", type=Path, help="write the page here: docs/quadrature.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    means = np.linspace(-10, 10, 3 if arguments.smoke_test else 9).tolist()
    stds = np.geomspace(0.01, 10, 2 if arguments.smoke_test else 10).tolist()
    rows = [
        measure(likelihood, means, stds)
        for likelihood in tqdm(LIKELIHOODS, disable=None, leave=False)
    ]
    header = ["likelihood", "method", "error", "gradient", "32-node rule", "warnings"]
    cells = [
        [r.name, r.methods, f"{r.error:.0e}", f"{r.gradient:.0e}", f"{r.rival:.0e}", r.warned]
        for r in rows
    ]
    print(table(header, cells))
    if arguments.page:
        arguments.page.write_text(page(rows, len(means), len(stds)))
    figures: dict[str, object] = {row.name: row._asdict() for row in rows}
    silent = max(rows, key=lambda row: row.silent)
    slope = max(rows, key=lambda row: row.gradient)
    targets = [
        Target(f"worst error in silence, {silent.name}", silent.silent, CLAIMED),
        Target(f"worst error of a gradient, {slope.name}", slope.gradient, CLAIMED),
        Target("points with a warning", sum(row.warned for row in rows), 0),
    ]
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
