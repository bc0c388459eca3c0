"""The figures of ``compare`` against enumeration, what a call costs, and that a seed decides them.

z-scores beyond 4.5 happen by chance with probability 7e-6 each; some 40 are looked at.
"""

from __future__ import annotations

import gc
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_silent import SilentELBO, StraightThrough, StraightThroughELBO, compare
from tests.diagnostics.comparison_programs import Bit, measure, no_clock, shifted
from tests.elbo.agreement import assert_close, gradients_of
from tests.elbo.discrete_oracle import pyro_loss

PROMISED = (
    "name loss_mean loss_std grad_std grad_bias grad_bias_se grad_rmse seconds_per_step peak_bytes"
).split()
NOT_FROM_THE_SEED = ("seconds_per_step", "seconds_se", "peak_bytes", "efficiency", "efficiency_se")
SAMPLES = 400
Z_LIMIT = 4.5


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    no_clock(monkeypatch)


@pytest.fixture(scope="module")
def bit_comparison():
    pyro.clear_param_store()
    bit = Bit()
    elbos = {
        "trace": Trace_ELBO(),
        "straight through": StraightThroughELBO(StraightThrough()),
        "silent": SilentELBO(),
    }
    return measure(bit.model, bit.guide, elbos, num_samples=SAMPLES)


def row_of(comparison, name: str, group: str = "all") -> dict:
    rows = comparison.rows if group == "all" else comparison.groups
    (row,) = [r for r in rows if r["name"] == name and r.get("group", "all") == group]
    return row


def truths(bit: Bit, name: str) -> tuple[Tensor, Tensor]:
    """Losses [2] and gradients [2, 2] at both values."""
    if name == "trace":
        return bit.losses(), bit.gradients()
    prior = torch.tensor([1 - bit.prior, bit.prior], dtype=torch.float64)
    divergence = (bit.probabilities() * (bit.probabilities().log() - prior.log())).sum()
    return divergence - bit._log_likelihood(), bit.straight_through()


def test_the_oracle_is_pyros_by_brute_force():
    bit = Bit()
    poutine.trace(bit.guide).get_trace()
    poutine.trace(bit.model).get_trace()
    exact = pyro_loss(bit.model, bit.guide)
    assert_close(bit.mean(bit.losses()), exact, 1e-12, "loss")
    truth = gradients_of(exact)
    for name, gradient in zip(("theta", "w"), bit.mean(bit.gradients())):
        assert_close(gradient, truth[name], 1e-12, name)


def z_score(figure: float, values: Tensor, bit: Bit) -> float:
    """Of a figure that is a mean over the samples of something with these values."""
    mean = bit.mean(values)
    deviation = (bit.mean(values**2) - mean**2).sqrt()
    return abs(((figure - mean) / deviation).item()) * math.sqrt(SAMPLES)


@pytest.mark.parametrize("name", ["trace", "straight through"])
@pytest.mark.parametrize("group, columns", [("all", [0, 1]), ("guide", [0]), ("model", [1])])
def test_figures_are_those_of_enumeration(bit_comparison, name, group, columns):
    bit, row = Bit(), row_of(bit_comparison, name, group)
    gradients = truths(bit, name)[1][:, columns]
    exact = bit.mean(bit.gradients())[columns]
    mean = bit.mean(gradients)
    bias = (mean - exact).norm().item()
    noise = bit.mean(((gradients - mean) ** 2).sum(-1)).item()
    square = (gradients**2).sum(-1)

    assert abs(row["grad_std"] - math.sqrt(noise)) < Z_LIMIT * row["grad_std_se"]
    # of the squared bias: that of an inner product with a mean of samples, and of the bias itself
    slack = noise * math.sqrt(math.log(SAMPLES)) / SAMPLES + 2 * bias * row["grad_bias_se"]
    noise_se = 2 * row["grad_std"] * row["grad_std_se"]
    assert abs(row["grad_rmse"] ** 2 - noise - bias**2) < Z_LIMIT * (noise_se + slack)

    norm_squared = bit.mean(gradients @ mean).item()
    spread = (bit.mean((gradients @ mean - norm_squared) ** 2) / SAMPLES).sqrt().item()
    assert abs(row["grad_norm"] ** 2 - norm_squared) < Z_LIMIT * (2 * spread + slack)

    cosine = (mean @ exact / (bit.mean(square) * (exact @ exact)).sqrt()).item()
    direction = gradients @ exact / (bit.mean(square) * (exact @ exact)).sqrt()
    jitter = direction - cosine * square / (2 * bit.mean(square))  # the delta method
    error = (bit.mean((jitter - bit.mean(jitter)) ** 2) / SAMPLES).sqrt().item()
    assert abs(row["grad_cosine"] - cosine) < Z_LIMIT * error + 1 / SAMPLES


