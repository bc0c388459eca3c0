"""DisARMELBO: unbiased by enumeration, for dependent sites as well.

The chance of a failure without a cause is in ``discrete_losses``.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.guide import GuideMessenger
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_silent import DisARMELBO, LeaveOneOutELBO
from tests.elbo.agreement import (
    assert_close,
    assert_entry_points_agree,
    gradients_of,
    leaves,
    new_parameters,
)
from tests.elbo.chance import Z_LIMIT, assert_unbiased, run_many, worst_z_scores
from tests.elbo.discrete_losses import RUNS, many
from tests.elbo.discrete_oracle import Draws, Program, exact_loss, kl_bits, log_normal
from tests.elbo.discrete_programs import PROGRAMS, P, logit, observe


@pytest.mark.parametrize("name", PROGRAMS)
def test_mean_of_loss_and_gradient(name):
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = many(program, DisARMELBO, particles=50)
    assert_unbiased(elbo, program.model, program.guide, exact_loss(program), runs=RUNS)


@pytest.mark.parametrize(
    "name, num_particles, vectorized",
    [("BitChain", 1, False), ("Subsampled", 2, False), ("Scored", 2, True), ("Bits", 1, True)],
)
def test_few_particles(name, num_particles, vectorized):
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = DisARMELBO(
        num_particles,
        vectorize_particles=vectorized,
        max_plate_nesting=program.max_plate_nesting,
    )
    assert_unbiased(elbo, program.model, program.guide, exact_loss(program))


def _dependent(logits: Callable[[Tensor], Tensor], of_code: Callable[[Tensor], Tensor]) -> Program:
    """Two bits; the second one's logit is some function of the first, by whatever operation."""

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.4))
        b = pyro.sample("b", dist.Bernoulli(0.3))
        observe("x", 3 * a * b - b, 2.0)

    def guide() -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=P("q_a")))
        pyro.sample("b", dist.Bernoulli(logits=logits(a)))

    def plain(draw: Draws) -> Tensor:
        a = draw.bernoulli(P("q_a"))
        of_b = of_code(a)
        b = draw.bernoulli(of_b)
        kl = kl_bits(P("q_a"), logit(0.4)) + kl_bits(of_b, logit(0.3))
        return kl - log_normal(2.0 - 3 * a * b + b, 0.7)

    return Program("dependent", model, guide, plain, 0, {"q_a": (), "table": 2})


def _row(a: Tensor) -> Tensor:
    return (1 - a) * P("table")[0] + a * P("table")[1]


def _computed_without_gradient(a: Tensor) -> Tensor:
    with torch.no_grad():
        code = torch.stack([1 - a, a], -1)
    return code @ P("table")


def _written(a: Tensor) -> Tensor:
    code = torch.zeros(a.shape + (2,))
    code.scatter_(-1, a.long().unsqueeze(-1), 1.0)
    return code @ P("table")


WAYS = {
    "arithmetic": _row,
    "index": lambda a: P("table")[a.long()],
    "where": lambda a: torch.where(a > 0, P("table")[1], P("table")[0]),
    "one_hot": lambda a: one_hot(a.long(), 2).double() @ P("table"),
    "mask": lambda a: P("table")[0].masked_fill(a == 1, 0.0) + a * P("table")[1],
    "detached": lambda a: _row(a.detach()),
    "written": _written,
    "no_grad": _computed_without_gradient,
}


def _tables(way: Callable[[Tensor], Tensor]) -> Program:
    """Zero tables, as a network is initialised: logits are equal in both runs, and dependent."""
    program = _dependent(way, _row)
    new_parameters(**program.shapes)
    with torch.no_grad():
        leaves()["table"].zero_()
    return program


@pytest.mark.parametrize("way", WAYS)
def test_dependence_that_the_logits_do_not_show(way):
    program = _tables(WAYS[way])
    elbo = many(program, DisARMELBO, particles=200)
    assert_unbiased(elbo, program.model, program.guide, exact_loss(program))


