"""RelaxedELBO: the objective of soft samples, written out, at one seed and in the mean."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent import Constant, GumbelSoftmax, RelaxedELBO
from tests.elbo.agreement import (
    assert_close,
    assert_entry_points_agree,
    evaluate,
    gradients_of,
    new_parameters,
)
from tests.elbo.chance import Z_LIMIT, assert_unbiased, worst_z_scores
from tests.elbo.discrete_losses import MIXED, check_at_a_seed, many
from tests.elbo.discrete_oracle import exact_loss, kl_bits, kl_one_hot, log_normal
from tests.elbo.discrete_programs import GRID, PROGRAMS, THREE, P, logit, observe


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in MIXED])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_a_run_is_plain_torch_with_soft_samples(name, temperature):
    """Index sites too: what is read with them is a weighted mean over the categories."""
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = RelaxedELBO(temperature, max_plate_nesting=program.max_plate_nesting)
    check_at_a_seed(program, elbo, GumbelSoftmax(temperature))


def _relaxed_bits(temperature: float) -> Tensor:
    """E of the relaxed loss of ``Bits``, by the midpoint rule over the uniform noise of each bit."""
    count = 60
    uniform = (torch.arange(count) + 0.5) / count
    # substitution u = v^2 (3 - 2 v): its ends are flat, so that soft values near 0 and 1 are met
    weights, uniform = 6 * uniform * (1 - uniform) / count, uniform**2 * (3 - 2 * uniform)
    soft = torch.sigmoid((P("logits")[:, None] + torch.logit(uniform)) / temperature)
    grid = torch.stack(
        [
            soft[0][:, None, None].expand(count, count, count),
            soft[1][None, :, None].expand(count, count, count),
            soft[2][None, None, :].expand(count, count, count),
        ],
        -1,
    )
    joint = weights[:, None, None] * weights[:, None] * weights
    likelihood = log_normal(0.8 - torch.tanh(grid @ P("w")), 0.7)
    kl = kl_bits(P("logits"), logit(0.3).expand(3)).sum()
    return kl - (joint * likelihood).sum() / joint.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_mean_by_quadrature_over_the_noise(temperature):
    program = PROGRAMS["Bits"]
    new_parameters(**program.shapes)
    elbo = many(program, RelaxedELBO, temperature, particles=200)
    assert_unbiased(elbo, program.model, program.guide, _relaxed_bits(temperature))


def test_another_temperature_and_the_hard_loss_would_be_caught():
    """The value of a relaxed loss is biased; the mean test sees that much."""
    program = PROGRAMS["BitsAsIndices"]
    new_parameters(**program.shapes)
    elbo = many(program, RelaxedELBO, 1.0, particles=200)
    worst = worst_z_scores(elbo, program.model, program.guide, exact_loss(program))
    assert worst["loss"] > 2 * Z_LIMIT
    program = PROGRAMS["Bits"]
    pyro.clear_param_store()
    new_parameters(**program.shapes)
    with torch.no_grad():
        P("w").mul_(4)
    elbo = many(program, RelaxedELBO, 1.0, particles=200)
    worst = worst_z_scores(elbo, program.model, program.guide, _relaxed_bits(0.3))
    assert max(worst.values()) > 2 * Z_LIMIT


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_loss_is_the_same_with_and_without_gradients(name):
    """Also where no parameter asks for one: the value is not that of a hard sample then."""
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = RelaxedELBO(0.7, max_plate_nesting=program.max_plate_nesting)
    evaluate(
        elbo, program.model, program.guide
    )  # a first run may draw more: it learns of enumeration
    loss, _ = evaluate(elbo, program.model, program.guide, seed=3)
    pyro.set_rng_seed(3)
    with torch.no_grad():
        assert_close(elbo.loss(program.model, program.guide), loss, 1e-12, "loss")
    values = {name: value.detach() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    for name, value in values.items():
        pyro.param(name, value)
    for leaf in pyro.get_param_store()._params.values():
        leaf.requires_grad_(False)
    pyro.set_rng_seed(3)
    assert_close(elbo.loss(program.model, program.guide), loss, 1e-12, "loss without parameters")


@pytest.mark.parametrize("name", ["Impossible", "Subsampled", "Scored", "Enumerated"])
def test_entry_points_agree_at_a_seed(name):
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    assert_entry_points_agree(RelaxedELBO(0.5, num_particles=2), program.model, program.guide)


def test_low_temperatures_approach_the_hard_loss():
    """At tau = .001 the mean of the loss is the enumerated one."""
    program = PROGRAMS["OneHotChain"]
    new_parameters(**program.shapes)
    elbo = many(program, RelaxedELBO, 0.001)
    worst = worst_z_scores(elbo, program.model, program.guide, exact_loss(program))
    assert worst["loss"] < Z_LIMIT


def test_what_the_model_sees():
    """Soft bits, points of a simplex, and indices that contract."""
    new_parameters(b=2, c=3, z=(2, 3), table=(3, 2))
    seen: dict[str, Tensor] = {}

    def model() -> None:
        seen["b"] = pyro.sample("bits", dist.Bernoulli(torch.full((2,), 0.3)).to_event(1)) * 1.0
        seen["c"] = pyro.sample("code", dist.OneHotCategorical(logits=THREE)) * 1.0
        with pyro.plate("data", 2):
            z = pyro.sample("index", dist.Categorical(logits=THREE))
            seen["z"] = F.one_hot(z, 3) * 1.0
            row = P("table")[z]
            pyro.sample("x", dist.Normal(row, 0.7).to_event(1), obs=GRID)

    def guide() -> None:
        pyro.sample("bits", dist.Bernoulli(logits=P("b")).to_event(1))
        pyro.sample("code", dist.OneHotCategorical(logits=P("c")))
        with pyro.plate("data", 2):
            pyro.sample("index", dist.Categorical(logits=P("z")))

    loss, gradients = evaluate(RelaxedELBO(Constant(1.0)), model, guide, seed=5)
    pyro.set_rng_seed(5)
    estimator = GumbelSoftmax(1.0)
    codes = {
        "b": estimator.bernoulli(P("b")),
        "c": estimator.one_hot(P("c")),
        "z": estimator.one_hot(P("z")),
    }
    for name, code in codes.items():
        value = seen[name].as_subclass(Tensor)
        assert ((value > 0) & (value < 1)).all()
        assert_close(seen[name], code, 1e-12, name)
    kl = kl_bits(P("b"), logit(0.3).expand(2)).sum() + kl_one_hot(P("c"), THREE)
    kl = kl + kl_one_hot(P("z"), THREE.expand(2, 3)).sum()
    plain = kl - log_normal(GRID - codes["z"] @ P("table"), 0.7).sum()
    assert_close(loss, plain, 1e-12, "loss")
    for name, truth in gradients_of(plain).items():
        assert_close(gradients[name], truth, 1e-12, name)


def test_a_soft_value_in_a_model_that_observes_it():
    """A prior of the same site in a plate, scaled: its density is extended, not refused."""
    new_parameters(z=(3, 3))

    def model() -> None:
        with pyro.plate("data", 3), pyro.poutine.scale(scale=2.0):
            pyro.sample("code", dist.OneHotCategorical(logits=THREE))

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("code", dist.OneHotCategorical(logits=P("z")))

    loss, _ = evaluate(RelaxedELBO(0.5), model, guide, seed=5)
    pyro.set_rng_seed(5)
    soft = GumbelSoftmax(0.5).one_hot(P("z"))
    q = torch.log_softmax(P("z"), -1)
    expected = (q.exp() * q).sum() - 2 * (soft @ torch.log_softmax(THREE, -1)).sum()
    assert_close(loss, expected, 1e-12, "loss")


def test_relaxing_a_binomial_is_the_score_functions():
    """What has no relaxation is sampled hard."""
    new_parameters(q_n=())

    def model() -> None:
        n = pyro.sample("n", dist.Binomial(2, torch.tensor(0.4)))
        assert float(n) in (0.0, 1.0, 2.0)
        observe("x", n, 0.8)

    def guide() -> None:
        pyro.sample("n", dist.Binomial(2, logits=P("q_n")))

    _, gradients = evaluate(RelaxedELBO(), model, guide, seed=1)
    assert gradients["q_n"].abs() > 1e-3
