"""CompiledELBOModule: losses and gradients in loops of one's own, those of the module inside."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_silent import (
    AnnealedELBO,
    CaptureError,
    CompiledELBOModule,
    ConfigurationError,
    GumbelRaoELBO,
    Linear,
    SilentELBO,
    TwinDecoder,
)


class Model(nn.Module):
    """A linear decoder, beside one that is not."""

    def __init__(self) -> None:
        super().__init__()
        deep = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4))
        self.decoder = TwinDecoder(nn.Linear(2, 4), deep)

    def forward(self, x):
        pyro.module("model", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 2)

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.3).to_event(1))


LOSSES = {
    "silent": SilentELBO,
    "sampled": Trace_ELBO,
    "blend": lambda: AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5),
    "annealed": lambda: AnnealedELBO(SilentELBO(), Trace_ELBO(), Linear(1.0, 0.0, 4)),
}


def training(loss, captured: bool, steps: int = 12):
    """Losses, gradients of the last step, and parameters of a training with torch's Adam."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    elbo = loss()(Model(), Guide())
    call = CompiledELBOModule(elbo, backend="eager") if captured else elbo
    batches = torch.randn(steps, 6, 4)
    optimizer = torch.optim.Adam(elbo.parameters(), lr=0.05)
    losses = []
    for x in batches:
        optimizer.zero_grad()
        value = call(x)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    parameters = {name: p.detach() for name, p in elbo.named_parameters()}
    gradients = {name: p.grad for name, p in elbo.named_parameters() if p.grad is not None}
    return losses, parameters, gradients, call


@pytest.mark.parametrize("name", LOSSES)
def test_a_training_is_the_same(name):
    losses, parameters, gradients, _ = training(LOSSES[name], captured=False)
    found = training(LOSSES[name], captured=True)
    torch.testing.assert_close(found[0], losses, rtol=1e-10, atol=0)
    torch.testing.assert_close(found[1], parameters, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[2], gradients, rtol=1e-9, atol=1e-12)
    statistics = found[3].statistics
    assert statistics.replays == (9 if name != "annealed" else 12 - statistics.eager_steps) > 0
    if name in ("blend", "annealed"):
        assert found[3].module.elbo.num_steps == 12


def regression():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    guide = AutoNormal(model)
    x = torch.tensor([1.0, 2.0, 3.0])
    elbo = SilentELBO()(model, guide)
    elbo(x)
    call = CompiledELBOModule(elbo, backend="eager", uncapturable="raise")
    for _ in range(4):
        call(x)
    assert call.statistics.replays == 1
    return call, guide, x


def test_gradients_are_scaled_by_what_follows():
    call, guide, x = regression()
    parameters = list(guide.parameters())
    once = torch.autograd.grad(call(x), parameters)
    thrice = torch.autograd.grad(3 * call(x), parameters)
    torch.testing.assert_close([3 * g for g in once], list(thrice))


def test_without_gradients_there_is_a_graph_of_its_own():
    call, guide, x = regression()
    with torch.no_grad():
        values = [call(x) for _ in range(5)]
    assert not any(value.requires_grad for value in values)
    assert call.statistics.graphs == 2
    assert values[0] == values[-1] == call(x).detach()


def test_second_derivatives_are_refused():
    call, guide, x = regression()
    with pytest.raises(CaptureError, match="first derivatives only"):
        torch.autograd.grad(call(x), list(guide.parameters()), create_graph=True)


def test_a_parameter_written_to_before_the_backward_pass_is_seen():
    call, guide, x = regression()
    loss = call(x)
    with torch.no_grad():
        next(guide.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_state_of_the_module_is_that_of_the_module_inside():
    call, _, _ = regression()
    inside = call.module.state_dict()
    assert {name.removeprefix("module.") for name in call.state_dict()} == set(inside)


def test_hooks_on_parameters_are_called():
    call, guide, x = regression()
    seen = []
    next(guide.parameters()).register_hook(lambda gradient: seen.append(gradient))
    call(x).backward()
    assert len(seen) == 1


def test_discrete_latents_draw_what_they_draw_without_a_graph():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(torch.tensor([0.0, 2.0, 5.0])[z], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.zeros(4, 3))))

    def gradients(captured):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo = GumbelRaoELBO()(model, guide)
        call = CompiledELBOModule(elbo, backend="eager") if captured else elbo
        found = []
        for _ in range(8):
            loss = call(torch.tensor([0.1, 1.9, 5.2, 2.2]))
            logits = pyro.get_param_store()._params["logits"]
            found.append(torch.autograd.grad(loss, logits)[0])
        return torch.stack(found)

    expected = gradients(False)
    torch.testing.assert_close(gradients(True), expected)
    assert len({tuple(g.flatten().tolist()) for g in expected}) == 8


def test_arguments():
    with pytest.raises(ConfigurationError, match="module: got Linear, expected what elbo"):
        CompiledELBOModule(nn.Linear(1, 1))
    call, _, _ = regression()
    with pytest.raises(ConfigurationError, match="backend: got 'jit'"):
        CompiledELBOModule(call.module, backend="jit")
