"""Every kind of loss can stand in a comparison: Pyro's, ours, functions; what is none cannot."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    JitTrace_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from torch import nn

from pyro_silent import (
    ZGR,
    AnnealedELBO,
    ConfigurationError,
    DisARMELBO,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    Linear,
    RelaxedELBO,
    SilentELBO,
    StraightThroughELBO,
    compare,
)
from tests.diagnostics.comparison_programs import Bit, measure, no_clock


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    no_clock(monkeypatch)


def handwritten(model, guide, *args, **kwargs):
    """A function as ``SVI`` takes it."""
    return Trace_ELBO().differentiable_loss(model, guide, *args, **kwargs)


UNBIASED = {
    "Trace": Trace_ELBO(),
    "Trace, vectorized": Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=0),
    "Graph": TraceGraph_ELBO(),
    "function": handwritten,
    "ours, exact": SilentELBO(),
    "ours, unbiased": LeaveOneOutELBO(),
    "ours, antithetic": DisARMELBO(),
    "ours, partly sampled": SilentELBO(intractable="sample"),
    "ours, blended": AnnealedELBO(SilentELBO(), Trace_ELBO(), Linear(1.0, 0.0, 10)),
}
OF_ANOTHER_OBJECTIVE = {
    "Renyi": RenyiELBO(alpha=0, num_particles=8),
    "wake": ReweightedWakeSleep(num_particles=8),
    "wake and sleep": ReweightedWakeSleep(
        num_particles=8, insomnia=0.5, model_has_params=True, num_sleep_particles=2
    ),
}
BIASED = {
    "ours, straight through": StraightThroughELBO(ZGR()),
    "ours, Gumbel": GumbelRaoELBO(temperature=0.7),
    "ours, relaxed": RelaxedELBO(),
}


class Observed(Bit):
    """The bit with its data given by name, as the sleep phase wants it."""

    def model(self, observations: dict) -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(self.prior).double()))
        w = pyro.param("w", torch.tensor(self.w).double())
        pyro.sample("x", dist.Normal(w * z, self.scale), obs=observations["x"])

    def guide(self, observations: dict) -> None:
        theta = pyro.param("theta", torch.tensor(self.theta).double())
        slope = pyro.param("slope", torch.tensor(0.3).double())
        pyro.sample("z", dist.Bernoulli(logits=theta + slope * observations["x"]))


def test_every_kind_of_loss_runs():
    bit = Observed()
    elbos = {**UNBIASED, **OF_ANOTHER_OBJECTIVE, **BIASED}
    data = {"observations": {"x": torch.tensor(bit.x).double()}}
    comparison = measure(bit.model, bit.guide, elbos, kwargs=data, num_samples=40)
    rows = {row["name"]: row for row in comparison.rows}
    assert {name: row["error"] for name, row in rows.items()} == dict.fromkeys(elbos)
    for name, row in rows.items():
        assert math.isfinite(row["loss_mean"]) and row["grad_norm"] > 0, name
        assert row["seconds_per_step"] > 0 and math.isfinite(row["grad_bias"]), name
    flagged = {name for name, row in rows.items() if row["biased"]}
    assert not flagged & set(UNBIASED), "each by chance with probability 0.004"
    assert {"Renyi", "wake and sleep"} <= flagged, "other objectives have other gradients"
    assert rows["ours, exact"]["exact"] and rows["ours, partly sampled"]["exact"]
    assert not rows["Trace"]["exact"]
    notes = "\n".join(comparison.notes)
    assert "Renyi follows a Rényi bound" in notes
    assert "wake and sleep follows the wake and sleep objectives" in notes
    assert "Trace follows" not in notes


def test_a_loss_that_enumerates_is_exact():
    bit = Bit()
    guide = pyro.infer.config_enumerate(bit.guide, "parallel")
    comparison = measure(bit.model, guide, {"enum": TraceEnum_ELBO(max_plate_nesting=0)})
    (row,) = comparison.rows
    assert comparison.reference["exact"] and row["exact"] and not row["biased"]
    assert row["grad_std"] == 0 and row["grad_rmse"] < 1e-12
    assert row["loss_mean"] == pytest.approx(bit.mean(bit.losses()).item(), rel=1e-12)


def test_losses_of_continuous_latents_run():
    """Tail-adaptive gradients need reparameterized sites; the jit needs a model that it can trace."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=torch.ones(2))

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit's future
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        elbos = {
            "jit": JitTrace_ELBO(),
            "tail": TraceTailAdaptive_ELBO(
                num_particles=4, vectorize_particles=True, max_plate_nesting=1
            ),
            "path": TraceMeanField_ELBO(),
            "trace": Trace_ELBO(),
        }
        comparison = measure(model, guide, elbos, num_samples=40)
    rows = {row["name"]: row for row in comparison.rows}
    assert [row["error"] for row in comparison.rows] == [None] * 4
    assert rows["jit"]["grad_std"] == pytest.approx(rows["trace"]["grad_std"], rel=0.5)
    assert not rows["jit"]["biased"] and not rows["path"]["biased"]
    assert rows["path"]["grad_std"] < rows["trace"]["grad_std"], "an analytic divergence"


