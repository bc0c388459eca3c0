"""Poisson and negative-binomial regression with group effects on 20,190 person-years of care.

Visits to a doctor depend on covariates and on an effect of each cell of insurance plan by health,
drawn around zero with a common spread. For the Poisson likelihood everything has a closed form; the
negative-binomial one, with a latent concentration, is integrated numerically over one Gaussian
scalar per row. Checked, for a guide by hand and three autoguides: two seeds give the same loss and
gradients bit for bit, and both agree with the mean of many particles of ``Trace_ELBO`` (on every
100th row, which is what many particles can be afforded on). Then, on all rows, ``torch.optim.LBFGS``
on ``SilentELBO`` is held against Adam on ``Trace_ELBO`` at equal time. The program fails if a claim
does not hold.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from data import load_doctor_visits
from fitting import (
    Guide,
    Problem,
    check_deterministic_objective,
    check_guides,
    example_parser,
    start,
)

NUM_GROUPS = 20


def log_rate(covariates: Tensor, groups: Tensor) -> Tensor:
    """Log of the expected number of visits: linear in the covariates, with group effects."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("covariates", covariates.shape[-1]):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", NUM_GROUPS):
        effect = pyro.sample("effect", dist.Normal(0.0, spread))
    return intercept + slope @ covariates.T + effect[..., groups]


def poisson(covariates: Tensor, groups: Tensor, counts: Tensor) -> None:
    """The variance of the visits is their mean."""
    rate = log_rate(covariates, groups).exp()
    with pyro.plate("people", len(counts)):
        pyro.sample("visits", dist.Poisson(rate), obs=counts)


def negative_binomial(covariates: Tensor, groups: Tensor, counts: Tensor) -> None:
    """The variance of the visits is above their mean, the more so the lower the concentration."""
    concentration = pyro.sample("concentration", dist.LogNormal(0.0, 1.0))
    logits = log_rate(covariates, groups) - concentration.log()
    with pyro.plate("people", len(counts)):
        pyro.sample("visits", dist.NegativeBinomial(concentration, logits=logits), obs=counts)


def poisson_guide(covariates: Tensor, groups: Tensor, counts: Tensor) -> None:
    """Independent Gaussians, and a log-normal spread."""
    pyro.sample("intercept", _normal("intercept", 0.5))
    log_spread = _normal("log_spread", -1.0)
    pyro.sample("spread", dist.LogNormal(log_spread.loc, log_spread.scale))
    with pyro.plate("covariates", covariates.shape[-1]):
        pyro.sample("slope", _normal("slope", 0.0, covariates.shape[-1:]))
    with pyro.plate("groups", NUM_GROUPS):
        pyro.sample("effect", _normal("effect", 0.0, (NUM_GROUPS,)))


def negative_binomial_guide(covariates: Tensor, groups: Tensor, counts: Tensor) -> None:
    """The same, and a log-normal concentration."""
    log_concentration = _normal("log_concentration", 0.0)
    concentration = dist.LogNormal(log_concentration.loc, log_concentration.scale)
    pyro.sample("concentration", concentration)
    poisson_guide(covariates, groups, counts)


def _normal(name: str, loc: float, shape: tuple[int, ...] = ()) -> dist.Normal:
    positive = constraints.positive
    return dist.Normal(
        pyro.param(f"{name}_loc", torch.full(shape, loc)),
        pyro.param(f"{name}_scale", torch.full(shape, 0.1), constraint=positive),
    )


MODELS = {
    "Poisson": (poisson, poisson_guide),
    "negative binomial": (negative_binomial, negative_binomial_guide),
}


def guides(likelihood: str) -> dict[str, Callable[[], Guide]]:
    """What makes each guide of one of the two models."""
    model, by_hand = MODELS[likelihood]
    return {
        "by hand": lambda: by_hand,
        "AutoNormal": lambda: AutoNormal(model),
        "AutoDiagonalNormal": lambda: AutoDiagonalNormal(model),
        "AutoMultivariateNormal": lambda: AutoMultivariateNormal(model),
    }


def main() -> None:
    """Check the claims and print the figures."""
    parser = example_parser(__doc__)
    parser.add_argument("--every", type=int, default=100, help="rows between those checked")
    args = parser.parse_args()
    start(args)
    table = load_doctor_visits()
    some_rows = (
        table.covariates[:: args.every],
        table.groups[:: args.every],
        table.counts[:: args.every],
    )
    rows = some_rows if args.smoke_test else (table.covariates, table.groups, table.counts)
    for likelihood, (model, _) in MODELS.items():
        print(f"{likelihood}, {len(some_rows[0])} rows")
        check_guides(
            Problem(model, some_rows),
            guides(likelihood),
            args.particles,
            args.seed,
            args.smoke_test,
        )
        print(f"\n{likelihood}, {len(rows[0])} rows, AutoNormal")
        check_deterministic_objective(
            Problem(model, rows), guides(likelihood)["AutoNormal"], smoke_test=args.smoke_test
        )
        print()


if __name__ == "__main__":
    main()
