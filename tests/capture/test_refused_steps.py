"""What cannot be captured is said, and taken as Pyro takes it; or is an error that leaves no trace."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
)
from pyro.optim import Adam
from torch import nn

from pyro_silent import CaptureError, CaptureWarning, CompiledSVI, ConfigurationError, SilentELBO
from tests.capture import programs
from tests.capture.scenes import DATA, ROWS, coefficients, guide, observe, regression
from tests.capture.side_by_side import (
    BEFORE_REPLAYS,
    Training,
    assert_trained_alike,
    captured,
    eager,
    train,
)

STEPS = 9


def branch_on_a_latent() -> None:
    z = coefficients()
    observe(ROWS @ z if z.sum() > 0 else -ROWS @ z)


def branch_on_a_parameter() -> None:
    weight = pyro.param("weight", torch.tensor(0.1))
    observe(ROWS @ coefficients() * (weight if weight > 0.05 else 2 * weight))


def item_of_a_parameter() -> None:
    weight = pyro.param("weight", torch.tensor(0.5))
    observe(ROWS @ coefficients() + weight, noise=0.1 + weight.item())


def array_of_a_parameter() -> None:
    weight = pyro.param("weight", torch.tensor(0.5))
    observe(ROWS @ coefficients() + weight, noise=0.1 + float(weight.detach().numpy()))


def number_of_terms_drawn() -> None:
    z = coefficients()
    for i in range(1 + int(torch.rand(()) * 3)):
        with pyro.plate(f"rows_{i}", 4):
            pyro.sample(f"x_{i}", dist.Normal(ROWS @ z, 1.0), obs=DATA)


def draws_by_python() -> None:
    observe(ROWS @ coefficients() + random.random())


def draws_by_numpy() -> None:
    observe(ROWS @ coefficients() + float(np.random.standard_normal()))


def seeded(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)


class Counting:
    """A model that counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> None:
        self.runs += 1
        observe(ROWS @ coefficients() + 0.01 * self.runs)


def iterating() -> Callable[[], None]:
    values = itertools.count()

    def model() -> None:
        observe(ROWS @ coefficients() + 0.01 * next(values))

    return model


def with_a_generator() -> Callable[[], None]:
    values = (0.01 * i for i in range(1000))

    def model() -> None:
        observe(ROWS @ coefficients() + next(values))

    return model


def baselined() -> None:
    p = pyro.param("p", torch.tensor(0.4))
    infer = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}}
    pyro.sample("b", dist.Bernoulli(p), infer=infer)


def vectorized() -> None:
    observe(coefficients() @ ROWS.mT)


def coin() -> None:
    b = pyro.sample("b", dist.Bernoulli(0.5))
    observe(b * DATA)


grouped, grouping = programs.enumerated()


class Refused(NamedTuple):
    """Programs that are refused, and what the reason says."""

    model: Callable[[], Callable[[], None]]
    reason: str
    guide: Callable[[], None] = guide
    loss: Callable[[], Any] = Trace_ELBO
    counts: bool = False  # the trace is one more run, which the program notices


REFUSED = {
    "branch on a latent": Refused(lambda: branch_on_a_latent, "random numbers"),
    "branch on a parameter": Refused(lambda: branch_on_a_parameter, "'weight'"),
    "item of a parameter": Refused(lambda: item_of_a_parameter, "'weight'", loss=SilentELBO),
    "array of a parameter": Refused(lambda: array_of_a_parameter, "'weight'", loss=SilentELBO),
    "number of terms": Refused(lambda: number_of_terms_drawn, "random numbers", loss=SilentELBO),
    "Python's random numbers": Refused(lambda: draws_by_python, "random", loss=SilentELBO),
    "NumPy's random numbers": Refused(lambda: draws_by_numpy, "random", loss=SilentELBO),
    "an iterator": Refused(iterating, "iterator", loss=SilentELBO, counts=True),
    "a generator": Refused(with_a_generator, "iterator", loss=SilentELBO, counts=True),
    "a baseline": Refused(lambda: coin, "memory", baselined, TraceGraph_ELBO),
    "enumeration by Pyro": Refused(
        lambda: grouped, "random numbers", grouping, lambda: TraceEnum_ELBO(max_plate_nesting=1)
    ),
    "wake-sleep": Refused(
        lambda: vectorized,
        "random numbers",
        loss=lambda: ReweightedWakeSleep(
            num_particles=2, vectorize_particles=True, max_plate_nesting=1
        ),
    ),
    "Pyro's jit": Refused(lambda: regression, "", loss=JitTrace_ELBO),
}
JIT_WARNINGS = "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning"


def training_of(case: Refused) -> Training:
    def make() -> tuple[Any, Any]:
        seeded(0)
        return case.model(), case.guide

    return Training(make, loss=case.loss)


