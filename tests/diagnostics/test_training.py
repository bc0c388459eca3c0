"""train_and_compare: equal conditions, a known optimum, failures that stay in their row."""

from __future__ import annotations

import math
import random
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from pyro_silent import ConfigurationError, SilentELBO, train_and_compare
from pyro_silent.diagnostics import training_run
from pyro_silent.diagnostics.random_stream import RandomStream
from pyro_silent.diagnostics.trained_tensors import TrainedTensors
from tests.devices import seeded
from tests.diagnostics.training_programs import (
    TwinVAE,
    Watcher,
    X,
    adam,
    guide,
    log_evidence,
    model,
    shuffled,
    train,
    untimed,
)


def test_the_silent_loss_reaches_the_known_optimum():
    """The guide can be the posterior, where the -ELBO is -log evidence."""
    comparison = train({"silent": SilentELBO()}, num_steps=150, evaluate_every=75)
    first, *_, last = comparison.curves
    assert "exact" in comparison.yardstick and "held_out" in comparison.yardstick
    assert first["yardstick"] > last["yardstick"] + 0.1
    assert abs(last["yardstick"] + log_evidence(X)) < 2e-3
    assert last["step"] == 150 and last["seconds"] > 0


# Equal conditions


def starts_and_batches(**options) -> tuple[list, list]:
    """Of two losses that draw different amounts of random numbers."""
    watcher = Watcher()
    losses = {"one": watcher.loss("one"), "many": watcher.loss("many", particles=5)}
    train(losses, shuffled(), num_steps=12, **options)
    return list(watcher.starts.values()), list(watcher.batches.values())


def same_starts(starts: list) -> bool:
    first, *others = [start for of_loss in starts for start in of_loss]
    return all(
        first.keys() == other.keys() and all(torch.equal(first[k], other[k]) for k in first)
        for other in others
    )


def test_all_losses_begin_alike_and_see_the_same_order():
    starts, batches = starts_and_batches()
    assert starts[0][0].keys() == {"loc", "scale"}
    assert same_starts(starts)
    assert len(batches[0]) == 12 and batches[0] == batches[1]
    passes = [batches[0][begin : begin + 4] for begin in (0, 4, 8)]
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert passes[0] != passes[1] or passes[1] != passes[2], "the loader does shuffle"


def test_an_order_drawn_from_the_global_random_state_is_caught(monkeypatch):
    monkeypatch.setattr(RandomStream, "running", lambda self: nullcontext())
    _, batches = starts_and_batches()
    assert batches[0] != batches[1]


def test_parameters_that_are_not_reset_are_caught(monkeypatch):
    loc = torch.zeros((), dtype=torch.float64)

    def shared_guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", loc), 0.5))

    def starts() -> list:
        watcher = Watcher()
        losses = {"one": watcher.loss("one"), "other": watcher.loss("other")}
        options = {"num_steps": 3, "progress": False}
        train_and_compare(model, shared_guide, losses, adam(), [X], **options)
        return list(watcher.starts.values())

    assert same_starts(starts())
    assert loc == 0 and not loc.requires_grad and loc.grad is None
    monkeypatch.setattr(TrainedTensors, "_restore_values", lambda self: None)
    monkeypatch.setattr(training_run, "write", lambda *args: None)
    assert not same_starts(starts())


def test_a_seed_stands_for_initial_values_order_and_noise():
    watcher = Watcher()
    losses = {"one": watcher.loss("one")}
    comparison = train(losses, shuffled(), num_steps=4, seeds=(0, 1, 7))
    starts = {point["seed"]: point["yardstick"] for point in comparison.curves[::3]}
    assert len(set(starts.values())) == 3
    assert untimed(comparison) == untimed(train(losses, shuffled(), num_steps=4, seeds=(0, 1, 7)))


def test_two_losses_of_one_kind_have_the_same_curve():
    comparison = train({"a": Trace_ELBO(), "b": Trace_ELBO()}, shuffled(), seeds=(3, 4))
    curves = untimed(comparison)
    a, b = ([{**p, "name": ""} for p in curves if p["name"] == name] for name in "ab")
    assert len(a) == 6 and a == b
    assert '"b" level with "a"' not in comparison.advice and "not told apart" in comparison.advice


def test_evaluations_do_not_disturb_the_training():
    rare, often = (
        train({"trace": Trace_ELBO()}, shuffled(), evaluate_every=every, yardstick=Trace_ELBO())
        for every in (6, 1)
    )
    assert [point["step"] for point in often.curves] == list(range(7))
    assert untimed(rare)[-1]["yardstick"] == untimed(often)[-1]["yardstick"]
    again = [point["yardstick"] for point in often.curves]
    assert len(set(again)) == 7


