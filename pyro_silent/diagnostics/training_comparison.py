"""What a comparison of training runs is: curves, rows and a sentence of advice."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from pyro_silent.diagnostics.tables import html_table, number, text_table, write_csv
from pyro_silent.diagnostics.training_advice import advice
from pyro_silent.diagnostics.training_picture import draw
from pyro_silent.diagnostics.training_record import Record
from pyro_silent.errors import ConfigurationError

_HEADER = ("Loss", "Final", "± seeds", "Best", "Steps", "Seconds", "Seeds")


@dataclass(frozen=True)
class TrainingComparison:
    """Training runs of several losses and seeds, judged by one yardstick; ``str()`` is a table.

    The yardstick is lower where it is better. Its *final* value is that of the last evaluation.

    :ivar rows: one dict for each loss, with the keys

        - ``name``: of the loss;
        - ``final_mean``, ``final_std``: of the final yardstick over seeds (the root of the unbiased
          variance; None with one seed);
        - ``best_mean``: mean over seeds of the lowest value of each run;
        - ``steps_mean``, ``seconds_mean``: of the training steps alone, without evaluations;
        - ``num_seeds``: how many runs ended without an error: those that the means are over;
        - ``stopped``: which runs ended before their time and why, or None;
        - ``error``: which runs failed and why, or None.

        Means are None where no run ended without an error.
    :ivar runs: one dict for each loss and seed: ``name``, ``seed``, ``steps``, ``seconds``, ``final``,
        ``best``, ``best_step``, ``stopped``, ``error``.
    :ivar curves: one dict for each evaluation of each run: ``name``, ``seed``, ``step``, ``seconds`` of
        training so far, ``loss`` (mean of the training losses since the evaluation before, of those that
        return a tuple the first; None at step 0) and ``yardstick``.
    :ivar yardstick: what it is, and on which data.
    """

    rows: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    yardstick: str

    @classmethod
    def of(
        cls, records: Sequence[Record], names: Sequence[str], yardstick: str
    ) -> TrainingComparison:
        """From what came of the runs."""
        runs = [_run(record) for record in records]
        rows = [_row(name, [run for run in runs if run["name"] == name]) for name in names]
        curves = [
            {"name": record.name, "seed": record.seed, **point}
            for record in records
            for point in record.curve
        ]
        return cls(rows, runs, curves, yardstick)

    @property
    def advice(self) -> str:
        """What the final values say, and no more.

        Losses are compared with the one of the lowest mean, seed by seed. One is said to end higher if
        the mean of these differences is beyond rounding and beyond Student's t times its standard
        error. The level is 1 % for all pairs of losses together (Bonferroni), so that among losses that
        are alike, with normal differences, one time in a hundred or less any is told apart: it takes
        seeds. Losses with a failed run are left out.
        """
        return advice(self.rows, self.runs)

    def __repr__(self) -> str:
        names = ", ".join(row["name"] for row in self.rows)
        return f"TrainingComparison({names}; {len(self.runs)} runs)"

    def __str__(self) -> str:
        table = text_table(_HEADER, map(_cells, self.rows))
        return "\n".join([table, *self._remarks()])

    def _repr_html_(self) -> str:
        remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in self._remarks())
        return html_table(_HEADER, map(_cells, self.rows)) + remarks

    def _remarks(self) -> list[str]:
        told = [
            f'"{" ".join(row["name"].split())}" {verb}: {row[key]}.'
            for key, verb in (("error", "failed"), ("stopped", "stopped early"))
            for row in self.rows
            if row[key] is not None
        ]
        return [*told, f"Yardstick: {self.yardstick}.", self.advice]

    def to_csv(self, path: str | PathLike[str], table: str = "curves") -> None:
        """Write a table to a file, a line for each dict; None is an empty cell.

        :param str table: "curves", "rows" or "runs".
        :raises ConfigurationError: for another table, and for one without a line (no curve has a point
            where the yardstick failed at once).
        """
        if table not in ("curves", "rows", "runs"):
            raise ConfigurationError(
                f'table: got {table!r}, expected one of "curves", "rows" and "runs".'
            )
        if not getattr(self, table):
            raise ConfigurationError(f'table: got {table!r}, which is empty; write table="rows".')
        write_csv(path, getattr(self, table))

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw the yardstick against steps and against seconds of training.

        Lines are means over seeds, bands a standard deviation to both sides. A run that was stopped
        counts with its last value from there on; one that failed has a dotted line of its own. The
        axis may leave out the first quarter of the steps, where values can be huge.

        :param path: the file; its suffix chooses the format: png, svg, pdf.
        :raises ImportError: where matplotlib is not installed.
        """
        draw(path, self)


def _run(record: Record) -> dict[str, Any]:
    best = record.best
    return {
        "name": record.name,
        "seed": record.seed,
        "steps": record.steps,
        "seconds": record.seconds,
        "final": record.curve[-1]["yardstick"] if record.curve else None,
        "best": best and best["yardstick"],
        "best_step": best and best["step"],
        "stopped": record.stopped,
        "error": record.error,
    }


def _row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    good = [run for run in runs if run["error"] is None]

    def mean(key: str) -> float | None:
        values = [run[key] for run in good if run[key] is not None]
        return math.fsum(values) / len(values) if values else None

    finals = [run["final"] for run in good]
    return {
        "name": name,
        "final_mean": mean("final"),
        "final_std": statistics.stdev(finals) if len(finals) > 1 else None,
        "best_mean": mean("best"),
        "steps_mean": mean("steps"),
        "seconds_mean": mean("seconds"),
        "num_seeds": len(good),
        "stopped": _told(runs, "stopped"),
        "error": _told(runs, "error"),
    }


def _told(runs: list[dict[str, Any]], key: str) -> str | None:
    """What is said of runs, with the seeds of those of which it is."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        if run[key]:
            seeds.setdefault(run[key].rstrip("."), []).append(str(run["seed"]))
    told = [
        f"seed{'s' if len(those) > 1 else ''} {', '.join(those)}: {text}"
        for text, those in seeds.items()
    ]
    return "; ".join(told) or None


def _cells(row: dict[str, Any]) -> list[str]:
    figures = [row["final_mean"], row["final_std"], row["best_mean"]]
    steps = row["steps_mean"]
    return [
        row["name"],
        *(number(figure, 5 if place != 1 else 2) for place, figure in enumerate(figures)),
        "-" if steps is None else f"{steps:g}",
        number(row["seconds_mean"]),
        str(row["num_seeds"]),
    ]
