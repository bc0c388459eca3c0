"""The tables of the annealed VAE in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from annealed_vae_summary import (
    ARMS,
    AT_EQUAL_TIME,
    Cell,
    Gap,
    Record,
    counted,
    gains,
    gap_along,
    in_order,
    is_collapsed,
    noise_at,
    races,
    row_names,
    summarize,
)

SHARES_OF_TIME = (0.05, 0.1, 0.25, 0.5, 1.0)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def _by_arm(records: Sequence[Record], shown: Callable[[dict[int, Record]], str]) -> str:
    """A row per cell, a column per arm."""
    cells = races(records)
    _, names = row_names(cells)
    rows = [[names[cell], *(shown(arms[arm]) for arm in ARMS)] for cell, arms in cells.items()]
    return markdown(["row", *ARMS], rows)


def table(records: Sequence[Record], figure: str = AT_EQUAL_TIME) -> str:
    """Return the Markdown table of a figure: a row per cell, a column per arm."""
    return _by_arm(records, lambda runs: str(summarize(runs, figure)))


def marked(gap: Gap, num_seeds: int) -> str:
    """Return the gap, bold where it is clear, with the number of pairs where some are missing."""
    text = f"**{gap}**" if gap.verdict != "unclear" else str(gap)
    return f"{text} ({gap.num_pairs})" if 0 < gap.num_pairs < num_seeds else text


def gains_table(records: Sequence[Record], figure: str) -> str:
    """Return the Markdown table of total gain, curriculum's part and silence's part."""
    cells = races(records)
    _, names = row_names(cells)
    rows = []
    for cell, arms in cells.items():
        num_seeds = max(len(runs) for runs in arms.values())
        parts = gains(arms, figure)
        total, curriculum, silence = (marked(part, num_seeds) for part in parts)
        share = ""
        if parts.total.verdict == "ahead":
            share = f"{100 * parts.silence.mean / parts.total.mean:.0f} %"
        rows.append([names[cell], str(num_seeds), total, curriculum, silence, share])
    header = ["row", "seeds", "total: silent - KL warm-up", "curriculum: control - KL warm-up"]
    return markdown([*header, "silence: silent - control", "silence's share"], rows)


def early_and_late(records: Sequence[Record]) -> str:
    """Return the Markdown table of silent - control along the training time."""
    cells = races(records)
    _, names = row_names(cells)
    rows = [
        [names[cell]]
        + [
            marked(gap_along(arms, "silent", "control", share), len(arms["silent"]))
            for share in SHARES_OF_TIME
        ]
        for cell, arms in cells.items()
    ]
    return markdown(["row", *(f"{100 * share:g} %" for share in SHARES_OF_TIME)], rows)


def noise_table(records: Sequence[Record]) -> str:
    """Return the Markdown table of the noise, in brackets its ratio to the gradient's norm."""

    def shown(runs: dict[int, Record]) -> str:
        steps = sorted({point[0] for run in counted(runs) for point in run["noise"]})
        looks = (noise_at(runs, step) for step in steps)
        return ", ".join(f"{noise:.3g} ({ratio:.2g})" for noise, ratio in looks) or "–"

    return _by_arm(records, shown)


def codes_table(records: Sequence[Record]) -> str:
    """Return the Markdown table of active units and KL, over all runs that did not diverge."""

    def used(runs: dict[int, Record]) -> str:
        found = [run for run in runs.values() if not run["diverged"]]
        if not found:
            return "–"
        units = statistics.fmean(run["active_units"] for run in found)
        text = f"{units:.1f} units, {statistics.fmean(run['kl'] for run in found):.1f} nats"
        collapsed = sum(map(is_collapsed, found))
        return text + (f" ({collapsed} of {len(found)} collapsed)" if collapsed else "")

    return _by_arm(records, used)


def time_table(records: Sequence[Record]) -> str:
    """Return the Markdown table of milliseconds per step, over runs that reached the last step."""

    def milliseconds(runs: dict[int, Record]) -> str:
        found = [r["train_seconds"] / r["steps"] for r in runs.values() if not r["diverged"]]
        return f"{1000 * statistics.fmean(found):.2f}" if found else "–"

    return _by_arm(records, milliseconds)


class _Tried(NamedTuple):
    """The runs of a search in one line of its table."""

    cell: Cell
    arm: str
    learning_rate: float
    temperature: float
    schedule: str


def search_table(search: Sequence[Record]) -> str:
    """Return the Markdown table of the validation ELBO by schedule and length."""
    lines: dict[_Tried, dict[float, Record]] = {}
    for record in search:
        cell = Cell(*(record[key] for key in Cell._fields))
        line = _Tried(cell, *(record[key] for key in _Tried._fields[1:]))
        lines.setdefault(line, {})[record["length"]] = record
    if not lines:
        return "No search is kept in the file of results."
    best: dict[tuple[Cell, str], float] = {}
    for record in filter(lambda r: not r["diverged"] and not is_collapsed(r), search):
        key = Cell(*(record[key] for key in Cell._fields)), record["arm"]
        best[key] = max(best.get(key, -math.inf), record["elbo"])
    lengths = sorted({record["length"] for record in search})

    def shown(line: _Tried, record: Record | None) -> str:
        if record is None:
            return ""
        if record["diverged"] or is_collapsed(record):
            return "diverged" if record["diverged"] else "collapsed"
        text = f"{record['elbo']:.1f}"
        return f"**{text}**" if record["elbo"] == best[line.cell, line.arm] else text

    order = {arm: i for i, arm in enumerate(ARMS)}
    cells = {cell: i for i, cell in enumerate(in_order({line.cell for line in lines}))}
    usual, names = row_names(cells)
    rows = [
        [
            names[line.cell],
            line.arm,
            f"{line.learning_rate:g}",
            f"{line.temperature:g}",
            line.schedule,
            *(shown(line, lines[line].get(length)) for length in lengths),
        ]
        for line in sorted(lines, key=lambda one: (cells[one.cell], order[one.arm], *one[2:]))
    ]
    header = ["row", "arm", "rate", "temperature", "schedule", *(f"{100 * n:g} %" for n in lengths)]
    return markdown(header, rows, text_columns=5)