def test_a_loader_with_a_generator_of_its_own():
    generator = seeded(1)
    state = generator.get_state()
    loader = torch.utils.data.DataLoader(X, batch_size=1, shuffle=True, generator=generator)
    watcher = Watcher()
    losses = {"one": watcher.loss("one"), "many": watcher.loss("many", particles=3)}
    train(losses, loader, num_steps=9, held_out=None, evaluate_every=3)
    assert watcher.batches["one"] == watcher.batches["many"]
    assert torch.equal(generator.get_state(), state)


class Drifting:
    """Data that know how often they were asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __len__(self) -> int:
        return 1

    def __iter__(self):
        self.count += 1
        return iter([X + self.count])


def test_data_that_differ_between_losses_are_refused():
    with pytest.raises(ConfigurationError, match="data: got another first batch for 'b'"):
        train({"a": Trace_ELBO(), "b": Trace_ELBO()}, Drifting())


def test_initialize_gives_all_losses_of_a_seed_the_same_values():
    """Also if it draws from a generator that nobody resets."""
    net, own = nn.Linear(1, 1), np.random.default_rng(0)

    def net_guide(x):
        pyro.module("net", net)
        pyro.sample("z", dist.Normal(net(torch.ones(1)).squeeze().double(), 0.5))

    def initialize():
        net.weight.data.fill_(own.normal())
        net.bias.data.fill_(random.random())

    before = net.weight.clone(), net.bias.clone()
    watcher = Watcher()
    losses = {name: watcher.loss(name) for name in "ab"}
    train_and_compare(
        model, net_guide, losses, adam(), [X], num_steps=2, initialize=initialize, progress=False
    )
    starts = list(watcher.starts.values())
    assert same_starts(starts)
    assert not torch.equal(starts[0][0]["net$$$weight"], before[0])
    assert torch.equal(net.weight, before[0]) and torch.equal(net.bias, before[1])


# Kinds of programs


class LocalModel(PyroModule):
    """Parameters of every kind that a PyroModule has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.loc = nn.Parameter(torch.zeros(2))
        self.scale = PyroParam(torch.tensor(1.5), constraint=constraints.positive)

    def forward(self, x):
        z = pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))
        mean = self.linear(torch.ones(1)) + z
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("is_local", [False, True])
@pytest.mark.parametrize("family", [AutoNormal, AutoNormalMessenger])
def test_modules_with_guides_that_are_not_set_up(family, is_local):
    with pyro.settings.context(module_local_params=is_local):
        program = LocalModel()
        autoguide = family(program, init_loc_fn=init_to_sample)
        before = {name: value.clone() for name, value in program.state_dict().items()}
        comparison = train_and_compare(
            program,
            autoguide,
            {"silent": SilentELBO(), "trace": Trace_ELBO()},
            adam(0.2),
            [torch.tensor([2.0, 3.0])],
            num_steps=6,
            evaluate_every=6,
            progress=False,
        )
        after = program.state_dict()
    starts = [point["yardstick"] for point in comparison.curves if point["step"] == 0]
    assert starts[0] == starts[1]
    assert all(row["error"] is None for row in comparison.rows)
    assert comparison.rows[0]["final_mean"] < starts[0] - 0.5
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not list(getattr(autoguide, "parameters", list)())
    assert len(pyro.get_param_store()) == 0


def test_batches_may_be_tuples_dicts_or_single_arguments():
    seen = []

    def loss(model, guide, *args, **kwargs):
        seen.append((args, kwargs))
        return torch.zeros((), requires_grad=True)

    def program(*args, **kwargs):
        return None

    y = X + 1
    batches = [(X, y), [X], {"x": y}, X]
    train_and_compare(
        program,
        program,
        {"loss": loss},
        adam(),
        batches,
        num_steps=4,
        yardstick=lambda *args, **kwargs: 0.0,
        progress=False,
    )
    assert seen == [((X, y), {}), ((X,), {}), ((), {"x": y}), ((X,), {})]


def test_a_scheduler_is_stepped_after_each_pass():
    rates = []

    def program(x):
        pyro.param("loc", lambda: torch.zeros(()))

    def loss(model, guide, x):
        model(x)
        rates.append(pyro.param("loc").item())
        return pyro.param("loc").sum()

    optim = pyro.optim.StepLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1.0}, "step_size": 1, "gamma": 0.5}
    )
    options = {"num_steps": 6, "yardstick": lambda *args: 0.0, "progress": False}
    train_and_compare(program, program, {"loss": loss}, optim, [X, X], **options)
    assert rates == [0.0, -1.0, -2.0, -2.5, -3.0, -3.25]


# The yardstick


def sampled_guide(x):
    """The posterior, sampled; its importance weights are all the evidence."""
    size = len(X) + 1
    law = dist.Normal(X.sum() / size, torch.tensor(size**-0.5, dtype=torch.float64))
    pyro.param("unused", torch.zeros(()))
    pyro.sample("z", law, infer={"silent": False})


