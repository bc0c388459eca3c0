"""The figure of the discrete VAE: our bounds against the arity, and the published ones."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from discrete_vae_estimators import CONTENDERS
from discrete_vae_report import ARITIES, BATCH_SIZES, PAPER, Cells, Summary

_COLORS = {
    "GS": "#e09f3e",
    "REINFORCE": "#9e2a2b",
    "RLOO": "#c8553d",
    "DisARM": "#f28f8f",
    "ST": "#888888",
    "ST-GS": "#3a7ca5",
    "GR-MC10": "#5fb49c",
    "GR-MC100": "#0b6e4f",
    "GR exact": "#033f2c",
    "ZGR": "#7b4b94",
    "ReinMax": "#c28fd4",
}
_MARKERS = {"relaxed": "s", "score function": "^", "straight-through": "o"}


def draw(cells: Cells, path: Path) -> None:
    """Draw our bounds and the published ones against the arity, a panel per batch size."""
    batches = sorted({batch for _, batch, _ in cells})
    figure, panels = plt.subplots(
        2, len(batches), figsize=(5.5 * len(batches), 8), squeeze=False, layout="constrained"
    )
    theirs = {
        (name, batch, arity): Summary(rows[i][j], math.nan, 1, 0)
        for name, rows in PAPER.items()
        for i, batch in enumerate(BATCH_SIZES)
        for j, arity in enumerate(ARITIES)
    }
    for column, batch in enumerate(batches):
        _panel(panels[0, column], cells, batch, f"this run, batch {batch}")
        _panel(panels[1, column], theirs, batch, f"published, batch {batch}")
    panels[0, 0].set_ylabel("bound on test −log p(x), nats")
    panels[1, 0].set_ylabel("bound on test −log p(x), nats")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _panel(panel: Axes, cells: Cells, batch_size: int, title: str) -> None:
    """One batch size; score function estimators far above are written along the upper edge."""
    means = {
        key: cell.mean
        for key, cell in cells.items()
        if key[1] == batch_size and math.isfinite(cell.mean)
    }
    near = [mean for key, mean in means.items() if CONTENDERS[key[0]].family != "score function"]
    near = near or list(means.values()) or [0.0]
    span = max(near) - min(near) or 1.0
    top = max(near) + 0.2 * span
    names = [name for name in CONTENDERS if any(key[0] == name for key in cells)]
    for order, name in enumerate(names):
        shown = [
            (place + 0.065 * (order - (len(names) - 1) / 2), cells[name, batch_size, arity])
            for place, arity in enumerate(ARITIES)
            if means.get((name, batch_size, arity), math.inf) <= top
        ]
        panel.errorbar(
            [at for at, _ in shown],
            [cell.mean for _, cell in shown],
            [cell.error if math.isfinite(cell.error) else 0.0 for _, cell in shown],
            color=_COLORS[name],
            marker=_MARKERS[CONTENDERS[name].family],
            linestyle="",
            label=name,
            capsize=2,
        )
    for place, arity in enumerate(ARITIES):
        far = {name: means.get((name, batch_size, arity), 0.0) for name in names}
        note = "\n".join(f"{name} {mean:.0f} ↑" for name, mean in far.items() if mean > top)
        panel.annotate(note, (place, top), va="bottom", ha="center", fontsize=7, color="#9e2a2b")
    panel.set_ylim(min(near) - 0.08 * span, top)
    panel.set_xticks(range(len(ARITIES)), [str(arity) for arity in ARITIES])
    panel.set_xlabel("values of a code variable")
    panel.set_title(title, fontsize=11, pad=30)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
