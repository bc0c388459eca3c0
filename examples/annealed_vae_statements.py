"""What the runs of the annealed VAE say: sentences made from them, and fixed ones that they must bear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from annealed_vae_summary import (
    AT_EQUAL_TIME,
    STANDARD_ERRORS,
    Cell,
    Gap,
    Races,
    Record,
    counted,
    gains,
    gap,
    gap_along,
    is_counted,
    mean_and_error,
    over_rows,
    races,
    row_names,
)

EARLY = 0.1
NOTABLE_FALL = 5.0  # nats; the best of a noisy curve is always a little above its end
# the decoder that hardly collapses: where the gain is expected to be small
SMALL_GAIN_DECODER = "tanh"
FACTORS = {
    "estimator": "estimator",
    "batch_size": "batch size",
    "num_units": "number of latents",
    "data": "data",
    "decoder": "decoder",
}

Cells = dict[Cell, Races]


class Statement(NamedTuple):
    """A sentence of the documentation and what has to be true of the runs for it to stand.

    ``holds`` returns None where the runs that would decide it are missing.
    """

    text: str
    holds: Callable[[Cells], bool | None]


# Filled in from the results; each is checked whenever the page or the README is made.
STATEMENTS: tuple[Statement, ...] = ()


def headlines(records: Sequence[Record]) -> list[str]:
    """Return the sentences for the README.

    :raises SystemExit: if a fixed statement does not hold for the runs.
    """
    cells = races(records)
    made = [_overall(cells), _verdicts(cells), _small_gain(cells), _early_and_late(cells)]
    return [line for line in [*made, _collapses(cells)] if line] + checked(cells, STATEMENTS)


def readings(records: Sequence[Record]) -> list[str]:
    """Return the headlines, and the rows that differ in one thing alone beside each other.

    :raises SystemExit: if a fixed statement does not hold for the runs.
    """
    cells = races(records)
    return headlines(records) + [*filter(None, [_fall(cells)]), *_by_factor(cells)]


def checked(cells: Cells, statements: Iterable[Statement]) -> list[str]:
    """Return the texts of the statements that hold, without those that cannot be judged.

    :raises SystemExit: for one that does not hold.
    """
    texts = []
    for statement in statements:
        holds = statement.holds(cells)
        if holds is False:
            raise SystemExit(f"the results do not bear this statement: {statement.text}")
        if holds:
            texts.append(statement.text)
    return texts


def silence(arms: Races) -> Gap:
    """silent - control at equal time."""
    return gap(arms, "silent", "control", AT_EQUAL_TIME)


def _is_lost(run: Record) -> bool:
    return not is_counted(run)


def _judged(cells: Cells) -> Cells:
    """The rows with more than one pair of runs."""
    return {cell: arms for cell, arms in cells.items() if silence(arms).num_pairs >= 2}


def _overall(cells: Cells) -> str:
    parts = [gains(arms, AT_EQUAL_TIME) for arms in _judged(cells).values()]
    total = over_rows(part.total for part in parts)
    if total.num_pairs < 2:
        return ""
    return (
        f"At equal time, silent - KL warm-up is {total} nats in the mean of {total.num_pairs} rows, and "
        f"silent - control, the part that is due to silence, {over_rows(part.silence for part in parts)} "
        "(standard errors between rows)."
    )


def _verdicts(cells: Cells) -> str:
    verdicts = [silence(arms).verdict for arms in _judged(cells).values()]
    if not verdicts:
        return ""
    ahead, unclear, behind = map(verdicts.count, ("ahead", "unclear", "behind"))
    return (
        f"Of {len(verdicts)} rows silent is clearly ahead of control in {ahead}, clearly behind in "
        f"{behind}, and {unclear} show no clear difference (clear: beyond {STANDARD_ERRORS:g} standard "
        "errors over seeds)."
    )


def _by_factor(cells: Cells) -> list[str]:
    """Rows that differ in one thing alone, beside each other."""
    families: dict[tuple[str, tuple], dict[object, Gap]] = {}
    for cell, arms in _judged(cells).items():
        for factor in FACTORS:
            left_out = {factor, "steps"}  # which goes with the batch size
            rest = tuple(getattr(cell, name) for name in Cell._fields if name not in left_out)
            families.setdefault((factor, rest), {})[getattr(cell, factor)] = silence(arms)
    return [
        f"silent - control by {FACTORS[factor]} ("
        + ", ".join(map(str, rest))
        + "): "
        + "; ".join(f"{value}: {found}" for value, found in by_value.items())
        + "."
        for (factor, rest), by_value in families.items()
        if len(by_value) > 1
    ]


def _small_gain(cells: Cells) -> str:
    _, names = row_names(cells)
    parts = []
    for cell, arms in _judged(cells).items():
        found = gains(arms, AT_EQUAL_TIME)
        if cell.decoder == SMALL_GAIN_DECODER and found.total.num_pairs >= 2:
            lost = sum(map(_is_lost, arms["plain"].values()))
            parts.append(
                f"{found.total} ({names[cell]}), of which silence {found.silence}; {lost} of "
                f"{len(arms['plain'])} plain runs collapsed"
            )
    if not parts:
        return ""
    listed = "; ".join(parts)
    return f"The decoder that hardly collapses: silent - KL warm-up is {listed}."


def _early_and_late(cells: Cells) -> str:
    ends = []
    for share in (EARLY, 1.0):
        along = (gap_along(a, "silent", "control", share) for a in _judged(cells).values())
        ends.append(over_rows(along))
    early, late = ends
    if early.num_pairs < 2:
        return ""
    return (
        f"On validation images silent - control is {early} nats after {100 * EARLY:g} % of the time and "
        f"{late} at the end (means over rows, standard errors between them)."
    )


def _fall(cells: Cells) -> str:
    """How much of its best validation ELBO the silent arm loses until the end."""
    _, names = row_names(cells)
    falls = []
    for cell, arms in cells.items():
        lost = [
            max(v for *_, v in run["curve"]) - run["curve"][-1][2]
            for run in counted(arms["silent"])
        ]
        fall = Gap(*mean_and_error(lost), len(lost))
        if fall.verdict == "ahead" and fall.mean > NOTABLE_FALL:
            falls.append(f"{fall.mean:.1f} ± {fall.error:.1f} ({names[cell]})")
    if not falls:
        return ""
    listed = "; ".join(falls)
    return f"Silent runs end below their best validation ELBO by {listed}."


def _collapses(cells: Cells) -> str:
    counts: dict[str, int] = {}
    for arms in cells.values():
        for arm, runs in arms.items():
            counts[arm] = counts.get(arm, 0) + sum(map(_is_lost, runs.values()))
    if not any(counts.values()):
        return "No run collapsed or diverged."
    listed = ", ".join(f"{count} of {arm}" for arm, count in counts.items())
    return f"Runs that collapsed or diverged, in no mean and no difference: {listed}."
