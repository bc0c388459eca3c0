"""The report of the annealed VAE: paired differences, collapsed runs, tables and sentences."""

from __future__ import annotations

import math

import pytest
import torch

import annealed_vae_picture
import annealed_vae_report
import annealed_vae_statements
from annealed_vae_readings import headlines, readings
from annealed_vae_runs import COLLAPSE_NATS, Job
from annealed_vae_statements import REFERENCE, STATEMENTS, Statement, checked
from annealed_vae_summary import (
    ARMS,
    AT_EQUAL_STEPS,
    AT_EQUAL_TIME,
    FALSE_ALARMS,
    STANDARD_ERRORS,
    Gap,
    curve_at,
    gains,
    gap,
    gap_along,
    is_collapsed,
    noise_at,
    races,
    row_names,
    summarize,
)
from annealed_vae_tables import gains_table, noise_table, search_table, table

NO_CODE = -50.0


def run(arm: str, seed: int, elbo: float | None, **changes: object) -> dict:
    """A record; at equal time one nat above equal steps. ``elbo`` None: diverged."""
    job = Job("test", "digits", 100, 10, "MLP", "Gaussian", 32, "reparam", 20, 100, seed, arm, 1e-3,
              1.0, "none" if arm == "plain" else "linear", 0.5)  # fmt: skip
    record = {
        **job._asdict(), "elbo": elbo, "elbo_equal_time": None if elbo is None else elbo + 1,
        "linear_elbo": None, "kl": 10.0, "active_units": 8, "collapsed": None if elbo is None else False,
        "diverged": elbo is None, "no_code_elbo": NO_CODE, "train_seconds": 0.2, "steps_equal_time": 100,
        "seconds_equal_time": 4.0, "curve": [[0, 0.0, 0.0], [50, 2.0, elbo], [100, 4.0, elbo]],
        "noise": [[0, 1.0, 9.0, 1.0], [50, 0.5, 4.0, 1.0], [100, 0.0, 1.0, 1.0]], "evaluate_seconds": 0.0,
    }  # fmt: skip
    return {**record, **changes}


def collapsed(arm: str, seed: int, **changes: object) -> dict:
    return run(arm, seed, NO_CODE + 1, collapsed=True, active_units=0, kl=0.0, **changes)


# silent - control: 1, 3, 8; control - KL warm-up: 20, 18, 22. Unpaired errors would be far larger.
ELBOS = {
    "plain": (10.0, 20.0, 30.0),
    "KL warm-up": (100.0, 150.0, 50.0),
    "control": (120.0, 168.0, 72.0),
    "silent": (121.0, 171.0, 80.0),
}
FULL = [run(arm, seed, elbo) for arm in ARMS for seed, elbo in enumerate(ELBOS[arm])]


def arms_of(records: list[dict]) -> dict:
    (arms,) = races(records).values()
    return arms


def test_a_paired_standard_error_by_hand():
    found = gap(arms_of(FULL), "silent", "control", AT_EQUAL_STEPS)
    # deviations from the mean 4: -3, -1, 4; (9 + 1 + 16) / 2 = 13
    assert found == Gap(pytest.approx(4.0), pytest.approx(math.sqrt(13 / 3)), 3)
    assert found.verdict == "unclear"  # 4 < 2 * 2.08
    assert str(found) == "+4.0 ± 2.1"
    curriculum = gap(arms_of(FULL), "control", "KL warm-up", AT_EQUAL_STEPS)
    assert curriculum == Gap(pytest.approx(20.0), pytest.approx(2 / math.sqrt(3)), 3)
    assert curriculum.verdict == "ahead"
    assert gap(arms_of(FULL), "KL warm-up", "control", AT_EQUAL_STEPS).verdict == "behind"


def test_the_order_of_the_records_does_not_matter():
    arms = arms_of(FULL[::-1])
    assert gap(arms, "silent", "control", AT_EQUAL_STEPS).error == pytest.approx(math.sqrt(13 / 3))


def test_the_parts_of_the_gain_add_up():
    parts = gains(arms_of(FULL), AT_EQUAL_TIME)
    assert parts.total.mean == pytest.approx(parts.curriculum.mean + parts.silence.mean)
    # a lost run takes its seed out of all three parts
    lost = [r for r in FULL if (r["arm"], r["seed"]) != ("KL warm-up", 2)]
    parts = gains(arms_of([*lost, collapsed("KL warm-up", 2)]), AT_EQUAL_TIME)
    assert {part.num_pairs for part in parts} == {2}
    assert parts.silence.mean == pytest.approx(2.0) and parts.curriculum.mean == pytest.approx(19.0)
    assert parts.total.mean == pytest.approx(21.0)


