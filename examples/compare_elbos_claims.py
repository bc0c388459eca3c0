"""What the comparisons must show, with margins from the standard errors that they hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from compare_elbos_problems import TEMPERATURES, Problem
from pyro_silent import Comparison

# Of normal figures one in 300,000 is beyond; the seed is fixed.
STANDARD_ERRORS = 4.5
ENOUGH_SAMPLES = 50  # for sentences about biases and noise
ROUNDING = 1e-5  # of the gradient's norm; single precision has 1e-7
EXPECTED_RATIOS = {
    "Trace_ELBO, 10 particles": 10**-0.5,  # a mean of ten
    "AnnealedELBO, half-way": 0.5,  # half of it has no noise
}

Row = dict[str, Any]


class Claim(NamedTuple):
    """A sentence with figures, and whether it holds."""

    sentence: str
    holds: bool


def claims(problem: Problem, comparison: Comparison, at_start: bool) -> Iterator[Claim]:
    """All that must be true of a comparison.

    :param at_start: at the first parameters, where biases are large.
    """
    rows = {row["name"]: row for row in comparison.rows}
    norm = comparison.reference["grad_norm"]
    failed = [row["name"] for row in comparison.rows if row["error"]]
    yield Claim(
        "every loss has figures" + (f", but not {', '.join(failed)}" if failed else ""), not failed
    )
    if failed:
        return
    for name in problem.exact:
        row = rows[name]
        distance = row["grad_rmse"] / norm
        yield Claim(
            f"{name} has no noise and is {distance:.1g} of the gradient's norm from the reference",
            row["exact"] and row["grad_std"] == 0 and distance < ROUNDING,
        )
    names = " or ".join(problem.exact)
    advised = [f"Use {name}:" in comparison.advice for name in problem.exact]
    yield Claim(f"the advice is to use {names}", any(advised))
    if min(row["num_samples"] for row in comparison.rows if not row["exact"]) >= ENOUGH_SAMPLES:
        yield from _biases(problem, comparison, at_start)
        yield from _ratios(rows)
        yield from _rao_blackwell(comparison, at_start)


def _biases(problem: Problem, comparison: Comparison, at_start: bool) -> Iterator[Claim]:
    """Unbiased losses are not told to be biased, biased ones are."""
    rows = {row["name"]: row for row in comparison.rows}
    for name in problem.unbiased:
        z = max(_bias_z(found) for found in _groups(comparison, name))
        yield Claim(
            f"no bias is found in {name}: at most {z:.1f} standard errors among all parameters, the "
            "guide's and the model's",
            z < STANDARD_ERRORS,
        )
    if at_start:
        for name in problem.biased:
            row = rows[name]
            yield Claim(
                f"{name} is found to be biased: {_figure(row, 'grad_bias')}, the whole gradient "
                f"has norm {comparison.reference['grad_norm']:.3g}",
                row["biased"],
            )


def _ratios(rows: dict[str, Row]) -> Iterator[Claim]:
    """Losses whose noise is a known part of that of Trace_ELBO."""
    plain = rows["Trace_ELBO"]
    for name, expected in EXPECTED_RATIOS.items():
        if name in rows:
            ratio = rows[name]["grad_std"] / plain["grad_std"]
            error = ratio * math.hypot(*(_relative(row) for row in (rows[name], plain)))
            yield Claim(
                f"the noise of {name} is {ratio:.3f} ± {error:.3f} of that of Trace_ELBO; "
                f"theory says {expected:.3f}",
                abs(ratio - expected) < STANDARD_ERRORS * error,
            )


def _rao_blackwell(comparison: Comparison, clearly: bool) -> Iterator[Claim]:
    """Gumbel-Rao has less noise in the guide than straight-through Gumbel-softmax."""
    guide = {row["name"]: row for row in comparison.groups if row["group"] == "guide"}
    for tau in TEMPERATURES:
        if f"GumbelRaoELBO, tau {tau:g}" not in guide:
            continue
        rao, plain = (guide[f"{name}, tau {tau:g}"] for name in ("GumbelRaoELBO", "ST-GS"))
        gap = plain["grad_std"] - rao["grad_std"]
        error = math.hypot(rao["grad_std_se"], plain["grad_std_se"])
        yield Claim(
            f"tau {tau:g}: Gumbel-Rao's noise in the guide, {_figure(rao, 'grad_std')}, is "
            f"{'below' if clearly else 'not above'} that of ST-GS, {_figure(plain, 'grad_std')}",
            gap > (STANDARD_ERRORS if clearly else -STANDARD_ERRORS) * error,
        )


def _groups(comparison: Comparison, name: str) -> list[Row]:
    """The figures of a loss over all parameters, the guide's and the model's."""
    groups = [row for row in comparison.groups if row["group"] in ("guide", "model")]
    return [row for row in [*comparison.rows, *groups] if row["name"] == name]


def _bias_z(row: Row) -> float:
    if row["grad_bias_se"] > 0:
        return float(row["grad_bias"] / row["grad_bias_se"])
    return math.inf if row["grad_bias"] > 0 else 0.0


def _relative(row: Row) -> float:
    return float(row["grad_std_se"] / row["grad_std"])


def _figure(row: Row, key: str) -> str:
    return f"{row[key]:.3g} ± {row[key + '_se']:.2g}"
