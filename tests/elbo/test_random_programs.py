"""Random nonlinear models: scales, products, GLMs, groups, autoguides, against two independent truths.

With at most three Gaussian scalars the truth is dense quadrature (1e-8 in the loss, 1e-7 in its
gradients); otherwise it is ``Trace_ELBO`` with 40 runs of 2,000 particles. A z-score then follows
Student's t with 39 degrees of freedom, and |z| < 5 fails by chance with probability 1.3e-5 per
number: some 80 numbers are compared, so a right loss fails with probability 1e-3 (seeds are fixed).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_value,
)
from torch import Tensor

from pyro_silent import IntractableError, SilentELBO
from tests.elbo.agreement import assert_close, evaluate, gradients_of
from tests.elbo.chance import worst_z_scores
from tests.elbo.dense_oracle import negative_elbo

N = 5
SEEDS = range(205, 245)  # the first forty in a row that reach every part of the grammar
GROUPS = {1: torch.zeros(N, dtype=torch.long), 2: torch.tensor([0, 1, 1, 0, 1])}
GROUPS[3] = torch.tensor([0, 1, 2, 0, 1])
REAL = torch.tensor([0.3, -1.0, 0.8, 1.5, 0.1], dtype=torch.float64)
COUNT = torch.tensor([2.0, 0.0, 1.0, 4.0, 1.0], dtype=torch.float64)
BINARY = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
X = torch.tensor([0.5, -1.0, 0.2, 1.2, -0.3], dtype=torch.float64)
# name -> (distribution of (predictor, scale), data, whether the predictor may hold products of latents)
LIKELIHOODS: dict[str, tuple[Callable, Tensor, bool]] = {
    "normal": (lambda eta, s: dist.Normal(eta, s), REAL, True),
    "normal_exp": (lambda eta, s: dist.Normal((0.5 * eta).exp(), s), REAL, False),
    "log_normal": (lambda eta, s: dist.LogNormal(eta, s), REAL.exp(), True),
    "student": (lambda eta, s: dist.StudentT(4.0, eta, 0.7), REAL, False),
    "poisson": (lambda eta, s: dist.Poisson((0.5 * eta).exp()), COUNT, False),
    "bernoulli": (lambda eta, s: dist.Bernoulli(logits=eta), BINARY, False),
    "binomial": (lambda eta, s: dist.Binomial(5, logits=eta), COUNT, False),
    "negative_binomial": (lambda eta, s: dist.NegativeBinomial(3.0, logits=eta), COUNT, False),
    "exponential": (lambda eta, s: dist.Exponential((0.5 * eta).exp()), REAL.exp(), False),
    "gamma": (lambda eta, s: dist.Gamma(2.0, (0.5 * eta).exp()), REAL.exp(), False),
}
SCALED = ["normal", "normal", "normal_exp", "log_normal"]
GUIDES = {
    "auto_normal": AutoNormal,
    "auto_diagonal": AutoDiagonalNormal,
    "auto_mvn": AutoMultivariateNormal,
    "auto_low_rank": AutoLowRankMultivariateNormal,
}


class Spec(NamedTuple):
    """A model and a guide, before any tensor exists."""

    likelihood: str
    intercept: bool
    groups: int
    hierarchy: str  # of the group effects: "none", "mean", "scale"
    product: bool
    scale: str  # "fixed", "exp", "half_normal", "log_normal"
    gate: bool
    weight: float
    guide: str


def random_spec(rng: random.Random, budget: int) -> Spec:
    """Gaussian scalars in the guide are at most ``budget``, and at least one."""
    scaled = rng.random() < 0.5
    likelihood = rng.choice(SCALED if scaled else list(LIKELIHOODS))
    while True:
        gate = rng.random() < 0.25
        spec = Spec(
            likelihood,
            rng.random() < 0.6,
            rng.choice([0, 1, 2, 2, 3]),
            rng.choice(["none", "mean", "scale"]),
            LIKELIHOODS[likelihood][2] and rng.random() < 0.5,
            rng.choice(["fixed", "exp", "half_normal", "log_normal"]) if scaled else "fixed",
            gate,
            rng.choice([1.0, 0.5, 3.0]),
            "by_hand" if gate else rng.choice(["by_hand", "by_hand", *GUIDES]),
        )
        if spec.guide == "by_hand" and spec.scale in ("half_normal", "log_normal"):
            continue
        if not spec.groups and (spec.hierarchy != "none" or spec.product):
            continue
        if spec.product and not spec.intercept:
            continue
        scalars = spec.intercept + spec.groups + (spec.scale != "fixed")
        scalars += spec.hierarchy != "none"
        if 1 <= scalars <= budget:
            return spec


def make_model(spec: Spec) -> Callable[[], None]:
    """The model of a spec."""
    density, data, _ = LIKELIHOODS[spec.likelihood]
    prior = dist.Normal(torch.tensor(0.2), 1.0)

    def model() -> None:
        eta: Tensor = 0.4 * X
        intercept = pyro.sample("a", prior) if spec.intercept else torch.tensor(0.0)
        if spec.groups:
            location: Tensor = torch.tensor(0.0)
            width: Tensor = torch.tensor(0.8)
            if spec.hierarchy == "mean":
                location = pyro.sample("h", prior)
            elif spec.hierarchy == "scale":
                width = pyro.sample("h", prior).exp()
            with pyro.plate("groups", spec.groups):
                effects = pyro.sample("g", dist.Normal(location, width))
            effects = effects[..., GROUPS[spec.groups]]
            eta = eta + (intercept * effects if spec.product else effects * X)
        eta = eta + intercept
        if spec.gate:
            eta = eta + 0.7 * pyro.sample("b", dist.Bernoulli(torch.tensor(0.3)))
        scale: Tensor = torch.tensor(0.9)
        if spec.scale == "exp":
            scale = pyro.sample("s", prior).exp()
        elif spec.scale == "half_normal":
            scale = pyro.sample("s", dist.HalfNormal(torch.tensor(1.0)))
        elif spec.scale == "log_normal":
            scale = pyro.sample("s", dist.LogNormal(torch.tensor(0.0), 0.8))
        with pyro.plate("data", N), poutine.scale(scale=spec.weight):
            pyro.sample("y", density(eta, scale), obs=data)

    return model


def make_guide(spec: Spec, model: Callable) -> Callable[[], None]:
    """Its guide: independent sites by hand, or one of the autoguides."""
    if spec.guide != "by_hand":
        values = {
            "a": torch.tensor(0.3),
            "h": torch.tensor(-0.2),
            "g": torch.linspace(-0.4, 0.6, max(spec.groups, 1)),
            "s": torch.tensor(0.7),
        }
        kwargs = {"init_loc_fn": init_to_value(values=values), "init_scale": 0.3}
        if spec.guide == "auto_low_rank":
            kwargs["rank"] = 1
        return GUIDES[spec.guide](model, **kwargs)

    def normal(name: str, size: int | None = None) -> None:
        shape = () if size is None else (size,)
        start = torch.linspace(-0.4, 0.6, size or 1).reshape(shape)
        loc = pyro.param(f"{name}_loc", start)
        raw = pyro.param(f"{name}_raw", torch.full(shape, -1.2))
        pyro.sample(name, dist.Normal(loc, raw.exp()))

    def guide() -> None:
        if spec.intercept:
            normal("a")
        if spec.groups and spec.hierarchy != "none":
            normal("h")
        if spec.groups:
            with pyro.plate("groups", spec.groups):
                normal("g", spec.groups)
        if spec.gate:
            pyro.sample("b", dist.Bernoulli(logits=pyro.param("b_raw", torch.tensor(0.4))))
        if spec.scale == "exp":
            normal("s")

    return guide


def pair(seed: int, budget: int) -> tuple[Spec, Callable, Callable]:
    """A random spec, its model and guide; the guide's parameters exist."""
    spec = random_spec(random.Random(seed), budget)
    model = make_model(spec)
    guide = make_guide(spec, model)
    guide()
    return spec, model, guide