def test_silence_is_compared_where_no_warm_up_is_left():
    rest = [r for r in FULL if r["arm"] != "KL warm-up"]
    parts = gains(arms_of(rest + [collapsed("KL warm-up", s) for s in range(3)]), AT_EQUAL_TIME)
    assert parts.total.num_pairs == 0 and str(parts.total) == "–"
    assert parts.silence.num_pairs == 3 and parts.silence.mean == pytest.approx(4.0)


def test_a_collapsed_or_diverged_run_enters_no_mean():
    runs = {0: run("plain", 0, 10.0), 1: collapsed("plain", 1), 2: run("plain", 2, None)}
    found = summarize(runs, AT_EQUAL_STEPS)
    assert (found.mean, found.num_runs, found.num_collapsed, found.num_diverged) == (10.0, 3, 1, 1)
    assert str(found) == "10.0, 1 of 3 collapsed, 1 of 3 diverged"
    assert str(summarize({0: collapsed("plain", 0)}, AT_EQUAL_STEPS)) == "1 of 1 collapsed"
    assert str(summarize({}, AT_EQUAL_STEPS)) == ""


def test_a_run_that_falls_back_later_has_collapsed():
    near = {"elbo_equal_time": NO_CODE + COLLAPSE_NATS - 0.1}
    assert is_collapsed(run("plain", 0, 10.0, **near))
    assert not is_collapsed(run("plain", 0, 10.0))
    assert not is_collapsed(run("plain", 0, 10.0, elbo_equal_time=None))  # a search has none
    assert not is_collapsed(run("plain", 0, None))  # diverged is counted as that


def test_two_settings_in_one_row_are_refused():
    with pytest.raises(SystemExit, match="two runs of silent with seed 0"):
        races([*FULL, run("silent", 0, 1.0, schedule="cosine")])


def test_the_false_alarm_rate_is_that_of_students_t():
    at = torch.linspace(0, STANDARD_ERRORS, 10_001, dtype=torch.float64)
    for pairs, rate in FALSE_ALARMS.items():
        density = torch.distributions.StudentT(pairs - 1.0).log_prob(at).exp()
        assert rate == pytest.approx(1 - 2 * torch.trapezoid(density, at).item(), abs=0.006)


def test_curves_are_read_on_straight_lines():
    record = {"curve": [[0, 0.0, 0.0], [10, 2.0, 10.0], [20, 4.0, 20.0]]}
    assert [curve_at(record, t) for t in (0.0, 1.0, 2.0, 3.0, 9.0)] == [0.0, 5.0, 10.0, 15.0, 20.0]
    found = gap_along(arms_of(FULL), "silent", "control", 0.25)
    assert found.mean == pytest.approx(2.0)  # half way up to the second point: half of 1, 3, 8
    assert gap_along(arms_of([*FULL[:9]]), "silent", "control", 0.5).num_pairs == 0


def test_noise_is_the_root_of_the_mean_variance():
    arms = arms_of(
        [run("silent", s, 1.0, noise=[[0, 1.0, v, 4.0]]) for s, v in enumerate((7.0, 25.0))]
    )
    assert noise_at(arms["silent"], 0) == (4.0, 2.0)
    lost = run("silent", 0, 1.0, noise=[[0, 1.0, 9.0, 0.0], [5, 0.0, 0.0, 0.0]])
    assert noise_at({0: lost}, 0) == (3.0, math.inf) and noise_at({0: lost}, 5) == (0.0, 0.0)
    assert math.isnan(noise_at({0: lost}, 9)[0])


def test_rows_say_what_is_unusual():
    records = [
        run("plain", 0, 1.0),
        run("plain", 0, 1.0, num_units=8, batch_size=50),
        run("plain", 0, 1.0, decoder="tanh"),
        run("plain", 0, 1.0, steps=200),
    ]
    usual, names = row_names(races(records))
    assert usual == "digits, MLP decoder, batch 20, 100 steps"
    assert list(names.values()) == [
        "32 Gaussian, reparam",
        "32 Gaussian, reparam, 200 steps",
        "8 Gaussian, reparam, batch 50",
        "32 Gaussian, reparam, tanh decoder",
    ]