def test_a_loss_may_be_a_function_that_returns_a_number():
    """One that calls ``backward`` itself, and one with a single latent that has no gradient at all."""
    bit = Bit()

    def done(model, guide):
        value = Trace_ELBO().differentiable_loss(model, guide)
        value.backward()
        return value.item()

    elbos = {"done": done, "trace": Trace_ELBO(), "constant": lambda model, guide: 3.0}
    done_row, trace_row, constant = measure(bit.model, bit.guide, elbos, num_samples=20).rows
    for key in ("loss_mean", "grad_std", "grad_bias", "grad_rmse"):
        assert done_row[key] == trace_row[key]
    assert (constant["loss_mean"], constant["grad_norm"], constant["grad_std"]) == (3.0, 0.0, 0.0)
    assert constant["biased"]


def test_sparse_gradients_of_a_deterministic_loss():
    table = nn.Embedding(4, 2, sparse=True)

    def model() -> None:
        pyro.module("table", table)
        loc = table(torch.tensor([1, 2])).sum()
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(0.0))

    def guide() -> None:
        pass

    comparison = measure(model, guide, {"trace": Trace_ELBO(), "silent": SilentELBO()})
    trace, silent = comparison.rows
    assert comparison.reference["exact"] and not trace["biased"]
    loc = table.weight[1:3].sum().item()
    assert trace["grad_norm"] == pytest.approx(2 * abs(loc), rel=1e-5)
    assert silent["grad_norm"] == pytest.approx(2 * abs(loc), rel=1e-5)


def test_gradients_that_are_not_finite_are_told():
    bit = Bit()

    def broken(model, guide):
        return SilentELBO().differentiable_loss(model, guide) * math.inf

    elbos = {"broken": broken, "silent": SilentELBO()}
    comparison = measure(bit.model, bit.guide, elbos)
    broken_row, silent = comparison.rows
    assert broken_row["error"] is None and not math.isfinite(broken_row["grad_std"])
    assert not broken_row["biased"]
    assert "broken gave values or gradients that are not finite." in comparison.notes
    assert (
        comparison.advice == "Only silent has finite figures, so there is nothing to choose from."
    )
    str(comparison), comparison._repr_html_()


def test_a_program_without_parameters():
    def program() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    comparison = measure(program, program, {"trace": Trace_ELBO(), "silent": SilentELBO()})
    assert all(row["error"] is None and row["grad_norm"] == 0 for row in comparison.rows)
    assert "is there a parameter" in comparison.advice


