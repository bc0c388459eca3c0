"""What the runs of the annealed VAE amount to: means over seeds, paired gaps, collapsed runs apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from annealed_vae_runs import COLLAPSE_NATS

ARMS = ("plain", "KL warm-up", "control", "silent")
ESTIMATORS = ("reparam", "GS", "ST-GS", "GR", "GR-MC10", "RLOO", "REINFORCE")  # in tables
AT_EQUAL_TIME, AT_EQUAL_STEPS = "elbo_equal_time", "elbo"

STANDARD_ERRORS = 2.0  # a gap beyond so many is called clear
# how often a gap of nothing is called clear, by the number of pairs: P(|t| > 2), Student's t
FALSE_ALARMS = {2: 0.30, 3: 0.18, 4: 0.14, 5: 0.12}

Record = dict[str, Any]
Races = dict[str, dict[int, Record]]  # arm to seed to run


class Cell(NamedTuple):
    """What the arms of a row of the table have in common."""

    data: str
    decoder: str
    code: str
    num_units: int
    estimator: str
    batch_size: int
    steps: int

    def __str__(self) -> str:
        return f"{self.num_units} {self.code}, {self.estimator}, " + ", ".join(self.setting())

    def setting(self) -> tuple[str, ...]:
        """What many rows have in common, in words."""
        size = f"batch {self.batch_size}"
        return (self.data, f"{self.decoder} decoder", size, f"{self.steps} steps")


class Summary(NamedTuple):
    """Runs of one arm: mean over those with a code in use, its standard error, the others counted."""

    mean: float
    error: float
    num_runs: int
    num_collapsed: int
    num_diverged: int

    def __str__(self) -> str:
        lost = [
            f"{count} of {self.num_runs} {what}"
            for count, what in ((self.num_collapsed, "collapsed"), (self.num_diverged, "diverged"))
            if count
        ]
        if math.isnan(self.mean):
            return ", ".join(lost)
        text = f"{self.mean:.1f}"
        if math.isfinite(self.error):
            text += f" ± {self.error:.1f}"
        return ", ".join([text, *lost])


class Gap(NamedTuple):
    """How far one arm is ahead of another: mean over pairs of runs, standard error."""

    mean: float
    error: float
    num_pairs: int

    @property
    def verdict(self) -> str:
        """Clearly "ahead" or "behind", or "unclear"."""
        if not abs(self.mean) > STANDARD_ERRORS * self.error:  # NaN is unclear too
            return "unclear"
        return "ahead" if self.mean > 0 else "behind"

    def __str__(self) -> str:
        if not self.num_pairs:
            return "–"
        text = f"{self.mean:+.1f}"
        if math.isfinite(self.error):
            text += f" ± {self.error:.1f}"
        return text


class Gains(NamedTuple):
    """The gain over KL warm-up and its two parts, over the same seeds: total = curriculum + silence."""

    total: Gap  # silent - KL warm-up
    curriculum: Gap  # control - KL warm-up: the linear decoder and its schedule
    silence: Gap  # silent - control: the gradient without noise


def races(records: Iterable[Record]) -> dict[Cell, Races]:
    """Return the runs by cell, arm and seed, cells of the commonest setting first.

    :raises SystemExit: for two runs of one arm and seed, which are two settings in one row.
    """
    cells: dict[Cell, Races] = {}
    for record in records:
        cell = Cell(*(record[key] for key in Cell._fields))
        of_arm = cells.setdefault(cell, {arm: {} for arm in ARMS})[record["arm"]]
        if record["seed"] in of_arm:
            raise SystemExit(f"{cell}: two runs of {record['arm']} with seed {record['seed']}")
        of_arm[record["seed"]] = record
    return {cell: cells[cell] for cell in in_order(cells)}


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """Return cells sorted by what is unusual about them, then by code and estimator."""
    cells = list(cells)
    usual = _usual(cells)

    def place(cell: Cell) -> tuple:
        unusual = [word for word, common in zip(cell.setting(), usual) if word != common]
        known = ESTIMATORS.index(cell.estimator) if cell.estimator in ESTIMATORS else math.inf
        key = (len(unusual), unusual, cell.code != "Gaussian", cell.code, -cell.num_units, known)
        return (*key, cell)

    return sorted(cells, key=place)


def _usual(cells: Sequence[Cell]) -> list[str]:
    return [statistics.mode(words) for words in zip(*(cell.setting() for cell in cells))]


def row_names(cells: Iterable[Cell]) -> tuple[str, dict[Cell, str]]:
    """Return the commonest setting in words, and short names that say only what differs from it."""
    cells = list(cells)
    usual = _usual(cells)
    names = {}
    for cell in cells:
        unusual = [word for word, common in zip(cell.setting(), usual) if word != common]
        names[cell] = ", ".join([f"{cell.num_units} {cell.code}", cell.estimator, *unusual])
    return ", ".join(usual), names


def is_collapsed(record: Record) -> bool:
    """Whether the run had no code in use at equal steps, or no better ELBO at equal time."""
    at_equal_time = record[AT_EQUAL_TIME]
    return bool(record["collapsed"]) or (
        at_equal_time is not None and at_equal_time < record["no_code_elbo"] + COLLAPSE_NATS
    )


def is_counted(record: Record) -> bool:
    """Whether the run enters means and gaps: it neither diverged nor collapsed."""
    return not record["diverged"] and not is_collapsed(record)


def counted(runs: dict[int, Record]) -> list[Record]:
    """Return the runs of an arm that enter means."""
    return [run for run in runs.values() if is_counted(run)]


def summarize(runs: dict[int, Record], figure: str) -> Summary:
    """Summarize a figure of the runs of an arm."""
    values = [run[figure] for run in counted(runs) if run[figure] is not None]
    diverged = sum(run["diverged"] for run in runs.values())
    collapsed = sum(is_collapsed(run) for run in runs.values() if not run["diverged"])
    return Summary(*mean_and_error(values), len(runs), collapsed, diverged)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error; NaN where there are too few values."""
    mean = statistics.fmean(values) if values else math.nan
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return mean, error


