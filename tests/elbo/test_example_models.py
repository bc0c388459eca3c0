"""The examples' models, under each of their guides, against their ELBO by dense quadrature.

Every guide is a Gaussian over unconstrained scalars; the ELBO is written down from its mean and
covariance alone: E[log p] + log Jacobian, plus the entropy of a Gaussian. Nothing here knows random
tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch import distributions as td

import count_regression
import eight_schools
import logistic_regression
import robust_regression
from data import load_breast_cancer, load_doctor_visits, load_eight_schools, load_stack_loss
from fitting import Guide, Problem, fresh_guide
from tests.elbo.agreement import assert_exact

PLATES = {"schools", "covariates", "groups", "people", "tumours", "days"}
FAMILIES = ["by hand", "AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal"]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


class Law(NamedTuple):
    """The Gaussian of all unconstrained scalars, and where each latent's are."""

    mean: Tensor
    covariance: Tensor
    where: dict[str, slice]

    def scalars(self, *columns: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[n, k]`` and covariance ``[n, k, k]`` of ``k`` linear maps ``[n, all scalars]``."""
        maps = torch.stack(torch.broadcast_tensors(*columns), -2)
        return maps @ self.mean, maps @ self.covariance @ maps.mT

    def pick(self, name: str) -> Tensor:
        """The maps ``[size, all scalars]`` that pick out the scalars of one latent."""
        return torch.eye(len(self.mean))[self.where[name]]

    def entropy(self) -> Tensor:
        size = len(self.mean)
        return 0.5 * (size * math.log(2 * math.pi * math.e) + self.covariance.logdet())


def law_of(problem: Problem, guide: Guide) -> Law:
    """Read off the guide's parameters."""
    trace = poutine.block(poutine.trace(problem.model).get_trace)(*problem.data)
    sizes = {
        name: site["value"].numel()
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and name not in PLATES
    }
    ends = np.cumsum(list(sizes.values())).tolist()
    where = {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}
    if hasattr(guide, "get_posterior"):
        posterior = guide.get_posterior()
        if isinstance(posterior, td.MultivariateNormal):
            return Law(posterior.mean, posterior.covariance_matrix, where)
        return Law(posterior.mean, torch.diag(posterior.variance), where)
    trace = poutine.trace(guide).get_trace(*problem.data)
    means, scales = [], []
    for name in sizes:
        fn = trace.nodes.get(f"{name}_unconstrained", trace.nodes[name])["fn"]
        while not isinstance(fn, td.Normal):
            fn = fn.base_dist
        means.append(fn.loc.reshape(-1))
        scales.append(fn.scale.reshape(-1))
    return Law(torch.cat(means), torch.diag(torch.cat(scales).square()), where)


def expect(
    function: Callable[..., Tensor], scalars: tuple[Tensor, Tensor], points: int = 0
) -> Tensor:
    """E[function(x_1, ..., x_k)], ``[n]``: Gauss-Hermite, or the trapezoidal rule with many points."""
    mean, covariance = scalars
    size = mean.shape[-1]
    if points:
        axis = np.linspace(-9.0, 9.0, points)
        weight = np.exp(-0.5 * axis**2)
    else:
        axis, weight = np.polynomial.hermite_e.hermegauss(32 if size < 3 else 20)
    grid = torch.cartesian_prod(*[torch.tensor(axis)] * size).reshape(-1, size)
    weights = torch.cartesian_prod(*[torch.tensor(weight / weight.sum())] * size)
    weights = weights.reshape(-1, size).prod(-1)
    root = torch.linalg.cholesky(covariance)
    x = mean.unsqueeze(-2) + grid @ root.mT  # [n, nodes, k]
    return function(*x.unbind(-1)) @ weights


def normal_prior(law: Law, name: str, loc: float, scale: float) -> Tensor:
    return expect(td.Normal(loc, scale).log_prob, law.scalars(law.pick(name))).sum()


def positive_prior(law: Law, name: str, prior: td.Distribution) -> Tensor:
    """With the Jacobian of the exponential."""
    scalars = law.scalars(law.pick(name))
    return expect(lambda u: prior.log_prob(u.exp()) + u, scalars, 2001).sum()


def scaled_normal(law: Law, name: str, mean: Tensor | None, log_scale: str) -> Tensor:
    """The latents of one name are normal around a random mean with a random scale."""
    difference = law.pick(name) - (0.0 if mean is None else mean)
    scalars = law.scalars(difference, law.pick(log_scale))
    return expect(lambda d, u: td.Normal(0.0, u.exp()).log_prob(d), scalars).sum()


def eight_schools_bound(law: Law, standard_errors: Tensor, effects: Tensor) -> Tensor:
    mean = law.pick("mean")
    bound = normal_prior(law, "mean", 0.0, 5.0)
    bound = bound + positive_prior(law, "spread", td.HalfCauchy(5.0))
    errors = standard_errors.unsqueeze(-1)
    observed = effects.unsqueeze(-1)
    if "effect" in law.where:
        bound = bound + scaled_normal(law, "effect", mean, "spread")
        scalars = law.scalars(law.pick("effect"))
        return bound + expect(lambda x: td.Normal(x, errors).log_prob(observed), scalars).sum()
    bound = bound + normal_prior(law, "z", 0.0, 1.0)
    scalars = law.scalars(law.pick("z"), mean, law.pick("spread"))

    def likelihood(z: Tensor, m: Tensor, u: Tensor) -> Tensor:
        return td.Normal(m + u.exp() * z, errors).log_prob(observed)

    return bound + expect(likelihood, scalars).sum()


def linear_predictor(law: Law, covariates: Tensor) -> Tensor:
    return law.pick("intercept") + covariates @ law.pick("slope")


def logistic_bound(law: Law, covariates: Tensor, benign: Tensor) -> Tensor:
    bound = normal_prior(law, "intercept", 0.0, 2.0) + normal_prior(law, "slope", 0.0, 1.0)
    scalars = law.scalars(linear_predictor(law, covariates))
    observed = benign.unsqueeze(-1)
    return bound + expect(lambda x: td.Bernoulli(logits=x).log_prob(observed), scalars, 801).sum()


def count_bound(law: Law, covariates: Tensor, groups: Tensor, counts: Tensor) -> Tensor:
    bound = normal_prior(law, "intercept", 0.0, 2.0) + normal_prior(law, "slope", 0.0, 1.0)
    bound = bound + positive_prior(law, "spread", td.HalfNormal(1.0))
    bound = bound + scaled_normal(law, "effect", None, "spread")
    log_rate = linear_predictor(law, covariates) + law.pick("effect")[groups]
    observed = counts.unsqueeze(-1)
    if "concentration" not in law.where:
        scalars = law.scalars(log_rate)
        return bound + expect(lambda eta: td.Poisson(eta.exp()).log_prob(observed), scalars).sum()
    bound = bound + positive_prior(law, "concentration", td.LogNormal(0.0, 1.0))

    def likelihood(eta: Tensor, u: Tensor) -> Tensor:
        return td.NegativeBinomial(u.exp(), logits=eta - u).log_prob(observed)

    scalars = law.scalars(log_rate, law.pick("concentration"))
    return bound + expect(likelihood, scalars, 121).sum()


def robust_bound(law: Law, covariates: Tensor, loss: Tensor) -> Tensor:
    bound = normal_prior(law, "intercept", 20.0, 10.0) + normal_prior(law, "slope", 0.0, 10.0)
    bound = bound + positive_prior(law, "scale", td.HalfNormal(5.0))
    observed = loss.unsqueeze(-1)

    def likelihood(mean: Tensor, u: Tensor) -> Tensor:
        errors = td.StudentT(robust_regression.DEGREES_OF_FREEDOM, mean, u.exp())
        return errors.log_prob(observed)

    scalars = law.scalars(linear_predictor(law, covariates), law.pick("scale"))
    return bound + expect(likelihood, scalars, 161).sum()


def every(step: int, *columns: Tensor) -> tuple[Tensor, ...]:
    return tuple(column[::step] for column in columns)


def case(name: str) -> tuple[Problem, dict[str, Callable[[], Guide]], Callable[..., Tensor]]:
    """A problem of the examples, on some of its rows; its guides; its evidence bound."""
    if name in eight_schools.MODELS:
        effects, standard_errors = load_eight_schools()
        model, _ = eight_schools.MODELS[name]
        guides = eight_schools.guides(name)
        return Problem(model, (standard_errors, effects)), guides, eight_schools_bound
    if name in count_regression.MODELS:
        table = load_doctor_visits()
        data = every(700, table.covariates, table.groups, table.counts)
        model, _ = count_regression.MODELS[name]
        return Problem(model, data), count_regression.guides(name), count_bound
    if name == "logistic":
        data = every(10, *load_breast_cancer()[:2])
        guides = logistic_regression.GUIDES
        return Problem(logistic_regression.model, data), guides, logistic_bound
    data = load_stack_loss()[:2]
    return Problem(robust_regression.robust, data), robust_regression.GUIDES, robust_bound


CASES: Sequence[str] = [*eight_schools.MODELS, *count_regression.MODELS, "logistic", "robust"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_example_has_the_bound_of_dense_quadrature(name, family):
    problem, guides, bound = case(name)
    guide = fresh_guide(guides[family], problem, jitter=0.2)

    def formula() -> Tensor:
        law = law_of(problem, guide)
        return -(bound(law, *problem.data) + law.entropy())

    assert_exact(problem.model, guide, formula, *problem.data)
