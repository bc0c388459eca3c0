"""Eight schools, written two ways, under a guide by hand and three autoguides, without noise.

The schools' effects are drawn around a common mean with a common spread, either directly
("centered") or as standard normals that are shifted and scaled ("non-centered"). Products of
Gaussians with the exponential of another, as in ``mean + spread * z``, have closed forms; the prior
of the spread is integrated numerically. Checked for every guide: two seeds give the same loss and
gradients bit for bit, and both agree with the mean of many particles of ``Trace_ELBO``. Then every
guide is fitted by L-BFGS, so that guides and parametrisations can be compared by their optimal
losses to many digits: a richer family must not end above a poorer one. The program fails if a
claim does not hold.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from data import load_eight_schools
from fitting import Guide, Problem, check_guides, example_parser, fit_lbfgs, print_table, start

# What a finite run of L-BFGS may leave between two families that should be ordered, in nats.
SLACK = 1e-5


def centered(standard_errors: Tensor, effects: Tensor) -> None:
    """Each school's effect is drawn around the common mean."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
        pyro.sample("estimate", dist.Normal(effect, standard_errors), obs=effects)


def non_centered(standard_errors: Tensor, effects: Tensor) -> None:
    """Each school's effect is a shifted and scaled standard normal."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(effects)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        effect = mean + spread * z
        pyro.sample("estimate", dist.Normal(effect, standard_errors), obs=effects)


def centered_guide(standard_errors: Tensor, effects: Tensor) -> None:
    """Independent Gaussians, and a log-normal spread."""
    _guide_of_common()
    with pyro.plate("schools", len(effects)):
        pyro.sample("effect", _normal("effect", effects.clone(), 5.0))


def non_centered_guide(standard_errors: Tensor, effects: Tensor) -> None:
    """Independent Gaussians, and a log-normal spread."""
    _guide_of_common()
    with pyro.plate("schools", len(effects)):
        pyro.sample("z", _normal("z", torch.zeros(len(effects)), 0.9))


def _guide_of_common() -> None:
    pyro.sample("mean", _normal("mean", torch.tensor(4.0), 3.0))
    log_spread = _normal("log_spread", torch.tensor(1.5), 0.3)
    pyro.sample("spread", dist.LogNormal(log_spread.loc, log_spread.scale))


def _normal(name: str, loc: Tensor, scale: float) -> dist.Normal:
    positive = constraints.positive
    return dist.Normal(
        pyro.param(f"{name}_loc", loc),
        pyro.param(f"{name}_scale", torch.full_like(loc, scale), constraint=positive),
    )


MODELS = {
    "centered": (centered, centered_guide),
    "non-centered": (non_centered, non_centered_guide),
}


def guides(parametrisation: str) -> dict[str, Callable[[], Guide]]:
    """What makes each guide of one of the two models."""
    model, by_hand = MODELS[parametrisation]
    return {
        "by hand": lambda: by_hand,
        "AutoNormal": lambda: AutoNormal(model),
        "AutoDiagonalNormal": lambda: AutoDiagonalNormal(model),
        "AutoMultivariateNormal": lambda: AutoMultivariateNormal(model),
    }


def compare_guides(problems: dict[str, Problem], smoke_test: bool) -> None:
    """Fit every autoguide and print its optimal loss.

    :raises SystemExit: if a family ends above one that it contains, or equal families differ.
    """
    names = ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal"]
    losses = {
        parametrisation: [
            fit_lbfgs(problem, guides(parametrisation)[name], 3 if smoke_test else 1000).best
            for name in names
        ]
        for parametrisation, problem in problems.items()
    }
    rows = [[name, *(f"{loss:.6f}" for loss in row)] for name, row in losses.items()]
    print_table(["optimal -ELBO", *names], rows)
    if smoke_test:
        print("smoke test: too short to compare optimal losses")
        return
    for parametrisation, (mean_field, diagonal, full) in losses.items():
        if abs(mean_field - diagonal) > SLACK:
            raise SystemExit(f"{parametrisation}: one mean-field family with two optima")
        if full > mean_field + SLACK:
            raise SystemExit(f"{parametrisation}: the full covariance ends above the diagonal one")


def main() -> None:
    """Check the claims and print the figures."""
    args = example_parser(__doc__).parse_args()
    start(args)
    effects, standard_errors = load_eight_schools()
    data = (standard_errors, effects)
    problems = {name: Problem(model, data) for name, (model, _) in MODELS.items()}
    for name, problem in problems.items():
        print(f"{name}")
        check_guides(problem, guides(name), args.particles, args.seed, args.smoke_test)
        print()
    compare_guides(problems, args.smoke_test)


if __name__ == "__main__":
    main()
