"""The rules of the advice, one by one, on rows written by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from pyro_silent.diagnostics.advice import advice, visible_bias
from tests.diagnostics.gradient_oracle import bias_terms

EXACT = {
    "name": "exact",
    "exact": True,
    "num_samples": 10,
    "loss_mean": 1.0,
    "grad_norm": 10.0,
    "grad_se": 0.0,
}


def row(name: str, std: float = 1.0, seconds: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A loss without bias, its figures known to 1%; the efficiency is std**2 * seconds."""
    figures = {
        "name": name,
        "loss_mean": 1.0,
        "loss_std": 0.1,
        "grad_norm": 10.0,
        "grad_std": std,
        "grad_std_se": 0.005 * std,
        "grad_bias": 0.0,
        "grad_bias_se": 0.1 * std,
        "grad_rmse": std,
        "grad_cosine": 0.9,
        "biased": False,
        "biased_in": (),
        "exact": std == 0,
        "seconds_per_step": seconds,
        "seconds_se": 0.01 * seconds,
        "peak_bytes": 100,
        "efficiency": std**2 * seconds,
        "efficiency_se": 0.01 * std**2 * seconds,
        "num_samples": 100,
        "error": None,
    }
    assert changes.keys() <= figures.keys()
    return {**figures, **changes}


def biased(name: str, std: float = 0.5, bias: float = 5.0, **changes: Any) -> dict[str, Any]:
    figures = {"grad_bias": bias, "grad_rmse": math.hypot(std, bias), "biased": True}
    return row(name, std, **{**figures, "biased_in": ("all",), **changes})


def failed(name: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("grad_std", "grad_norm", "efficiency", "seconds_per_step"), math.nan)
    return row(name, error="ValueError: no", num_samples=0, **nothing)


def test_no_figures():
    for rows in ([failed("a"), failed("b")], [failed("a")]):
        told = advice(rows, EXACT)
        assert told == "No loss has finite figures, so there is nothing to choose from."


def test_no_choice():
    expected = "Only a has finite figures, so there is nothing to choose from."
    assert advice([row("a")], EXACT) == expected
    assert advice([row("a"), failed("b")], EXACT) == expected
    assert advice([row("a"), row("b", efficiency=math.nan)], EXACT) == expected


def test_no_gradient():
    rows = [row("a", 0.0, grad_norm=0.0), row("b", 0.0, grad_norm=0.0)]
    assert advice(rows, {**EXACT, "grad_norm": 0.0}).startswith("No loss has a gradient here")


def test_rule_1_all_are_biased():
    told = advice([biased("a", bias=5.0), biased("b", bias=3.0)], EXACT)
    assert told == (
        "Every loss is biased against the reference. b has the smallest RMSE, 3.04; its bias, 3.00, "
        "does not average out."
    )


def test_rule_2_one_without_noise():
    told = advice([row("noisy", seconds=0.5), row("silent", 0.0)], EXACT)
    assert told == (
        "Use silent: its gradient has no noise and no bias was found; a step takes 2.00 x the time of "
        "the fastest, noisy."
    )
    told = advice([row("noisy", seconds=2.0), row("silent", 0.0)], EXACT)
    assert told == (
        "Use silent: its gradient has no noise and no bias was found, and no step is faster."
    )


def test_rule_2_the_fastest_of_those_without_noise():
    rows = [row("slow", 0.0, 2.0), row("quick", 0.0, 1.0), row("noisy", 1.0, 5.0)]
    assert advice(rows, EXACT).startswith("Use quick: its gradient has no noise")
    # within three standard errors of the fastest it is the order that decides
    rows = [row("first", 0.0, 1.01), row("second", 0.0, 1.0), row("noisy", 1.0, 5.0)]
    assert advice(rows, EXACT).startswith("Use first: its gradient has no noise")


def test_rule_2_a_biased_one_without_noise_is_not_it():
    told = advice([biased("constant", 0.0, bias=0.1), row("noisy")], EXACT)
    assert told.startswith("Use noisy: it is the only loss in which no bias was found.")
    assert told.endswith("constant has a smaller RMSE and a bias that does not average out.")


def test_rule_2_equal_draws_are_not_no_noise():
    """It drew random numbers, and all samples were equal; something rare was not seen."""
    lucky = row("lucky", 0.0, exact=False, grad_bias_se=math.nan)
    told = advice([lucky, row("noisy")], EXACT)
    assert "no noise" not in told
    told = advice([lucky, row("silent", 0.0), row("noisy")], EXACT)
    assert told.startswith("Use silent")


