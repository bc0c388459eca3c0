"""What users write to parameters and optimizers between steps is used by captured steps."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from pyro.optim import Adam, ClippedAdam, ExponentialLR, PyroLRScheduler, ReduceLROnPlateau
from torch import nn

from tests.capture.scenes import DATA, ROWS, Scene, coefficients, guide, observe, play, regression


def leaf(name: str) -> torch.Tensor:
    return pyro.param(name).unconstrained()


def writes(svi):
    leaf("loc").data.fill_(0.9)


def writes_under_no_grad(svi):
    with torch.no_grad():
        leaf("scale").sub_(0.4)


def gives_another_storage(svi):
    leaf("loc").data = torch.tensor([0.9, 0.1, -0.5])


def sets(svi):
    pyro.get_param_store()["loc"] = torch.tensor([0.9, 0.1, -0.5])


def sets_the_state(svi):
    store = pyro.get_param_store()
    state = store.get_state()
    state["params"] = {name: value.detach() + 0.3 for name, value in state["params"].items()}
    store.set_state(state)


def clears(svi):
    pyro.clear_param_store()


def sets_the_learning_rate(svi):
    for optimizer in svi.optim.optim_objs.values():
        optimizer.param_groups[0]["lr"] = 0.2


def sets_the_betas(svi):
    for optimizer in svi.optim.optim_objs.values():
        optimizer.param_groups[0]["betas"] = (0.5, 0.9)


def forgets_the_momentum(svi):
    for optimizer in svi.optim.optim_objs.values():
        for state in optimizer.state.values():
            state["exp_avg"].zero_()


def loads_the_optimizers_own_state(svi):
    for optimizer in svi.optim.optim_objs.values():
        state = optimizer.state_dict()
        state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"] + 0.7
        optimizer.load_state_dict(state)


def loads_the_state_of_pyros_optimizer(svi):
    state = svi.optim.get_state()
    for entry in state.values():
        entry["state"][0]["step"] = torch.tensor(50.0)
    svi.optim.set_state(state)
    svi.optim.optim_objs.clear()


def takes_another_optimizer(svi):
    svi.optim = Adam({"lr": 0.3, "betas": (0.5, 0.9)})


def leaves_a_gradient(svi):
    leaf("loc").grad = torch.tensor([3.0, -2.0, 1.0])


def adds_to_a_gradient(svi):
    leaf("loc").grad.add_(2.0)


def goes_without_momentum(svi):
    svi.optim.optim_objs.clear()


DIRECTLY = [
    writes,
    writes_under_no_grad,
    gives_another_storage,
    sets_the_learning_rate,
    sets_the_betas,
    forgets_the_momentum,
]
INDIRECTLY = [
    sets,
    sets_the_state,
    clears,
    loads_the_optimizers_own_state,
    loads_the_state_of_pyros_optimizer,
    goes_without_momentum,
    takes_another_optimizer,
    leaves_a_gradient,
    adds_to_a_gradient,
]


@pytest.mark.parametrize("change", DIRECTLY)
def test_user(change):
    play(lambda: Scene(regression, guide, change))


@pytest.mark.parametrize("change", INDIRECTLY)
def test_user_between_steps(change):
    """One or two eager steps, then the same graph or another."""
    play(lambda: Scene(regression, guide, change), graphs=None)


def with_a_network() -> Scene:
    network = nn.Linear(3, 1)

    def model() -> None:
        pyro.module("network", network)
        observe(ROWS @ coefficients() + network(ROWS).squeeze(-1))

    def change(svi):
        network.load_state_dict({name: 2 * p + 1 for name, p in network.state_dict().items()})

    return Scene(model, guide, change)


def test_user_loads_a_network():
    play(with_a_network)


class Guide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.tensor([0.3, -0.2, 0.1]))
        self.scale = PyroParam(torch.full((3,), 0.7), constraint=dist.constraints.positive)

    def forward(self) -> None:
        pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))


def with_a_pyro_module() -> Scene:
    guide = Guide()

    def change(svi):
        guide.scale = torch.full((3,), 0.1)

    return Scene(regression, guide, change)


@pytest.mark.parametrize("local", [False, True])
def test_user_sets_an_attribute_of_a_pyro_module(local):
    with pyro.settings.context(module_local_params=local):
        play(with_a_pyro_module, graphs=None)


def plateau() -> PyroLRScheduler:
    settings = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "patience": 0}
    return ReduceLROnPlateau({**settings, "factor": 0.3})


def decay() -> PyroLRScheduler:
    return ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.7})


@pytest.mark.parametrize(("optim", "metric"), [(decay, ()), (plateau, (1.0,))])
def test_scheduler(optim, metric):
    """The scheduler takes steps in the middle of training, once or twice."""

    def change(svi):
        for _ in range(3):
            svi.optim.step(*metric)

    play(lambda: Scene(regression, guide, change, optim=optim))


def test_decay_of_clipped_adam():
    """It is part of each step; a user may change it."""

    def change(svi):
        for optimizer in svi.optim.optim_objs.values():
            optimizer.param_groups[0]["lrd"] = 0.5

    optim = lambda: ClippedAdam({"lr": 0.05, "lrd": 0.9})  # noqa: E731
    play(lambda: Scene(regression, guide, change, optim=optim), graphs=2)


def test_user_freezes_a_parameter():
    def change(svi):
        leaf("scale").requires_grad_(False)

    play(lambda: Scene(regression, guide, change), graphs=2)


def test_user_thaws_a_parameter():
    def make() -> Scene:
        network = nn.Linear(3, 1).requires_grad_(False).eval()  # or Pyro warns

        def model() -> None:
            pyro.module("network", network)
            observe(ROWS @ coefficients() + network(ROWS).squeeze(-1), DATA)

        return Scene(model, guide, lambda svi: network.requires_grad_(True))

    play(make, graphs=2)


def test_parameter_that_appears_later():
    def make() -> Scene:
        flag = {"shifted": False}

        def model() -> None:
            shift = pyro.param("shift", torch.tensor(0.5)) if flag["shifted"] else 0.0
            observe(ROWS @ coefficients() + shift)

        return Scene(model, guide, lambda svi: flag.update(shifted=True))

    play(make, graphs=2)