def state_of(svi: SVI) -> tuple:
    """All that a step may change."""
    store = pyro.get_param_store()
    parameters = {name: leaf for name, leaf in store.named_parameters()}
    return (
        {
            name: (id(leaf), leaf.detach().clone(), leaf.requires_grad)
            for name, leaf in parameters.items()
        },
        {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()},
        svi.optim.get_state(),
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def assert_same_state(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same_state(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for pair in zip(found, expected):
            assert_same_state(*pair)
    else:
        assert found == expected


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings(*JIT_WARNINGS)
def test_refused_steps_are_those_of_pyro(name):
    case = REFUSED[name]

    def run_once_more(step: int, svi: SVI) -> None:
        if case.counts and step == BEFORE_REPLAYS - 1:
            svi.evaluate_loss()

    expected = train(eager, training_of(case)._replace(change=run_once_more), STEPS)
    with pytest.warns(CaptureWarning, match=case.reason) as caught:
        found = train(captured, training_of(case), STEPS)
    assert len([w for w in caught if w.category is CaptureWarning]) == 1
    assert_trained_alike(found, expected)
    statistics = found.svi.statistics
    assert (statistics.graphs, statistics.replays, statistics.eager_steps) == (0, 0, STEPS)
    (reason,) = statistics.reasons
    assert case.reason in reason
    assert len(set(map(str, found.losses))) > 1


@pytest.mark.parametrize("name", ["branch on a parameter", "item of a parameter", "a baseline"])
def test_raising_leaves_everything_as_it_was(name):
    case = REFUSED[name]
    make = partial(CompiledSVI, backend="eager", uncapturable="raise")
    svi = make(case.model(), case.guide, Adam({"lr": 0.01}), case.loss())
    for _ in range(BEFORE_REPLAYS - 1):
        svi.step()
    before = state_of(svi)
    with pytest.raises(CaptureError, match=case.reason):
        svi.step()
    assert_same_state(state_of(svi), before)


def test_hooks_on_parameters():
    """Pyro's step calls them, a graph would not."""

    def hooks(step: int, svi: SVI) -> None:
        if step == 5:
            leaf = pyro.param("loc").unconstrained()
            leaf.register_hook(lambda gradient: 3 * gradient)

    training = Training(lambda: (regression, guide), change=hooks)
    expected = train(eager, training, STEPS)
    with pytest.warns(CaptureWarning, match="hook"):
        found = train(captured, training, STEPS)
    assert_trained_alike(found, expected)
    assert found.svi.statistics.replays == 5 - BEFORE_REPLAYS


def test_inside_of_a_handler():
    """Handlers around a step are not met by a graph."""
    svi = captured(regression, guide, Adam({"lr": 0.01}), SilentELBO())
    for _ in range(BEFORE_REPLAYS + 1):
        svi.step()
    assert svi.statistics.replays == 1
    with pyro.poutine.scale(scale=2.0), pytest.warns(CaptureWarning, match="handlers"):
        scaled = svi.step()
    assert svi.statistics.replays == 1
    assert scaled > 1.5 * svi.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "nvfuser"}, "backend: got 'nvfuser'"),
        ({"uncapturable": "ignore"}, "uncapturable: got 'ignore'"),
        ({"max_graphs": 0}, "max_graphs: got 0"),
        ({"max_graphs": 1.5}, "max_graphs: got 1.5"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        CompiledSVI(regression, guide, Adam({"lr": 0.01}), SilentELBO(), **settings)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6])
def test_interrupted_step(step):
    """A step that the user interrupts in the model loses itself alone."""
    armed = [False]

    def model() -> None:
        z = coefficients()
        if armed[0]:
            raise KeyboardInterrupt
        observe(ROWS @ z)

    training = Training(lambda: (model, guide))
    expected = train(eager, training, STEPS)
    svis: list[CompiledSVI] = []

    def interrupt(number: int, svi: CompiledSVI) -> None:
        svis.append(svi)
        if number == step:
            armed[0] = True
            with pytest.raises(KeyboardInterrupt):
                svi.step()
            armed[0] = False

    found = train(captured, training._replace(change=interrupt), STEPS)
    assert_trained_alike(found, expected)
    assert found.svi.statistics.replays >= 1


def test_no_compiler(monkeypatch):
    def broken(*args: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("pyro_silent.capture.backend._compiled", broken)
    training = Training(lambda: (regression, guide))
    expected = train(eager, training, STEPS)
    with pytest.warns(CaptureWarning, match="no C\\+\\+ compiler"):
        found = train(CompiledSVI, training, STEPS)
    assert_trained_alike(found, expected)
    assert found.svi.statistics.replays == STEPS - BEFORE_REPLAYS


def test_number_of_graphs_is_limited():
    training = Training(lambda: (regression, guide), lambda step: (DATA[: 1 + step // 5],))

    def observe_some(data: torch.Tensor) -> None:
        observe((ROWS @ coefficients())[: len(data)], data)

    training = training._replace(programs=lambda: (observe_some, guide))
    expected = train(eager, training, 20)
    with pytest.warns(CaptureWarning, match="max_graphs"):
        found = train(partial(captured, max_graphs=2), training, 20)
    assert_trained_alike(found, expected)
    assert found.svi.statistics.graphs == 2
    assert found.svi.statistics.replays == 2 * (5 - BEFORE_REPLAYS)


def test_argument_that_requires_a_gradient():
    data = DATA.clone().requires_grad_()
    svi = captured(regression, guide, Adam({"lr": 0.01}), SilentELBO())
    for step in range(3):
        with (
            pytest.warns(CaptureWarning, match="requires a gradient") if not step else nullcontext()
        ):
            svi.step(data)
    assert svi.statistics.replays == 0
    assert data.grad is not None


def test_counter():
    """Seen before any trace, which would be a run too many."""
    training = Training(lambda: (Counting(), guide))
    expected = train(eager, training, 14)
    with pytest.warns(CaptureWarning, match="runs changes from step to step"):
        found = train(captured, training, 14)
    assert_trained_alike(found, expected)
    assert found.svi.statistics.graphs == 0


def test_error_in_a_model_is_the_models():
    """Nothing is held against a program that is repaired."""
    networks = [nn.Linear(2, 1)]

    def model() -> None:
        observe(networks[0](ROWS).squeeze(-1) + ROWS @ coefficients())

    svi = captured(model, guide, Adam({"lr": 0.01}), SilentELBO())
    for _ in range(4):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            svi.step()
    networks[0] = nn.Linear(3, 1).requires_grad_(False)
    for _ in range(6):
        svi.step()
    assert svi.statistics.replays >= 2
