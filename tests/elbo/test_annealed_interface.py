"""How users call AnnealedELBO: training, modules, values, copies; and that it is unbiased."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_silent import (
    AnnealedELBO,
    Cosine,
    DisARMELBO,
    Exponential,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    Linear,
    RelaxedELBO,
    SilentELBO,
    TwinDecoder,
)
from tests.elbo.agreement import (
    assert_close,
    assert_entry_points_agree,
    evaluate,
    gradients_of,
    leaves,
)
from tests.elbo.annealed_programs import (
    CODE,
    DATA,
    FAMILIES,
    ROWS,
    Program,
    collect,
    combine,
    flat,
    mlp,
    top_down,
)
from tests.elbo.chance import RUNS, Z_LIMIT, run_many
from tests.formulas import gauss_hermite_grid, z_scores

P = pyro.param

PAIRS: dict[str, tuple[str, Callable[[], Any], Callable[[], Any]]] = {
    # family, silent part, stochastic part
    "trace": ("normal", SilentELBO, Trace_ELBO),
    "mean_field": ("normal", SilentELBO, lambda: TraceMeanField_ELBO(num_particles=2)),
    "control": ("normal", Trace_ELBO, Trace_ELBO),
    "gumbel_rao": ("one_hot", SilentELBO, lambda: GumbelRaoELBO(0.5, 5)),
    "relaxed": ("bernoulli", SilentELBO, lambda: RelaxedELBO(0.6)),
    "leave_one_out": ("bernoulli", SilentELBO, LeaveOneOutELBO),
    "graph": ("categorical", SilentELBO, TraceGraph_ELBO),
}
over_pairs = pytest.mark.parametrize("pair", PAIRS)


def made(pair: str, schedule: Any = 0.4, **keywords: Any) -> tuple[Program, AnnealedELBO]:
    """A program and a blend of two losses for it."""
    family, silent, stochastic = PAIRS[pair]
    return flat(family), AnnealedELBO(silent(), stochastic(), schedule, **keywords)


# Training


@over_pairs
def test_svi_trains_through_the_whole_schedule(pair):
    """Blend, then the stochastic part alone; ``evaluate_loss`` changes nothing."""
    program, elbo = made(pair, Linear(1.0, 0.0, num_steps=10))
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.05}), loss=elbo)

    def mean_loss() -> float:
        return sum(svi.evaluate_loss(*program.run[2:]) for _ in range(8)) / 8

    before = mean_loss()
    weights = []
    for _ in range(20):
        weights.append(elbo.weight)
        assert isinstance(svi.step(*program.run[2:]), float)
    assert weights == [Linear(1.0, 0.0, num_steps=10)(step) for step in range(20)]
    kept = {name: leaf.detach().clone() for name, leaf in leaves().items()}
    assert mean_loss() < before - 1.0
    assert elbo.num_steps == 20
    assert all(torch.equal(kept[name], leaf) for name, leaf in leaves().items())


class Model(PyroModule):
    """A deep decoder beside a linear one, a learned noise."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = TwinDecoder(nn.Linear(CODE, DATA), mlp(CODE, DATA))
        self.noise = PyroParam(torch.tensor(0.7), constraint=dist.constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.noise).to_event(1), obs=x)


