"""Looking changes nothing: random state, param store, modules, gradients, the loss, Pyro's switches."""

from __future__ import annotations

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from pyro.infer.autoguide.initialization import init_to_feasible
from pyro.infer.util import is_validation_enabled
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_silent import SilentELBO, audit, explain
from tests.diagnostics.programs import (
    ONE,
    every_method,
    every_method_guide,
    hierarchy,
    leaking,
    leaking_guide,
    normal,
    positive,
    ranked,
    ranked_guide,
    unknown_law,
    unknown_law_guide,
)

PAIRS = {
    "every method": (every_method, every_method_guide),
    "no expectation": (ranked, ranked_guide),
    "unknown law": (unknown_law, unknown_law_guide),
    "leak": (leaking, leaking_guide),
}
LOOKS = {"explain": explain, "audit": audit}


def random_numbers() -> tuple:
    """What each generator would give next."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    numbers = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    return numbers


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_nothing_is_left_behind(pair, look):
    model, guide = pair
    elbo = SilentELBO()
    numbers, options = random_numbers(), dict(vars(elbo))
    look(model, guide, elbo=elbo)
    assert random_numbers() == numbers
    assert len(pyro.get_param_store()) == 0, "parameters that the guide made in its first run"
    assert vars(elbo) == options
    assert not elbo._warned and not elbo._plain
    assert is_validation_enabled() and torch.distributions.Distribution._validate_args


def test_parameters_and_gradients_are_the_same_objects():
    guide = every_method_guide
    guide()
    store = pyro.get_param_store()
    leaves = dict(store.named_parameters())
    for leaf in leaves.values():
        leaf.grad = torch.full_like(leaf, 7.0)
    values = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    explain(every_method, guide)
    after = dict(store.named_parameters())
    assert list(after) == list(leaves)
    for name, leaf in leaves.items():
        assert after[name] is leaf and leaf.requires_grad
        assert torch.equal(leaf, values[name]) and bool((leaf.grad == 7.0).all())


@pytest.mark.parametrize(
    "family",
    [
        "AutoNormal",
        "AutoDiagonalNormal",
        "AutoMultivariateNormal",
        "AutoNormalMessenger",
        "AutoStructured",
    ],
)
@pytest.mark.parametrize("model", [positive, hierarchy])
def test_training_goes_as_if_nobody_had_looked(family, model):
    """An autoguide that was not set up is not set up afterwards, and starts from the same draws."""

    def losses(look: bool) -> list[float]:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        guide = getattr(autoguide, family)(model, init_loc_fn=init_to_feasible)
        if look:
            before = dict(vars(guide))
            explain(model, guide)
            assert vars(guide).keys() == before.keys()
            assert not list(guide.parameters()) and len(pyro.get_param_store()) == 0
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=SilentELBO())
        return [svi.step() for _ in range(3)]

    assert losses(look=True) == losses(look=False)


def test_modules_in_closures_keep_their_statistics():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[1].momentum = 0.5

    def model() -> None:
        z = normal_pair()
        with pyro.plate("data", 4):
            loc = net(torch.randn(4, 2)) + z
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=torch.zeros(4, 2))

    def normal_pair() -> torch.Tensor:
        return pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.full((2,), 0.3), 1.0).to_event(1))

    state = {name: value.clone() for name, value in net.state_dict().items()}
    explain(model, guide)
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    SilentELBO().loss(model, guide)
    assert not torch.equal(net[1].running_mean, state["1.running_mean"]), "the model does move it"


class Lazy(PyroModule):
    """A guide that makes a parameter in its first call."""

    def forward(self) -> None:
        if not hasattr(self, "loc"):
            self.loc = PyroParam(torch.tensor(0.5))
            self.calls: dict[str, int] = {}
        self.calls["all"] = self.calls.get("all", 0) + 1
        pyro.sample("z", dist.Normal(self.loc, 0.4))


@pytest.mark.parametrize("is_local", [False, True])
def test_modules_made_on_the_way_are_unmade(is_local):
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=ONE)

    with pyro.settings.context(module_local_params=is_local):
        guide = Lazy("guide")
        explain(model, guide)
        assert not hasattr(guide, "loc") and not hasattr(guide, "calls")
        assert len(pyro.get_param_store()) == 0
        assert not guide._pyro_context.used, "Pyro lets no module that has run join another"
        guide()
        explain(model, guide)
        assert guide.calls == {"all": 1}
        assert [name for name, _ in guide.named_parameters()] == ["loc_unconstrained"]


def test_programs_run_as_in_a_training_step_also_without_gradients():
    seen = []

    def guide() -> None:
        seen.append(torch.is_grad_enabled())
        every_method_guide()

    with torch.no_grad():
        rows = explain(every_method, guide).rows
        assert not torch.is_grad_enabled()
    assert seen and all(seen)
    assert rows == explain(every_method, guide).rows


def test_a_program_that_fails_leaves_nothing_either():
    def guide() -> None:
        normal("z", 0.5)
        raise RuntimeError("the guide's own")

    numbers = random_numbers()
    with pytest.raises(RuntimeError, match="the guide's own"):
        explain(lambda: None, guide)
    assert random_numbers() == numbers
    assert len(pyro.get_param_store()) == 0


def test_cuda_generators_are_restored():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.cuda.manual_seed_all(1)
    state = torch.cuda.get_rng_state_all()

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2, device="cuda"), 1.0).to_event(1))
        noise = torch.randn(2, device="cuda")
        pyro.sample("x", dist.Normal(z + noise, 1.0).to_event(1), obs=torch.zeros(2, device="cuda"))

    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.ones(2, device="cuda"), 1.0).to_event(1))

    explain(model, guide)
    assert all(map(torch.equal, torch.cuda.get_rng_state_all(), state))
