"""``compare`` leaves nothing changed, whatever happens inside."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    SVI,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    autoguide,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

from pyro_silent import (
    ZGR,
    AnnealedELBO,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    Linear,
    SilentELBO,
    StraightThroughELBO,
    TwinDecoder,
    compare,
)
from tests.diagnostics.comparison_programs import Bit, measure, no_clock

Programs = tuple[Callable, Callable, tuple]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    no_clock(monkeypatch)


class Network(nn.Module):
    """Batch norm and dropout: buffers and random numbers in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)
        )
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x)


def network() -> Programs:
    """An encoder that a guide registers, a decoder that only a closure holds."""
    encoder, decoder = Network(), nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    decoder[0].weight.grad = torch.full_like(decoder[0].weight, 7.0)
    encoder.layers[0].eval()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    model.modules, guide.modules = [decoder], [encoder]
    return model, guide, (torch.randn(5, 3),)


def stored() -> Programs:
    """Parameters with constraints; one has a gradient, one is met for the first time in the loss."""

    def model() -> None:
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(z, 0.5), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.4))

    poutine.trace(guide).get_trace()
    poutine.trace(model).get_trace()
    store = pyro.get_param_store()
    dict(store.named_parameters())["loc"].grad = torch.tensor(5.0)
    return model, guide, ()


def fresh() -> Programs:
    """Nothing has run yet, and the model draws from every generator."""

    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.zeros(2))
        noise = torch.rand(()) + np.random.rand() + random.random()
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * w.sum() + noise * x.sum(), 0.5), obs=torch.tensor(1.0))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.4))

    x = torch.ones(3, requires_grad=True)
    x.grad = torch.full((3,), 2.0)
    return model, guide, (x,)


