"""What the runs of the annealed VAE say: sentences made from their figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import annealed_vae_statements
from annealed_vae_statements import SMALL_GAIN_DECODER, Cells, checked
from annealed_vae_summary import (
    AT_EQUAL_TIME,
    STANDARD_ERRORS,
    Cell,
    Gains,
    Gap,
    Record,
    counted,
    gains,
    is_counted,
    mean_and_error,
    races,
    row_names,
)

NOTABLE_FALL = 5.0  # nats; the best of a noisy curve is always a little above its end
FACTORS = {
    "estimator": "estimator",
    "batch_size": "batch size",
    "num_units": "number of latents",
    "data": "data",
    "decoder": "decoder",
    "steps": "number of steps",
}
TO_THE_END = ("step", 1.0)  # a schedule under which the deep decoder never teaches the encoder


def headlines(records: Sequence[Record], search: Sequence[Record] = ()) -> list[str]:
    """Return the sentences for the README: when to use it, and what became of lost runs.

    :raises SystemExit: if a fixed statement does not hold for the runs.
    """
    cells = races(records)
    fixed = checked(cells, annealed_vae_statements.STATEMENTS)
    return fixed + [line for line in (_never_back(search), _lost(cells)) if line]


def readings(records: Sequence[Record], search: Sequence[Record] = ()) -> list[str]:
    """Return the headlines with the figures behind them.

    :raises SystemExit: if a fixed statement does not hold for the runs.
    """
    cells = races(records)
    made = [_verdicts(cells), _small_gain(cells), _fall(cells), _cost(cells)]
    return headlines(records, search) + [line for line in made if line] + _by_factor(cells)


def _all_gains(cells: Cells) -> dict[Cell, Gains]:
    """Of the rows of which silent and control can be compared."""
    found = {cell: gains(arms, AT_EQUAL_TIME) for cell, arms in cells.items()}
    return {cell: parts for cell, parts in found.items() if parts.silence.num_pairs}


def _verdicts(cells: Cells) -> str:
    """How many rows are clear, of those with more than one seed."""
    rows = [parts for parts in _all_gains(cells).values() if parts.silence.num_pairs > 1]
    if not rows:
        return ""

    def counts(gaps: list[Gap]) -> str:
        ahead, behind = (sum(one.verdict == word for one in gaps) for word in ("ahead", "behind"))
        return f"clearly ahead in {ahead} and clearly behind in {behind}"

    return (
        f"Of {len(rows)} rows with more than one seed silent is, at equal time, "
        f"{counts([parts.total for parts in rows])} of KL warm-up, "
        f"{counts([parts.silence for parts in rows])} of the control (clearly: by more than "
        f"{STANDARD_ERRORS:g} standard errors)."
    )


def _small_gain(cells: Cells) -> str:
    parts = [
        f"{cell.num_units} {cell.code}, {cell.estimator}: silent - KL warm-up {found.total}, "
        f"silent - control {found.silence}, "
        f"{sum(not is_counted(run) for run in cells[cell]['plain'].values())} of "
        f"{len(cells[cell]['plain'])} plain runs collapsed"
        for cell, found in _all_gains(cells).items()
        if cell.decoder == SMALL_GAIN_DECODER
    ]
    return f"The {SMALL_GAIN_DECODER} decoder: {'; '.join(parts)}." if parts else ""


def _never_back(search: Sequence[Record]) -> str:
    """What is gained by the deep decoder's turn at the encoder, on validation images."""
    silent = [record for record in search if record["arm"] == "silent" and is_counted(record)]
    kept = {_cell(r): r for r in silent if (r["schedule"], r["length"]) == TO_THE_END}
    lines, gained = [], []
    for cell, record in kept.items():
        rivals = [
            r["elbo"]
            for r in silent
            if _cell(r) == cell
            and r["length"] < 1
            and r["learning_rate"] == record["learning_rate"]
        ]
        if rivals:
            lines.append(f"{record['elbo']:.1f} against {max(rivals):.1f} ({cell.estimator})")
            gained.append(max(rivals) - record["elbo"])
    if not lines:
        return ""
    comment = ": in runs this short handing over pays little or costs" if max(gained) < 5 else ""
    return (
        "Where the deep decoder never teaches the encoder (silent weight 1 to the end), the validation "
        "ELBO is, against that of the best schedule that hands over to it before, "
        f"{', '.join(lines)}; one run each{comment}."
    )


def _cell(record: Record) -> Cell:
    return Cell(*(record[key] for key in Cell._fields))


def _cost(cells: Cells) -> str:
    """How long a run of the silent arm takes beside a plain one of as many steps."""
    by_decoder: dict[str, list[float]] = {}
    for cell, arms in cells.items():
        for seed, run in arms["silent"].items():
            plain = arms["plain"].get(seed)
            if plain is not None and not run["diverged"] and not plain["diverged"]:
                ratio = run["train_seconds"] / plain["train_seconds"]
                by_decoder.setdefault(cell.decoder, []).append(ratio)
    if not by_decoder:
        return ""
    listed = ", ".join(f"{statistics.median(r):.2f} ({name})" for name, r in by_decoder.items())
    return f"Time of a silent run over that of a plain one of as many steps, median by decoder: {listed}."


def _lost(cells: Cells) -> str:
    counts: dict[str, int] = {}
    for arms in cells.values():
        for arm, runs in arms.items():
            lost = sum(not is_counted(run) for run in runs.values())
            counts[arm] = counts.get(arm, 0) + lost
    if not any(counts.values()):
        return "No run collapsed or diverged."
    listed = ", ".join(f"{count} of {arm}" for arm, count in counts.items())
    return f"Runs that collapsed or diverged, in no mean and no difference: {listed}."


def _by_factor(cells: Cells) -> list[str]:
    """Rows that differ in one thing alone, beside each other."""
    families: dict[tuple[str, tuple], dict[object, Gains]] = {}
    for cell, found in _all_gains(cells).items():
        for factor in FACTORS:
            # the number of steps goes with the batch size
            left_out = {factor, "steps"} if factor == "batch_size" else {factor}
            rest = tuple(getattr(cell, name) for name in Cell._fields if name not in left_out)
            families.setdefault((factor, rest), {}).setdefault(getattr(cell, factor), found)
    return [
        f"By {FACTORS[factor]} ({', '.join(map(str, rest))}), silent - KL warm-up, silent - control: "
        + "; ".join(f"{value}: {found.total}, {found.silence}" for value, found in rows.items())
        + "."
        for (factor, rest), rows in families.items()
        if len(rows) > 1
    ]


def _fall(cells: Cells) -> str:
    """How much of its best validation ELBO the silent arm loses until the end."""
    _, names = row_names(cells)
    falls = []
    for cell, arms in cells.items():
        curves = [[value for *_, value in run["curve"]] for run in counted(arms["silent"])]
        lost = [max(curve) - curve[-1] for curve in curves]
        fall = Gap(*mean_and_error(lost), len(lost))
        if fall.verdict == "ahead" and fall.mean > NOTABLE_FALL:
            falls.append(f"{fall.mean:.1f} ± {fall.error:.1f} ({names[cell]})")
    listed = "; ".join(falls)
    return f"Silent runs end below their best validation ELBO by {listed}." if falls else ""