def test_values_are_those_of_enumeration(bit_comparison):
    bit = Bit()
    for name in ("trace", "straight through"):
        losses = truths(bit, name)[0]
        row = row_of(bit_comparison, name)
        assert z_score(row["loss_mean"], losses, bit) < Z_LIMIT
        squares = (losses - bit.mean(losses)) ** 2
        variance = row["loss_std"] ** 2 * (SAMPLES - 1) / SAMPLES
        variance += (row["loss_mean"] - bit.mean(losses).item()) ** 2
        assert z_score(variance, squares, bit) < Z_LIMIT
    silent = row_of(bit_comparison, "silent")
    assert silent["loss_mean"] == pytest.approx(bit.mean(bit.losses()).item(), rel=1e-12)
    assert (silent["loss_std"], silent["grad_std"], silent["grad_rmse"]) == (0, 0, 0)
    assert silent["grad_norm"] == pytest.approx(bit.mean(bit.gradients()).norm().item(), rel=1e-12)
    assert silent["grad_cosine"] == pytest.approx(1.0, abs=1e-12)


def test_bias_is_found_where_it_is(bit_comparison):
    bit = Bit()
    row = row_of(bit_comparison, "straight through")
    bias = (bit.mean(bit.straight_through()) - bit.mean(bit.gradients())).norm().item()
    assert bias > 5 * row["grad_bias_se"], "else this shows nothing"
    assert row["biased"]
    assert row["grad_bias"] < bias + Z_LIMIT * row["grad_bias_se"]
    assert row["grad_bias"] > 0.9 * bias - Z_LIMIT * row["grad_bias_se"]
    trace = row_of(bit_comparison, "trace")
    assert not trace["biased"]
    assert abs(trace["grad_bias"]) < Z_LIMIT * trace["grad_bias_se"]
    # the model's parameter is not the one that straight-through gradients get wrong
    assert row_of(bit_comparison, "straight through", "guide")["biased"]
    assert not row_of(bit_comparison, "straight through", "model")["biased"]


def test_a_constant_bias_is_found_to_the_last_digit():
    bit = Bit()
    wrong = {"theta": torch.tensor(3e-4), "w": torch.tensor(-4e-4)}
    comparison = measure(
        bit.model, bit.guide, {"wrong": shifted(wrong, SilentELBO())}, num_samples=10
    )
    (row,) = comparison.rows
    assert row["biased"] and row["exact"]
    assert row["grad_bias"] == pytest.approx(5e-4, rel=1e-6)
    assert row["grad_rmse"] == pytest.approx(5e-4, rel=1e-6)
    assert row_of(comparison, "wrong", "guide")["grad_bias"] == pytest.approx(3e-4, rel=1e-6)
    assert row_of(comparison, "wrong", "w")["grad_bias"] == pytest.approx(4e-4, rel=1e-6)


def test_a_bias_in_the_model_alone_is_not_lost_in_the_guides_noise():
    bit = Bit()
    wrong = shifted({"w": torch.tensor(2.0)})
    comparison = measure(bit.model, bit.guide, {"wrong": wrong}, num_samples=50)
    assert row_of(comparison, "wrong", "model")["biased"]
    assert not row_of(comparison, "wrong", "guide")["biased"]
    assert row_of(comparison, "wrong")["biased"], "the row is flagged if a group is"


