"""Rows of figures as text, as HTML and as a CSV file."""

from __future__ import annotations

import csv
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any


def number(value: float | None, digits: int = 3) -> str:
    """A figure to some significant digits, "-" where there is none."""
    if value is None:
        return "-"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 10 ** max(digits, 5):
        return f"{value:.{digits - 1}e}"
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(digits - 1 - magnitude, 0)}f}"


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under a ruled header, the first aligned to the left and the others to the right."""
    lines = [[" ".join(cell.split()) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for notebooks; cells are escaped."""

    def line(tag: str, cells: Sequence[str]) -> str:
        aligned = ["left"] + ["right"] * (len(cells) - 1)
        return "".join(
            f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
            for side, cell in zip(aligned, cells, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{line('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def write_csv(path: str | PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write dicts of the same keys; None is an empty cell, items of a tuple are separated by spaces."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _written(value) for key, value in row.items()} for row in rows)


def _written(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value
