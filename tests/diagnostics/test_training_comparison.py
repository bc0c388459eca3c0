"""The result of train_and_compare: figures over seeds, advice by stated rules, text, CSV and picture."""

from __future__ import annotations

import csv
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import scipy.stats

from pyro_silent import ConfigurationError, TrainingComparison
from pyro_silent.diagnostics.student_t import student_t
from pyro_silent.diagnostics.training_record import Record


def record(name: str, seed: int, *values: float, **options) -> Record:
    """A run whose evaluations, ten steps apart, had these values."""
    curve = [
        {
            "step": 10 * i,
            "seconds": 0.5 * i,
            "loss": None if i == 0 else value + 1,
            "yardstick": value,
        }
        for i, value in enumerate(values)
    ]
    steps = 10 * (len(values) - 1)
    return Record(name, seed, curve, steps, 0.05 * steps, **options)


def compared(finals: dict[str, list[float]]) -> TrainingComparison:
    records = [
        record(name, seed, 9.0, value)
        for name, values in finals.items()
        for seed, value in enumerate(values)
    ]
    return TrainingComparison.of(records, list(finals), "exact -ELBO")


@pytest.fixture
def mixed() -> TrainingComparison:
    """A loss with two good runs, one that stopped early, one that failed at one seed."""
    records = [
        record("silent", 0, 9.0, 3.0, 2.0),
        record("trace", 0, 9.0, 5.0, stopped="step 10: no new best"),
        record("broken", 0, 9.0, 4.0, error="step 11: the loss is nan"),
        record("silent", 1, 8.0, 3.5, 4.0),
        record("trace", 1, 8.0, 5.5, 5.0),
        record("broken", 1, 8.0, 6.0, 7.0),
    ]
    return TrainingComparison.of(records, ["silent", "trace", "broken"], "exact -ELBO")


def test_rows(mixed):
    silent, trace, broken = mixed.rows
    assert silent == {
        "name": "silent",
        "final_mean": 3.0,
        "final_std": math.sqrt(2.0),
        "best_mean": 2.75,
        "steps_mean": 20.0,
        "seconds_mean": 1.0,
        "num_seeds": 2,
        "stopped": None,
        "error": None,
    }
    assert trace["stopped"] == "seed 0: step 10: no new best" and trace["steps_mean"] == 15
    assert broken["error"] == "seed 0: step 11: the loss is nan"
    assert (broken["final_mean"], broken["final_std"], broken["num_seeds"]) == (7.0, None, 1)
    assert [run["best_step"] for run in mixed.runs if run["name"] == "silent"] == [20, 10]


def test_seeds_of_which_the_same_is_said_stand_together():
    failed = [record("a", seed, 1.0, error="step 1: no.") for seed in (0, 3)]
    other = record("a", 5, 1.0, error="step 2: never")
    (row,) = TrainingComparison.of([*failed, other], ["a"], "exact").rows
    assert row["error"] == "seeds 0, 3: step 1: no; seed 5: step 2: never"


def test_text_and_html(mixed):
    lines = str(mixed).splitlines()
    assert lines[0].split() == ["Loss", "Final", "±", "seeds", "Best", "Steps", "Seconds", "Seeds"]
    assert lines[2].split() == ["silent", "3.0000", "1.4", "2.7500", "20", "1.00", "2"]
    assert lines[5] == '"broken" failed: seed 0: step 11: the loss is nan.'
    assert lines[6] == '"trace" stopped early: seed 0: step 10: no new best.'
    assert lines[7] == "Yardstick: exact -ELBO."
    assert lines[8] == mixed.advice and '"broken"' not in mixed.advice
    page = compared({"<b>": [1.0], "b": [2.0]})._repr_html_()
    assert "&lt;b&gt;" in page and "<b>" not in page and page.count("<tr>") == 3
    assert repr(mixed) == "TrainingComparison(silent, trace, broken; 6 runs)"
    with pytest.raises(FrozenInstanceError):
        mixed.yardstick = "another"


