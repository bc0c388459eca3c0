"""Food expenditure of 235 households, whose spread grows with their income (Engel 1857).

The mean of the expenditure and the logarithm of its variance are both linear in the income, with
unknown coefficients. A quadratic times the exponential of a Gaussian has a closed expectation, by
exponential tilting, so nothing is sampled and nothing integrated numerically. Checked, for a guide
by hand and three autoguides: two seeds give the same loss and gradients bit for bit, and both agree
with the mean of many particles of ``Trace_ELBO``. L-BFGS reaches the optimum to 1e-6, which Adam on
``Trace_ELBO`` does not in equal time; the bound with a full covariance lies below the log evidence,
integrated numerically, by less than 0.05 nats; and the model predicts households it has
not seen better than one with a common variance. The program fails if a claim does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import (
    AutoGuide,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor

from data import load_food_expenditure
from fitting import (
    Guide,
    Problem,
    check_deterministic_objective,
    check_guides,
    example_parser,
    fit_lbfgs,
    print_table,
    start,
)

NUM_TRAINING = 160
LARGEST_GAP = 0.05  # nats between the bound with a full covariance and the log evidence
Data = tuple[Tensor, Tensor, Tensor]


def expenditure(mean_terms: Tensor, variance_terms: Tensor, spent: Tensor) -> None:
    """Expenditure with a mean and a log variance that are linear in unknown coefficients."""
    slope = pyro.sample("slope", _prior(mean_terms, 5.0))
    log_variance_slope = pyro.sample("log_variance_slope", _prior(variance_terms, 2.0))
    mean = (mean_terms * slope).sum(-1)
    log_variance = (variance_terms * log_variance_slope).sum(-1)
    with pyro.plate("households", len(spent)):
        pyro.sample("spent", dist.Normal(mean, (0.5 * log_variance).exp()), obs=spent)


def _prior(terms: Tensor, deviation: float) -> dist.Distribution:
    return dist.Normal(0.0, deviation).expand([terms.shape[-1]]).to_event(1)


def hand_guide(mean_terms: Tensor, variance_terms: Tensor, spent: Tensor) -> None:
    """Independent Gaussians."""
    for name, terms in (("slope", mean_terms), ("log_variance_slope", variance_terms)):
        num = terms.shape[-1]
        loc = pyro.param(f"{name}_loc", torch.zeros(num))
        scale = pyro.param(
            f"{name}_scale", torch.full((num,), 0.1), constraint=constraints.positive
        )
        pyro.sample(name, dist.Normal(loc, scale).to_event(1))


GUIDES: dict[str, Callable[[], Guide]] = {
    "by hand": lambda: hand_guide,
    "AutoNormal": lambda: AutoNormal(expenditure),
    "AutoMultivariateNormal": lambda: AutoMultivariateNormal(expenditure),
    "AutoLowRankMultivariateNormal": lambda: AutoLowRankMultivariateNormal(expenditure, rank=1),
}


def log_joint(data: Data, points: Tensor) -> Tensor:
    """Log density of data and coefficients together at rows of coefficients ``[n, k]``."""
    mean_terms, variance_terms, spent = data
    slope, log_variance_slope = points.split([mean_terms.shape[-1], variance_terms.shape[-1]], -1)
    deviation = (0.5 * log_variance_slope @ variance_terms.T).exp()
    likelihood = dist.Normal(slope @ mean_terms.T, deviation).log_prob(spent).sum(-1)
    prior = _prior(mean_terms, 5.0).log_prob(slope)
    return likelihood + prior + _prior(variance_terms, 2.0).log_prob(log_variance_slope)


def log_evidence(data: Data, posterior: dist.MultivariateNormal) -> float:
    """The joint density integrated over a grid around a Gaussian posterior, by the midpoint rule.

    Eleven nodes a coefficient, out to five deviations: exact to 1e-5 nats here.
    """
    nodes = torch.linspace(-5.0, 5.0, 11)
    grid = torch.cartesian_prod(*[nodes] * len(posterior.loc))
    points = posterior.loc + grid @ posterior.scale_tril.T
    volume = posterior.scale_tril.logdet() + len(posterior.loc) * (nodes[1] - nodes[0]).log()
    joint = torch.cat([log_joint(data, rows) for rows in points.split(1000)])
    return (joint.logsumexp(0) + volume).item()


def log_predictive(data: Data, posterior: dist.MultivariateNormal, num: int = 4000) -> float:
    """Log density of households not seen, averaged over coefficients drawn from a posterior."""
    mean_terms, variance_terms, spent = data
    points = posterior.sample((num,))
    slope, log_variance_slope = points.split([mean_terms.shape[-1], variance_terms.shape[-1]], -1)
    deviation = (0.5 * log_variance_slope @ variance_terms.T).exp()
    joint = dist.Normal(slope @ mean_terms.T, deviation).log_prob(spent).sum(-1)
    return (joint.logsumexp(0) - math.log(num)).item()


def compare_variances(seen: dict[str, Data], others: dict[str, Data], smoke_test: bool) -> None:
    """Fit with a common and with a log-linear variance; print bounds and predictive densities.

    :raises SystemExit: if a bound is not where it should be, or the common variance predicts better.
    """
    rows, gaps, predictive = [], {}, {}
    for name, data in seen.items():
        guide = AutoMultivariateNormal(expenditure)
        make = partial(_same, guide)
        bound = -fit_lbfgs(Problem(expenditure, data), make, 2 if smoke_test else 500).losses[-1]
        with torch.no_grad():
            evidence = log_evidence(data, guide.get_posterior())
            predictive[name] = log_predictive(others[name], guide.get_posterior())
        gaps[name] = evidence - bound
        rows.append([name, f"{bound:.6f}", f"{evidence:.5f}", f"{predictive[name]:.3f}"])
    print_table(["variance", "ELBO", "log evidence", "log density of households not seen"], rows)
    if smoke_test:
        print("smoke test: too short to compare the models")
        return
    for name, gap in gaps.items():
        if not 0.0 < gap < LARGEST_GAP:
            raise SystemExit(f"{name} variance: the bound is {gap:.5f} nats below the evidence")
    if not predictive["log-linear"] > predictive["common"] + 10.0:
        raise SystemExit(f"log densities of households not seen: {predictive}")


def _same(guide: AutoGuide) -> AutoGuide:
    return guide


def main() -> None:
    """Check the claims and print the figures."""
    args = example_parser(__doc__).parse_args()
    start(args)
    table = load_food_expenditure()
    terms = torch.cat([torch.ones(len(table.response), 1), table.covariates], -1)
    spent = table.response / table.response.mean()
    order = torch.randperm(len(spent), generator=torch.Generator().manual_seed(args.seed))
    seen, others = (
        {
            "common": (terms[rows], terms[rows, :1], spent[rows]),
            "log-linear": (terms[rows], terms[rows], spent[rows]),
        }
        for rows in (order[:NUM_TRAINING], order[NUM_TRAINING:])
    )
    problem = Problem(expenditure, seen["log-linear"])
    check_guides(problem, GUIDES, args.particles, args.seed, args.smoke_test)
    print()
    check_deterministic_objective(
        problem, GUIDES["AutoMultivariateNormal"], smoke_test=args.smoke_test
    )
    print()
    compare_variances(seen, others, args.smoke_test)


if __name__ == "__main__":
    main()
