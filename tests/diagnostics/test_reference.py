"""What bias is measured against: the loss that was named, or an exact one, or one with its own error."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, autoguide
from torch import Tensor, nn

from pyro_silent import SilentELBO, StraightThrough, StraightThroughELBO, TwinDecoder
from pyro_silent.nn import branch
from tests.diagnostics.comparison_programs import REPLICAS, Bit, measure, no_clock, replicated
from tests.diagnostics.programs import ranked, ranked_guide

Z_LIMIT = 4.5


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    no_clock(monkeypatch)


def test_an_exact_one_where_every_term_is():
    bit = Bit()
    comparison = measure(bit.model, bit.guide, {"trace": Trace_ELBO()}, num_samples=10)
    reference = comparison.reference
    assert (reference["name"], reference["exact"]) == ("SilentELBO()", True)
    assert reference["loss_mean"] == pytest.approx(bit.mean(bit.losses()).item(), rel=1e-12)
    truth = bit.mean(bit.gradients()).norm().item()
    assert reference["grad_norm"] == pytest.approx(truth, rel=1e-12)
    assert reference["grad_se"] == 0
    assert "Reference: SilentELBO(), exact, gradient norm" in str(comparison)


def test_a_noisy_one_with_its_error_where_terms_are_sampled():
    comparison = measure(ranked, ranked_guide, {"trace": Trace_ELBO()}, num_samples=15)
    reference = comparison.reference
    assert reference["name"] == "LeaveOneOutELBO(num_particles=10)"
    assert not reference["exact"] and reference["num_samples"] == 15
    assert reference["grad_se"] > 0
    assert "15 samples, gradient norm" in str(comparison) and "known to ±" in str(comparison)
    (row,) = comparison.rows
    assert not row["biased"] and row["grad_bias_se"] > 0


def test_the_error_of_a_noisy_one_is_that_of_its_mean():
    """Variance 1 in each of 200 dims, of two particles and 20 samples."""
    model, guide = replicated(1)
    noisy = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    comparison = measure(model, guide, {"a": SilentELBO()}, num_samples=20, reference=noisy)
    error = math.sqrt(REPLICAS / 2 / 20)
    spread = error / math.sqrt(2 * REPLICAS * 19)
    assert abs(comparison.reference["grad_se"] - error) < Z_LIMIT * spread
    # and it is part of the bias's: the loss has no noise of its own
    (row,) = comparison.rows
    assert row["grad_std"] == 0 and not row["biased"]
    one_direction = math.sqrt(1 / 2 / 20)
    assert abs(row["grad_bias_se"] / one_direction - 1) < Z_LIMIT / math.sqrt(2 * 19)


def test_one_of_the_losses_by_its_name():
    bit = Bit()
    elbos = {"silent": SilentELBO(), "st": StraightThroughELBO(StraightThrough())}
    comparison = measure(bit.model, bit.guide, elbos, num_samples=100, reference="st")
    assert comparison.reference["name"] == "st" and not comparison.reference["exact"]
    silent, st = comparison.rows
    assert silent["biased"], "it is the reference that is biased, and the reader asked for it"
    assert not st["biased"] and st["grad_bias_se"] > 0, "other samples than the reference's own"


@pytest.mark.parametrize(
    "loss", [SilentELBO(), lambda m, g: SilentELBO().differentiable_loss(m, g)]
)
def test_a_loss_that_is_not_compared(loss):
    bit = Bit()
    comparison = measure(bit.model, bit.guide, {"trace": Trace_ELBO()}, reference=loss)
    expected = "SilentELBO" if isinstance(loss, SilentELBO) else "the function given"
    assert comparison.reference["name"] == expected and comparison.reference["exact"]
    assert [row["name"] for row in comparison.rows] == ["trace"]


def test_none_where_none_runs():
    """Losses that do without the model; two references were tried, and notes say why not."""

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 1.0))

    calls = []

    def model() -> None:
        calls.append(1)
        pyro.sample("z", dist.Normal(0.0, 1.0))
        if len(calls) > 1:
            raise RuntimeError("out of data")

    def own(model, guide):
        return pyro.param("loc") * torch.randn(())

    comparison = measure(model, guide, {"own": own, "half": lambda m, g: own(m, g) / 2})
    assert comparison.reference == {}
    assert "RuntimeError: out of data" in comparison.notes[-1]
    assert all("cannot be the reference" in note for note in comparison.notes)
    for row in comparison.rows:
        assert row["error"] is None and row["grad_std"] > 0
        assert all(math.isnan(row[f"grad_{key}"]) for key in ("bias", "bias_se", "rmse", "cosine"))
        assert not row["biased"]
    assert "No reference: bias, RMSE and cosine are not known." in str(comparison)
    assert "Bias is not known" in comparison.advice


def twin_program(expressive: nn.Module):
    decoder = TwinDecoder(nn.Linear(2, 3), expressive).double()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.full((4, 2), 0.4).double())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    return model, guide, torch.linspace(-1, 1, 12).reshape(4, 3).double()


def test_twins_are_the_users_model_unless_a_reference_was_named():
    """The expressive decoder is linear too, so that both branches have an exact loss."""
    model, guide, x = twin_program(nn.Linear(2, 3))
    elbos = {"analytic": SilentELBO(), "trace": Trace_ELBO()}
    with branch("expressive"):
        expressive = SilentELBO().loss(model, guide, x)
    analytic = SilentELBO().loss(model, guide, x)
    assert abs(expressive - analytic) > 0.1

    comparison = measure(model, guide, elbos, x, num_samples=50)
    assert comparison.reference["name"] == "SilentELBO()"
    assert comparison.reference["loss_mean"] == pytest.approx(expressive, rel=1e-12)
    silent, trace = comparison.rows
    assert silent["loss_mean"] == pytest.approx(analytic, rel=1e-12)
    assert silent["biased"] and not trace["biased"]

    comparison = measure(model, guide, elbos, x, num_samples=50, reference="analytic")
    assert comparison.reference["loss_mean"] == pytest.approx(analytic, rel=1e-12)
    silent, trace = comparison.rows
    assert not silent["biased"] and trace["biased"]


def test_twins_with_a_network_have_a_noisy_reference():
    network = nn.Sequential(
        nn.Linear(2, 4), nn.Softmax(-1), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)
    )
    model, guide, x = twin_program(network)
    comparison = measure(model, guide, {"trace": Trace_ELBO()}, x, num_samples=8)
    assert comparison.reference["name"] == "LeaveOneOutELBO(num_particles=10)"
    assert not comparison.rows[0]["biased"]


def test_initial_values_that_are_drawn_are_no_noise():
    """``pyro.param(name, torch.randn(3))`` draws at every call and uses it at the first."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=torch.ones(3))

    def guide() -> None:
        loc = pyro.param("loc", torch.randn(3))
        pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    def twice(model, guide):
        return 2 * SilentELBO().differentiable_loss(model, guide)

    elbos = {"silent": SilentELBO(), "trace": Trace_ELBO(), "twice": twice}
    comparison = measure(model, guide, elbos, num_samples=30)
    silent, trace, twice_row = comparison.rows
    assert comparison.reference["exact"] and comparison.reference["grad_se"] == 0
    assert silent["exact"] and not silent["biased"] and not trace["biased"]
    assert "Use silent" in comparison.advice


