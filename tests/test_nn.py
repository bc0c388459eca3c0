"""TwinDecoder on its own: which twin runs, what it returns, and how it travels."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_silent import (
    ZGR,
    AnnealedELBO,
    ConfigurationError,
    GumbelRaoELBO,
    RandomTensor,
    RelaxedELBO,
    SilentELBO,
    StraightThroughELBO,
    TwinDecoder,
    mean,
    random_tensor,
)

CODE, DATA, ROWS = 2, 3, 4


def law() -> RandomTensor:
    """A Gaussian code for each row."""
    return random_tensor(dist.Normal(torch.zeros(ROWS, CODE), 1.0))


def deep() -> nn.Module:
    return nn.Sequential(nn.Linear(CODE, 5), nn.ReLU(), nn.Linear(5, DATA))


def twin() -> TwinDecoder:
    return TwinDecoder(nn.Linear(CODE, DATA), deep())


def test_laws_go_through_the_analytic_twin_and_samples_through_the_other():
    both, z = twin(), torch.randn(ROWS, CODE)
    assert torch.equal(both(z), both.expressive(z))
    image = both(law())
    assert isinstance(image, RandomTensor) and image.shape == (ROWS, DATA)
    with torch.no_grad():
        both.analytic.bias.fill_(7.0)
        both.analytic.weight.zero_()
    assert torch.equal(mean(both(law())), torch.full((ROWS, DATA), 7.0))


class Sum(nn.Module):
    """Takes several arguments, positional and by keyword, in nests."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, first: Any, *rest: Any, shift: Any = 0.0) -> Tensor:
        first = first["z"] if isinstance(first, dict) else first
        return self.sign * (first + sum(rest) + shift)


@pytest.mark.parametrize(
    "call",
    [
        lambda both, z, w: both(z, w),
        lambda both, z, w: both(w, z),
        lambda both, z, w: both(w, shift=z),
        lambda both, z, w: both({"z": z}, w),
    ],
)
def test_one_random_argument_decides(call):
    both, plain = TwinDecoder(Sum(1.0), Sum(-1.0)), torch.ones(ROWS, CODE)
    assert torch.equal(mean(call(both, law(), plain)), plain)
    assert torch.equal(call(both, torch.zeros(ROWS, CODE), plain), -plain)


