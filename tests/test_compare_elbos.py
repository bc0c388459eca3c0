"""The comparison example judges what it measures, and its page and README show the recorded figures."""

from __future__ import annotations

import copy
import csv
import json
import math
from argparse import Namespace
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, config_enumerate

import compare_elbos
import compare_elbos_claims as example_claims
import compare_elbos_problems as example_problems
from compare_elbos_report import page
from compare_elbos_training import LOSSES, training_claims
from pyro_silent import SilentELBO, compare
from tests.devices import seeded

DOCS = Path(__file__).parent.parent / "docs"
NUM_BITS = 3
NORM = 10.0
# The noise of each loss.
UNBIASED = {"Trace_ELBO": 4.0, "TraceGraph_ELBO, baselines": 3.0, "LeaveOneOutELBO": 2.0}
UNBIASED |= {"DisARMELBO": 2.0, "ZGR": 2.0}
BIASED = {"ST": 1.0, "ReinMax, tau 1.1": 1.0, "RelaxedELBO, tau 0.5": 1.0}
BIASED |= {"ST-GS, tau 1": 1.5, "GumbelRaoELBO, tau 1": 1.0}
BIASED |= {"ST-GS, tau 0.5": 2.5, "GumbelRaoELBO, tau 0.5": 1.5}


@pytest.fixture(scope="module")
def linear():
    """The problem with the linear decoder, tiny."""
    pyro.set_rng_seed(0)
    digits = torch.rand(8, 784, generator=seeded(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example_problems, "digits_of", lambda data_dir: (digits, digits))
        return example_problems.binary_code(NUM_BITS, 4, False, None)


def made_up(linear) -> Namespace:
    """Figures of which all claims are true."""
    rows, groups = [], []
    for name in linear.losses:
        exact = name in linear.exact
        noise = 0.0 if exact else (UNBIASED | BIASED)[name]
        bias = 1.0 if name in BIASED else 0.0
        row = {
            "name": name,
            "error": None,
            "exact": exact,
            "num_samples": 3 if exact else 100,
            "grad_std": noise,
            "grad_std_se": 0.01 * noise,
            "grad_bias": bias,
            "grad_bias_se": 0.1 * noise,
            "grad_rmse": math.hypot(noise, bias),
            "biased": name in BIASED,
        }
        rows.append(row)
        groups += [{**row, "group": group} for group in ("guide", "model")]
    advice = "Use SilentELBO: its gradient has no noise."
    return Namespace(rows=rows, groups=groups, reference={"grad_norm": NORM}, advice=advice)


def failed(linear, comparison: Namespace, at_start: bool = True) -> list[str]:
    return [c.sentence for c in example_claims.claims(linear, comparison, at_start) if not c.holds]


def changed(comparison: Namespace, name: str, **figures: object) -> Namespace:
    """The comparison with other figures of one loss, in all its groups."""
    comparison = copy.deepcopy(comparison)
    for row in [*comparison.rows, *comparison.groups]:
        if row["name"] == name:
            row.update(figures)
    return comparison


def test_true_claims_hold(linear):
    assert not failed(linear, made_up(linear))
    assert not failed(linear, made_up(linear), at_start=False)


@pytest.mark.parametrize(
    ("name", "figures", "complaint"),
    [
        ("SilentELBO", {"grad_std": 1e-9}, "SilentELBO has no noise"),
        ("SilentELBO", {"exact": False}, "SilentELBO has no noise"),
        ("TraceEnum_ELBO", {"grad_rmse": 2e-4}, "TraceEnum_ELBO has no noise and is 2e-05"),
        ("TraceEnum_ELBO", {"error": "no"}, "every loss has figures, but not TraceEnum_ELBO"),
        ("DisARMELBO", {"grad_bias": 0.92}, "no bias is found in DisARMELBO: at most 4.6"),
        ("ZGR", {"grad_bias": 0.92}, "no bias is found in ZGR: at most 4.6"),
        ("RelaxedELBO, tau 0.5", {"biased": False}, "RelaxedELBO, tau 0.5 is found to be biased"),
        ("GumbelRaoELBO, tau 1", {"grad_std": 1.45}, "tau 1: Gumbel-Rao's noise"),
        ("ST-GS, tau 0.5", {"grad_std": 1.4}, "tau 0.5: Gumbel-Rao's noise"),
    ],
)
def test_false_claims_fail(linear, name, figures, complaint):
    found = failed(linear, changed(made_up(linear), name, **figures))
    assert any(complaint in sentence for sentence in found), found


def test_the_advice_is_a_claim(linear):
    comparison = made_up(linear)
    comparison.advice = "Use Trace_ELBO: SilentELBO is slow."
    (sentence,) = failed(linear, comparison)
    assert sentence == "the advice is to use SilentELBO or TraceEnum_ELBO"


def test_later_on_gumbel_rao_need_not_be_clearly_below(linear):
    near = changed(made_up(linear), "GumbelRaoELBO, tau 1", grad_std=1.45)
    assert not failed(linear, near, at_start=False)
    above = changed(made_up(linear), "GumbelRaoELBO, tau 1", grad_std=1.7)
    assert failed(linear, above, at_start=False)


@pytest.mark.parametrize("ratio, holds", [(10**-0.5, True), (0.5, False)])
def test_ten_particles_have_a_tenth_of_the_variance(ratio, holds):
    rows = {
        "Trace_ELBO": {"grad_std": 1.0, "grad_std_se": 0.02},
        "Trace_ELBO, 10 particles": {"grad_std": ratio, "grad_std_se": 0.02},
    }
    (claim,) = example_claims._ratios(rows)
    assert claim.holds is holds


def test_the_exact_losses_of_both_decoders_agree_with_enumeration_by_hand(linear):
    """-ELBO summed over all codes with their probabilities, by Trace_ELBO's log densities."""
    torch.manual_seed(0)
    for deep in (False, True):
        vae = example_problems.BinaryVAE(NUM_BITS, torch.rand(784), deep)
        digits = torch.rand(2, 784)
        expected = 0.0
        for code in torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * NUM_BITS):
            values = {f"bit_{k}": code[k].expand(2) for k in range(NUM_BITS)}
            guide = pyro.poutine.trace(pyro.condition(vae.guide, values)).get_trace(digits)
            model = pyro.poutine.trace(pyro.condition(vae.model, values)).get_trace(digits)
            for trace in (guide, model):
                trace.compute_log_prob()
            log_q, log_p = (
                sum(site["log_prob"] for site in trace.nodes.values() if "log_prob" in site)
                for trace in (guide, model)
            )
            expected += (log_q.exp() * (log_q - log_p)).sum().item()
        losses = example_problems.binary_losses(deep)
        if not deep:
            assert SilentELBO().loss(vae.model, vae.guide, digits) == pytest.approx(expected, 1e-5)
        found = losses["TraceEnum_ELBO"](vae.model, vae.guide, digits)
        assert found.item() == pytest.approx(expected, rel=1e-5)
        found = SilentELBO().loss(vae.model, config_enumerate(vae.guide), digits)
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_exact_loss_of_the_regression_is_found_and_agrees_with_samples():
    problem = example_problems.regression(every=2000)
    losses = {name: problem.losses[name] for name in ("SilentELBO", "Trace_ELBO")}
    comparison = compare(
        problem.model, problem.guide, losses, problem.batch, num_samples=20, measure_memory=False
    )
    assert comparison.reference["exact"] and comparison.rows[0]["exact"]
    assert comparison.rows[0]["grad_rmse"] == 0.0 and not comparison.rows[1]["biased"]