def test_the_importance_sampled_bound_of_the_posterior_is_the_evidence():
    options = {"num_steps": 1, "progress": False}
    comparison = train_and_compare(
        model, sampled_guide, {"t": Trace_ELBO()}, adam(), [X], **options
    )
    assert "importance-sampled" in comparison.yardstick and "training data" in comparison.yardstick
    assert comparison.curves[-1]["yardstick"] == pytest.approx(-log_evidence(X), abs=1e-10)


def test_the_bound_lies_between_elbo_and_evidence():
    def wide_guide(x):
        loc = pyro.param("loc", lambda: torch.tensor(0.8, dtype=torch.float64))
        pyro.sample("z", dist.Normal(loc, 1.0), infer={"silent": False})

    def start(yardstick):
        comparison = train_and_compare(
            model,
            wide_guide,
            {"t": Trace_ELBO()},
            adam(),
            [X],
            num_steps=1,
            yardstick=yardstick,
            progress=False,
        )
        return comparison.curves[0]["yardstick"]

    bound, elbo = start(None), start(Trace_ELBO(num_particles=100))
    assert -log_evidence(X) - 0.1 < bound < elbo - 0.5
    assert start(lambda model, guide, x: 3.5) == 3.5


def test_a_model_with_latents_of_its_own_asks_for_a_yardstick():
    def mixture(x):
        k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(k + pyro.param("loc", torch.zeros(())), 1.0), obs=x)

    def empty(x):
        pass

    data = [torch.tensor(0.3)]
    loss = {"enumerated": TraceEnum_ELBO(max_plate_nesting=0)}
    with pytest.raises(
        ConfigurationError, match="yardstick: got None, and the guide has no .* 'k'"
    ):
        train_and_compare(mixture, empty, loss, adam(), data)
    comparison = train_and_compare(
        mixture,
        empty,
        loss,
        adam(),
        data,
        num_steps=2,
        yardstick=loss["enumerated"],
        progress=False,
    )
    expected = [dist.Normal(k, 1.0).log_prob(data[0]).exp() / 2 for k in (0.0, 1.0)]
    assert comparison.curves[0]["yardstick"] == pytest.approx(-math.log(sum(expected)), rel=1e-6)


def test_an_enumerated_guide_is_sampled_for_the_bound():
    def program(x):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(k + z, 1.0), obs=x)

    def proposal(x):
        probs = pyro.param("probs", torch.tensor(0.4), constraint=constraints.unit_interval)
        pyro.sample("k", dist.Bernoulli(probs), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal(0.2, 0.7), infer={"silent": False})

    comparison = train_and_compare(
        program,
        proposal,
        {"enumerated": TraceEnum_ELBO(max_plate_nesting=0)},
        adam(),
        [torch.tensor(0.3)],
        num_steps=1,
        progress=False,
    )
    assert comparison.rows[0]["error"] is None
    evidence = sum(dist.Normal(k, 2**0.5).log_prob(torch.tensor(0.3)).exp() / 2 for k in (0.0, 1.0))
    assert comparison.curves[0]["yardstick"] == pytest.approx(-math.log(evidence), abs=0.15)


def test_the_yardstick_sees_modules_in_evaluation_mode():
    vae, flags = TwinVAE(), []

    def yardstick(model, guide, x):
        flags.append([part.training for part in vae.modules()])
        torch.rand(3)
        return Trace_ELBO().loss(model, guide, x)

    def loss(model, guide, x):
        assert vae.training and torch.is_grad_enabled()
        return Trace_ELBO().differentiable_loss(model, guide, x)

    comparison = train_and_compare(
        vae.model,
        vae.guide,
        {"trace": loss},
        adam(),
        [torch.randn(4, 3)],
        num_steps=2,
        yardstick=yardstick,
        progress=False,
    )
    assert comparison.rows[0]["error"] is None
    assert flags and not any(flag for found in flags for flag in found)
    assert all(part.training for part in vae.modules())
    assert int(vae.decoder.expressive[1].num_batches_tracked) == 0


# Failures and early ends


