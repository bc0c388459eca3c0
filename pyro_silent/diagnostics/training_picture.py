"""The picture of a comparison of training runs."""

from __future__ import annotations

import math
import statistics
from os import PathLike
from typing import TYPE_CHECKING, Any

from pyro_silent.figures import new_figure

if TYPE_CHECKING:
    from pyro_silent.diagnostics.training_comparison import TrainingComparison

_START = 0.25  # of the steps, whose values may lie outside of the axis


def draw(path: str | PathLike[str], comparison: TrainingComparison) -> None:
    """Draw the yardstick against steps and against seconds.

    :raises ImportError: where matplotlib is not installed.
    """
    figure = new_figure(10, 4)
    panels = figure.subplots(1, 2, sharey=True)
    for number, row in enumerate(comparison.rows):
        curves = _curves(comparison, row["name"])
        failed = {run["seed"] for run in comparison.runs if _of(run, row["name"]) and run["error"]}
        color = f"C{number % 10}"
        # matplotlib leaves names out that begin with _, and reads mathematics between dollars
        label = "\u200b" + row["name"].replace("$", r"\$")
        for panel, key in zip(panels, ("step", "seconds")):
            _draw_band(panel, key, [c for s, c in curves.items() if s not in failed], label, color)
            for curve in (c for s, c in curves.items() if s in failed):
                xs, ys = [p[key] for p in curve], [p["yardstick"] for p in curve]
                panel.plot(xs, ys, ":", color=color, linewidth=1)
    for panel, label in zip(panels, ("step", "seconds of training")):
        panel.set_xlabel(label)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("yardstick (lower is better)")
    _fit_axis(panels[0], comparison.curves)
    if panels[0].get_legend_handles_labels()[1]:
        panels[0].legend(frameon=False, fontsize=9)
    figure.suptitle(comparison.yardstick, fontsize=9)
    figure.savefig(path, dpi=120)


def _of(run: dict[str, Any], name: str) -> bool:
    return bool(run["name"] == name)


def _curves(comparison: TrainingComparison, name: str) -> dict[int, list[dict[str, Any]]]:
    """The evaluations of a loss by seed."""
    curves: dict[int, list[dict[str, Any]]] = {}
    for point in comparison.curves:
        if _of(point, name):
            curves.setdefault(point["seed"], []).append(point)
    return curves


def _draw_band(
    panel: Any, key: str, curves: list[list[dict[str, Any]]], label: str, color: str
) -> None:
    if not curves:
        return
    length = max(map(len, curves))
    held = [curve + [curve[-1]] * (length - len(curve)) for curve in curves]
    columns = list(zip(*held))
    xs = [math.fsum(point[key] for point in column) / len(column) for column in columns]
    if key == "step":
        xs = [max(point[key] for point in column) for column in columns]
    values = [[point["yardstick"] for point in column] for column in columns]
    means = [math.fsum(column) / len(column) for column in values]
    panel.plot(xs, means, color=color, linewidth=1.5, label=label)
    if len(curves) > 1:
        spreads = [statistics.stdev(column) for column in values]
        low = [mean - spread for mean, spread in zip(means, spreads)]
        high = [mean + spread for mean, spread in zip(means, spreads)]
        panel.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)


def _fit_axis(panel: Any, curves: list[dict[str, Any]]) -> None:
    """Let the axis show what comes after the start."""
    last = max((point["step"] for point in curves), default=0)
    shown = [
        point["yardstick"]
        for point in curves
        if point["step"] >= _START * last and math.isfinite(point["yardstick"])
    ]
    if shown and min(shown) < max(shown):
        margin = 0.05 * (max(shown) - min(shown))
        panel.set_ylim(min(shown) - margin, max(shown) + margin)