class Weather(PyroModule):
    """A model in a PyroModule, with a parameter, a constrained one and a prior."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))
        self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)
        self.z = PyroSample(lambda self: dist.Normal(self.loc, 1.0).to_event(1))

    def forward(self) -> Tensor:
        return pyro.sample("x", dist.Normal(self.z, self.scale).to_event(1), obs=torch.ones(2))


def module_and_autoguide() -> Programs:
    model = Weather()
    model.loc.grad = torch.ones(2)
    return model, autoguide.AutoNormal(model), ()


def messenger() -> Programs:
    model = Weather()
    return model, autoguide.AutoNormalMessenger(model), ()


def trained_autoguide() -> Programs:
    model, guide, args = module_and_autoguide()
    SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step()
    return model, guide, args


def twins() -> Programs:
    decoder = TwinDecoder(
        nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    )

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(5, 2)), 0.5).to_event(1))

    model.modules = [decoder]
    return model, guide, (torch.randn(5, 3),)


PROGRAMS = {
    program.__name__: program
    for program in (
        network,
        stored,
        fresh,
        module_and_autoguide,
        messenger,
        trained_autoguide,
        twins,
    )
}


def snapshot(model: Any, guide: Any, args: tuple) -> dict[str, Any]:
    """Everything that must be as it was; tensors by identity and by value.

    Modules are the programs themselves, or those that a program has as ``modules``.
    """
    store = pyro.get_param_store()
    tensors: dict[str, Tensor] = {f"arg {i}": x for i, x in enumerate(args)}
    state = store.get_state()
    tensors |= {f"param {name}": value for name, value in state["params"].items()}
    attributes: dict[str, Any] = {}
    programs = [model, guide]
    for program in programs:
        held = getattr(program, "modules", [])
        for module in [program] if isinstance(program, nn.Module) else held:
            for path, part in module.named_modules():
                key = f"{type(module).__name__}.{path}"
                tensors |= {f"{key} {n}": t for n, t in part._parameters.items() if t is not None}
                tensors |= {f"{key} {n}": t for n, t in part._buffers.items() if t is not None}
                attributes[key] = {
                    "training": part.training,
                    "names": [sorted(vars(part)), list(part._parameters), list(part._buffers)],
                    "calls": getattr(part, "calls", None),
                    "hooks": [len(part._forward_hooks), len(part._forward_pre_hooks)],
                }
    for program in programs:
        if not isinstance(program, nn.Module):
            attributes[f"{program}"] = sorted(getattr(program, "__dict__", {}))
    return {
        "order": list(state["params"]),
        "constraints": {name: str(c) for name, c in state["constraints"].items()},
        "tensors": tensors,
        "values": {name: value.detach().clone() for name, value in tensors.items()},
        "requires_grad": {name: value.requires_grad for name, value in tensors.items()},
        "grads": {name: value.grad if value.is_leaf else None for name, value in tensors.items()},
        "grad values": {
            name: value.grad.clone()
            for name, value in tensors.items()
            if value.is_leaf and value.grad is not None
        },
        "attributes": attributes,
        "settings": pyro.settings.get(),
        "stack": list(pyro.poutine.runtime._PYRO_STACK),
        "grad mode": torch.is_grad_enabled(),
        "random": (torch.get_rng_state(), np.random.get_state()[1:3], random.getstate()),
        "hooks": len(torch.nn.modules.module._global_forward_pre_hooks),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in ("order", "constraints", "requires_grad", "attributes", "settings", "stack"):
        assert after[key] == before[key], key
    assert (after["grad mode"], after["hooks"]) == (before["grad mode"], before["hooks"])
    assert after["tensors"].keys() == before["tensors"].keys()
    for name, tensor in before["tensors"].items():
        assert after["tensors"][name] is tensor, f"{name} is another object"
        assert torch.equal(after["values"][name], before["values"][name]), f"{name} has changed"
        assert after["grads"][name] is before["grads"][name], f"the .grad of {name}"
    for name, gradient in before["grad values"].items():
        assert torch.equal(after["grad values"][name], gradient), f"the .grad of {name} has changed"
    of_torch, of_numpy, of_python = before["random"]
    assert torch.equal(after["random"][0], of_torch), "torch's random state"
    assert (
        np.array_equal(after["random"][1][0], of_numpy[0]) and after["random"][1][1] == of_numpy[1]
    )
    assert after["random"][2] == of_python


def change_grad(model: Any, guide: Any) -> None:
    next(iter(dict(pyro.get_param_store().named_parameters()).values())).grad = None


def change_buffer(model: Any, guide: Any) -> None:
    model.modules[0][1].running_mean.add_(1e-6)


DISTURBANCES = {
    "a gradient": change_grad,
    "a buffer": change_buffer,
    "a batch that was counted": lambda model, guide: model.modules[0](torch.randn(4, 2)),
    "a train flag": lambda model, guide: guide.modules[0].layers[0].train(),
    "an attribute": lambda model, guide: setattr(guide.modules[0], "seen", True),
    "a counter": lambda model, guide: guide.modules[0](torch.randn(4, 3)),
    "a parameter": lambda model, guide: pyro.param("new", torch.ones(1)),
    "a value": lambda model, guide: model.modules[0][0].weight.data.mul_(1 + 1e-6),
    "an object": lambda model, guide: setattr(
        model.modules[0][0], "weight", nn.Parameter(model.modules[0][0].weight.detach().clone())
    ),
    "torch's random state": lambda model, guide: torch.rand(1),
    "numpy's random state": lambda model, guide: np.random.rand(),
    "Python's random state": lambda model, guide: random.random(),
    "a hook": lambda model, guide: model.modules[0].register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("disturbance", DISTURBANCES.values(), ids=DISTURBANCES)
def test_a_change_would_be_seen(disturbance):
    stored()
    model, guide, args = network()
    before = snapshot(model, guide, args)
    assert_same(before, snapshot(model, guide, args))
    disturbance(model, guide)
    with pytest.raises(AssertionError):
        assert_same(before, snapshot(model, guide, args))


def losses() -> dict[str, Any]:
    return {
        "trace": Trace_ELBO(),
        "many": Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        "mean field": TraceMeanField_ELBO(),
        "graph": TraceGraph_ELBO(),
        "wake": ReweightedWakeSleep(num_particles=2),
        "annealed": AnnealedELBO(SilentELBO(intractable="sample"), Trace_ELBO(), Linear(1, 0, 10)),
        "gumbel": GumbelRaoELBO(temperature=Linear(1.0, 0.5, 10)),
        "several": LeaveOneOutELBO(num_particles=3),
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_is_left_changed(name):
    model, guide, args = PROGRAMS[name]()
    elbos = losses()
    options = {name: copy.deepcopy(vars(elbo)) for name, elbo in elbos.items()}
    before = snapshot(model, guide, args)
    comparison = measure(model, guide, elbos, *args, num_samples=3)
    assert_same(before, snapshot(model, guide, args))
    for key, elbo in elbos.items():
        assert repr(vars(elbo)).split(" at 0x")[0] == repr(options[key]).split(" at 0x")[0], key
    running = [row["name"] for row in comparison.rows if row["error"] is None]
    assert "trace" in running and len(running) > 4, [row["error"] for row in comparison.rows]


def raising(exception: BaseException, after: int) -> Callable:
    """A loss that gives up in one of its calls, when gradients are there and half a step is done."""
    calls = []

    def loss(model, guide, *args):
        calls.append(1)
        value = Trace_ELBO().differentiable_loss(model, guide, *args)
        value.backward()
        if len(calls) > after:
            pyro.param("left behind", torch.ones(2))
            torch.manual_seed(1)
            raise exception
        return value.detach()

    return loss


@pytest.mark.parametrize("after", [0, 3, 8], ids=["first step", "a sample", "the clock"])
@pytest.mark.parametrize("name", ["network", "stored", "module_and_autoguide"])
def test_an_exception_in_one_loss_is_a_row(name, after):
    model, guide, args = PROGRAMS[name]()
    before = snapshot(model, guide, args)
    elbos = {"before": Trace_ELBO(), "bad": raising(ValueError("two\nlines"), after)}
    comparison = measure(model, guide, {**elbos, "after": Trace_ELBO()}, *args, num_samples=4)
    assert_same(before, snapshot(model, guide, args))
    first, bad, last = comparison.rows
    assert bad["error"] == "ValueError: two"
    assert first["error"] is None and last["error"] is None
    assert first["grad_std"] == last["grad_std"] > 0
    assert np.isnan(bad["grad_std"]) and bad["peak_bytes"] is None and not bad["biased"]
    assert not [group for group in comparison.groups if group["name"] == "bad"]
    assert "bad failed: ValueError: two" in str(comparison)


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("name", ["network", "stored", "fresh", "module_and_autoguide"])
def test_an_interrupt_goes_through_and_leaves_nothing(name, after):
    model, guide, args = PROGRAMS[name]()
    before = snapshot(model, guide, args)
    with pytest.raises(KeyboardInterrupt):
        measure(
            model, guide, {"a": raising(KeyboardInterrupt(), after)}, *args, reference=Trace_ELBO()
        )
    assert_same(before, snapshot(model, guide, args))


def test_an_interrupt_inside_a_model():
    model, guide, args = stored()
    calls = []

    def interrupted() -> None:
        calls.append(1)
        model()
        if len(calls) == 7:
            raise KeyboardInterrupt

    before = snapshot(model, guide, args)
    with pytest.raises(KeyboardInterrupt):
        measure(interrupted, guide, {"a": Trace_ELBO()})
    assert_same(before, snapshot(model, guide, args))


def test_a_program_that_fails_outside_of_any_loss():
    model, guide, args = stored()

    def broken() -> None:
        guide()
        raise LookupError("no data")

    before = snapshot(model, guide, args)
    with pytest.raises(LookupError, match="no data"):
        measure(model, broken, {"a": Trace_ELBO()})
    assert_same(before, snapshot(model, guide, args))


@pytest.mark.parametrize("after", [0, 4])
def test_a_reference_that_fails(after):
    model, guide, args = stored()
    before = snapshot(model, guide, args)
    bad = raising(ValueError("no reference today"), after)
    comparison = measure(model, guide, {"a": Trace_ELBO()}, num_samples=5, reference=bad)
    assert_same(before, snapshot(model, guide, args))
    (row,) = comparison.rows
    assert row["error"] is None and row["grad_std"] > 0
    assert np.isnan(row["grad_bias"]) and np.isnan(row["grad_rmse"]) and not row["biased"]
    assert comparison.reference == {}
    assert "no reference today" in str(comparison)


def test_every_sample_begins_with_the_same_buffers():
    """A buffer that grows with each call would otherwise be noise, and a trend."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self) -> Tensor:
            self.calls += 1
            return self.weight * self.calls

    counting = Counting()

    def model() -> None:
        pyro.module("counting", counting)
        pyro.sample("x", dist.Normal(counting(), 1.0), obs=torch.tensor(3.0))

    def guide() -> None:
        pass

    comparison = measure(model, guide, {"first": Trace_ELBO(), "second": Trace_ELBO()})
    for row in comparison.rows:
        assert row["exact"] and row["grad_std"] == 0 and not row["biased"]
        assert row["grad_norm"] == 2.0, "of the first call: (1 - 3) * 1"
    assert counting.calls == 0


