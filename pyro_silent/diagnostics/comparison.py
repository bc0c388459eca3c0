"""What a comparison of losses is: rows of figures that print as a table, with one piece of advice."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from pyro_silent.diagnostics.advice import advice
from pyro_silent.diagnostics.comparison_picture import draw_comparison
from pyro_silent.diagnostics.tables import html_table, number, text_table, write_csv

WHOLE = ("all", "guide", "model")
"""Groups of parameters that are not one parameter."""

_HEADER = (
    "Loss",
    "value",
    "spread",
    "noise",
    "bias",
    "biased",
    "RMSE",
    "cosine",
    "ms/step",
    "peak MiB",
    "noise² x s",
)
_GROUP_HEADER = ("Loss", "group", "norm", "noise", "bias", "biased", "RMSE", "cosine")


@dataclass(frozen=True)
class Comparison:
    """Losses side by side; ``str()`` is a table, notebooks show it as one.

    :ivar rows: one dict for each loss, with the keys

        - ``name``;
        - ``loss_mean``, ``loss_std``: of its value, over samples;
        - ``grad_norm``: of its expected gradient;
        - ``grad_std``, ``grad_std_se``: gradient noise, the root of the variance summed over all
          parameters, with its standard error;
        - ``grad_bias``, ``grad_bias_se``: norm of its expected gradient minus the reference's, with its
          standard error. Up to 3 standard errors it is the part along the direction that earlier
          samples found: without bias it has mean zero, may be negative, and is standard normal over
          its standard error;
        - ``biased``, ``biased_in``: whether ``grad_bias`` is more than 3 standard errors (10 for
          parameters one by one; more if samples are few) and more than rounding can do, and where:
          the groups "all", "guide", "model", or else names of parameters. Of 250 unbiased losses it
          is for one; for more if gradients are so skewed that means over samples are not normal (in
          simulations with 100 samples for one of 20 with log-normal gradients of scale 1.5);
        - ``grad_bias_limit``: the norm of a bias that would be found on average: a
          smaller one may be there unseen, since noise hides its direction;
        - ``exact``: whether it draws no random numbers and comes to the same result every time;
        - ``grad_rmse``: root of the mean squared distance of a gradient from the reference's expectation;
        - ``grad_cosine``: of the angle between the two;
        - ``seconds_per_step``, ``seconds_se``: wall time of value and gradient, without an optimizer;
        - ``peak_bytes``: memory that such a step takes on top of what was there before; None if unknown;
        - ``efficiency``, ``efficiency_se``: noise variance x seconds: what a given precision of the
          gradient costs in time. Smaller is better;
        - ``num_samples``: gradients drawn; at most 10 of a loss that draws no random numbers;
        - ``error``: None, or why there are no figures.

        Figures that are not known are nan.
    :ivar groups: one dict for each loss and group of parameters, with the keys ``name``, ``group``
        ("guide", "model", or a parameter's name), and the ``grad_`` keys above.
    :ivar reference: a dict with ``name``, ``exact`` (it draws no random numbers), ``num_samples``,
        ``loss_mean``, ``grad_norm`` and ``grad_se``, the root of the summed variance of its mean
        gradient; empty where there is none.
    :ivar notes: remarks.
    """

    rows: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    reference: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """One piece of advice, and never more than the figures support; rules in ``advice.py``."""
        return advice(self.rows, self.reference)

    def __repr__(self) -> str:
        names = ", ".join(row["name"] for row in self.rows)
        return f"Comparison({names}; reference: {self.reference.get('name')})"

    def __str__(self) -> str:
        parts = [text_table(_HEADER, map(_cells, self.rows))]
        groups = self._groups_shown()
        if groups:
            parts.append(text_table(_GROUP_HEADER, map(_group_cells, groups)))
        return "\n\n".join([*parts, "\n".join(self._prose())])

    def _repr_html_(self) -> str:
        parts = [html_table(_HEADER, map(_cells, self.rows))]
        groups = self._groups_shown()
        if groups:
            parts.append(html_table(_GROUP_HEADER, map(_group_cells, groups)))
        return "".join([*parts, *(f"<p>{html.escape(line)}</p>" for line in self._prose())])

    def _groups_shown(self) -> list[dict[str, Any]]:
        """Guide and model, unless there is but one; the parameters one by one are in ``groups``."""
        shown = [group for group in self.groups if group["group"] in ("guide", "model")]
        return shown if len({group["group"] for group in shown}) == 2 else []

    def _prose(self) -> list[str]:
        errors = [f"{row['name']} failed: {row['error']}" for row in self.rows if row["error"]]
        return [_reference_line(self.reference), _LEGEND, *self.notes, *errors, self.advice]

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write all figures: one line for each loss over all parameters (group "all") and by group."""
        overall = [{"name": row["name"], "group": "all", **row} for row in self.rows]
        empty = dict.fromkeys(overall[0])
        write_csv(path, [*overall, *({**empty, **group} for group in self.groups)])

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw bias against noise, and time against noise.

        :param path: where to; the ending chooses the format.
        :raises ImportError: where matplotlib is not installed.
        """
        draw_comparison(path, self.rows, self.reference)


_LEGEND = (
    "noise: root of the summed variance of one gradient; bias: of its mean; both ± standard error;\n"
    "biased: by more than 3 of them, < what would show so; noise² x s: what precision costs in time."
)


def _cells(row: dict[str, Any]) -> Sequence[str]:
    if row["error"]:
        return [row["name"], "failed", *["-"] * (len(_HEADER) - 2)]
    peak = row["peak_bytes"]
    return [
        row["name"],
        number(row["loss_mean"], _digits(row["loss_mean"], row["loss_std"])),
        number(row["loss_std"]),
        *_gradient_cells(row),
        number(1e3 * row["seconds_per_step"]),
        number(None if peak is None else peak / 2**20),
        number(row["efficiency"]),
    ]


def _group_cells(group: dict[str, Any]) -> Sequence[str]:
    norm = group["grad_norm"]
    hidden = norm == 0 < group["grad_std"]  # below the noise
    return [group["name"], group["group"], "-" if hidden else number(norm), *_gradient_cells(group)]


def _gradient_cells(row: dict[str, Any]) -> list[str]:
    """Noise, bias, whether there is one, RMSE, cosine."""
    return [
        _with_error(row["grad_std"], row["grad_std_se"]),
        _with_error(row["grad_bias"], row["grad_bias_se"]),
        _verdict(row),
        _known(row["grad_rmse"]),
        _known(row["grad_cosine"]),
    ]


def _verdict(row: dict[str, Any]) -> str:
    """Whether a bias was found; if not among all parameters, then where."""
    if math.isnan(row["grad_bias_se"]):
        return "?"
    if not row["biased"]:
        limit = row.get("grad_bias_limit", 0.0)
        return f"< {number(limit, 2)}" if limit > 0 else "no"
    where = row.get("biased_in", ("all",))
    if "all" in where:
        return "yes"
    return ", ".join(where) if set(where) <= {"guide", "model"} else "in part"


def _with_error(value: float, error: float) -> str:
    if math.isnan(value):
        return "-"
    if error == 0:
        return number(value)
    return f"{number(value)} ± {'?' if math.isnan(error) else number(error, 2)}"


def _digits(mean: float, spread: float) -> int:
    """As many as a hundredth of the spread needs, and six of a mean without spread."""
    if not (spread > 0 and math.isfinite(spread) and math.isfinite(mean) and mean != 0):
        return 6
    return max(3, math.floor(math.log10(abs(mean))) - math.floor(math.log10(spread)) + 3)


def _known(value: float) -> str:
    return "-" if math.isnan(value) else number(value)


def _reference_line(reference: dict[str, Any]) -> str:
    if not reference:
        return "No reference: bias, RMSE and cosine are not known."
    name, norm = reference["name"], number(reference["grad_norm"])
    if reference["exact"]:
        return f"Reference: {name}, exact, gradient norm {norm}."
    return (
        f"Reference: {name}, {reference['num_samples']} samples, gradient norm {norm}, known to "
        f"± {number(reference['grad_se'], 2)} (in all directions together)."
    )
