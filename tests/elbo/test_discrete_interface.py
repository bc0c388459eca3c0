"""How users call the losses for discrete latents: training, modules, steps, copies."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_silent import (
    ZGR,
    DisARMELBO,
    Exponential,
    GumbelRao,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    RelaxedELBO,
    SilentELBO,
    StraightThroughELBO,
    StraightThroughGumbelSoftmax,
)
from tests.elbo.agreement import (
    assert_close,
    assert_entry_points_agree,
    evaluate,
    leaves,
    new_parameters,
)
from tests.elbo.discrete_losses import LOSSES, each_loss
from tests.elbo.discrete_oracle import exact_loss, log_normal
from tests.elbo.discrete_programs import PROGRAMS, P, observe


@each_loss
def test_svi_trains(loss):
    """Adam steps bring the enumerated loss down; ``evaluate_loss`` changes nothing."""
    program = PROGRAMS["BitChain"]
    new_parameters(**program.shapes)
    before = exact_loss(program).item()
    elbo = LOSSES[loss]()
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), loss=elbo)
    for _ in range(25):
        assert isinstance(svi.step(), float)
    after = exact_loss(program).item()
    assert after < before - 0.5
    assert isinstance(svi.evaluate_loss(), float)
    assert exact_loss(program).item() == after
    assert elbo.num_steps == 25


class Encoder(PyroModule):
    """Logits of one code for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.linear(x)))


class Decoder(PyroModule):
    """An embedding of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 2)
        self.logits = PyroParam(torch.zeros(3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.logits))
            pyro.sample("x", dist.Normal(self.embedding(z), 0.7).to_event(1), obs=x)


@each_loss
def test_elbo_module_with_local_parameters(loss):
    """``elbo(model, guide)`` owns the parameters; its gradients are those of ``loss_and_grads``."""
    with pyro.settings.context(module_local_params=True):
        model, guide, x = Decoder(), Encoder(), torch.randn(4, 2)
        elbo = LOSSES[loss](max_plate_nesting=1)
        module = elbo(model, guide)
        module(x)
        named = dict(module.named_parameters())
        assert len(named) == 4
        pyro.set_rng_seed(3)
        module(x).backward()
        differentiable = {name: p.grad.clone() for name, p in named.items()}
        module.zero_grad()
        pyro.set_rng_seed(3)
        elbo.loss_and_grads(model, guide, x)
        for name, parameter in named.items():
            assert parameter.grad.abs().max() > 1e-4
            assert_close(parameter.grad, differentiable[name], 1e-12, name)
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "relaxed"])
def test_modules_and_embeddings_are_unbiased_in_the_loss(loss):
    """The loss of an amortized guide is that of its three codes."""
    model, guide, x = Decoder(), Encoder(), torch.randn(1, 2)
    log_q = torch.log_softmax(guide.linear(x[0]), -1)
    likelihood = log_normal(x - model.embedding.weight, 0.7).sum(-1)
    expected = (log_q.exp() * (log_q - torch.log_softmax(model.logits, -1) - likelihood)).sum()
    elbo = LOSSES[loss](num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    losses = []
    for seed in range(40):
        pyro.set_rng_seed(seed)
        losses.append(elbo.loss(model, guide, x))
    losses = torch.tensor(losses)
    z = (losses.mean() - expected.item()) / (losses.std() / len(losses) ** 0.5)
    assert abs(z) < 6


@each_loss
def test_loss_with_positional_and_keyword_arguments(loss):
    new_parameters(q=())

    def model(shift: float, *, scale: float = 1.0) -> None:
        b = pyro.sample("b", dist.Bernoulli(0.5))
        observe("x", shift + scale * b, 0.0)

    def guide(shift: float, *, scale: float = 1.0) -> None:
        pyro.sample("b", dist.Bernoulli(logits=P("q")))

    elbo = LOSSES[loss]()
    assert_entry_points_agree(elbo, model, guide, 1.0, scale=2.0)
    near, far = (evaluate(elbo, model, guide, s, scale=0.0)[0] for s in (0.0, 5.0))
    assert_close(far - near, torch.tensor(0.5 * 25 / 0.49), 1e-9, "shift")


@each_loss
def test_single_precision(loss):
    torch.set_default_dtype(torch.float32)
    model, guide, x = Decoder(), Encoder(), torch.randn(4, 2)
    elbo = LOSSES[loss](max_plate_nesting=1)
    value = elbo.differentiable_loss(model, guide, x)
    assert value.dtype == torch.float32
    value.backward()
    assert guide.linear.weight.grad.dtype == torch.float32
    assert guide.linear.weight.grad.isfinite().all()


@each_loss
def test_without_validation(loss):
    program = PROGRAMS["IndexChain"]
    new_parameters(**program.shapes)
    elbo = LOSSES[loss](max_plate_nesting=1)
    expected, _ = evaluate(elbo, program.model, program.guide, seed=2)
    with pyro.validation_enabled(False):
        assert evaluate(elbo, program.model, program.guide, seed=2)[0] == expected


@each_loss
def test_max_plate_nesting_is_guessed(loss):
    """Vectorized particles need it: the two plates, and one more for the particles."""
    program = PROGRAMS["NestedPlates"]
    new_parameters(**program.shapes)
    elbo = LOSSES[loss](num_particles=5, vectorize_particles=True)
    elbo.loss_and_grads(program.model, program.guide)
    assert elbo.max_plate_nesting == 3


class Recorded:
    """A temperature that remembers the steps it was asked for."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, step: int) -> float:
        self.steps.append(step)
        return 1.0 / (1 + step)