def test_tables():
    records = [r for r in FULL if r["arm"] != "plain"] + [collapsed("plain", s) for s in range(3)]
    assert table(records, AT_EQUAL_STEPS).splitlines()[2] == (
        "| 32 Gaussian, reparam | 3 of 3 collapsed | 100.0 ± 28.9 | 120.0 ± 27.7 | 124.0 ± 26.3 |"
    )
    assert gains_table(records, AT_EQUAL_STEPS).splitlines()[2] == (
        "| 32 Gaussian, reparam | 3 | **+24.0 ± 3.0** | **+20.0 ± 1.2** | +4.0 ± 2.1 | 17 % |"
    )
    quiet = [{**r, "noise": [[0, 1.0, 0.0, 0.0], [50, 0.5, 4.0, 0.0]]} for r in records[-4:-3]]
    cells = noise_table([*records[:-4], *quiet, *records[-3:]]).splitlines()[2].split(" | ")
    assert cells[1:3] == ["–", "3 (3), 2 (2), 1 (1)"]


def test_a_search_shows_the_best_and_what_collapsed():
    found = [
        run("silent", 1000, 20.0, elbo_equal_time=None, length=0.2),
        run("silent", 1000, 30.0, elbo_equal_time=None, length=0.5),
        run(
            "silent", 1000, 99.0, elbo_equal_time=None, length=0.5, schedule="step", collapsed=True
        ),
        run("control", 1000, 10.0, elbo_equal_time=None, length=0.2),
    ]
    assert search_table(found).splitlines()[2:] == [
        "| 32 Gaussian, reparam | control | 0.001 | 1 | linear | **10.0** |  |",
        "| 32 Gaussian, reparam | silent | 0.001 | 1 | linear | 20.0 | **30.0** |",
        "| 32 Gaussian, reparam | silent | 0.001 | 1 | step |  | collapsed |",
    ]


def test_sentences_follow_the_numbers():
    tanh = [{**r, "decoder": "tanh", "elbo_equal_time": 2.0 * r["elbo"]} for r in FULL]
    long = [{**r, "steps": 400, "seed": 0} for r in FULL[::3]]
    said = "\n".join(readings([*FULL, *tanh, *long]))
    assert (
        "Of 2 rows with more than one seed silent is, at equal time, clearly ahead in 2 and clearly "
        "behind in 0 of KL warm-up, clearly ahead in 0 and clearly behind in 0 of the control"
        in said
    )
    assert (
        "The tanh decoder: 32 Gaussian, reparam: silent - KL warm-up +48.0 ± 6.0, silent - control "
        "+8.0 ± 4.2, 0 of 3 plain runs collapsed." in said
    )
    assert (
        "By decoder (digits, Gaussian, 32, reparam, 20, 100), silent - KL warm-up, silent - control: "
        "MLP: +24.0 ± 3.0, +4.0 ± 2.1; tanh: +48.0 ± 6.0, +8.0 ± 4.2." in said
    )
    assert "By number of steps (digits, MLP, Gaussian, 32, reparam, 20)" in said
    assert "100: +24.0 ± 3.0, +4.0 ± 2.1; 400: +21.0, +1.0." in said
    assert "median by decoder: 1.00 (MLP), 1.00 (tanh)." in said
    assert "No run collapsed or diverged." in said
    lost = [*FULL[1:], collapsed("plain", 0)]
    assert "1 of plain, 0 of KL warm-up, 0 of control, 0 of silent" in "\n".join(headlines(lost))
    assert headlines(FULL[:1])[-1] == "No run collapsed or diverged."  # no pairs, no figures


def test_a_batch_size_is_compared_at_its_own_number_of_steps():
    large = [{**r, "batch_size": 200, "steps": 50} for r in FULL]
    long = [{**r, "steps": 400, "elbo_equal_time": 0.0} for r in FULL]
    (line,) = [x for x in readings([*FULL, *large, *long]) if x.startswith("By batch size")]
    assert "20: +24.0 ± 3.0, +4.0 ± 2.1; 200: +24.0 ± 3.0, +4.0 ± 2.1." in line


def test_training_without_a_way_back_is_compared_on_validation():
    shared = {"elbo_equal_time": None, "split": "validation"}
    search = [
        run("silent", 1000, 30.0, schedule="step", length=1.0, **shared),
        run("silent", 1000, 25.0, schedule="step", length=0.75, **shared),
        run("silent", 1000, 28.0, schedule="linear", length=0.5, **shared),
        run("silent", 1000, 99.0, schedule="linear", length=1.0, **shared),
        run("silent", 1000, 99.0, schedule="linear", length=0.5, learning_rate=0.1, **shared),
        run("control", 1000, 99.0, schedule="step", length=0.5, **shared),
    ]
    (line,) = [x for x in headlines(FULL, search) if "never teaches" in x]
    assert line.endswith("30.0 against 28.0 (reparam); one run each: in runs this short handing over "
                         "pays little or costs.")  # fmt: skip
    better = [*search, run("silent", 1000, 40.0, schedule="linear", length=0.2, **shared)]
    (line,) = [x for x in headlines(FULL, better) if "never teaches" in x]
    assert line.endswith("30.0 against 40.0 (reparam); one run each.")
    assert not [x for x in headlines(FULL, search[1:]) if "never teaches" in x]