class Guide(PyroModule):
    """An amortized Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(DATA, 2 * CODE)

    def forward(self, x: Tensor) -> None:
        loc, width = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, width.exp()).to_event(1))


@pytest.mark.parametrize("make, rate", [(torch.optim.Adam, 0.02), (torch.optim.SGD, 0.003)])
def test_elbo_module_with_torch_optimizers(make, rate):
    """The module owns the parameters, counts its steps, and goes down."""
    with pyro.settings.context(module_local_params=True):
        model, guide, x = Model(), Guide(), torch.randn(ROWS, DATA)
        elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), Cosine(1.0, 0.0, num_steps=15))
        module = elbo(model, guide)
        assert len(list(module.parameters())) == 9
        optimizer = make(module.parameters(), lr=rate)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = module(x)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-10:]) < sum(losses[:10]) - 10.0
        assert elbo.num_steps == 40
    assert not pyro.get_param_store().keys()


def test_the_module_counts_training_steps_alone():
    with pyro.settings.context(module_local_params=True):
        x, elbo = torch.randn(ROWS, DATA), AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5)
        module = elbo(Model(), Guide())
        module(x)
        with torch.no_grad():
            module(x)
        module.eval()
        module(x)
        assert elbo.num_steps == 1
        module.train()
        module(x)
        assert elbo.num_steps == 2


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_modules_get_the_gradients_of_a_step(weight):
    with pyro.settings.context(module_local_params=True):
        model, guide, x = Model(), Guide(), torch.randn(ROWS, DATA)
        elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), weight)
        module = elbo(model, guide)
        named = dict(module.named_parameters())
        pyro.set_rng_seed(3)
        module(x).backward()
        first = {name: p.grad for name, p in named.items()}
        module.zero_grad()
        pyro.set_rng_seed(3)
        elbo.loss_and_grads(model, guide, x)
        for name, parameter in named.items():
            if weight == 0 and "analytic" in name:
                assert parameter.grad is None and first[name] is None
                continue
            assert parameter.grad.abs().max() > 1e-4, name
            assert_close(parameter.grad, first[name], 1e-12, name)


# Values


@over_pairs
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_entry_points_agree(pair, weight):
    program, elbo = made(pair, weight)
    assert_entry_points_agree(elbo, *program.run)


@pytest.mark.parametrize(
    "keywords",
    [
        {"num_particles": 3},
        {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1},
        {"num_particles": 3, "vectorize_particles": True},
    ],
    ids=lambda keywords: "-".join(keywords),
)
def test_entry_points_agree_with_particles(keywords):
    program = top_down()
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.4, **keywords)
    assert_entry_points_agree(elbo, *program.run)


@over_pairs
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_value_is_that_of_the_stochastic_part(pair, weight):
    """On the expressive branch, at every weight; beside it stands the silent part's."""
    program, elbo = made(pair, weight)
    _, silent, stochastic = PAIRS[pair]
    apart = program.model, program.guide
    elbo.loss(*program.run)
    pyro.set_rng_seed(1)
    expected = stochastic().loss(*apart, "expressive", program.data)
    pyro.set_rng_seed(1)
    assert_close(elbo.loss(*program.run), expected, 1e-12, "loss")
    pyro.set_rng_seed(1)
    assert_close(elbo.loss_and_grads(*program.run), expected, 1e-12, "loss_and_grads")
    pyro.set_rng_seed(2)
    analytic = silent().loss(*apart, "analytic", program.data)
    pyro.set_rng_seed(2)
    assert elbo.silent_loss(*program.run) == pytest.approx(analytic, abs=1e-12)
    assert abs(analytic - expected) > 0.05
    assert elbo.num_steps == 1


def test_the_value_of_a_silent_warm_up():
    """While the expressive decoder is not run, a step's value is the silent loss."""
    program = flat("normal")
    schedule = Linear(1.0, 0.0, num_steps=2, hold=1)
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), schedule, silent_warm_up=True)
    silent = SilentELBO().loss(program.model, program.guide, "analytic", program.data)
    for step in range(3):
        loss, gradients = collect(elbo, *program.run, seed=step)
        assert (abs(loss - silent) < 1e-12) == (step <= 1)
        assert (gradients["decoder$$$expressive.0.weight"] is None) == (step <= 1)
        assert elbo.last_silent_loss == pytest.approx(silent, abs=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_without_gradients(weight):
    program, elbo = made("trace", weight)
    pyro.set_rng_seed(1)
    expected = elbo.loss(*program.run)
    with torch.no_grad():
        pyro.set_rng_seed(1)
        assert elbo.loss(*program.run) == expected
        pyro.set_rng_seed(1)
        value = elbo.differentiable_loss(*program.run)
    assert not value.requires_grad
    assert_close(value, expected, 1e-12, "loss")


def test_keyword_arguments_reach_both_parts():
    twin = TwinDecoder(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.Tanh()))
    seen = []

    def model(x: Tensor, *, shift: float = 0.0) -> None:
        seen.append(shift)
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(twin(z) + shift, 1.0).to_event(1), obs=x)

    def guide(x: Tensor, *, shift: float = 0.0) -> None:
        seen.append(shift)
        pyro.sample("z", dist.Normal(P("loc", torch.zeros(1)), 1.0).to_event(1))

    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5)
    assert_entry_points_agree(elbo, model, guide, torch.ones(1), shift=2.0)
    assert set(seen) == {2.0}