@pytest.mark.parametrize("way", ["arithmetic", "index"])
def test_comparing_logits_alone_would_be_caught(way, monkeypatch):
    """Mirroring a dependent site's noise wherever the logits happen to be equal is biased."""
    monkeypatch.setattr(
        "pyro_silent.elbo.dependence.DependenceTracker.depends", lambda self, parameter: False
    )
    program = _tables(WAYS[way])
    elbo = many(program, DisARMELBO, particles=200)
    worst = worst_z_scores(elbo, program.model, program.guide, exact_loss(program))
    assert worst["loss"] < Z_LIMIT < 2 * Z_LIMIT < worst["table"]


class _Posterior(GuideMessenger):
    """The second bit's logit is read off the value of the first."""

    def get_posterior(self, name: str, prior: dist.Distribution) -> dist.Distribution:
        if name == "a":
            return dist.Bernoulli(logits=P("q_a"))
        return dist.Bernoulli(logits=_row(self.upstream_value("a")))


def test_dependence_in_a_guide_messenger():
    program = _tables(_row)

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.4))
        b = pyro.sample("b", dist.Bernoulli(0.3 + 0.0 * a))  # as many as there are particles
        observe("x", 3 * a * b - b, 2.0)

    elbo = many(program, DisARMELBO, particles=200)
    assert_unbiased(elbo, model, _Posterior(model), exact_loss(program))


def _without_sigmoid(logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return first - second


def _without_absolute(logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return (first - second) * torch.sigmoid(logits)


@pytest.mark.parametrize("wrong", [_without_sigmoid, _without_absolute])
def test_other_weights_would_be_caught(wrong, monkeypatch):
    monkeypatch.setattr("pyro_silent.elbo.disarm.disarm_weights", wrong)
    program = PROGRAMS["BitsAsIndices"]
    new_parameters(**program.shapes)
    elbo = many(program, DisARMELBO, particles=150)
    worst = worst_z_scores(elbo, program.model, program.guide, exact_loss(program))
    assert worst["loss"] < Z_LIMIT < 1.5 * Z_LIMIT < worst["logits"]


def test_one_pair_by_hand():
    """Which of the two values of a single bit come is known from the loss; so is the estimate."""
    program = PROGRAMS["OwnPrior"]
    new_parameters(**program.shapes)
    f = []
    for b in (0.0, 1.0):
        prior = P("slope") * b - torch.log1p(P("slope").exp())
        f.append((prior + log_normal(0.8 - (P("w") * b).exp(), 0.7)).detach())
    p = torch.sigmoid(P("q_a"))
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    slope = gradients_of(entropy)["q_a"]
    losses, gradients = run_many(DisARMELBO(), program.model, program.guide, runs=30)
    expected = {}
    for values in ((0, 0), (0, 1), (1, 1)):
        loss = -(f[values[0]] + f[values[1]]) / 2 - entropy
        unequal = values[0] != values[1]
        step = 0.5 * (f[1] - f[0]) * torch.sigmoid(P("q_a").abs()) * unequal
        expected[round(loss.item(), 9)] = -(step + slope)
    seen = set()
    for loss, gradient in zip(losses, gradients["q_a"], strict=True):
        key = round(loss.item(), 9)
        seen.add(key)
        assert_close(gradient, expected[key], 1e-9, "gradient")
    assert len(seen) == 2  # never both pairs of equal values at one logit


def test_less_variance_than_leave_one_out():
    """Both make two evaluations; at logits near 0 the pair is nearly opposite."""
    program = PROGRAMS["BitsAsIndices"]
    new_parameters(**program.shapes)
    spreads = []
    for elbo in (DisARMELBO(), LeaveOneOutELBO(2)):
        _, gradients = run_many(elbo, program.model, program.guide, runs=80)
        spreads.append(gradients["logits"].var(0).sum())
    assert spreads[0] < spreads[1]


def test_which_sites_there_are_may_depend_on_an_untracked_sample():
    """A site only one of the two runs has; c is no Bernoulli, so Python may read it."""
    new_parameters(q_c=2, q_b=2, w=2)

    def model() -> None:
        c = pyro.sample("c", dist.Categorical(logits=torch.zeros(2)))
        name = "b1" if c > 0 else "b0"
        b = pyro.sample(name, dist.Bernoulli(0.3))
        observe("x", (P("w")[int(c)] * (1 + b)).exp(), 0.8)

    def guide() -> None:
        c = pyro.sample("c", dist.Categorical(logits=P("q_c")))
        pyro.sample("b1" if c > 0 else "b0", dist.Bernoulli(logits=P("q_b")[int(c)]))

    def plain(draw: Draws) -> Tensor:
        c = draw.one_hot(P("q_c"))
        b = draw.bernoulli(c @ P("q_b"))
        kl = c @ kl_bits(P("q_b"), logit(0.3).expand(2))
        q = torch.log_softmax(P("q_c"), -1)
        kl = kl + (q.exp() * q).sum() + torch.tensor(2.0).log()
        return kl - log_normal(0.8 - ((c @ P("w")) * (1 + b)).exp(), 0.7)

    program = Program("branching", model, guide, plain, 0, {})
    assert_unbiased(DisARMELBO(2), model, guide, exact_loss(program), runs=60)


@pytest.mark.parametrize("read", [lambda a: a > 0, lambda a: int(a.sum()), lambda a: a.item()])
def test_control_flow_in_the_guide(read):
    """Once Python has read a sample, every later site may depend on it."""
    program = _tables(lambda a: P("table")[1] if read(a) else P("table")[0])
    assert_unbiased(DisARMELBO(2), program.model, program.guide, exact_loss(program), runs=60)


def test_control_flow_in_the_model():
    """The model sees plain samples, and nothing depends on what it does with them."""
    new_parameters(q_a=(), q_b=())

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.4))
        b = pyro.sample("b", dist.Bernoulli(0.3))
        assert type(a) is Tensor
        observe("x", 2 * b if a > 0 else -b, 1.5)

    def guide() -> None:
        pyro.sample("a", dist.Bernoulli(logits=P("q_a")))
        pyro.sample("b", dist.Bernoulli(logits=P("q_b")))

    def plain(draw: Draws) -> Tensor:
        a, b = draw.bernoulli(P("q_a")), draw.bernoulli(P("q_b"))
        kl = kl_bits(P("q_a"), logit(0.4)) + kl_bits(P("q_b"), logit(0.3))
        return kl - log_normal(1.5 - 3 * a * b + b, 0.7)

    program = Program("branching", model, guide, plain, 0, {})
    assert_unbiased(DisARMELBO(2), model, guide, exact_loss(program), runs=60)


