"""Networks: modes, buffers, hooks, parts and parameters are those of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from tests.capture.scenes import DATA, ROWS, Scene, coefficients, observe, play, point
from tests.capture.side_by_side import Training, assert_same


class Encoder(nn.Module):
    """A network with settings, a buffer and parts that can be exchanged."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.beta = 1.0
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3))
        self.more = nn.ModuleList([nn.Linear(4, 1)])
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, rows: Tensor) -> Tensor:
        h = self.layers(rows)
        return self.beta * sum(layer(h) for layer in self.more).squeeze(-1) + self.offset


def scene(change: Callable[[Encoder], object], training: bool = False) -> Scene:
    encoder = Encoder().train(training)

    def model() -> None:
        pyro.module("encoder", encoder)
        z = coefficients()
        observe(ROWS @ z + encoder(ROWS))

    return Scene(model, point, lambda svi: change(encoder))


def appends(encoder: Encoder) -> None:
    torch.manual_seed(5)
    encoder.more.append(nn.Linear(4, 1))


def replaces_a_part(encoder: Encoder) -> None:
    torch.manual_seed(5)
    encoder.layers[0] = nn.Linear(3, 4)


def replaces_a_parameter(encoder: Encoder) -> None:
    encoder.layers[0].bias = nn.Parameter(torch.ones(4))


def replaces_a_buffer(encoder: Encoder) -> None:
    encoder.offset = torch.tensor(0.7)


def removes_a_bias(encoder: Encoder) -> None:
    encoder.layers[0].bias = None


def hooks_the_output(encoder: Encoder) -> None:
    encoder.layers[0].register_forward_hook(lambda module, inputs, output: 2 * output)


def hooks_the_input(encoder: Encoder) -> None:
    encoder.layers[0].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def hooks_the_gradient_of_a_module(encoder: Encoder) -> None:
    encoder.more[0].register_full_backward_hook(
        lambda module, grad_input, grad_output: tuple(g if g is None else 2 * g for g in grad_input)
    )


def changes_forward(encoder: Encoder) -> None:
    encoder.layers[0].forward = lambda rows: rows @ torch.ones(3, 4)


CHANGES = {
    "a setting": lambda encoder: setattr(encoder, "beta", 2.0),
    "another activation": lambda encoder: encoder.layers.__setitem__(1, nn.ReLU()),
    "one part more": appends,
    "a bias less": removes_a_bias,
    "a hook on the output": hooks_the_output,
    "a hook on the input": hooks_the_input,
    "another forward": changes_forward,
}


@pytest.mark.parametrize("name", CHANGES)
def test_change(name):
    play(lambda: scene(CHANGES[name]), graphs=2)


DIRECT = {
    "another buffer": replaces_a_buffer,
    "a buffer written": lambda encoder: encoder.offset.fill_(0.7),
    "parameters loaded": lambda encoder: encoder.load_state_dict(
        {name: value + 0.2 for name, value in encoder.state_dict().items()}
    ),
}


@pytest.mark.parametrize("name", DIRECT)
def test_tensor(name):
    play(lambda: scene(DIRECT[name]))


@pytest.mark.parametrize("change", [replaces_a_part, replaces_a_parameter])
def test_parameter_that_the_param_store_does_not_know(change):
    """Pyro keeps to the first parameter of a name, and the module's own is not trained."""
    play(lambda: scene(change), refused="is no parameter that the step visits")


MODES = {
    "train, then eval": (lambda encoder: encoder.eval(), True),
    "eval, then train": (lambda encoder: encoder.train(), False),
    "one part in eval": (lambda encoder: encoder.layers[2].eval(), True),
    "probability of dropout": (lambda encoder: setattr(encoder.layers[2], "p", 0.8), True),
}


@pytest.mark.parametrize("name", MODES)
def test_mode(name):
    change, training = MODES[name]
    play(lambda: scene(change, training), graphs=2)


def test_modes_in_turns():
    """Two graphs, and each is used again."""
    encoders: list[Encoder] = []

    def programs() -> tuple[Any, Any]:
        encoders.append(Encoder())

        def model() -> None:
            pyro.module("encoder", encoders[-1])
            z = coefficients()
            observe(ROWS @ z + encoders[-1](ROWS))

        return model, point

    training = Training(programs, change=lambda step, svi: encoders[-1].train(step // 6 % 2 == 0))
    _, found = assert_same(training, 30, graphs=None)
    assert found.svi.statistics.graphs == 2
    assert found.svi.statistics.replays >= 16


def test_batch_norm_counts_and_averages():
    networks: list[nn.Module] = []

    def programs() -> tuple[Any, Any]:
        networks.append(
            nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 1))
        )

        def model(rows: Tensor) -> None:
            pyro.module("network", networks[-1])
            z = coefficients()
            observe(ROWS @ z + networks[-1](rows).squeeze(-1))

        return model, point

    training = Training(programs, lambda step: (ROWS + 0.1 * step,))
    assert_same(training, 12)
    eager, captured = (network[1] for network in networks)
    assert captured.num_batches_tracked == eager.num_batches_tracked == 12
    torch.testing.assert_close(captured.running_mean, eager.running_mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(captured.running_var, eager.running_var, rtol=1e-10, atol=1e-12)


class Bayesian(PyroModule):
    """A regression whose coefficients are an attribute that is sampled."""

    def __init__(self) -> None:
        super().__init__()
        self.z = PyroSample(dist.Normal(torch.zeros(3), 1.0).to_event(1))
        self.noise = 0.5

    def forward(self) -> None:
        observe(ROWS @ self.z, DATA, self.noise)


def test_setting_of_a_pyro_module():
    def make() -> Scene:
        model = Bayesian()
        return Scene(model, point, lambda svi: setattr(model, "noise", 0.9))

    play(make, graphs=2)


def test_prior_of_a_pyro_module():
    def make() -> Scene:
        model = Bayesian()
        prior = PyroSample(dist.Normal(torch.ones(3), 0.1).to_event(1))
        return Scene(model, point, lambda svi: setattr(model, "z", prior))

    play(make, graphs=2)


def test_hook_on_the_gradient_of_a_module():
    """It is captured with the step or refused, but never forgotten."""
    play(lambda: scene(hooks_the_gradient_of_a_module), graphs=None)
