"""What an explanation is: rows of data that print as a table."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

_COLUMNS = ("site", "kind", "term", "method", "sources")


@dataclass(frozen=True)
class Explanation:
    """How each term of an ELBO is found; ``str()`` is a table.

    :ivar rows: one dict for each site, with the keys

        - ``site``: its name;
        - ``kind``: "latent" or "observed";
        - ``term``: what it adds to the ELBO: "log p", "-log q", "log p - log q", or "-KL(q || p)" where
          both were replaced by a divergence in closed form;
        - ``method``: "closed form", "quadrature(n)" with n nodes (an expectation over one or two
          Gaussian scalars, integrated numerically), "enumerated", "enumerated + quadrature(n)", or
          "sampled" (in whole or in part, by one draw);
        - ``sources``: the guide's latents the term depends on, a tuple of names;
        - ``reason``: why it is not in closed form and, if sampled, what to write instead; else None;
        - ``location``: ``file:line`` in the user's code where exactness was lost; else None.
    :ivar notes: remarks on the whole.
    """

    rows: list[dict[str, Any]]
    notes: tuple[str, ...] = ()

    @property
    def is_silent(self) -> bool:
        """Whether no term is sampled: then loss and gradient are deterministic."""
        return all(row["method"] != "sampled" for row in self.rows)

    def __repr__(self) -> str:
        counts = Counter(row["method"] for row in self.rows)
        methods = ", ".join(f"{count} {method}" for method, count in counts.items())
        return f"Explanation({len(self.rows)} sites: {methods})"

    def __str__(self) -> str:
        header = [[title.capitalize()] for title in (*_COLUMNS, "reason")]
        table = [header, *map(_cells, self.rows)]
        widths = [max(len(line) for cell in column for line in cell) for column in zip(*table)]
        table.insert(1, [["-" * width] for width in widths])
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip()
            for cells in table
            for line in zip_longest(*cells, fillvalue="")
        ]
        return "\n".join([*lines, *self.notes])


def _cells(row: dict[str, Any]) -> list[list[str]]:
    """The lines of each cell of a row; the location has one of its own, so that it can be clicked."""
    cells = {**row, "sources": ", ".join(row["sources"]) or "-"}
    lines = [_wrapped(cells[column], 32) for column in _COLUMNS]
    place = [] if row["location"] is None else [f"at {_shortened(row['location'])}"]
    return [*lines, _wrapped(row["reason"] or "", 72) + place]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _shortened(location: str) -> str:
    """A location seen from the working directory, if it lies there."""
    here = os.getcwd() + os.sep
    return location[len(here) :] if location.startswith(here) else location