@pytest.mark.parametrize("name", ["Impossible", "Subsampled", "Scored", "Enumerated"])
@pytest.mark.parametrize("vectorized", [False, True])
def test_entry_points_agree_at_a_seed(name, vectorized):
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    elbo = DisARMELBO(
        2, vectorize_particles=vectorized, max_plate_nesting=program.max_plate_nesting
    )
    assert_entry_points_agree(elbo, program.model, program.guide)


@pytest.mark.parametrize("vectorized", [False, True])
def test_both_runs_of_a_pair_see_one_subsample(vectorized):
    seen = []

    def model() -> None:
        with pyro.plate("data", 50, subsample_size=2) as rows:
            seen.append(tuple(rows.tolist()))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(2))

    DisARMELBO(3, vectorize_particles=vectorized, max_plate_nesting=1).loss(model, lambda: None)
    assert seen[0::2] == seen[1::2]
    assert vectorized or len(set(seen)) == 3


def test_a_guide_that_is_random_in_another_way():
    """Dropout makes the logits of the two runs differ: no mirrored noise then."""
    new_parameters(q_b=2, w=2)

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(torch.full((2,), 0.3)).to_event(1))
        observe("x", 2 * b.prod(-1) - b @ P("w"), 1.0)

    def guide() -> None:
        kept = torch.bernoulli(torch.full(P("q_b").shape, 0.5))
        pyro.sample("b", dist.Bernoulli(logits=2 * P("q_b") * kept).to_event(1))

    truth = torch.zeros(())
    for kept in ([0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]):
        program = Program("dropout", model, guide, _with_dropout(torch.tensor(kept)), 0, {})
        truth = truth + 0.25 * exact_loss(program)
    assert_unbiased(DisARMELBO(4), model, guide, truth)


def _with_dropout(kept: Tensor) -> Callable[[Draws], Tensor]:
    def plain(draw: Draws) -> Tensor:
        logits = 2 * P("q_b") * kept
        b = draw.bernoulli(logits)
        likelihood = log_normal(1.0 - 2 * b.prod() + b @ P("w"), 0.7)
        return kl_bits(logits, logit(0.3).expand(2)).sum() - likelihood

    return plain
