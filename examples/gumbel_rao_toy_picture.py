"""The picture of the toy problem: one triangle per temperature."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.tri import Triangulation
from torch import Tensor

CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
LEVEL_STEP = 0.05
LINE_EVERY = 4


def draw(p: Tensor, differences: dict[float, Tensor], path: Path) -> None:
    """Draw values over the simplex to a PNG file, a panel for each temperature.

    :param p: points ``[points, 3]``.
    :param differences: temperature to values ``[points]``; one scale of colours for all.
    """
    x, y = (p @ CORNERS).T.numpy()
    triangles = Triangulation(x, y)
    # A triangle with corners on both sides of p_k = 2/3 would interpolate across the singularity.
    beyond = (p > 2 / 3)[torch.from_numpy(triangles.triangles).long()]
    triangles.set_mask((beyond.any(1) != beyond.all(1)).any(-1).numpy())
    every = torch.cat(list(differences.values())) / LEVEL_STEP
    first, last = math.floor(min(0.0, every.min().item())), math.ceil(every.max().item())
    levels = [i * LEVEL_STEP for i in range(first, last + 1)]

    figure, panels = plt.subplots(
        1,
        len(differences),
        figsize=(4.1 * len(differences), 4),
        squeeze=False,
        layout="constrained",
    )
    for panel, (temperature, values) in zip(panels[0], differences.items(), strict=True):
        colours = panel.tricontourf(triangles, values.numpy(), levels=levels, cmap="viridis")
        lines = panel.tricontour(
            triangles, values.numpy(), levels=levels[::LINE_EVERY], colors="white", linewidths=0.6
        )
        panel.clabel(lines, fmt="%.1f", fontsize=7)
        _outline(panel)
        panel.set_title(f"temperature {temperature:g}", fontsize=12)
    ticks = levels[::LINE_EVERY]
    bar = figure.colorbar(colours, ax=panels[0].tolist(), shrink=0.8, pad=0.01, ticks=ticks)
    bar.set_label("log10 of the variances' ratio, ST-GS / GR")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _outline(panel: Axes) -> None:
    """The simplex, its corners named, and the three lines where the objective is singular."""
    closed = torch.cat([CORNERS, CORNERS[:1]]).numpy()
    panel.plot(*closed.T, color="#333333", linewidth=1)
    for k in range(3):
        others = [j for j in range(3) if j != k]
        ends = (2 * CORNERS[k] + CORNERS[others]) / 3
        panel.plot(*ends.T.numpy(), color="#888888", linewidth=0.8, linestyle=":")
        x, y = (CORNERS[k] + 0.07 * (CORNERS[k] - CORNERS.mean(0))).tolist()
        panel.text(x, y, f"$p_{k + 1} = 1$", ha="center", va="top" if k < 2 else "bottom")
    panel.set_aspect("equal")
    panel.set_xlim(-0.12, 1.12)
    panel.set_ylim(-0.1, 1.0)
    panel.axis("off")
