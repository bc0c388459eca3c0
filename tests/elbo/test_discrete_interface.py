"""How users call the losses for discrete latents: training, steps, errors, what is left behind."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.distribution import COERCIONS
from pyro.infer import SVI
from pyro.nn import PyroModule, PyroParam
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from pyro_silent import (
    ZGR,
    ConfigurationError,
    DisARMELBO,
    Exponential,
    GumbelRao,
    GumbelRaoELBO,
    LeakError,
    LeaveOneOutELBO,
    RelaxedELBO,
    SilentELBO,
    StraightThrough,
    StraightThroughELBO,
    StraightThroughGumbelSoftmax,
)
from tests.elbo.agreement import (
    assert_close,
    assert_entry_points_agree,
    evaluate,
    gradients_of,
    leaves,
    new_parameters,
)
from tests.elbo.chance import assert_unbiased, run_many
from tests.elbo.discrete_oracle import exact_loss, log_normal, surrogate_loss
from tests.elbo.discrete_programs import PROGRAMS, THREE, P, observe
from tests.elbo.test_straight_through import many

LOSSES = {
    "straight_through": lambda **keywords: StraightThroughELBO(ZGR(), **keywords),
    "gumbel_rao": GumbelRaoELBO,
    "relaxed": RelaxedELBO,
    "leave_one_out": LeaveOneOutELBO,
    "disarm": DisARMELBO,
}
each_loss = pytest.mark.parametrize("loss", LOSSES)


# -- training ----------------------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("name", ["IndexedTable", "BitChain"])
def test_svi_trains(loss, name):
    """Adam steps bring the enumerated loss down; ``evaluate_loss`` changes nothing."""
    program = PROGRAMS[name]
    new_parameters(**program.shapes)
    before = exact_loss(program).item()
    elbo = LOSSES[loss]()
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.05}), loss=elbo)
    for _ in range(40):
        assert isinstance(svi.step(), float)
    after = exact_loss(program).item()
    assert after < before - 0.5
    assert isinstance(svi.evaluate_loss(), float)
    assert exact_loss(program).item() == after
    assert elbo.num_steps == 40


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


@each_loss
def test_modules_and_embeddings_are_unbiased_in_the_loss(loss):
    """One row at a time, the loss of an amortized guide is that of its three codes."""
    if loss == "relaxed":
        pytest.skip("its value is biased")
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


# -- steps and schedules -----------------------------------------------------------------------


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
    assert state == {"num_steps": 3}
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


# -- errors ------------------------------------------------------------------------------------


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


STRAIGHT = ["straight_through", "gumbel_rao", "relaxed"]


@pytest.mark.parametrize("loss", STRAIGHT)
def test_python_control_flow_is_refused_and_the_remedy_works(loss):
    new_parameters(q=(), w=())
    with pytest.raises(LeakError, match=r"'bit'.*\n?.*\"silent\": False") as caught:
        LOSSES[loss]().loss_and_grads(*_branching())
    assert "test_discrete_interface.py" in str(caught.value)
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
    elbo = StraightThroughELBO(StraightThrough(), num_particles=20)
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


# -- which sites are treated -------------------------------------------------------------------


def test_what_is_written_with_probabilities_is_the_same():
    """``probs`` and ``logits`` give the same samples and, through the chain rule, gradients."""
    program = PROGRAMS["IndexedTable"]
    new_parameters(**program.shapes)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Categorical(P("logits").softmax(-1)))

    results = [
        evaluate(StraightThroughELBO(ZGR()), program.model, g, seed=5)
        for g in (program.guide, guide)
    ]
    assert_close(results[0][0], torch.tensor(results[1][0]), 1e-12, "loss")
    for name, gradient in results[0][1].items():
        assert_close(results[1][1][name], gradient, 1e-12, f"gradient of {name}")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda fn: fn.mask(torch.tensor([True, True])),
        lambda fn: fn.expand([2]),
        lambda fn: dist.ExpandedDistribution(fn, [2]),
        lambda fn: dist.OneHotCategoricalStraightThrough(logits=fn.logits),
    ],
)
def test_wrapped_laws(wrap):
    """Masks, expansions, Pyro's straight-through class: as if the law stood there bare."""
    new_parameters(q=(2, 3), w=3)

    def model() -> None:
        with pyro.plate("data", 2):
            c = pyro.sample("c", dist.OneHotCategorical(logits=THREE))
            observe("x", (c @ P("w")).exp(), THREE[:2])

    def guide(wrapped: bool) -> None:
        fn = dist.OneHotCategorical(logits=P("q"))
        with pyro.plate("data", 2):
            if not wrapped:
                pyro.sample("c", fn)
            else:
                pyro.sample("c", wrap(fn))

    elbo = StraightThroughELBO(ZGR(), max_plate_nesting=1)
    fn = dist.OneHotCategorical(logits=THREE.expand(2, 3))
    _, bare = evaluate(elbo, lambda wrapped: model(), guide, False, seed=5)
    _, gradients = evaluate(elbo, lambda wrapped: model(), guide, True, seed=5)
    for name, gradient in bare.items():
        # a mask takes the closed divergence away, which the model's parameters do not feel
        if name == "w" or not isinstance(wrap(fn), dist.MaskedDistribution):
            assert_close(gradients[name], gradient, 1e-12, f"gradient of {name}")


class Biased(dist.Bernoulli):
    """A user's own subclass with another way to draw: nothing is known of its law."""

    def sample(self, sample_shape: tuple = ()) -> Tensor:
        return torch.ones(self.shape(torch.Size(sample_shape)))


@pytest.mark.parametrize("loss", STRAIGHT)
def test_subclasses_with_their_own_draws_are_not_estimated(loss):
    new_parameters(q=())

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.4))
        assert type(b) is Tensor and b == 1

    def guide() -> None:
        pyro.sample("b", Biased(logits=P("q")))

    for seed in range(5):
        evaluate(LOSSES[loss](), model, guide, seed=seed)


def test_opting_out_gives_a_plain_sample():
    """In every loss: the model sees a tensor, and the gradient is the score function's."""
    new_parameters(q=())
    seen = []

    def model() -> None:
        seen.append(pyro.sample("b", dist.Bernoulli(0.4)))

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=P("q")), infer={"silent": False})

    for make in LOSSES.values():
        make().loss(model, guide)
    assert {type(value) for value in seen} == {Tensor}


@each_loss
def test_enumeration_in_another_way_is_refused(loss):
    new_parameters(q=3)

    def model() -> None:
        pyro.sample("z", dist.Categorical(logits=THREE))

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=P("q")), infer={"enumerate": "sequential"})

    with pytest.raises(ConfigurationError, match="guide site 'z': got infer with enumerate="):
        LOSSES[loss]().loss(model, guide)


def test_the_sites_together_serve_both_kinds_of_gradient():
    """Surrogate and score function in one program, both entering one loss: no term is lost."""
    program = PROGRAMS["Scored"]
    new_parameters(**program.shapes)
    losses, gradients = run_many(
        many(program, StraightThroughELBO, ZGR()), program.model, program.guide
    )
    truth = gradients_of(surrogate_loss(program))
    assert gradients.keys() == truth.keys()
    assert losses.std() > 0
    for name, gradient in truth.items():
        assert gradient.abs().max() > 1e-3 and (gradients[name].std(0) > 0).any()