def test_failures_stay_in_their_row():
    def raising(model, guide, x):
        if len(steps) == 4:
            raise RuntimeError("no more\nof this")
        steps.append(1)
        return Trace_ELBO().differentiable_loss(model, guide, x)

    steps: list[int] = []
    losses = {
        "raising": raising,
        "nan": lambda model, guide, x: torch.tensor(math.nan),
        "infinite": lambda model, guide, x: math.inf,
        "good": Trace_ELBO(),
    }
    comparison = train(losses, seeds=(5,))
    rows = {row["name"]: row for row in comparison.rows}
    assert rows["raising"]["error"] == "seed 5: step 5: RuntimeError: no more"
    assert rows["nan"]["error"] == "seed 5: step 1: the loss is nan"
    assert rows["infinite"]["error"] == "seed 5: step 1: the loss is inf"
    assert rows["good"]["error"] is None and rows["good"]["num_seeds"] == 1
    assert rows["nan"]["num_seeds"] == 0 and rows["nan"]["final_mean"] is None
    assert [p["step"] for p in comparison.curves if p["name"] == "raising"] == [0, 3]
    assert "of this" not in str(comparison) and 'Only "good" was trained' in comparison.advice


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (lambda: math.nan, "step 3: the yardstick is nan"),
        (lambda: 1 / 0, "step 3: the yardstick fails: ZeroDivisionError: division by zero"),
    ],
)
def test_a_yardstick_that_fails_ends_the_run(value, error):
    calls = []

    def yardstick(model, guide, x):
        calls.append(1)
        return 1.0 if len(calls) < 3 else value()

    (run,) = train({"trace": Trace_ELBO()}, yardstick=yardstick).runs
    assert run["error"] == error and run["steps"] == 3


def test_patience_ends_a_run_that_gets_no_better():
    values = iter([9.0, 5.0, 4.0, 3.0, 6.0, 3.0, 8.0, 1.0])
    comparison = train(
        {"trace": Trace_ELBO()},
        yardstick=lambda model, guide, x: next(values),
        num_steps=10,
        evaluate_every=1,
        patience=3,
    )
    (run,) = comparison.runs
    assert run["stopped"] == "step 5: no new best in 3 evaluations since step 2"
    assert (run["steps"], run["final"], run["best"], run["best_step"]) == (5, 8.0, 3.0, 2)
    assert comparison.rows[0]["stopped"] == f"seed 0: {run['stopped']}"
    assert comparison.rows[0]["steps_mean"] == 5 and "stopped early" in str(comparison)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": 3}, "model: got 3, expected a callable"),
        ({"elbos": {}}, "elbos: got an empty dict"),
        ({"optim": torch.optim.Adam([torch.zeros(1)], lr=0.1)}, r"pyro.optim.Adam\({'lr': 0.1}\)"),
        ({"optim": torch.optim.SGD}, r"write pyro.optim.SGD\({'lr': 0.01}\)"),
        ({"optim": "adam"}, "optim: got 'adam', expected one of pyro.optim"),
        ({"data": iter([X])}, "data: got the iterator list_iterator, which ends for good"),
        ({"data": X}, r"data: got a tensor, .* write a DataLoader .* \[x\]"),
        ({"data": (X, X)}, r"data: got a tuple of tensors, .* \[\(x, y\)\]"),
        ({"data": {"x": X}}, "data: got a dict"),
        ({"data": []}, "data: got no batches"),
        ({"data": 5}, "data: got 5"),
        ({"held_out": iter([X])}, "held_out: got the iterator"),
        ({"num_steps": 0}, "num_steps: got 0, expected a positive integer"),
        ({"seeds": 3}, r"seeds: got 3, .* write for example seeds=\(0, 1, 2\)"),
        ({"seeds": (1, 1)}, r"seeds: got \[1, 1\]"),
        ({"seeds": (-1,)}, r"seeds: got \[-1\]"),
        ({"patience": 1.5}, "patience: got 1.5"),
        ({"evaluate_every": 0}, "evaluate_every: got 0"),
        ({"initialize": 1}, "initialize: got 1"),
        ({"yardstick": 1}, "yardstick: got 1"),
        (
            {"yardstick": lambda *args: "low"},
            "yardstick: got 'low' from <lambda>, expected a number",
        ),
        ({"yardstick": RenyiELBO}, r"yardstick: got the class RenyiELBO.* write RenyiELBO\(\)"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(changes, text):
    arguments = {
        "model": model,
        "guide": guide,
        "elbos": {"trace": Trace_ELBO()},
        "optim": adam(),
        "data": [X],
        "num_steps": 2,
    }
    with pytest.raises(ConfigurationError, match=text):
        train_and_compare(**{**arguments, **changes})


def test_endless_data_need_held_out_data():
    class Endless:
        def __iter__(self):
            while True:
                yield X

    with pytest.raises(ConfigurationError, match="held_out: got None, and data, of type Endless"):
        train_and_compare(model, guide, {"trace": Trace_ELBO()}, adam(), Endless())
    (run,) = train({"trace": Trace_ELBO()}, Endless()).runs
    assert run["steps"] == 6 and run["error"] is None


def test_an_optimizer_that_was_used_is_refused():
    optim = adam()
    pyro.infer.SVI(model, guide, optim, TraceMeanField_ELBO()).step(X)
    with pytest.raises(ConfigurationError, match="optim: got one that holds the state of 2 param"):
        train_and_compare(model, guide, {"trace": Trace_ELBO()}, optim, [X])
