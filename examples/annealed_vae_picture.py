"""The figure of the annealed VAE: validation ELBO over training time and the encoder's gradient noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from annealed_vae_summary import (
    ARMS,
    Cell,
    Races,
    Record,
    counted,
    curve_at,
    is_counted,
    noise_at,
    races,
)

COLORS = {
    "plain": "#888888",
    "KL warm-up": "#e09f3e",
    "control": "#3a7ca5",
    "silent": "#0b6e4f",
}
MAIN_ESTIMATORS = ("reparam", "GR", "RLOO", "REINFORCE")  # before others
MOST_COLUMNS = 4
_POINTS = 200
_SETTLED = 0.1  # the axis begins with what was reached after this share of the time


def main_cells(records: Sequence[Record]) -> list[Cell]:
    """Return the cells that are drawn: those of the commonest setting, one for each estimator."""
    cells = list(races(records))
    common = {
        name: statistics.mode(getattr(cell, name) for cell in cells)
        for name in ("data", "decoder", "batch_size", "steps")
    }
    of_estimator: dict[str, Cell] = {}
    for cell in cells:
        known = of_estimator.get(cell.estimator)
        if all(getattr(cell, name) == value for name, value in common.items()):
            if known is None or cell.num_units > known.num_units:
                of_estimator[cell.estimator] = cell
    first = [of_estimator[name] for name in MAIN_ESTIMATORS if name in of_estimator]
    others = [cell for cell in of_estimator.values() if cell not in first]
    return [*first, *others][:MOST_COLUMNS] or cells[:1]


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw a column per main cell to a PNG file: curves above, gradient noise below."""
    cells = races(records)
    shown = main_cells(records)
    figure, panels = plt.subplots(
        2,
        len(shown),
        figsize=(4.2 * len(shown) + 0.6, 6.4),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": [1.6, 1]},
    )
    for column, cell in enumerate(shown):
        _curves(panels[0, column], cells[cell])
        _noise(panels[1, column], cells[cell])
        panels[0, column].set_title(
            f"{cell.data}, {cell.decoder} decoder, batch {cell.batch_size}\n"
            f"{cell.num_units} {cell.code}, {cell.estimator}",
            fontsize=10,
        )
    panels[0, 0].set_ylabel("validation ELBO, nats per image")
    panels[1, 0].set_ylabel("gradient noise / gradient")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(ARMS), frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _curves(panel: Axes, arms: Races) -> None:
    """Mean of the runs with a code in use, band from the lowest to the highest; the others dotted."""
    lowest, highest = math.inf, -math.inf
    lost: list[str] = []
    for arm in ARMS:
        runs = [run for run in counted(arms[arm]) if run["curve"]]
        others = [run for run in arms[arm].values() if not is_counted(run)]
        panel.plot([], [], color=COLORS[arm], label=arm)
        if others:
            lost.append(f"{arm}: {len(others)} of {len(arms[arm])} collapsed or diverged")
        for run in others:
            panel.plot(
                [second for _, second, _ in run["curve"]],
                [value for *_, value in run["curve"]],
                color=COLORS[arm],
                linestyle=":",
                linewidth=1,
            )
        if not runs:
            continue
        end = min(run["curve"][-1][1] for run in runs)
        seconds = [end * i / _POINTS for i in range(_POINTS + 1)]
        values = [[curve_at(run, second) for run in runs] for second in seconds]
        mean = [statistics.fmean(at) for at in values]
        panel.plot(seconds, mean, color=COLORS[arm], linewidth=1.8)
        panel.fill_between(
            seconds,
            [min(at) for at in values],
            [max(at) for at in values],
            color=COLORS[arm],
            alpha=0.2,
            linewidth=0,
        )
        lowest = min(lowest, mean[round(_SETTLED * _POINTS)])
        highest = max(highest, *(max(at) for at in values))
    if highest > lowest:
        panel.set_ylim(lowest, highest + 0.05 * (highest - lowest))
    panel.text(0.98, 0.02, "\n".join(lost), transform=panel.transAxes, ha="right", fontsize=7)
    panel.set_xlabel("training time, s")
    _plain(panel)


def _noise(panel: Axes, arms: Races) -> None:
    """Noise over the norm of the mean gradient; symlog, since silence is 0 at first."""
    positive = []
    for arm in ARMS:
        steps = sorted({point[0] for run in counted(arms[arm]) for point in run["noise"]})
        ratios = [noise_at(arms[arm], step)[1] for step in steps]
        positive += [ratio for ratio in ratios if ratio > 0]
        panel.plot(steps, ratios, color=COLORS[arm], marker="o", markersize=4, linewidth=1.2)
    least = min(positive, default=1.0)
    panel.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(least)))
    panel.set_ylim(bottom=-0.1 * least)
    panel.set_xlabel("step")
    _plain(panel)


def _plain(panel: Axes) -> None:
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
