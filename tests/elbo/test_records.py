"""What the engine notes of each term: how it was found, and why it was sampled."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate

from pyro_silent import IntractableError, SilentELBO, register_expected_log_prob
from pyro_silent.elbo.particle import Record

P = pyro.param


def records(model, guide, **settings) -> dict[tuple[str, str], Record]:
    elbo = SilentELBO(**settings)
    return next(elbo._get_traces(model, guide, (), {})).records


def everything() -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.StudentT(3.0))
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("fixed", dist.Normal(0.0, 1.0), obs=torch.tensor(0.1))
    pyro.sample("closed", dist.Poisson(a.exp()), obs=torch.tensor(2.0))
    pyro.sample("quadrature", dist.Bernoulli(logits=b), obs=torch.tensor(1.0))
    pyro.sample("enumerated", dist.Normal(a, 1.0 + z), obs=torch.tensor(0.2))
    deep = torch.tanh(a + torch.tanh(a * b).exp() * b + torch.sin(a - b))
    pyro.sample("deep", dist.Normal(torch.tanh(3.0 * deep * z), 1.0), obs=torch.tensor(0.2))


@config_enumerate
def posterior() -> None:
    pyro.sample("a", dist.Normal(0.3, 0.5))
    pyro.sample("b", dist.Normal(0.1, 0.5))
    pyro.sample("z", dist.Bernoulli(0.4))


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
def test_every_site_has_its_method():
    found = records(everything, posterior, intractable="sample", quadrature_points=40)
    methods = {key: record.methods for key, record in found.items()}
    assert methods["model", "a"] == methods["guide", "a"] == ["divergence"]
    assert methods["guide", "b"] == []
    assert methods["model", "closed"] == []
    assert methods["model", "fixed"] == ["plain"]
    assert methods["model", "z"] == methods["guide", "z"] == ["plain", "enumerated"]
    assert methods["model", "enumerated"] == ["enumerated"]
    assert methods["model", "deep"] == ["sampled", "enumerated"]
    (rule,) = methods["model", "quadrature"]
    assert rule.startswith("quadrature(")
    assert int(rule[len("quadrature(") : -1]) >= 40
    errors = {key for key, record in found.items() if record.error is not None}
    assert errors == {("model", "deep")}
    error = found["model", "deep"].error
    assert set(error.latents) == {"a", "b"}
    assert "test_records.py" in error.location


class Overflowing(dist.Normal):
    """A density of its own, whose expectation is out of range."""

    def log_prob(self, value):
        return super().log_prob(value)


@register_expected_log_prob(Overflowing)
def _(distribution, value):
    return distribution.scale * torch.tensor(math.inf)


def test_an_exact_term_out_of_range_is_refused():
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", Overflowing(z, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        pyro.sample("z", dist.Normal(P("loc", torch.tensor(0.1)), 0.5))

    with pytest.raises(IntractableError, match="'x'.*Overflowing is inf.*float64") as info:
        SilentELBO().loss(model, guide)
    assert info.value.latents == ("z",)
    with pytest.warns(UserWarning, match="'x' is estimated"):
        loss = SilentELBO(intractable="sample").loss(model, guide)
    assert math.isfinite(loss)
    with pyro.validation_enabled(False):
        assert SilentELBO().loss(model, guide) == -math.inf


def test_what_came_in_infinite_is_not_refused():
    """An observation out of all bounds has an infinite loss, as with Pyro's own."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(math.inf))

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.1, 0.5))

    assert SilentELBO().loss(model, guide) == math.inf