def test_gradients_accumulate():
    program, elbo = made("trace")
    pyro.set_rng_seed(1)
    elbo.loss_and_grads(*program.run)
    once = {name: leaf.grad.clone() for name, leaf in leaves().items()}
    pyro.set_rng_seed(1)
    elbo.loss_and_grads(*program.run)
    for name, leaf in leaves().items():
        assert_close(leaf.grad, 2 * once[name], 1e-12, name)


def test_a_scaled_loss_has_a_scaled_gradient():
    """As gradient accumulation over micro-batches writes it."""
    program, elbo = made("trace")
    _, expected = evaluate(elbo, *program.run, seed=1)
    pyro.set_rng_seed(1)
    loss = elbo.differentiable_loss(*program.run) / 4 + 1.0
    for name, found in gradients_of(loss).items():
        assert_close(found, expected[name] / 4, 1e-12, name)


def test_single_precision():
    torch.set_default_dtype(torch.float32)
    program, elbo = made("trace")
    value = elbo.differentiable_loss(*program.run)
    assert value.dtype == torch.float32
    value.backward()
    for leaf in leaves().values():
        assert leaf.grad.dtype == torch.float32 and leaf.grad.isfinite().all()


@over_pairs
def test_without_validation(pair):
    program, elbo = made(pair)
    expected = evaluate(elbo, *program.run, seed=2)
    with pyro.validation_enabled(False):
        actual = evaluate(elbo, *program.run, seed=2)
    assert_close(actual[0], expected[0], 1e-12, "loss")
    for name, found in actual[1].items():
        assert_close(found, expected[1][name], 1e-12, name)


def test_a_graph_from_outside_serves_several_steps_if_it_is_retained():
    features, data = P("features", torch.randn(ROWS, CODE)).exp(), torch.randn(ROWS, DATA)
    twin = TwinDecoder(nn.Linear(CODE, DATA), mlp(CODE, DATA))

    def model() -> None:
        P("features")
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(twin(z), 1.0).to_event(1), obs=data)

    def guide() -> None:
        with pyro.plate("data", ROWS):
            pyro.sample("z", dist.Normal(features, 0.5).to_event(1))

    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5, retain_graph=True)
    elbo.loss_and_grads(model, guide)
    first = leaves()["features"].grad.clone()
    elbo.loss_and_grads(model, guide)
    assert not torch.equal(leaves()["features"].grad, first)
    once = AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5)
    once.loss_and_grads(model, guide)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        once.loss_and_grads(model, guide)


# As an object


@over_pairs
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_go_on_alone(pair, copied):
    program, elbo = made(pair, Exponential(1.0, 0.2, num_steps=3))
    evaluate(elbo, *program.run)
    twin = copied(elbo)
    one, two = (evaluate(e, *program.run, seed=4) for e in (elbo, twin))
    assert one[0] == two[0]
    for name, gradient in one[1].items():
        assert torch.equal(gradient, two[1][name])
    evaluate(twin, *program.run)
    assert (elbo.num_steps, twin.num_steps) == (2, 3)
    assert (elbo.silent is twin.silent, elbo.stochastic is twin.stochastic) == (False, False)


def test_the_program_serves_other_losses_before_and_after():
    """Nothing is left behind: no branch stays chosen, also where a step fails."""
    program, elbo = made("trace")
    pyro.set_rng_seed(3)
    before = Trace_ELBO().loss(*program.run)
    silent = SilentELBO().loss(*program.run)
    elbo.loss_and_grads(*program.run)

    def broken(branch: str, x: Tensor) -> None:
        program.model(branch, x)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        elbo.loss_and_grads(broken, *program.run[1:])
    assert elbo.num_steps == 1
    pyro.set_rng_seed(3)
    assert Trace_ELBO().loss(*program.run) == before
    assert SilentELBO().loss(*program.run) == silent


def test_a_failed_step_leaves_no_gradient_of_one_part():
    """The silent part fails after the stochastic one has run."""
    program = flat("normal")
    elbo = AnnealedELBO(Failing(), Trace_ELBO(), 0.5)
    with pytest.raises(RuntimeError, match="no more"):
        elbo.loss_and_grads(*program.run)
    assert all(leaf.grad is None for leaf in leaves().values())