@pytest.mark.parametrize(
    "make",
    [
        GumbelRaoELBO,
        RelaxedELBO,
        lambda t: StraightThroughELBO(StraightThroughGumbelSoftmax(t)),
    ],
)
def test_a_schedule_is_called_with_the_number_of_steps(make):
    """``loss_and_grads`` alone counts: not ``loss``, nor ``differentiable_loss``, nor a failed step."""
    program = PROGRAMS["Bits"]
    new_parameters(**program.shapes)
    temperature = Recorded()
    elbo = make(temperature)
    run = program.model, program.guide
    for _ in range(2):
        elbo.loss(*run)
        elbo.differentiable_loss(*run)
        elbo.loss_and_grads(*run)
    assert temperature.steps == [0, 0, 0, 1, 1, 1]

    def broken() -> None:
        pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.3)).to_event(1))
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        elbo.loss_and_grads(broken, program.guide)
    assert elbo.num_steps == 2


@each_loss
def test_a_loss_resumes(loss):
    """state_dict is what a checkpoint needs, and survives torch.save's pickling."""
    program = PROGRAMS["Bits"]
    new_parameters(**program.shapes)
    elbo = LOSSES[loss]()
    for _ in range(3):
        elbo.loss_and_grads(program.model, program.guide)
    state = pickle.loads(pickle.dumps(elbo.state_dict()))
    assert state["num_steps"] == 3
    fresh = LOSSES[loss]()
    fresh.load_state_dict(state)
    assert fresh.num_steps == 3


def test_a_resumed_schedule_goes_on():
    program = PROGRAMS["Bits"]
    new_parameters(**program.shapes)
    elbo = RelaxedELBO(Exponential(1.0, 0.1, num_steps=4))
    for _ in range(3):
        elbo.loss_and_grads(program.model, program.guide)
    fresh = RelaxedELBO(Exponential(1.0, 0.1, num_steps=4))
    behind, _ = evaluate(copy.deepcopy(fresh), program.model, program.guide, seed=1)
    fresh.load_state_dict(elbo.state_dict())
    resumed, _ = evaluate(fresh, program.model, program.guide, seed=1)
    assert resumed == evaluate(elbo, program.model, program.guide, seed=1)[0]
    assert resumed != behind


@pytest.mark.parametrize(
    "elbo",
    [
        StraightThroughELBO(GumbelRao(Exponential(1.0, 0.1, num_steps=4), 10)),
        GumbelRaoELBO(0.5, None),
        RelaxedELBO(0.5),
        LeaveOneOutELBO(3),
        DisARMELBO(),
        SilentELBO(intractable="sample", estimator=ZGR()),
    ],
    ids=lambda elbo: type(elbo).__name__,
)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
def test_losses_can_be_copied(elbo, copied):
    """After use too: the copy counts its own steps."""
    program = PROGRAMS["Bits"]
    new_parameters(**program.shapes)
    elbo = copy.deepcopy(elbo)
    evaluate(elbo, program.model, program.guide)
    twin = copied(elbo)
    one, two = (evaluate(e, program.model, program.guide, seed=4) for e in (elbo, twin))
    assert one[0] == two[0]
    for name, gradient in one[1].items():
        assert torch.equal(gradient, two[1][name])
    evaluate(twin, program.model, program.guide)
    assert (elbo.num_steps, twin.num_steps) == (2, 3)


@each_loss
def test_retain_graph(loss):
    """A graph made outside the step serves several steps if it is retained."""
    new_parameters(q=3)
    shared = P("q").exp()

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.3)).to_event(1))
        observe("x", b.sum(-1), 0.8)

    def guide() -> None:
        pyro.param("q")
        pyro.sample("b", dist.Bernoulli(logits=shared).to_event(1))

    elbo = LOSSES[loss](retain_graph=True)
    elbo.loss_and_grads(model, guide)
    first = leaves()["q"].grad.clone()
    elbo.loss_and_grads(model, guide)
    assert not torch.equal(leaves()["q"].grad, first)
    LOSSES[loss]().loss_and_grads(model, guide)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        LOSSES[loss]().loss_and_grads(model, guide)