def test_the_guide_may_be_an_autoguide_that_was_not_set_up():
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, scale), obs=torch.tensor(0.7))

    guide = autoguide.AutoNormal(model)
    comparison = measure(model, guide, {"trace": Trace_ELBO()}, num_samples=30)
    assert comparison.reference["exact"] and not comparison.rows[0]["biased"]
    names = {group["group"] for group in comparison.groups}
    assert names == {"guide", "AutoNormal.locs.scale", "AutoNormal.scales.scale"}


def test_a_minibatch_is_noise_though_every_term_is_exact():
    data = torch.linspace(-1, 1, 10)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", 10, subsample_size=3) as rows:
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[rows])

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5))

    elbos = {"silent": SilentELBO(), "trace": Trace_ELBO()}
    comparison = measure(model, guide, elbos, num_samples=30)
    silent, trace = comparison.rows
    assert not comparison.reference["exact"] and comparison.reference["grad_se"] > 0
    assert not silent["exact"] and 0 < silent["grad_std"] < trace["grad_std"]
    assert not silent["biased"] and not trace["biased"]


@pytest.mark.parametrize("differs", [2, 7], ids=["at once", "later"])
def test_a_loss_with_a_source_of_its_own_is_not_exact(differs):
    """Random numbers that no global generator gives, or whatever else changes from call to call."""
    bit, own, calls = Bit(), torch.Generator().manual_seed(0), []

    def loss(model, guide):
        calls.append(1)
        noise = torch.randn((), generator=own) if len(calls) > differs else 0.0
        return SilentELBO().differentiable_loss(model, guide) + noise * pyro.param("theta")

    comparison = measure(bit.model, bit.guide, {"own": loss}, num_samples=30)
    (row,) = comparison.rows
    assert not row["exact"] and row["num_samples"] == 30 and row["grad_std"] > 0
    assert not row["biased"]


def test_what_could_not_have_been_seen_is_in_every_row():
    bit = Bit()
    comparison = measure(bit.model, bit.guide, {"a": Trace_ELBO(), "b": SilentELBO()})
    noisy, silent = comparison.rows
    assert noisy["grad_bias_limit"] > 3 * noisy["grad_bias_se"] > 0
    assert silent["grad_bias_limit"] == 0
    for group in comparison.groups:
        if group["name"] == "a":
            assert group["grad_bias_limit"] >= 3 * group["grad_bias_se"]
