"""Mixed devices are named; tensors that the package makes are where the program's are."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_silent import (
    ConfigurationError,
    DisARMELBO,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    SilentELBO,
)
from tests.devices import here

# The second device has no values; where there is a GPU, tests run on it and this is still the second.
OTHER = "meta"


def on_other(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device=OTHER)


def programs(**devices: str):
    """A VAE with its encoder, decoder, data and prior on devices of choice."""
    on = {name: devices.get(name, here()) for name in ("encoder", "decoder", "data", "prior")}
    encoder, decoder = nn.Linear(4, 2).to(on["encoder"]), nn.Linear(2, 4).to(on["decoder"])

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("n", len(x)):
            prior = dist.Normal(torch.zeros(len(x), 2, device=on["prior"]), 1.0)
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("n", len(x)):
            loc = encoder(torch.ones(len(x), 4, device=on["encoder"]))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return model, guide, torch.ones(3, 4, device=on["data"])


LOSSES = [SilentELBO, GumbelRaoELBO, LeaveOneOutELBO]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "data",
            r"site 'x': got tensors on meta and \S+ \(on meta: its value; on .*: loc of Normal",
        ),
        (
            "prior",
            r"site 'z': got tensors on \S+ and meta \(on .*: its value.*on meta: loc of Normal",
        ),
        ("encoder", r"on meta: parameter 'encoder\$\$\$weight', "),
        ("decoder", r"argument 0.* on meta: parameter 'decoder\$\$\$weight'"),
    ],
)
def test_mixed_devices_are_named(loss, part, message):
    model, guide, x = programs(**{part: OTHER})
    with pyro.validation_enabled(False), pytest.raises(ConfigurationError, match=message):
        loss(max_plate_nesting=1).loss_and_grads(model, guide, x)


def test_other_errors_stay_as_they_are():
    model, guide, x = programs()
    with pytest.raises(RuntimeError, match="must match the size") as caught:
        SilentELBO().loss_and_grads(model, guide, x[:, :3])
    assert not isinstance(caught.value, ConfigurationError)


def test_numbers_on_the_cpu_fit_everywhere():
    """torch computes with a tensor without dims wherever the others are."""

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros((), device="cpu"), 1.0))
        pyro.sample("x", dist.Normal(z, torch.tensor(2.0, device="cpu")), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.5)), 1.0))

    x = torch.tensor(1.0)
    assert SilentELBO().loss(model, guide, x) == pytest.approx(
        0.5 * (1 + 0.25 - 1) + 0.5 * (1.25 / 4) + 0.5 * torch.tensor(8 * torch.pi).log().item()
    )


@pytest.mark.parametrize("loss", [*LOSSES, DisARMELBO])
def test_a_whole_step_on_the_device(loss, device):
    """Value, gradients and what is drawn are on the device of the tests."""
    encoder, decoder = nn.Linear(4, 2), nn.Linear(2, 4)
    seen = []

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("n", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=x.new_zeros(len(x), 2)).to_event(1))
            seen.append(z.device.type)
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("n", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))

    value = loss()(model, guide)(torch.ones(3, 4))
    value.backward()
    assert value.device.type == device.type
    assert all(p.grad.device.type == device.type for p in (encoder.weight, decoder.weight))
    assert set(seen) == {device.type}