class Failing(Trace_ELBO):
    """Raises when it is asked."""

    def differentiable_loss(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no more")


# Unbiased: the mean of the gradients is the blend of the exact ones


def exact(program: Program, family: str, branch: str) -> Tensor:
    """-ELBO on one branch by summation or quadrature, in plain torch."""
    law, x = FAMILIES[family], program.data
    posterior, prior = law.posterior(program.encoder(x)), law.prior(P("prior"))
    if family == "normal":
        noise, weights = gauss_hermite_grid(CODE, 24)
        z = posterior.base_dist.loc + posterior.base_dist.scale * noise[:, None]
        weights = weights[:, None].expand(-1, ROWS)
    else:
        base = getattr(posterior, "base_dist", posterior)
        support = base.enumerate_support()
        if support.dim() > 2:  # vectors of codes: all joint values
            support = torch.stack(
                [torch.stack([a[:, 0], b[:, 1]], 1) for a in support for b in support]
            )
        z = support
        weights = posterior.log_prob(z).exp()
    decoded = program.twins.branches[branch](law.code(z))
    likelihood = dist.Normal(decoded, P("noise").exp()).to_event(1).log_prob(x)
    return (weights * (posterior.log_prob(z) - prior.log_prob(z) - likelihood)).sum()


def many(loss: Any, particles: int = 20, **keywords: Any) -> Callable[[], Any]:
    return lambda: loss(
        num_particles=particles, vectorize_particles=True, max_plate_nesting=1, **keywords
    )


UNBIASED = {
    "trace": ("normal", SilentELBO, many(Trace_ELBO)),
    "mean_field": ("normal", SilentELBO, many(TraceMeanField_ELBO)),
    "control": ("normal", many(Trace_ELBO), many(Trace_ELBO)),
    "score": ("bernoulli", SilentELBO, many(Trace_ELBO, 150)),
    "graph": ("bernoulli", SilentELBO, many(TraceGraph_ELBO, 150)),
    "leave_one_out": ("one_hot", SilentELBO, many(LeaveOneOutELBO)),
    "disarm": ("bernoulli", SilentELBO, many(DisARMELBO)),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_gradient_is_the_blend_of_the_exact_ones(name):
    """Over 40 runs: see ``chance`` for the failure rate, 5e-7 for each of some 250 numbers."""
    family, silent, stochastic = UNBIASED[name]
    program, weight = flat(family), 0.6
    elbo = AnnealedELBO(silent(), stochastic(), weight)
    losses, samples = run_many(elbo, *program.run)
    values = {branch: exact(program, family, branch) for branch in ("analytic", "expressive")}
    apart = [
        {n: g if g.any() else None for n, g in gradients_of(value).items()}
        for value in values.values()
    ]
    truth = combine(weight, *apart)
    assert len(losses) == RUNS
    assert z_scores(losses, values["expressive"].detach()).abs() < Z_LIMIT
    noisy = 0
    for parameter, expected in truth.items():
        sample = samples[parameter]
        quiet = sample.std(0) <= 1e-9
        assert ((sample.mean(0) - expected).abs()[quiet] < 1e-8).all(), parameter
        noisy += int((~quiet).sum())
        scores = z_scores(sample, expected).abs()[~quiet]
        assert scores.numel() == 0 or scores.max() < Z_LIMIT, (parameter, scores)
    assert noisy > 10
    # the z-scores have the power to see that half of the weight was left out
    wrong = combine(0.3, *apart)["encoder$$$weight"]
    assert z_scores(samples["encoder$$$weight"], wrong).abs().max() > Z_LIMIT


def test_without_noise_the_gradient_is_exact():
    """Enumeration in place of samples: at one seed, to rounding."""
    program = flat("categorical", lambda x: {"enumerate": "parallel"})
    parts = SilentELBO(max_plate_nesting=1), TraceEnum_ELBO(max_plate_nesting=1)
    loss, actual = evaluate(AnnealedELBO(*parts, 0.6), *program.run, seed=1)
    values = [exact(program, "categorical", branch) for branch in ("analytic", "expressive")]
    apart = [
        {n: g if g.any() else None for n, g in gradients_of(value).items()} for value in values
    ]
    assert_close(loss, values[1].detach(), 1e-9, "loss")
    for name, expected in combine(0.6, *apart).items():
        assert_close(actual[name], expected, 1e-9, name)