@pytest.mark.parametrize(
    "loss, chosen",
    [
        (SilentELBO(), "analytic"),
        (Trace_ELBO(), "expressive"),
        (GumbelRaoELBO(), "expressive"),
        (StraightThroughELBO(ZGR()), "expressive"),
        (RelaxedELBO(), "expressive"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("family", ["normal", "bernoulli", "categorical"])
def test_each_loss_meets_its_twin(family, loss, chosen):
    """One model serves them all; discrete samples that carry gradients are samples."""
    laws = {
        "normal": dist.Normal(torch.zeros(ROWS, CODE), 1.0).to_event(1),
        "bernoulli": dist.Bernoulli(torch.full((ROWS, CODE), 0.4)).to_event(1),
        "categorical": dist.Categorical(torch.ones(ROWS, CODE) / CODE),
    }
    both = (
        TwinDecoder(nn.Embedding(CODE, DATA), nn.Sequential(nn.Embedding(CODE, DATA), nn.Tanh()))
        if family == "categorical"
        else twin()
    )
    calls = {"analytic": 0, "expressive": 0}

    def count(name: str) -> None:
        calls[name] += 1

    for name in calls:
        getattr(both, name).register_forward_hook(lambda *_, name=name: count(name))

    def model() -> None:
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", laws[family])
            pyro.sample("x", dist.Normal(both(z), 1.0).to_event(1), obs=torch.zeros(ROWS, DATA))

    def guide() -> None:
        with pyro.plate("data", ROWS):
            pyro.sample("z", laws[family])

    loss.loss(model, guide)
    assert calls == {"analytic": 0, "expressive": 0, chosen: 1}


# Outputs


class Nest(nn.Module):
    """Location and scale, as a tuple, a list or a dict."""

    def __init__(self, kind: type, scale: tuple[int, ...], outputs: int = DATA) -> None:
        super().__init__()
        self.kind, self.loc = kind, nn.Linear(CODE, outputs)
        self.log_scale = nn.Parameter(torch.zeros(scale))

    def forward(self, z: Tensor) -> Any:
        loc, scale = self.loc(z), self.log_scale.exp()
        return {"loc": loc, "scale": scale} if self.kind is dict else self.kind((loc, scale))


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_outputs_may_be_nests(kind):
    """A scale for each dimension beside one for all, which fit the same sample statement."""
    both = TwinDecoder(Nest(kind, (DATA,)), Nest(kind, (1,)))
    assert type(both(law())) is kind
    output = both(torch.randn(ROWS, CODE))
    assert type(output) is kind and len(output) == 2


def blended(both: TwinDecoder, particles: int = 1) -> Tensor:
    """The loss of one step that runs both twins."""

    def model() -> None:
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            output = both(z)
            loc = output if isinstance(output, Tensor) else output[0]
            pyro.factor("x", loc.sum(-1))

    def guide() -> None:
        with pyro.plate("data", ROWS):
            loc = torch.zeros(ROWS, CODE, requires_grad=True)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    stochastic = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    return AnnealedELBO(SilentELBO(), stochastic, 0.5).differentiable_loss(model, guide)


MISFITS = {
    "narrow": (nn.Linear(CODE, DATA), nn.Linear(CODE, 1)),
    "wide": (nn.Linear(CODE, 1), nn.Linear(CODE, DATA)),
    "other": (nn.Linear(CODE, DATA), nn.Linear(CODE, DATA + 1)),
    "nest": (nn.Linear(CODE, DATA), Nest(tuple, (DATA,))),
    "nests": (Nest(tuple, (DATA,)), Nest(tuple, (DATA,), outputs=DATA + 2)),
}


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("name", MISFITS)
def test_twins_that_do_not_fit(name, particles):
    """Particles stand before the batch; only what is made of one item is compared."""
    with pytest.raises(ConfigurationError, match="^TwinDecoder: analytic returned .* expressive"):
        blended(TwinDecoder(*MISFITS[name]), particles)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("kind", [tuple, list])
def test_twins_that_fit(kind, particles):
    blended(twin(), particles).backward()
    blended(TwinDecoder(Nest(kind, (DATA,)), Nest(kind, (1,))), particles).backward()


def test_twins_called_by_hand_are_not_compared():
    """Batches of any size may come, of laws and of samples."""
    both = twin()
    for rows in (4, 2, 1, 4):
        both(random_tensor(dist.Normal(torch.zeros(rows, CODE), 1.0)))
        both(torch.randn(7, rows + 1, CODE))


# As a module


def test_both_twins_are_submodules():
    both = twin()
    assert {name.split(".")[0] for name, _ in both.named_parameters()} == {
        "analytic",
        "expressive",
    }
    names = ["analytic.weight", "analytic.bias"]
    names += [f"expressive.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")]
    assert list(both.state_dict()) == names
    both.eval()
    assert not both.analytic.training and not both.expressive.training
    both.double()
    assert all(p.dtype == torch.float64 for p in both.parameters())
    assert both(torch.randn(ROWS, CODE, dtype=torch.float64)).dtype == torch.float64


def test_on_a_device(device):
    both = twin().to(device)
    assert both(torch.randn(ROWS, CODE, device=device)).device.type == device.type
    image = both(random_tensor(dist.Normal(torch.zeros(ROWS, CODE, device=device), 1.0)))
    assert image.device.type == device.type


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copied, used):
    """After use too: no graph and no value hangs on it."""
    both, z = twin(), torch.randn(ROWS, CODE)
    if used:
        both(law()), both(z)
    other = copied(both)
    assert torch.equal(other(z), both(z))
    with torch.no_grad():
        other.expressive[0].weight.zero_()
    assert not torch.equal(other(z), both(z))
    assert isinstance(other(law()), RandomTensor)


def test_saved_and_loaded():
    both, z = twin(), torch.randn(ROWS, CODE)
    both(z)
    buffer = io.BytesIO()
    torch.save(both.state_dict(), buffer)
    other = twin()
    other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert torch.equal(other(z), both(z))


def test_a_twin_in_a_twin():
    """Both are asked by the same law."""
    outer = TwinDecoder(nn.Sequential(nn.Linear(CODE, CODE), twin()), nn.Sequential(deep()))
    assert isinstance(outer(law()), RandomTensor)
    assert outer(torch.randn(ROWS, CODE)).shape == (ROWS, DATA)


def test_one_module_may_be_both_twins():
    """A program without a twin, written with one."""
    linear = nn.Linear(CODE, DATA)
    both, z = TwinDecoder(linear, linear), torch.randn(ROWS, CODE)
    assert torch.equal(both(z), linear(z))
    assert len(list(both.parameters())) == 2


def test_functional_call():
    both, z = twin(), torch.randn(ROWS, CODE)
    zeros = {name: torch.zeros_like(p) for name, p in both.named_parameters()}
    assert not torch.func.functional_call(both, zeros, (z,)).any()


@pytest.mark.parametrize(
    "bad",
    [None, lambda z: z, nn.Linear, torch.ones(2), "linear"],
    ids=lambda bad: type(bad).__name__,
)
def test_twins_are_modules(bad):
    with pytest.raises(ConfigurationError, match="^analytic: got .*expected a torch.nn.Module"):
        TwinDecoder(bad, nn.Linear(CODE, DATA))
    with pytest.raises(ConfigurationError, match="^expressive: got .*expected a torch.nn.Module"):
        TwinDecoder(nn.Linear(CODE, DATA), bad)


def test_a_twin_under_checkpointing_keeps_its_branch():
    """Activation checkpointing computes a decoder again in the backward pass: the same twin."""
    both, calls = twin(), []
    both.analytic.register_forward_pre_hook(lambda *_: calls.append("analytic"))
    both.expressive.register_forward_pre_hook(lambda *_: calls.append("expressive"))
    loc = torch.zeros(ROWS, CODE, requires_grad=True)

    def model() -> None:
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            mean = (
                both(z) if isinstance(z, RandomTensor) else checkpoint(both, z, use_reentrant=False)
            )
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=torch.zeros(ROWS, DATA))

    def guide() -> None:
        with pyro.plate("data", ROWS):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    elbo = AnnealedELBO(Trace_ELBO(), Trace_ELBO(), 0.5)
    elbo.differentiable_loss(model, guide).backward()
    assert sorted(calls) == ["analytic"] * 2 + ["expressive"] * 2
    assert loc.grad.any()
