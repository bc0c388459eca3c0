"""The picture of the ListOps experiment: accuracy against temperature, ours and the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from listops_report import (
    GUMBEL_RAO,
    LEFT,
    LOW,
    MEASURES,
    PAPER,
    RANDOM,
    TEMPERATURES,
    find,
    percent,
    standard_error,
)
from listops_training import Result

COLOURS = dict(zip(("ST-GS", *GUMBEL_RAO), ("#9e2a2b", "#7fb7be", "#2a9d8f", "#0b6e4f")))
FLAT = {"ZGR": ("#e09f3e", "-"), RANDOM: ("#555555", ":"), LEFT: ("#555555", "--")}


def draw(results: Sequence[Result], max_length: int, path: Path) -> None:
    """Draw our two measures and the paper's figures to a PNG file at ``path``."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True, layout="constrained")
    for panel, (measure, text) in zip(panels, MEASURES.items()):
        _ours(panel, results, measure)
        panel.set_title(f"ours, {text}", fontsize=10)
    for name, accuracies in PAPER.get(max_length, {}).items():
        panels[2].plot(TEMPERATURES, accuracies, "o-", color=COLOURS[name], label=name)
    panels[2].set_title("Paulus et al. (2021)", fontsize=10)
    for panel in panels:
        panel.set(xscale="log", xlabel="temperature")
        panel.set_xticks(TEMPERATURES, [f"{t:g}" for t in TEMPERATURES])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"test accuracy in %, L ≤ {max_length}")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _ours(panel: Axes, results: Sequence[Result], measure: str) -> None:
    for shift, (name, colour) in enumerate(COLOURS.items()):
        found = [find(results, name, t) for t in TEMPERATURES]
        figures = [getattr(result, measure) for result in found if result is not None]
        places = [t * 1.06**shift for t in TEMPERATURES]  # side by side where they coincide
        errors = [standard_error(f) for f in figures]
        means = [percent(f) for f in figures]
        panel.errorbar(places, means, errors, fmt="o-", color=colour, capsize=3, label=name)
    for name, (colour, style) in FLAT.items():
        result = find(results, name)
        if result is not None:
            panel.axhline(percent(getattr(result, measure)), c=colour, ls=style, lw=1.2, label=name)
    clipped = find(results, "ST-GS", LOW, clipped=True)
    if clipped is not None:
        accuracy = percent(getattr(clipped, measure))
        panel.plot(LOW, accuracy, "x", color=COLOURS["ST-GS"], label="ST-GS, clipped")