def differences(
    arms: Races, ahead: str, behind: str, figure: str, among: Sequence[str] = ()
) -> list[float]:
    """Return the gap between two arms for each seed of which both runs count.

    :param among: other arms whose run with that seed has to count as well.
    """
    wanted = [arms[arm] for arm in (ahead, behind, *among)]
    seeds = [
        seed
        for seed in wanted[0]
        if all(
            seed in runs and is_counted(runs[seed]) and runs[seed][figure] is not None
            for runs in wanted
        )
    ]
    return [arms[ahead][seed][figure] - arms[behind][seed][figure] for seed in seeds]


def gap(arms: Races, ahead: str, behind: str, figure: str, among: Sequence[str] = ()) -> Gap:
    """Compare two arms seed by seed: the runs of a pair begin with the same parameters."""
    found = differences(arms, ahead, behind, figure, among)
    return Gap(*mean_and_error(found), len(found))


def gains(arms: Races, figure: str) -> Gains:
    """Take the gain over KL warm-up apart.

    The seeds are those of which all three arms count; where there are none, silence alone is
    compared, over the seeds of which control and silent count.
    """
    three = [
        ("silent", "KL warm-up", ["control"]),
        ("control", "KL warm-up", ["silent"]),
        ("silent", "control", ["KL warm-up"]),
    ]
    found = Gains(*(gap(arms, *pair[:2], figure, pair[2]) for pair in three))
    if found.silence.num_pairs:
        return found
    return found._replace(silence=gap(arms, "silent", "control", figure))


def curve_at(run: Record, seconds: float) -> float:
    """Return the validation ELBO after so much training time, on the straight line between points."""
    points = [(second, value) for _, second, value in run["curve"]]
    for (t0, v0), (t1, v1) in zip(points, points[1:], strict=False):
        if seconds <= t1:
            return v0 + (v1 - v0) * (seconds - t0) / (t1 - t0) if t1 > t0 else v1
    return points[-1][1]


def noise_at(runs: dict[int, Record], step: int) -> tuple[float, float]:
    """Return the noise of the encoder's gradient at a step, and its ratio to the gradient's norm.

    Roots of means over the runs that count: of the trace variance, of the squared norm of the mean.
    NaN where nothing was measured, infinity where the mean is lost in the noise.
    """
    points = [point for run in counted(runs) for point in run["noise"] if point[0] == step]
    if not points:
        return math.nan, math.nan
    variance = statistics.fmean(point[2] for point in points)
    square = statistics.fmean(point[3] for point in points)
    if variance == 0:
        return 0.0, 0.0
    return math.sqrt(variance), math.sqrt(variance / square) if square else math.inf


def gap_along(arms: Races, ahead: str, behind: str, share: float) -> Gap:
    """Compare the validation ELBO of two arms after a share of the first one's training time."""
    found = []
    for seed, run in arms[ahead].items():
        rival = arms[behind].get(seed)
        if rival is not None and is_counted(run) and is_counted(rival):
            seconds = share * (run["seconds_equal_time"] or run["curve"][-1][1])
            found.append(curve_at(run, seconds) - curve_at(rival, seconds))
    return Gap(*mean_and_error(found), len(found))