@pytest.mark.parametrize(
    ("finals", "advice"),
    [
        ({"a": [math.inf]}, "No loss was trained to the end."),
        ({"a": [1.0], "b": [math.inf]}, 'Only "a" was trained to the end: there is nothing'),
        (
            {"a": [2.0], "b": [1.5]},
            '"b" ended lowest; "a" by 0.500 higher. With one seed the spread',
        ),
        ({"a": [2.0], "b": [2.0]}, '"b" level with "a". With one seed the spread'),
        (
            {"a": [1.0, 2.0, 3.0], "b": [1.5, 2.51, 3.49]},
            'Over 3 seeds, "a" ended lower than "b" by 0.500 ± 0.0058, beyond chance '
            "(1 % for all losses together).",
        ),
        (
            {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.5, 4.0]},
            'Over 3 seeds, not told apart from "a": "b" (0.500 ± 0.29 higher).',
        ),
        ({"a": [1.0, 2.0], "b": [1.0, 2.0]}, 'Over 2 seeds, not told apart from "a": "b".'),
        (
            {"a": [1.0, 1.0], "b": [1.5, 1.5], "c": [1.0, 1.1]},
            'Over 2 seeds, "a" ended lower than "b" by 0.500 ± 0.0, beyond chance '
            "(1 % for all losses together); "
            'not told apart from "a": "c" (0.0500 ± 0.050 higher). More seeds would tell more.',
        ),
    ],
)
def test_advice(finals, advice):
    assert compared(finals).advice.startswith(advice)


def test_quantiles_of_student_t():
    for freedom in (*range(1, 12), 30, 101, 1000):
        for tail in (0.3, 0.01, 0.01 / 91):
            exact = scipy.stats.t.ppf(1 - tail / 2, freedom)
            assert student_t(freedom, tail) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("num_losses", "num_seeds"), [(2, 2), (2, 5), (5, 4)])
def test_equal_losses_are_told_apart_one_time_in_a_hundred(num_losses, num_seeds):
    """Noise shared by a seed cancels; beyond 4.5 standard errors 1 in 150,000.

    Bonferroni's level is exact for one pair and an upper bound for several.
    """
    generator, told = np.random.default_rng(num_seeds), 0
    repetitions = 1000 if num_losses == 2 else 300
    for _ in range(repetitions):
        finals = generator.normal(size=(num_losses, num_seeds)) + 10 * generator.normal(
            size=num_seeds
        )
        rows = {str(name): list(values) for name, values in enumerate(finals)}
        told += "ended lower" in compared(rows).advice
    excess = (told - 0.01 * repetitions) / math.sqrt(repetitions * 0.01 * 0.99)
    assert excess < 4.5
    assert num_losses > 2 or excess > -3.1, "ten are expected, none would be too few"


def test_csv_files_give_the_figures_back(mixed, tmp_path):
    path = tmp_path / "figures.csv"
    for table in ("curves", "rows", "runs"):
        mixed.to_csv(path, table)
        with open(path, newline="") as file:
            lines = list(csv.DictReader(file))
        rows = getattr(mixed, table)
        assert len(lines) == len(rows)
        for line, row in zip(lines, rows):
            assert line == {key: "" if value is None else str(value) for key, value in row.items()}
    mixed.to_csv(path)
    assert path.read_text().splitlines()[:2] == [
        "name,seed,step,seconds,loss,yardstick",
        "silent,0,0,0.0,,9.0",
    ]
    with pytest.raises(
        ConfigurationError, match="table: got 'figures', expected one of \"curves\""
    ):
        mixed.to_csv(path, "figures")
    with pytest.raises(ConfigurationError, match="table: got 'curves', which is empty"):
        TrainingComparison.of([Record("a", 0, error="at once")], ["a"], "exact").to_csv(path)


def test_names_with_dollars_underscores_and_newlines(tmp_path):
    comparison = compared({"_a$x_$": [1.0], "b\nc": [2.0]})
    comparison.plot(tmp_path / "names.svg")
    assert len(str(comparison).splitlines()) == 6
    assert '"b c" by 1.00 higher' in comparison.advice


def test_the_picture(mixed, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k))
    )
    mixed.plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    steps, seconds = figures[0].axes
    lines = {
        line.get_label().strip("\u200b"): line
        for line in steps.lines
        if line.get_linestyle() == "-"
    }
    assert lines["silent"].get_xdata().tolist() == [0, 10, 20]
    assert lines["silent"].get_ydata().tolist() == [8.5, 3.25, 3.0]
    assert lines["trace"].get_ydata().tolist() == [8.5, 5.25, 5.0], "a stopped run keeps its value"
    assert lines["broken"].get_ydata().tolist() == [8.0, 6.0, 7.0]
    (dotted,) = (line for line in steps.lines if line.get_linestyle() == ":")
    assert dotted.get_ydata().tolist() == [9.0, 4.0]
    assert len(steps.collections) == 2, "bands of the losses with two good runs"
    assert seconds.lines[0].get_xdata().tolist() == [0.0, 0.5, 1.0]
    low, high = steps.get_ylim()
    assert low < 2.0 and high < 8.5, "the start may lie outside"
