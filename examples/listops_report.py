"""What the ListOps runs came to: claims that are checked, what they do not show, tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from listops_training import Result

TEMPERATURES = (0.01, 0.1, 1.0)
LOW, HIGH = TEMPERATURES[0], TEMPERATURES[-1]
NAMES = ("ST-GS", "GR-MC10", "GR-MC100", "GR-MC1000", "ZGR")
GUMBEL_RAO = NAMES[1:4]
RANDOM, LEFT = "random trees", "left-branching trees"
MEASURES = {"best_validation": "at the best validation accuracy", "final": "at the last step"}
STANDARD_ERRORS = 3.0  # one-sided; with four degrees of freedom by chance once in 50 at most
MAX_SPREAD = 5.0  # points of accuracy between the temperatures, for Gumbel-Rao

# Test accuracy in % at temperatures 0.01, 0.1, 1, by the longest length; Paulus et al. (2021).
PAPER: dict[int, dict[str, tuple[float, float, float]]] = {
    10: {
        "ST-GS": (38.8, 59.3, 65.8),
        "GR-MC10": (66.4, 66.9, 66.7),
        "GR-MC100": (65.6, 66.3, 65.9),
        "GR-MC1000": (66.5, 67.1, 67.0),
    },
    25: {
        "ST-GS": (41.2, 57.1, 60.2),
        "GR-MC10": (60.7, 60.8, 60.9),
        "GR-MC100": (60.0, 61.3, 61.2),
        "GR-MC1000": (60.2, 60.9, 61.2),
    },
    50: {
        "ST-GS": (46.8, 56.8, 59.6),
        "GR-MC10": (58.7, 59.1, 59.6),
        "GR-MC100": (59.6, 59.1, 59.6),
        "GR-MC1000": (60.0, 59.8, 59.9),
    },
}


def percent(figures: Sequence[float]) -> float:
    """The mean over the seeds, in percent."""
    return 100 * statistics.fmean(figures)


def standard_error(figures: Sequence[float]) -> float:
    """Of the mean over the seeds, in percent."""
    return 100 * statistics.stdev(figures) / math.sqrt(len(figures))


def shown(figures: Sequence[float]) -> str:
    """The mean and its standard error."""
    error = f" ± {standard_error(figures):.1f}" if len(figures) > 1 else ""
    return f"{percent(figures):.1f}{error}"


def find(
    results: Sequence[Result], name: str, temperature: float | None = None, clipped: bool = False
) -> Result | None:
    """The result of an arm; an arm without a temperature is found at any."""
    for result in results:
        is_clipped = result.clip_norm is not None
        if result.name == name and is_clipped == clipped:
            if result.temperature in (temperature, None):
                return result
    return None


def check_claims(results: Sequence[Result]) -> list[str]:
    """What was found, in sentences.

    :raises SystemExit: if ST-GS does not break down at the low temperature, seen from itself at the
        high one and from Gumbel-Rao at the low one, or if Gumbel-Rao depends on the temperature.
    """
    sentences = []
    low = _found(results, "ST-GS", LOW)
    for measure, text in MEASURES.items():
        rivals = [
            _found(results, "ST-GS", HIGH),
            *(_found(results, name, LOW) for name in GUMBEL_RAO),
        ]
        gaps = [_check_gap(low, rival, measure, text) for rival in rivals]
        sentences.append(
            f"{low} is below others, {text}, by points (standard error): {', '.join(gaps)}."
        )
        spreads = {}
        for name in ("ST-GS", *GUMBEL_RAO):
            means = [percent(getattr(_found(results, name, t), measure)) for t in TEMPERATURES]
            spreads[name] = max(means) - min(means)
            if name in GUMBEL_RAO and not spreads[name] < min(MAX_SPREAD, spreads["ST-GS"] / 2):
                raise SystemExit(
                    f"{name}: accuracies {text} lie {spreads[name]:.1f} points apart between "
                    f"temperatures; expected less than {MAX_SPREAD:g} and than half of ST-GS's "
                    f"{spreads['ST-GS']:.1f}"
                )
        listed = ", ".join(f"{name} {spread:.1f}" for name, spread in spreads.items())
        sentences.append(f"Points between the temperatures, {text}: {listed}.")
    return sentences


def _found(results: Sequence[Result], name: str, temperature: float | None = None) -> Result:
    result = find(results, name, temperature)
    if result is None:
        raise KeyError(f"{name} at {temperature}")
    return result


def _check_gap(low: Result, high: Result, measure: str, text: str) -> str:
    worse, better = getattr(low, measure), getattr(high, measure)
    gap = percent(better) - percent(worse)
    error = math.hypot(standard_error(worse), standard_error(better))
    if not gap > STANDARD_ERRORS * error:
        raise SystemExit(
            f"{low} is {gap:.1f} points below {high} {text}, with standard error {error:.1f}; "
            f"expected more than {STANDARD_ERRORS:g} of these"
        )
    return f"{high} {gap:.1f} ({error:.1f})"


def caveats(results: Sequence[Result]) -> list[str]:
    """What the tables do not show, with the figures that say so."""
    controls = [_found(results, name) for name in (RANDOM, LEFT)]
    learned = [result for result in results if result.name not in (RANDOM, LEFT)]
    best, control = (
        max(group, key=lambda result: percent(result.best_validation))
        for group in (learned, controls)
    )
    beats = percent(best.best_validation) > percent(control.best_validation)
    verdict = "The best of all learned arms is above" if beats else "No learned tree beats"
    figures = ", ".join(f"{r} {shown(r.best_validation)}" for r in (best, *controls))
    sentences = [f"{verdict} trees that are not learned: {figures}."]
    free, rival = _found(results, "ST-GS", LOW), _found(results, "GR-MC10", LOW)
    clipped = [find(results, result.name, LOW, clipped=True) for result in (free, rival)]
    if clipped[0] is not None and clipped[1] is not None:
        sentences.append(
            f"With gradients clipped to norm {clipped[0].clip_norm:g}, {free} ends at "
            f"{shown(clipped[0].final)} beside {rival} at {shown(clipped[1].final)}; without, at "
            f"{shown(free.final)} beside {shown(rival.final)}, with largest gradients of norm "
            f"{max(free.largest_norm):.2g} and {max(rival.largest_norm):.2g}."
        )
    return sentences


# -- tables ----------------------------------------------------------------------------------------


def table(results: Sequence[Result], measure: str, max_length: int) -> str:
    """Test accuracy in %, as Markdown; that of the best validation beside the paper's."""
    low = f"τ = {LOW:g}"
    others = [f"{temperature:g}" for temperature in TEMPERATURES[1:]]
    header = ["estimator", f"[ours] {low}", *others, f"{low}, clipped"]
    compared = measure == "best_validation"
    if compared:
        header += [f"{low}, last step", f"[P] {low}", *others]
    rows = [header, [":--", *["--:"] * (len(header) - 1)]]
    for name in (*NAMES, RANDOM, LEFT):
        found = [find(results, name, temperature) for temperature in TEMPERATURES]
        if found[0] is found[-1]:
            found[1:] = [None, None]  # one figure, whatever the temperature
        found.append(find(results, name, LOW, clipped=True))
        cells = ["" if result is None else shown(getattr(result, measure)) for result in found]
        if compared:
            cells.append("" if found[0] is None else shown(found[0].final))
            paper = PAPER.get(max_length, {}).get(name)
            cells += [f"{figure:.1f}" for figure in paper] if paper else ["", "", ""]
        rows.append([name, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def readme_table(record: dict) -> str:
    """The table for the README, from ``docs/listops.json``."""
    results = [Result(**row) for row in record["rows"]]
    return table(results, "best_validation", record["settings"]["max_length"])


def _budget(record: dict) -> str:
    settings = record["settings"]
    length = f"{settings['epochs']} epochs" if settings["epochs"] else f"{settings['steps']} steps"
    return (
        f"{length} of {settings['batch_size']} expressions at learning rate "
        f"{settings['learning_rate']:g}, momentum {settings['momentum']:g}"
    )


def report(record: dict) -> str:
    """``listops.md`` from ``listops.json``: both tables, the findings, how it was made."""
    results = [Result(**row) for row in record["rows"]]
    settings = record["settings"]
    length = settings["max_length"]
    sections = [
        f"# ListOps, expressions of at most {length} tokens",
        "Test accuracy in %. [P]: Paulus et al. (2021). [ours]: mean ± standard error over "
        f"{settings['seeds']} seeds, after {_budget(record)}, unclipped but for one column. ZGR and "
        "the controls have no temperature. All sizes and rates are ours, not the paper's.",
        "At the best validation accuracy:",
        table(results, "best_validation", length),
        "At the last step (the choice by validation hides part of a collapse):",
        table(results, "final", length),
        "\n".join(f"- {sentence}" for sentence in (*record["claims"], *record["caveats"])),
        f"`{record['command']}`: {record['processor_seconds'] / 60:.0f} minutes of processor time in "
        f"{settings['processes']} processes.",
    ]
    return "\n\n".join(sections) + "\n"
