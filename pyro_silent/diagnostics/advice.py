"""One piece of advice from the figures of a comparison.

The rules, in their order; a loss is *in the running* if it has figures and no bias was found:

1. no loss in the running: name the smallest RMSE, and say that its bias does not average out;
2. losses in the running that draw no random numbers: the fastest of them, or the first of those that
   are within 3 standard errors of it;
3. the smallest noise variance x seconds, if it is below every other's by 3 standard errors of the
   difference; if it is not, all that are within 3 standard errors, which cannot be told apart;
4. biased losses with less RMSE than the one advised are mentioned, since few steps may favour them.
"""

from __future__ import annotations

import math
from typing import Any

from pyro_silent.diagnostics.student_t import standard_errors
from pyro_silent.diagnostics.tables import number

_STANDARD_ERRORS = 3.0

Row = dict[str, Any]


def advice(rows: list[Row], reference: dict[str, Any]) -> str:
    """What the rows support, in one or two sentences."""
    measured = [row for row in rows if not row["error"] and math.isfinite(row["efficiency"])]
    if measured and all(row["grad_std"] == 0 == row["grad_norm"] for row in measured):
        return "No loss has a gradient here: is there a parameter, and is this not an optimum?"
    if not measured:
        return "No loss has finite figures, so there is nothing to choose from."
    if len(measured) == 1:
        return f"Only {measured[0]['name']} has finite figures, so there is nothing to choose from."
    running = [row for row in measured if not row["biased"]]
    if not running:
        return _all_biased(measured)
    silent = [row for row in running if row["exact"] and row["grad_std"] == 0]
    chosen, told = _silent(silent, measured) if silent else _noisy(running, measured)
    return " ".join([told, *_caveats(chosen, reference), *_mentioned(chosen, measured)])


def _all_biased(rows: list[Row]) -> str:
    best = min(rows, key=lambda row: row["grad_rmse"])
    return (
        f"Every loss is biased against the reference. {best['name']} has the smallest RMSE, "
        f"{number(best['grad_rmse'])}; its bias, {number(best['grad_bias'])}, does not average out."
    )


def _silent(rows: list[Row], measured: list[Row]) -> tuple[Row, str]:
    quickest = min(rows, key=lambda row: row["seconds_per_step"])
    best = next(row for row in rows if not _below(quickest, row, "seconds_per_step", "seconds_se"))
    fastest = min(measured, key=lambda row: row["seconds_per_step"])
    told = f"Use {best['name']}: its gradient has no noise and no bias was found"
    if fastest["seconds_per_step"] == best["seconds_per_step"]:
        return best, f"{told}, and no step is faster."
    if not _below(fastest, best, "seconds_per_step", "seconds_se"):
        return best, f"{told}, and no step is faster beyond the clock's error."
    ratio = best["seconds_per_step"] / max(fastest["seconds_per_step"], 1e-9)  # of the clock
    return (
        best,
        f"{told}; a step takes {number(ratio)} x the time of the fastest, {fastest['name']}.",
    )


def _noisy(rows: list[Row], measured: list[Row]) -> tuple[Row, str]:
    ranked = sorted(rows, key=lambda row: row["efficiency"])
    best, *others = ranked
    if not others:
        return best, f"Use {best['name']}: it is the only loss in which no bias was found."
    if best["efficiency"] == 0:
        return best, (
            f"All gradients of {best['name']} were equal, though it drew random numbers: draw more "
            "samples before you choose."
        )
    close = [row for row in others if not _below(best, row)]
    if close:
        names = _listed([best, *close])
        return best, (
            f"{names} cannot be told apart by their noise variance x seconds; draw more samples, or "
            "choose by other reasons."
        )
    ratio = others[0]["efficiency"] / best["efficiency"]
    return best, (
        f"Use {best['name']}: of the losses in which no bias was found, it reaches a given precision "
        f"of the gradient in the least time, {number(ratio)} x less than the next, {others[0]['name']}."
    )


def _below(a: Row, b: Row, figure: str = "efficiency", error: str = "efficiency_se") -> bool:
    """Whether a figure of one is smaller than the other's beyond the error."""
    both = math.hypot(a[error], b[error])
    return bool(b[figure] - a[figure] > _STANDARD_ERRORS * both)


def _caveats(chosen: Row, reference: dict[str, Any]) -> list[str]:
    """What was not seen because the samples could not show it."""
    if not reference or math.isnan(chosen["grad_bias"]):
        return ["Bias is not known, for want of a reference that has a gradient."]
    if math.isnan(chosen["grad_bias_se"]):
        return [f"The samples do not tell whether {chosen['name']} is biased."]
    hidden = visible_bias(
        chosen["grad_std"], chosen["num_samples"], chosen["grad_bias_se"], reference["grad_se"]
    )
    if not hidden > 0.1 * reference["grad_norm"]:
        return []
    return [f"A bias of {chosen['name']} below {number(hidden)} could not have been seen."]


def visible_bias(std: float, num_samples: int, bias_se: float, reference_se: float) -> float:
    """The norm b of a bias that is just found, from L standard errors on, on average and nearly.

    With v the variance of the mean difference from the reference, the direction that all samples find
    has a cosine of b / sqrt(b^2 + v) with that of the bias, and those that earlier samples find have
    2/3 of it on average where it is small. So b^2 / sqrt(b^2 + 9/4 v) = L se is solved for b.
    """
    v = 9 / 4 * (std**2 / num_samples + reference_se**2)
    limit = (standard_errors(3.0, num_samples - 2) * bias_se) ** 2
    return math.sqrt((limit + math.sqrt(limit**2 + 4 * limit * v)) / 2)


def _mentioned(chosen: Row, measured: list[Row]) -> list[str]:
    better = [row for row in measured if row["biased"] and row["grad_rmse"] < chosen["grad_rmse"]]
    if not better:
        return []
    verb = "has" if len(better) == 1 else "have"
    return [f"{_listed(better)} {verb} a smaller RMSE and a bias that does not average out."]


def _listed(rows: list[Row]) -> str:
    *first, last = [row["name"] for row in rows]
    return f"{', '.join(first)} and {last}" if first else last