def test_rounding_is_not_a_bias():
    """One and the same loss, with an error of two units in the last place of single precision."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(40), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=torch.linspace(0, 3, 40))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.ones(40)), 0.3).to_event(1))

    def scaled(by: float):
        return lambda model, guide: by * SilentELBO().differentiable_loss(model, guide)

    elbos = {"rounded": scaled(1 + 2**-22), "wrong": scaled(1.001)}
    rounded, wrong = measure(model, guide, elbos, reference=SilentELBO()).rows
    assert rounded["grad_bias"] > 0 and not rounded["biased"]
    assert wrong["biased"]


def test_gradients_are_those_of_unconstrained_parameters():
    def guide() -> None:
        scale = pyro.param("scale", torch.tensor(1.5).double(), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(torch.zeros(()).double(), scale))

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))

    (row,) = measure(model, guide, {"silent": SilentELBO()}).rows
    assert row["grad_norm"] == pytest.approx(1.5**2 - 1, rel=1e-12), "with respect to log(scale)"


def test_rows_have_the_keys_that_were_promised(bit_comparison):
    for row in bit_comparison.rows:
        assert all(key in row for key in PROMISED)
        assert row["error"] is None
    assert [row["name"] for row in bit_comparison.rows] == ["trace", "straight through", "silent"]
    named = {(group["name"], group["group"]) for group in bit_comparison.groups}
    assert named == {
        (row["name"], group)
        for row in bit_comparison.rows
        for group in ("guide", "model", "theta", "w")
    }
    assert bit_comparison.reference["name"] == "SilentELBO()"


def test_efficiency_is_what_a_precision_costs(bit_comparison):
    for row in bit_comparison.rows:
        variance, seconds = row["grad_std"] ** 2, row["seconds_per_step"]
        assert row["efficiency"] == variance * seconds
        assert row["efficiency_se"] == pytest.approx(
            math.hypot(
                2 * row["grad_std"] * row["grad_std_se"] * seconds, variance * row["seconds_se"]
            )
        )
        assert seconds > 0


def test_samples_are_drawn_where_there_is_chance(bit_comparison):
    counts = {row["name"]: row["num_samples"] for row in bit_comparison.rows}
    assert counts == {"trace": SAMPLES, "straight through": SAMPLES, "silent": 10}


def test_arguments_reach_both_programs():
    def model(x, *, scale):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x, *, scale):
        pyro.sample("z", dist.Normal(pyro.param("w", torch.tensor(0.5)) * x, scale))

    x, scale = torch.tensor(2.0), 0.3
    arguments = {"args": (x,), "kwargs": {"scale": scale}, "measure_memory": False}
    (row,) = compare(model, guide, {"silent": SilentELBO()}, **arguments).rows
    exact = SilentELBO().loss(model, guide, x, scale=scale)
    assert row["loss_mean"] == pytest.approx(exact)


def figures(comparison) -> list:
    """All that a seed decides."""
    return [
        [(key, value) for key, value in row.items() if key not in NOT_FROM_THE_SEED]
        for row in [*comparison.rows, *comparison.groups, comparison.reference]
    ]


@pytest.mark.parametrize("reference", [None, Trace_ELBO(num_particles=2)], ids=["exact", "noisy"])
def test_the_seed_decides_the_figures(reference):
    bit, elbos = Bit(), {"trace": Trace_ELBO(), "silent": SilentELBO()}

    def once(state: int, **keywords):
        pyro.set_rng_seed(state)
        return figures(
            measure(bit.model, bit.guide, elbos, num_samples=10, reference=reference, **keywords)
        )

    first = once(1)
    assert once(1) == first
    assert once(2) == first, "whatever the random state outside is"
    assert once(1, seed=0) == first
    assert once(1, seed=1) != first


def test_figures_do_not_depend_on_what_stands_beside_them():
    bit = Bit()

    def of_trace(*others: str):
        elbos = {name: StraightThroughELBO(StraightThrough()) for name in others}
        comparison = measure(bit.model, bit.guide, {**elbos, "trace": Trace_ELBO()}, num_samples=10)
        return figures(comparison)[len(others)]

    assert of_trace() == of_trace("a", "b")


def test_memory_does_not_grow_with_the_samples():
    """Of a parameter's size there are itself, the reference's mean and the mean: two gradients."""
    size = 12_347
    start = torch.zeros(size)
    alive = []

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", start).mean(), 1.0))

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    def counted(model, guide):
        alive.append(0)
        if len(alive) in (8, 13):  # the fifth sample and the tenth, after two steps to warm up
            tensors = [o for o in gc.get_objects() if type(o) in (Tensor, torch.nn.Parameter)]
            alive[-1] = len({t.data_ptr() for t in tensors if t.numel() == size})
        return Trace_ELBO().differentiable_loss(model, guide)

    for reference in (SilentELBO(), Trace_ELBO()):
        alive.clear()
        measure(model, guide, {"counted": counted}, num_samples=12, reference=reference)
        assert alive[7] == alive[12]
        assert 1 < alive[7] <= 1 + 2


def test_progress_is_shown_when_asked_for(capsys):
    bit = Bit()
    for progress in (False, True):
        measure(bit.model, bit.guide, {"a": SilentELBO()}, num_samples=5, progress=progress)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert ("5/5" in printed.err) == progress


def test_peak_memory_is_measured_unless_declined():
    size = 100_000

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(size)), 1.0).to_event(1))

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1))

    elbos = {"trace": Trace_ELBO()}
    (row,) = compare(model, guide, elbos, num_samples=3).rows
    assert 4 * size < row["peak_bytes"] < 100 * 4 * size
    (row,) = measure(model, guide, elbos, num_samples=3).rows
    assert row["peak_bytes"] is None