def test_training_claims_fail_where_starts_differ_or_the_exact_loss_ends_above():
    def runs(gap: float, start: float = 1.0) -> Namespace:
        finals = {name: [2.0, 2.1, 2.2] for name in LOSSES}
        finals["Trace_ELBO"] = [2.0 + gap, 2.1 + gap, 2.2 + 1.01 * gap]
        curve = [
            {"name": n, "seed": s, "step": 0, "yardstick": 1.0} for n in LOSSES for s in (0, 1, 2)
        ]
        curve[-1]["yardstick"] = start
        return Namespace(
            rows=[{"name": name, "error": None} for name in LOSSES],
            curves=curve,
            runs=[{"name": n, "final": value} for n in LOSSES for value in finals[n]],
        )

    def complaints(trained: Namespace) -> list[str]:
        return [claim.sentence for claim in training_claims(trained) if not claim.holds]

    assert not complaints(runs(gap=0.3))
    assert "start from one value" in complaints(runs(gap=0.3, start=1.1))[0]
    assert "Trace_ELBO does not end below" in complaints(runs(gap=-0.3))[0]


def test_the_page_and_the_readme_are_made_from_the_record():
    record = json.loads((DOCS / "compare_elbos.json").read_text())
    assert (DOCS / "compare_elbos.md").read_text() == page(record)
    shown = compare_elbos.readme_table(record)
    assert shown in (DOCS.parent / "README.md").read_text()
    assert record["training"]["num_losses"] == len(LOSSES)
    names = {(name,) for c in record["comparisons"] for name in c["names"]}
    assert recorded("name").keys() == names


def recorded(*kinds: str) -> dict[tuple[str, ...], dict[str, str]]:
    with (DOCS / "compare_elbos.csv").open(newline="") as file:
        return {tuple(row[kind] for kind in kinds): row for row in csv.DictReader(file)}


def test_what_the_page_says_in_words_is_true_of_the_recorded_figures():
    rows = recorded("problem", "point", "name", "group")
    places = dict.fromkeys(place[:2] for place in rows)
    noise = {place: float(row["grad_std"]) for place, row in rows.items()}
    scores = tuple(example_problems.binary_losses_by_kind(deep=False)["unbiased"])
    surrogates = [name for name in BIASED if name.startswith(("ST", "GumbelRao"))]
    for place in places:
        if place[0] != "regression":
            least = min(noise[(*place, name, "guide")] for name in scores)
            assert least > max(noise[(*place, name, "guide")] for name in surrogates)
    later = max(point for problem, point in places if problem == "linear" and "after" in point)
    guides = {
        name: row
        for (*place, name, group), row in rows.items()
        if place == ["linear", later] and group == "guide"
    }
    sampled = {
        name: float(row["grad_std"])
        for name, row in guides.items()
        if name in BIASED or name in UNBIASED
    }
    assert min(sampled, key=sampled.__getitem__) == "ST"
    assert float(guides["ST"]["grad_cosine"]) < 0
    in_part = rows["regression", "first parameters", "TraceMeanField_ELBO", "all"]
    assert in_part["biased_in"] == "('AutoNormal.locs.spread',)"


def test_a_broken_loss_stops_the_program(tmp_path, monkeypatch, linear):
    """Trace_ELBO in the place of the exact loss: noise where none may be."""
    losses = {"SilentELBO": Trace_ELBO(), "Trace_ELBO": linear.losses["Trace_ELBO"]}
    wrong = linear._replace(losses=losses, exact=("SilentELBO",), unbiased=(), biased=())
    monkeypatch.setattr(compare_elbos, "problems", lambda args: {"linear": lambda: wrong})
    monkeypatch.setattr(compare_elbos, "train", lambda args: None)
    args = Namespace(problem=["linear"], points=[0], num_samples=5, seed=0, smoke_test=True)
    (measured,) = compare_elbos.measure_all(args)
    assert [claim.holds for claim in measured.claims][:2] == [True, False]
