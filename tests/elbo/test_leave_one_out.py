"""LeaveOneOutELBO: unbiased by enumeration, with less variance than the score function alone.

The chance of a failure without a cause is in ``discrete_losses``.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_silent import ConfigurationError, LeaveOneOutELBO
from tests.elbo.agreement import assert_entry_points_agree, evaluate, new_parameters
from tests.elbo.chance import Z_LIMIT, assert_unbiased, run_many, worst_z_scores
from tests.elbo.discrete_losses import RUNS, many
from tests.elbo.discrete_oracle import exact_loss, log_normal
from tests.elbo.discrete_programs import PROGRAMS, P, observe


@pytest.mark.parametrize("name", PROGRAMS)
def test_mean_of_loss_and_gradient(name):
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = many(program, LeaveOneOutELBO)
    assert_unbiased(elbo, program.model, program.guide, exact_loss(program), runs=RUNS)


@pytest.mark.parametrize(
    "name, num_particles, vectorized",
    [
        ("BitChain", 2, False),
        ("BitChain", 3, True),
        ("Subsampled", 3, False),
        ("Scored", 2, True),
        ("Enumerated", 2, False),
    ],
)
def test_few_particles(name, num_particles, vectorized):
    """One after the other or side by side, the baseline takes nothing from the mean."""
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = LeaveOneOutELBO(
        num_particles,
        vectorize_particles=vectorized,
        max_plate_nesting=program.max_plate_nesting,
    )
    assert_unbiased(elbo, program.model, program.guide, exact_loss(program))


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_baseline_of_all_particles_would_be_caught(vectorized, monkeypatch):
    """With its own signal in the mean, a gradient is too small by (K - 1) / K."""

    def centred(signals: Tensor, dim: int = 0) -> Tensor:
        return signals - signals.mean(dim, keepdim=True)

    monkeypatch.setattr("pyro_silent.elbo.leave_one_out.leave_one_out", centred)
    program = PROGRAMS["BitChain"]
    new_parameters(**program.shapes)
    elbo = LeaveOneOutELBO(2, vectorize_particles=vectorized, max_plate_nesting=1)
    truth = exact_loss(program)
    worst = worst_z_scores(elbo, program.model, program.guide, truth, runs=100)
    assert worst.pop("loss") < Z_LIMIT < 1.5 * Z_LIMIT < max(worst.values())


@pytest.mark.parametrize("name", ["OneHots", "OneHotChain"])
def test_variance_at_equal_evaluations(name):
    """Half that of the score function without a baseline, or less."""
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    spreads = []
    for elbo in (Trace_ELBO(num_particles=4), LeaveOneOutELBO(num_particles=4)):
        _, gradients = run_many(elbo, program.model, program.guide, runs=40)
        of_guide = [g for n, g in gradients.items() if n in ("logits", "q_a", "w")]
        spreads.append(sum(g.var(0).sum() for g in of_guide))
    assert spreads[1] < 0.5 * spreads[0]


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_poisson_latent(vectorized):
    """A law with infinitely many values, by moments of the Poisson."""
    new_parameters(log_rate=2, w=())
    x = torch.tensor([1.3, 0.4])

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Poisson(1.5))
            pyro.sample("x", dist.Normal(P("w") * z, 0.7), obs=x)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Poisson(P("log_rate").exp()))

    rate = P("log_rate").exp()
    kl = rate * (P("log_rate") - torch.tensor(1.5).log()) - rate + 1.5
    residual = x - P("w") * rate
    expected = log_normal(residual, 0.7) - 0.5 * P("w") ** 2 * rate / 0.49
    elbo = LeaveOneOutELBO(
        50 if vectorized else 2, vectorize_particles=vectorized, max_plate_nesting=1
    )
    assert_unbiased(elbo, model, guide, (kl - expected).sum())


def test_sites_that_some_particles_lack():
    """Which sites there are depends on a latent: each is compared with the particles that have it."""
    new_parameters(q_a=(), q_b=2, w=2)

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.4))
        b = pyro.sample("b1" if a > 0 else "b0", dist.Bernoulli(0.3))
        observe("x", (P("w")[0] * a + P("w")[1] * b).exp(), 0.8)

    def guide() -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=P("q_a")))
        pyro.sample("b1" if a > 0 else "b0", dist.Bernoulli(logits=P("q_b")[int(a)]))

    assert_unbiased(LeaveOneOutELBO(3), model, guide, _branching_truth(), runs=60)


def _branching_truth() -> Tensor:
    """Two bits, of which the second has a law for each value of the first."""
    total = torch.zeros(())
    for a in (0.0, 1.0):
        for b in (0.0, 1.0):
            bit_a, bit_b = torch.tensor(a), torch.tensor(b)
            log_q = dist.Bernoulli(logits=P("q_a")).log_prob(bit_a)
            log_q = log_q + dist.Bernoulli(logits=P("q_b")[int(a)]).log_prob(bit_b)
            log_p = dist.Bernoulli(0.4).log_prob(bit_a) + dist.Bernoulli(0.3).log_prob(bit_b)
            log_p = log_p + log_normal(0.8 - (P("w")[0] * a + P("w")[1] * b).exp(), 0.7)
            total = total + log_q.exp() * (log_q - log_p)
    return total


@pytest.mark.parametrize("name", ["Impossible", "Subsampled", "Scored", "Enumerated"])
@pytest.mark.parametrize("vectorized", [False, True])
def test_entry_points_agree_at_a_seed(name, vectorized):
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = LeaveOneOutELBO(
        3, vectorize_particles=vectorized, max_plate_nesting=program.max_plate_nesting
    )
    assert_entry_points_agree(elbo, program.model, program.guide)


@pytest.mark.parametrize("vectorized", [False, True])
def test_all_particles_see_one_subsample(vectorized):
    """What differs between particles is the latents alone."""
    seen = []

    def model() -> None:
        with pyro.plate("data", 50, subsample_size=2) as rows:
            seen.append(tuple(rows.tolist()))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(2))

    elbo = LeaveOneOutELBO(3, vectorize_particles=vectorized, max_plate_nesting=1)
    subsamples = []
    for _ in range(2):
        seen.clear()
        elbo.loss(model, lambda: None)
        assert len(set(seen)) == 1
        subsamples.append(seen[0])
    assert subsamples[0] != subsamples[1]


def test_one_particle_is_refused():
    for number in (1, 0, 2.0, True):
        with pytest.raises(ConfigurationError, match="num_particles: got"):
            LeaveOneOutELBO(number)
    with pytest.raises(ConfigurationError, match=r"Write LeaveOneOutELBO\(num_particles=2\)"):
        LeaveOneOutELBO(num_particles=1)


def test_a_program_without_latents_has_no_noise():
    new_parameters(w=())

    def model() -> None:
        observe("x", P("w"), 0.8)

    loss, gradients = evaluate(LeaveOneOutELBO(), model, lambda: None)
    expected = -log_normal(0.8 - P("w"), 0.7)
    assert abs(loss - expected.item()) < 1e-12
    assert abs(gradients["w"] - torch.autograd.grad(expected, P("w"))[0]) < 1e-12