def test_a_fall_from_the_best_is_said():
    fallen = [
        {**r, "curve": [[0, 0.0, 0.0], [50, 2.0, 40.0 + r["seed"]], [100, 4.0, 20.0]]} for r in FULL
    ]
    (line,) = [line for line in readings(fallen) if "below their best" in line]
    assert line.endswith("by 21.0 ± 0.6 (32 Gaussian, reparam).")
    assert not [line for line in readings(FULL) if "below their best" in line]


def test_a_statement_that_the_runs_do_not_bear_fails():
    statements = [Statement("Yes.", lambda _: True), Statement("Who knows.", lambda _: None)]
    assert checked(races(FULL), statements) == ["Yes."]
    with pytest.raises(SystemExit, match="the results do not bear this statement: No."):
        checked(races(FULL), [*statements, Statement("No.", lambda _: False)])


@pytest.mark.parametrize("silent, holds", [(100.0, True), (60.0, False)])
def test_the_statement_on_score_functions_needs_silence_to_be_the_larger_part(silent, holds):
    levels = {"plain": 0.0, "KL warm-up": 10.0, "control": 40.0, "silent": silent}
    records = [
        run(arm, seed, level + seed, **REFERENCE._asdict())
        for arm, level in levels.items()
        for seed in range(2)
    ]
    statement = STATEMENTS[0]
    assert statement.holds(races(records)) is holds
    assert statement.holds(races(records[::2])) is None  # one seed decides nothing
    assert statement.holds(races(FULL)) is None  # nor do other rows
    other = [{**r, "estimator": "REINFORCE", "elbo_equal_time": 200 - r["elbo"]} for r in records]
    assert statement.holds(races([*records, *other])) is False


def test_the_page_and_the_readme_check_statements(monkeypatch):
    monkeypatch.setattr(annealed_vae_statements, "STATEMENTS", (Statement("No.", lambda _: False),))
    with pytest.raises(SystemExit, match="No."):
        annealed_vae_report.page(FULL, "python here.py", [])
    with pytest.raises(SystemExit, match="No."):
        annealed_vae_report.readme_table({"runs": FULL})


def test_page_and_readme():
    search = run("silent", 1000, 20.0, split="validation", elbo_equal_time=None)
    text = annealed_vae_report.page(FULL, "python here.py", ["silent is here"], [search])
    for part in ("python here.py", "- silent is here", table(FULL), search_table([search])):
        assert part in text
    assert "{" not in text and "nan" not in text
    readme = annealed_vae_report.readme_table({"runs": [*FULL, search]})
    assert (
        "| 32 Gaussian, reparam | 3 | 21.0 | 101.0 | 121.0 | 125.0 | **+24.0 ± 3.0** | +4.0 ± 2.1 |"
        in readme
    )
    assert "nan" not in readme


@pytest.mark.parametrize(
    "records",
    [FULL, [collapsed(arm, 0) for arm in ARMS], [run(arm, 0, None, curve=[]) for arm in ARMS]],
    ids=["full", "collapsed", "diverged"],
)
def test_the_figure_is_drawn(records, tmp_path):
    annealed_vae_picture.draw(records, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_shows_one_row_for_each_estimator():
    other = [
        run("plain", 0, 1.0, estimator="GR", num_units=8),
        run("plain", 0, 1.0, estimator="GR", num_units=64),
        run("plain", 0, 1.0, estimator="RLOO", batch_size=200),
    ]
    shown = annealed_vae_picture.main_cells([*FULL, *other])
    assert [(c.estimator, c.num_units) for c in shown] == [("reparam", 32), ("GR", 64)]
    more = [run("plain", 0, 1.0, estimator=name) for name in ("GS", "ST-GS", "REINFORCE", "RLOO")]
    shown = annealed_vae_picture.main_cells([*FULL, *other, *more])
    assert [c.estimator for c in shown] == ["reparam", "GR", "RLOO", "REINFORCE"]
