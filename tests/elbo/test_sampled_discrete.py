"""SilentELBO(intractable="sample"): discrete latents of the sampled terms, through an estimator."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_silent import ZGR, ConfigurationError, GumbelRao, GumbelSoftmax, SilentELBO
from tests.elbo.agreement import (
    assert_close,
    assert_entry_points_agree,
    evaluate,
    gradients_of,
    leaves,
    new_parameters,
)
from tests.elbo.chance import Z_LIMIT, run_many, worst_z_scores
from tests.elbo.discrete_oracle import (
    Draws,
    Program,
    exact_loss,
    kl_bits,
    kl_one_hot,
    log_normal,
    pyro_loss,
    straight_through_jacobian,
    surrogate_loss,
)
from tests.elbo.discrete_programs import GRID, THREE, P, logit, observe
from tests.elbo.families import opaque
from tests.formulas import kl_normal

pytestmark = pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")


def silent(program, estimator, particles: int = 100) -> SilentELBO:
    return SilentELBO(
        intractable="sample",
        estimator=estimator,
        num_particles=particles,
        vectorize_particles=particles > 1,
        max_plate_nesting=program.max_plate_nesting,
    )


def _bits() -> tuple[Program, Program]:
    """A linear site, which is exact, beside one nobody sees through; both parts of the plain loss."""

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.3)).to_event(1))
        observe("linear", b @ P("w"), 0.8)
        observe("deep", opaque(2 * b @ P("v")), 1.5)

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=P("logits")).to_event(1))

    def exact(draw: Draws) -> Tensor:
        b = draw.bernoulli(P("logits"))
        kl = kl_bits(P("logits"), logit(0.3).expand(3)).sum()
        return kl - log_normal(0.8 - b @ P("w"), 0.7)

    def sampled(draw: Draws) -> Tensor:
        b = draw.bernoulli(P("logits"))
        return -log_normal(1.5 - opaque(2 * b @ P("v")), 0.7)

    shapes = {"logits": 3, "w": 3, "v": 3}
    return tuple(Program("bits", model, guide, part, 0, shapes) for part in (exact, sampled))


def _indices() -> tuple[Program, Program]:
    """Integers that look up rows of a table, in a plate."""

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(logits=THREE))
            observe("linear", P("w")[z], GRID[0])
            observe("deep", opaque(3 * P("table")[z]).prod(-1), GRID[1])

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Categorical(logits=P("logits")))

    def exact(draw: Draws) -> Tensor:
        z = draw.one_hot(P("logits"))
        kl = kl_one_hot(P("logits"), THREE.expand(2, 3))
        return (kl - log_normal(GRID[0] - z @ P("w"), 0.7)).sum()

    def sampled(draw: Draws) -> Tensor:
        z = draw.one_hot(P("logits"))
        return -log_normal(GRID[1] - opaque(3 * z @ P("table")).prod(-1), 0.7).sum()

    shapes = {"logits": (2, 3), "w": 3, "table": (3, 2)}
    return tuple(Program("indices", model, guide, part, 1, shapes) for part in (exact, sampled))


def _child() -> tuple[Program, Program]:
    """A bit whose logit is a Gaussian latent: it can only be drawn together with that."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Bernoulli(0.3))
        observe("x", opaque(z + P("w") * b), 0.8)

    def guide() -> None:
        z = pyro.sample("z", dist.Normal(P("m"), 0.6))
        pyro.sample("b", dist.Bernoulli(logits=P("c") * z))

    def exact(draw: Draws) -> Tensor:
        return kl_normal(P("m"), torch.tensor(0.6))

    def sampled(draw: Draws) -> Tensor:
        z = draw.normal(P("m"), 0.6)
        logits = P("c") * z
        b = draw.bernoulli(logits)
        log_q = b * logits - torch.nn.functional.softplus(logits)
        log_p = b * logit(0.3) - torch.nn.functional.softplus(logit(0.3))
        return log_q - log_p - log_normal(0.8 - opaque(z + P("w") * b), 0.7)

    shapes = {"m": (), "c": (), "w": ()}
    return tuple(Program("child", model, guide, part, 0, shapes) for part in (exact, sampled))


PARTS = {"bits": _bits, "indices": _indices, "child": _child}


@pytest.mark.parametrize("name", PARTS)
def test_the_two_ways_of_writing_a_program_agree(name):
    exact, sampled = PARTS[name]()
    new_parameters(**exact.shapes)
    total = exact_loss(exact) + exact_loss(sampled)
    truth = pyro_loss(exact.model, exact.guide)
    assert_close(total, truth, 1e-6 if name == "child" else 1e-12, "loss")  # opaque has kinks


