"""The picture of a comparison: bias against noise, and time against noise."""

from __future__ import annotations

import math
from os import PathLike
from typing import Any

from pyro_silent.figures import new_figure


def draw_comparison(
    path: str | PathLike[str], rows: list[dict[str, Any]], reference: dict[str, Any]
) -> None:
    """Draw the losses that have figures into two panels.

    Noise is on a logarithmic axis with a linear piece around zero, where losses without noise are.
    """
    rows = [row for row in rows if not row["error"] and math.isfinite(row["grad_std"])]
    figure = new_figure(10, 4.2 + 0.22 * math.ceil(len(rows) / _LEGEND_COLUMNS))
    bias, cost = figure.subplots(1, 2)
    for index, row in enumerate(rows):
        style: dict[str, Any] = {
            "color": f"C{index % 10}",
            "marker": _MARKERS[(index + 3 * (index // 10)) % len(_MARKERS)],
            "linestyle": "none",
            "label": _label(row["name"]),
        }
        if math.isfinite(row["grad_bias"]):
            bias.errorbar(
                row["grad_std"],
                row["grad_bias"],
                xerr=_finite(2 * row["grad_std_se"]),
                yerr=_finite(2 * row["grad_bias_se"]),
                markerfacecolor=style["color"] if row["biased"] else "none",
                **style,
            )
        cost.plot(row["grad_std"], 1e3 * row["seconds_per_step"], **style)
    for panel, ylabel in ((bias, "bias"), (cost, "milliseconds per step")):
        _scale_noise(panel, rows)
        panel.set_xlabel("gradient noise")
        panel.set_ylabel(ylabel)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    bias.axhline(0.0, color="#888888", linewidth=0.8)
    if reference:
        bias.set_title(
            f"against {_label(reference['name'])}, ± 2 standard errors; filled: biased", fontsize=9
        )
    cost.set_ylim(bottom=0.0)
    cost.set_title("value and gradient, without an optimizer", fontsize=9)
    figure.legend(
        *cost.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=_LEGEND_COLUMNS,
        frameon=False,
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


_MARKERS = "os^vDPX*<>p"
_LEGEND_COLUMNS = 3
_LONGEST_NAME = 32
_WIDE = 30.0  # largest over smallest noise, from which the axis is logarithmic


def _scale_noise(panel: Any, rows: list[dict[str, Any]]) -> None:
    """A linear axis from zero, or a logarithmic one where that would squeeze the small noises."""
    positive = [row["grad_std"] for row in rows if row["grad_std"] > 0]
    largest = max((row["grad_std"] + 2 * _finite(row["grad_std_se"]) for row in rows), default=0.0)
    if not positive or max(positive) < _WIDE * min(positive):
        largest = largest or 1.0
        panel.set_xlim(-0.04 * largest, 1.05 * largest)
        return
    smallest = min(positive)
    panel.set_xscale("symlog", linthresh=smallest, linscale=0.3)
    panel.set_xlim(-0.15 * smallest, 1.2 * largest)


def _label(name: str) -> str:
    """A name as matplotlib shows it: no formula, and in the legend whatever it begins with."""
    short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    return "\u200b" + " ".join(short.split()).replace("$", r"\$")


def _finite(error: float) -> float:
    return error if math.isfinite(error) else 0.0