def test_running_means_of_baselines_begin_anew():
    """What a loss writes into the param store is neither kept nor seen by the next one."""
    bit = Bit()

    def guide() -> None:
        theta = pyro.param("theta", torch.tensor(0.3).double())
        baseline = {"use_decaying_avg_baseline": True, "baseline_beta": 0.5}
        pyro.sample("z", dist.Bernoulli(logits=theta), infer={"baseline": baseline})

    elbos = {name: TraceGraph_ELBO() for name in "ab"}
    (alone,) = measure(bit.model, guide, {"a": elbos["a"]}, num_samples=20).rows
    first, second = measure(bit.model, guide, elbos, num_samples=20).rows
    assert len(pyro.get_param_store()) == 0
    assert first["grad_std"] == alone["grad_std"] > 0
    # each has warmed up with random numbers of its own
    assert second["grad_std"] == pytest.approx(first["grad_std"], rel=0.2)


@pytest.mark.parametrize("local", [False, True], ids=["store", "module-local"])
def test_module_local_parameters(local):
    with pyro.settings.context(module_local_params=local):
        model = Weather()
        guide = autoguide.AutoNormal(model)
        before = snapshot(model, guide, ())
        comparison = measure(model, guide, {"trace": Trace_ELBO(), "silent": SilentELBO()})
        assert_same(before, snapshot(model, guide, ()))
        assert pyro.settings.get()["module_local_params"] == local
    trace, silent = comparison.rows
    assert (trace["error"], silent["error"]) == (None, None)
    assert silent["grad_std"] == 0 < trace["grad_std"] and not trace["biased"]
    groups = {group["group"] for group in comparison.groups}
    assert {"guide", "model"} < groups and len(groups) == 2 + 4
    assert len(pyro.get_param_store()) == 0


