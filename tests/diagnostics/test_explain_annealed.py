"""explain and audit of an AnnealedELBO: the part that is shown, the branch it runs, the note."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_silent import (
    AnnealedELBO,
    ConfigurationError,
    GumbelRaoELBO,
    Linear,
    SilentELBO,
    TwinDecoder,
    audit,
    explain,
)

X = torch.linspace(-1, 1, 12).reshape(4, 3)


class Noting(nn.Module):
    """A decoder that notes in a list of others that it runs; its own state would be put back."""

    def __init__(self, name: str, network: nn.Module, ran: list[str]) -> None:
        super().__init__()
        self.network, self.note = network, lambda: ran.append(name)

    def forward(self, z: Tensor) -> Tensor:
        self.note()
        return self.network(z)


class Twins:
    """Model and guide around twin decoders, of a Gaussian or a binary code."""

    def __init__(self, *, binary: bool = False, analytic: nn.Module | None = None) -> None:
        self.binary = binary
        deep = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        self.ran: list[str] = []
        self.decoder = TwinDecoder(
            analytic=Noting("analytic", analytic or nn.Linear(2, 3), self.ran),
            expressive=Noting("expressive", deep, self.ran),
        )

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        law = dist.Bernoulli(0.5) if self.binary else dist.Normal(0.0, 1.0)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", law.expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        law = dist.Bernoulli(logits=loc) if self.binary else dist.Normal(loc, 0.3)
        with pyro.plate("data", len(x)):
            pyro.sample("z", law.to_event(1))


def test_the_silent_part_is_explained():
    twins = Twins()
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), Linear(1.0, 0.0, num_steps=4))
    elbo.num_steps = 2
    explanation = explain(twins.model, twins.guide, X, elbo=elbo)
    assert explanation.is_silent
    assert set(twins.ran) == {"analytic"}
    assert explanation.rows == explain(twins.model, twins.guide, X, elbo=SilentELBO()).rows
    assert [(row["site"], row["method"]) for row in explanation.rows] == [
        ("z", "closed form"),
        ("x", "closed form"),
    ]
    note = (
        "This is the silent part of AnnealedELBO; its stochastic part is Trace_ELBO. The silent part's "
        "weight is 0.5 at step 2."
    )
    assert explanation.notes == (note,)
    assert str(explanation).endswith(note)


def test_an_intractable_branch_is_explained_where_the_loss_refuses():
    """A nonlinear twin in the analytic one's place: its term is shown as sampled, with the place."""
    twins = Twins(analytic=nn.Sequential(nn.Linear(2, 3), nn.Softmax(-1)))
    explanation = explain(
        twins.model, twins.guide, X, elbo=AnnealedELBO(SilentELBO(), Trace_ELBO(), 0.5)
    )
    rows = {row["site"]: row for row in explanation.rows}
    assert rows["z"]["method"] == "closed form"
    assert rows["x"]["method"] == "sampled"
    assert "softmax" in rows["x"]["reason"]
    assert rows["x"]["location"].startswith(__file__)


def test_a_control_of_ours_runs_the_analytic_branch():
    """A loss of samples in the silent one's place sees what the silent one would see."""
    twins = Twins(binary=True)
    elbo = AnnealedELBO(GumbelRaoELBO(0.5, 10), Trace_ELBO(), 0.5)
    explanation = explain(twins.model, twins.guide, X, elbo=elbo)
    rows = {row["site"]: row for row in explanation.rows}
    assert rows["x"]["method"] == "sampled"
    assert "a hard draw with the gradient of GumbelRao" in rows["x"]["reason"]
    assert set(twins.ran) == {"analytic"}


def test_a_control_of_pyros_leaves_the_stochastic_part_to_explain():
    twins = Twins(binary=True)
    elbo = AnnealedELBO(Trace_ELBO(), GumbelRaoELBO(0.5, 10), 0.25)
    explanation = explain(twins.model, twins.guide, X, elbo=elbo)
    assert not explanation.is_silent
    assert set(twins.ran) == {"expressive"}
    assert explanation.notes == (
        "This is the stochastic part of AnnealedELBO; its silent part is Trace_ELBO. The silent part's "
        "weight is 0.25 at step 0.",
    )


def test_two_losses_of_pyros_are_refused():
    twins = Twins()
    elbo = AnnealedELBO(Trace_ELBO(), Trace_ELBO(), 0.5)
    for function in (explain, audit):
        with pytest.raises(ConfigurationError, match="elbo: got .*, expected .* an AnnealedELBO"):
            function(twins.model, twins.guide, X, elbo=elbo)


@pytest.mark.parametrize("intractable", ["raise", "sample"])
def test_nothing_is_left_behind(intractable):
    twins = Twins()
    elbo = AnnealedELBO(SilentELBO(intractable=intractable), Trace_ELBO(), 0.5)
    before = elbo.state_dict(), dict(vars(elbo)), dict(vars(elbo.silent))
    state = torch.get_rng_state()
    explain(twins.model, twins.guide, X, elbo=elbo)
    audit(twins.model, twins.guide, X, elbo=elbo)
    assert (elbo.state_dict(), dict(vars(elbo)), dict(vars(elbo.silent))) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store().keys())
    assert all(parameter.grad is None for parameter in twins.decoder.parameters())


def test_audit_is_of_the_part_that_is_shown():
    """Exact terms are bit-equal; samples of the deep branch are not."""
    twins = Twins(binary=True)
    silent = AnnealedELBO(SilentELBO(), GumbelRaoELBO(0.5, 10), 0.5)
    control = AnnealedELBO(Trace_ELBO(), GumbelRaoELBO(0.5, 10), 0.5)
    assert audit(twins.model, twins.guide, X, elbo=silent) == {"z": True, "x": True}
    assert audit(twins.model, twins.guide, X, elbo=control) == {"z": True, "x": False}
