"""What the losses for discrete latents refuse, and what an error leaves behind."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.distribution import COERCIONS
from pyro.poutine.runtime import _PYRO_STACK

from pyro_silent import (
    ZGR,
    ConfigurationError,
    DisARMELBO,
    GumbelRaoELBO,
    LeakError,
    LeaveOneOutELBO,
    RelaxedELBO,
    StraightThrough,
    StraightThroughELBO,
)
from tests.elbo.agreement import (
    evaluate,
    leaves,
    new_parameters,
)
from tests.elbo.chance import assert_unbiased
from tests.elbo.discrete_losses import LOSSES, SURROGATES, each_loss
from tests.elbo.discrete_oracle import log_normal
from tests.elbo.discrete_programs import PROGRAMS, THREE, P, observe


def _wrong_arguments():
    return [
        ("estimator", lambda: StraightThroughELBO("zgr")),
        ("estimator", lambda: StraightThroughELBO(ZGR)),
        ("estimator", lambda: StraightThroughELBO(None)),
        ("temperature", lambda: GumbelRaoELBO(0.0)),
        ("temperature", lambda: GumbelRaoELBO(float("nan"))),
        ("temperature", lambda: RelaxedELBO(-1.0)),
        ("num_gumbels", lambda: GumbelRaoELBO(1.0, 0)),
        ("num_gumbels", lambda: GumbelRaoELBO(1.0, 2.5)),
        ("num_particles", lambda: GumbelRaoELBO(num_particles=0)),
        ("num_particles", lambda: StraightThroughELBO(ZGR(), num_particles=1.0)),
        ("num_particles", lambda: RelaxedELBO(num_particles=-1)),
        ("num_particles", lambda: LeaveOneOutELBO(1)),
        ("num_particles", lambda: DisARMELBO(0)),
    ]


@pytest.mark.parametrize("argument, make", _wrong_arguments())
def test_wrong_arguments_are_named(argument, make):
    with pytest.raises(ConfigurationError, match=f"^{argument}: got .*expected"):
        make()


def test_exact_expectations_are_for_binary_sites():
    """The site is named, since the loss is right for the others."""
    program = PROGRAMS["OneHots"]
    new_parameters(**program.shapes)
    with pytest.raises(ConfigurationError, match="guide site 'c': num_gumbels"):
        evaluate(GumbelRaoELBO(num_gumbels=None), program.model, program.guide)
    new_parameters(q=2)

    def model() -> None:
        pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=P("q")))

    evaluate(GumbelRaoELBO(num_gumbels=None), model, guide)  # two categories are binary


def test_a_schedule_that_ends_at_zero_names_the_site():
    program = PROGRAMS["Bits"]
    new_parameters(**program.shapes)
    elbo = GumbelRaoELBO(lambda step: 1.0 - step)
    elbo.loss_and_grads(program.model, program.guide)
    with pytest.raises(ConfigurationError, match="guide site 'b': temperature: got 0.0 .* step 1"):
        elbo.loss_and_grads(program.model, program.guide)


def test_logits_that_are_no_logits_name_the_site():
    new_parameters(q=3)

    def model() -> None:
        pyro.sample("c", dist.OneHotCategorical(logits=THREE))

    def guide() -> None:
        with pyro.validation_enabled(False):
            fn = dist.OneHotCategorical(logits=P("q") * torch.nan)
        pyro.sample("c", fn)

    with pytest.raises(ConfigurationError, match="guide site 'c': logits: got NaN"):
        StraightThroughELBO(ZGR()).loss(model, guide)


def _branching(silent: bool = True):
    """A model that turns its latent into a Python value."""

    def model() -> None:
        b = pyro.sample("bit", dist.Bernoulli(0.4))
        loc = P("w").exp() if b > 0 else -P("w")
        observe("x", loc, 0.8)

    def guide() -> None:
        infer = None if silent else {"silent": False}
        pyro.sample("bit", dist.Bernoulli(logits=P("q")), infer=infer)

    return model, guide


@pytest.mark.parametrize("loss", SURROGATES)
def test_python_control_flow_is_refused_and_the_remedy_works(loss):
    new_parameters(q=(), w=())
    with pytest.raises(LeakError, match=r"'bit'.*\n?.*\"silent\": False") as caught:
        LOSSES[loss]().loss_and_grads(*_branching())
    assert __file__ in str(caught.value)
    model, guide = _branching(silent=False)
    evaluate(LOSSES[loss](), model, guide)


def test_the_remedy_is_unbiased():
    new_parameters(q=(), w=())
    model, guide = _branching(silent=False)
    p = torch.sigmoid(P("q"))
    truth = p * (p.log() - torch.tensor(0.4).log())
    truth = truth + (1 - p) * ((1 - p).log() - torch.tensor(0.6).log())
    truth = truth - p * log_normal(0.8 - P("w").exp(), 0.7)
    truth = truth - (1 - p) * log_normal(0.8 + P("w"), 0.7)
    elbo = StraightThroughELBO(StraightThrough(), num_particles=5)
    assert_unbiased(elbo, model, guide, truth)


@pytest.mark.parametrize("loss", ["leave_one_out", "disarm"])
def test_losses_without_surrogates_let_the_model_branch(loss):
    new_parameters(q=(), w=())
    evaluate(LOSSES[loss](), *_branching())


@pytest.mark.parametrize("use", [int, float, bool, lambda z: z.item(), lambda z: z.tolist()])
def test_every_way_out_is_refused(use):
    new_parameters(q=3)

    def model() -> None:
        z = pyro.sample("index", dist.Categorical(logits=THREE))
        use(z)

    def guide() -> None:
        pyro.sample("index", dist.Categorical(logits=P("q")))

    with pytest.raises(LeakError, match="'index'"):
        GumbelRaoELBO().loss_and_grads(model, guide)


@each_loss
def test_nothing_is_left_behind_by_an_error(loss):
    """Parameters, handlers, hooks and the loss itself: the next step is as if nothing had been."""
    program = PROGRAMS["BitChain"]
    new_parameters(**program.shapes)
    elbo = LOSSES[loss](max_plate_nesting=1)
    before = {name: leaf.detach().clone() for name, leaf in leaves().items()}
    hooks = list(COERCIONS)
    expected = evaluate(copy.deepcopy(elbo), program.model, program.guide, seed=6)
    runs = []

    def broken() -> None:
        program.model()
        runs.append(1)
        if len(runs) > 1 or loss not in ("leave_one_out", "disarm"):  # in the second of a group
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        elbo.loss_and_grads(broken, program.guide)
    assert not _PYRO_STACK and hooks == COERCIONS
    assert before.keys() == leaves().keys()
    for name, leaf in leaves().items():
        assert torch.equal(leaf, before[name]) and leaf.grad is None
    actual = evaluate(elbo, program.model, program.guide, seed=6)
    assert actual[0] == expected[0]
    for name, gradient in expected[1].items():
        assert torch.equal(actual[1][name], gradient)


@each_loss
def test_the_random_state_is_read_in_order(loss):
    """A loss draws from torch's global generator alone, and each call goes on where one ended."""
    program = PROGRAMS["Bits"]
    new_parameters(**program.shapes)
    elbo = LOSSES[loss]()
    pyro.set_rng_seed(1)
    losses = [elbo.loss(program.model, program.guide) for _ in range(8)]
    pyro.set_rng_seed(1)
    assert [elbo.loss(program.model, program.guide) for _ in range(8)] == losses
    assert len(set(losses)) > 1