@pytest.mark.parametrize("seed", SEEDS)
def test_against_dense_quadrature(seed):
    spec, model, guide = pair(seed, budget=3)
    elbo = SilentELBO(max_plate_nesting=1)
    loss, gradients = evaluate(elbo, model, guide)
    expected = negative_elbo(model, guide, max_plate_nesting=1)
    assert_close(loss, expected, 1e-8, f"loss of {spec}")
    for name, truth in gradients_of(expected).items():
        assert_close(gradients[name], truth, 1e-7, f"gradient of {name} of {spec}")
    assert evaluate(elbo, model, guide, seed=7)[0] == loss


@pytest.mark.parametrize("seed", range(100, 108))
def test_against_many_particles(seed):
    spec, model, guide = pair(seed, budget=6)
    truth = SilentELBO(max_plate_nesting=1).differentiable_loss(model, guide)
    particles = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    worst = worst_z_scores(particles, model, guide, truth)
    assert all(score < 5 for score in worst.values()), (spec, worst)


def test_the_oracle_agrees_with_many_particles():
    """The dense oracle is itself held against Pyro."""
    for seed in (205, 210, 216):
        pyro.clear_param_store()
        spec, model, guide = pair(seed, budget=3)
        truth = negative_elbo(model, guide, max_plate_nesting=1)
        particles = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
        worst = worst_z_scores(particles, model, guide, truth)
        assert all(score < 5 for score in worst.values()), (spec, worst)


def test_what_has_no_closed_form_is_refused():
    """A product of two latents inside exp: the density of a Poisson has no expectation here."""

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        rate = (a * b.sum() * b[0]).exp()
        pyro.sample("y", dist.Poisson(rate), obs=torch.tensor(2.0))

    guide = AutoMultivariateNormal(model)
    with pytest.raises(IntractableError, match="'y'"):
        SilentELBO().loss(model, guide)


def test_every_part_of_the_grammar_is_drawn():
    """Without this a part could go untested unseen."""
    specs = [random_spec(random.Random(seed), 3) for seed in SEEDS]
    assert {spec.likelihood for spec in specs} == set(LIKELIHOODS)
    assert {spec.guide for spec in specs} == {"by_hand", *GUIDES}
    assert {spec.scale for spec in specs} == {"fixed", "exp", "half_normal", "log_normal"}
    assert {spec.hierarchy for spec in specs} == {"none", "mean", "scale"}
    assert any(spec.gate for spec in specs) and any(spec.product for spec in specs)
