"""Figures written to files, with matplotlib where it is installed and without its global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_lines", "new_figure"]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of its own: no backend is chosen, none of pyplot's figures is touched.

    :param float width: in inches; so is ``height``.
    :raises ImportError: where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot needs matplotlib, which could not be imported; write pip install matplotlib, or "
            'pip install "pyro_silent[examples]".'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_lines(
    path: str | PathLike[str],
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    title: str,
) -> None:
    """Draw lines into one panel.

    :param lines: name to abscissae and ordinates.
    :param str x: what the abscissa is.
    :raises ImportError: where matplotlib is not installed.
    """
    figure = new_figure(6.4, 3.2)
    panel = figure.subplots()
    for name, (xs, ys) in lines.items():
        panel.plot(xs, ys, label=name)
    panel.set_xlabel(x)
    panel.set_title(title, fontsize=10)
    panel.legend(frameon=False, fontsize=9)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