def test_training_goes_on_as_if_nobody_had_measured():
    def train(look: bool) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        model = Weather()
        guide = autoguide.AutoNormal(model)
        elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), Linear(1, 0, 4))
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), elbo)
        values = []
        for _ in range(3):
            if look:
                measure(model, guide, {"annealed": elbo, "trace": Trace_ELBO()}, num_samples=3)
            values.append(svi.step())
        return values

    assert train(look=True) == train(look=False)


def test_the_state_that_a_loss_is_in_is_the_one_that_is_measured():
    """Half way along a schedule the noise is half of it, sample after sample, and there it stays."""
    model, guide, _ = stored()
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), Linear(1, 0, 10))
    elbo.num_steps = 5
    elbos = {"half": elbo, "whole": Trace_ELBO()}
    comparison = measure(model, guide, elbos, num_samples=120)
    assert elbo.num_steps == 5
    half, whole = [group for group in comparison.groups if group["group"] == "guide"]
    error = math.hypot(half["grad_std_se"], whole["grad_std_se"] / 2)
    assert abs(half["grad_std"] - whole["grad_std"] / 2) < 4.5 * error < whole["grad_std"] / 4


def test_the_losses_of_a_user_keep_their_warnings():
    """A copy runs: whether a site has been warned of is not remembered in the loss given."""
    bit = Bit()
    elbo = StraightThroughELBO(ZGR())
    before = {key: repr(value) for key, value in vars(elbo).items()}
    measure(bit.model, bit.guide, {"a": elbo}, num_samples=3)
    assert {key: repr(value) for key, value in vars(elbo).items()} == before


def test_optimizers_in_the_backward_pass_rest():
    """Hooks that run when a parameter has its gradient: not inside, and again outside."""
    net = nn.Linear(1, 1)
    steps = []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(parameter) -> None:
        steps.append(parameter)
        optimizer.step()

    handles = [p.register_post_accumulate_grad_hook(step) for p in net.parameters()]

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.module("net", net)
        pyro.sample("z", dist.Normal(net(torch.ones(1)).sum(), 0.5))

    before = [p.detach().clone() for p in net.parameters()]
    compare(model, guide, {"trace": Trace_ELBO()}, num_samples=5, measure_memory=False)
    assert not steps and all(map(torch.equal, net.parameters(), before))
    net(torch.ones(1)).sum().backward()
    assert len(steps) == 2
    for handle in handles:
        handle.remove()
    net(torch.ones(1)).sum().backward()
    assert len(steps) == 2


def test_networks_of_baselines_are_no_part_of_the_comparison():
    """Their gradient is that of a regression of their own: no loss is biased by it."""

    class Baseline(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze(-1)

    net = Baseline(1, 1)
    baseline = {"nn_baseline": net, "nn_baseline_input": torch.ones(1)}

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 0.5), obs=torch.tensor(0.3))

    def guide():
        pyro.module("net", net)
        logits = pyro.param("logits", torch.tensor(0.3))
        pyro.sample("z", dist.Bernoulli(logits=logits), infer={"baseline": baseline})

    losses = {"graph": TraceGraph_ELBO(), "trace": Trace_ELBO()}
    comparison = compare(model, guide, losses, measure_memory=False)
    assert not any(row["biased"] for row in comparison.rows), comparison
    groups = {g["group"]: g for g in comparison.groups if g["name"] == "graph"}
    (row, _) = comparison.rows
    assert row["error"] is None
    assert groups["net$$$bias"]["grad_norm"] > 0 and not groups["net$$$bias"]["biased"]
    assert row["grad_std"] == groups["logits"]["grad_std"]