def test_a_parameter_of_guide_and_model_is_in_both_groups():
    def model() -> None:
        z = pyro.sample("z", dist.Normal(pyro.param("both", torch.tensor(0.5)), 1.0))
        pyro.sample(
            "x", dist.Normal(z, pyro.param("scale", torch.tensor(0.6))), obs=torch.tensor(1.0)
        )

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor(0.1)) + pyro.param("both")
        pyro.sample("z", dist.Normal(loc, 0.3))

    pyro.param("both", torch.tensor(0.5))
    comparison = measure(model, guide, {"silent": SilentELBO()})
    squares = {group["group"]: group["grad_norm"] ** 2 for group in comparison.groups}
    assert squares["guide"] == pytest.approx(squares["both"] + squares["loc"])
    assert squares["model"] == pytest.approx(squares["both"] + squares["scale"])
    assert comparison.rows[0]["grad_norm"] ** 2 == pytest.approx(
        squares["both"] + squares["scale"] + squares["loc"]
    )


ERRORS = [
    ({"elbos": [Trace_ELBO()]}, r"elbos: got \[.*expected a dict from names to losses; write"),
    ({"elbos": {}}, "elbos: got an empty dict, expected at least one loss"),
    (
        {"elbos": {"a": Trace_ELBO}},
        r"elbos\['a'\]: got the class Trace_ELBO, .* write Trace_ELBO\(\)",
    ),
    ({"elbos": {"a": 3}}, r"elbos\['a'\]: got 3, expected an ELBO"),
    ({"elbos": {7: Trace_ELBO()}}, "elbos: got the name 7, expected text"),
    ({"elbos": {" ": Trace_ELBO()}}, "elbos: got the name ' ', expected text"),
    ({"args": torch.ones(2)}, r"args: got Tensor, expected the tuple .* write args=\(x,\)"),
    ({"args": "data"}, "args: got str, expected the tuple"),
    ({"kwargs": [1]}, "kwargs: got list, expected the dict"),
    ({"num_samples": 2}, "num_samples: got 2, expected at least 3"),
    ({"num_samples": 0}, "num_samples: got 0"),
    ({"num_samples": 10.0}, "num_samples: got 10.0"),
    ({"num_samples": True}, "num_samples: got True"),
    ({"seed": -1}, "seed: got -1, expected an integer from 0"),
    ({"seed": 0.5}, "seed: got 0.5, expected an integer from 0"),
    ({"reference": "trce"}, r"reference: got 'trce', expected one of the names \['trace'\]"),
    ({"reference": SilentELBO}, r"reference: got the class SilentELBO, .* write SilentELBO\(\)"),
    ({"reference": 1.0}, "reference: got 1.0, expected an ELBO"),
]


@pytest.mark.parametrize("arguments, message", ERRORS, ids=[message for _, message in ERRORS])
def test_arguments_that_make_no_sense(arguments, message):
    """Before anything runs."""

    def never(*args, **kwargs):
        raise AssertionError("a program ran")

    arguments = {"elbos": {"trace": Trace_ELBO()}, **arguments}
    with pytest.raises(ConfigurationError, match=message):
        compare(never, never, **arguments)


@pytest.mark.parametrize("seed", [0, 2**32, 10**20])
def test_any_seed_from_zero(seed):
    bit = Bit()
    (row,) = measure(bit.model, bit.guide, {"a": Trace_ELBO()}, num_samples=3, seed=seed).rows
    assert row["error"] is None


def test_programs_that_fail_in_every_loss():
    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    calls = []

    def model() -> None:
        calls.append(1)
        pyro.sample("z", dist.Normal(0.0, 1.0))
        if len(calls) > 1:
            raise OSError("the file is gone")

    comparison = measure(model, guide, {"a": Trace_ELBO(), "b": SilentELBO()})
    assert [row["error"] for row in comparison.rows] == ["OSError: the file is gone"] * 2
    assert comparison.reference == {} and comparison.groups == []
    assert comparison.advice == "No loss has finite figures, so there is nothing to choose from."
    assert "a failed: OSError: the file is gone" in str(comparison)