def check(elbo, program, truth: Tensor) -> None:
    worst = worst_z_scores(elbo, program.model, program.guide, truth)
    assert all(score < Z_LIMIT for score in worst.values()), worst


@pytest.mark.parametrize("name", PARTS)
def test_the_estimators_gradient_at_sampled_terms_alone(name):
    """The exact part has its own gradient, the sampled part ZGR's mean; the value has no bias."""
    exact, sampled = PARTS[name]()
    new_parameters(**exact.shapes)
    truth = exact_loss(exact) + surrogate_loss(sampled)
    check(silent(exact, ZGR()), exact, truth)
    losses, _ = run_many(silent(exact, ZGR(), 1), exact.model, exact.guide, runs=2)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", PARTS)
def test_the_score_function_is_unbiased(name):
    exact, sampled = PARTS[name]()
    new_parameters(**exact.shapes)
    check(silent(exact, None), exact, exact_loss(exact) + exact_loss(sampled))


@pytest.mark.parametrize("name", PARTS)
def test_the_default_is_gumbel_rao_and_the_value_does_not_depend_on_it(name):
    exact, sampled = PARTS[name]()
    new_parameters(**exact.shapes)
    truth = exact_loss(exact) + exact_loss(sampled)
    elbo = SilentELBO(intractable="sample")
    assert isinstance(elbo.estimator, GumbelRao)
    assert (elbo.estimator.temperature, elbo.estimator.num_gumbels) == (1.0, 100)
    losses, _ = run_many(silent(exact, elbo.estimator), exact.model, exact.guide)
    z = (losses.mean() - truth.item()) / (losses.std() / len(losses) ** 0.5)
    assert abs(z) < Z_LIMIT
    one, other = (
        evaluate(silent(exact, e), exact.model, exact.guide, seed=2)[0]
        for e in (elbo.estimator, ZGR())
    )
    assert_close(one, torch.tensor(other), 1e-12, "loss")


@pytest.mark.parametrize("name", ["bits", "indices"])
def test_another_jacobian_would_be_caught(name):
    exact, sampled = PARTS[name]()
    new_parameters(**exact.shapes)
    with torch.no_grad():  # far from where the deep function is nearly a parabola
        for parameter in ("v", "table"):
            if parameter in leaves():
                leaves()[parameter].mul_(4)
    wrong = exact_loss(exact) + surrogate_loss(sampled, straight_through_jacobian)
    worst = worst_z_scores(silent(exact, ZGR()), exact.model, exact.guide, wrong)
    assert worst["loss"] < Z_LIMIT < 1.5 * Z_LIMIT < worst["logits"]


def test_exact_losses_do_not_know_the_estimator():
    """No sampled term, no estimator: the same bits at every seed, whatever it is."""
    exact, _ = _bits()
    new_parameters(**exact.shapes)

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.3)).to_event(1))
        observe("linear", b @ P("w"), 0.8)

    results = [
        evaluate(SilentELBO(intractable="sample", estimator=e), model, exact.guide, seed=seed)
        for e in (None, ZGR(), GumbelRao(0.1, 5))
        for seed in (1, 2)
    ]
    truth = gradients_of(exact_loss(exact))
    for loss, gradients in results:
        assert loss == results[0][0]
        for name in ("logits", "w"):
            assert torch.equal(gradients[name], results[0][1][name])
            assert_close(gradients[name], truth[name], 1e-8, f"gradient of {name}")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_entry_points_agree_at_a_seed(name, num_particles):
    exact, _ = PARTS[name]()
    new_parameters(**exact.shapes)
    assert_entry_points_agree(silent(exact, ZGR(), num_particles), exact.model, exact.guide)


def test_estimators_of_other_kinds_are_refused():
    for wrong in ("ZGR", ZGR, GumbelSoftmax(0.5), 1.0):
        with pytest.raises(ConfigurationError, match="estimator: got .* or None for the score"):
            SilentELBO(estimator=wrong)


def test_a_schedule_counts_the_silent_losss_steps():
    exact, _ = _bits()
    new_parameters(**exact.shapes)
    steps = []

    def temperature(step: int) -> float:
        steps.append(step)
        return 1.0

    elbo = silent(exact, GumbelRao(temperature), 1)
    for _ in range(3):
        elbo.loss(exact.model, exact.guide)
        elbo.loss_and_grads(exact.model, exact.guide)
    assert steps == [0, 0, 1, 1, 2, 2]
    again = silent(exact, GumbelRao(temperature), 1)
    again.load_state_dict(elbo.state_dict())
    again.loss(exact.model, exact.guide)
    assert steps[-1] == 3