def test_rule_3_the_least_noise_for_the_time():
    rows = [row("cheap", 2.0, 1.0), row("dear", 1.0, 2.0), row("worst", 3.0, 1.0)]
    told = advice(rows, EXACT)
    assert told == (
        "Use dear: of the losses in which no bias was found, it reaches a given precision of the "
        "gradient in the least time, 2.00 x less than the next, cheap."
    )


def test_rule_3_what_cannot_be_told_apart_is_not():
    a, b = row("a", 1.0, 1.0), row("b", 1.0, 1.03)  # 2.1 standard errors of the difference
    expected = (
        "a and b cannot be told apart by their noise variance x seconds; draw more samples, or choose "
        "by other reasons."
    )
    assert advice([a, b, row("c", 3.0)], EXACT) == expected
    assert advice([b, a, row("c", 3.0)], EXACT) == expected
    apart = row("b", 1.0, 1.06)  # 4.1 of them
    assert advice([a, apart, row("c", 3.0)], EXACT).startswith("Use a: of the losses")
    unknown = row("b", 1.0, 3.0, efficiency_se=math.nan)
    assert "cannot be told apart" in advice([a, unknown], EXACT)


def test_rule_3_biased_ones_do_not_run():
    told = advice([biased("quick", 0.1, bias=50.0), row("a", 1.0), row("b", 2.0)], EXACT)
    assert told.startswith("Use a: of the losses in which no bias was found")
    assert "quick" not in told, "its RMSE is larger too"


def test_rule_4_less_error_in_few_steps():
    rows = [row("a", 4.0), row("b", 8.0), biased("c", 0.1, bias=1.0), biased("d", 0.1, bias=2.0)]
    assert advice(rows, EXACT).endswith(
        "c and d have a smaller RMSE and a bias that does not average out."
    )


def test_a_bias_that_could_hide_is_told():
    told = advice([row("a", grad_bias_se=2.0), row("b", 5.0)], EXACT)
    assert "A bias of a below 6." in told and "could not have been seen." in told
    told = advice([row("a", grad_bias_se=0.1), row("b", 5.0)], EXACT)
    assert "could not have been seen" not in told, "below a tenth of the gradient"


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_bias_at_the_limit_shows_as_three_standard_errors(size):
    """On average over repetitions; in many dims its direction is found late."""
    n, repetitions = 50, 200
    error = 1 / math.sqrt(n)
    limit = visible_bias(math.sqrt(size), n, error, 0.0)
    generator = np.random.default_rng(size)
    found = []
    for _ in range(repetitions):
        g = generator.normal(size=(n, size))
        g[:, 0] += limit
        found.append(bias_terms(g, np.zeros_like(g), np.zeros(size)).mean() / error)
    assert abs(np.mean(found) - 3) < 0.2 + 4.5 / math.sqrt(repetitions)


def test_a_reference_of_its_own_error_hides_more():
    rough = {**EXACT, "exact": False, "grad_se": 20.0}
    told = advice([row("a", grad_bias_se=2.0), row("b", 5.0)], rough)
    hidden = float(told.partition("A bias of a below ")[2].split()[0])
    assert hidden > 6.0


def test_without_a_reference_no_bias_is_known():
    unknown = dict.fromkeys(("grad_bias", "grad_bias_se", "grad_rmse", "grad_cosine"), math.nan)
    told = advice([row("a", **unknown), row("b", 5.0, **unknown)], {})
    assert told.startswith("Use a: of the losses")
    assert "Bias is not known" in told


def test_samples_that_tell_nothing_are_not_an_acquittal():
    told = advice([row("a", grad_bias_se=math.nan), row("b", 5.0)], EXACT)
    assert "The samples do not tell whether a is biased." in told


def test_every_mixture_of_rows_has_an_advice():
    """None divides by zero or compares with nothing."""
    kinds = [
        row("noisy"),
        row("silent", 0.0),
        row("lucky", 0.0, exact=False, grad_bias_se=math.nan),
        biased("biased"),
        biased("constant", 0.0),
        failed("failed"),
        row("unknown", efficiency_se=math.nan, seconds_se=math.nan),
        row("timeless", seconds_per_step=0.0, efficiency=0.0, efficiency_se=0.0),
    ]
    references = [EXACT, {}, {**EXACT, "grad_norm": 0.0}]
    for rows in itertools.product(kinds, kinds, kinds):
        for reference in references:
            told = advice(list(rows), reference)
            assert told.endswith((".", "?")) and "nan" not in told
