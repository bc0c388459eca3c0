"""The figures of a measurement as rows, with verdicts on biases and remarks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pyro.infer import RenyiELBO, ReweightedWakeSleep

from pyro_silent.diagnostics.advice import visible_bias
from pyro_silent.diagnostics.comparison import WHOLE, Comparison
from pyro_silent.diagnostics.gradient_moments import GradientFigures
from pyro_silent.diagnostics.measurement import MeasuredLoss, Measurement
from pyro_silent.diagnostics.student_t import standard_errors
from pyro_silent.elbo.annealed import AnnealedELBO
from pyro_silent.elbo.silent import SilentELBO

_DEVIATE = 3.0
_DEVIATE_OF_ONE = 10.0
"""Of single parameters, which are many, and whose gradients may be so skewed that 3 is not rare."""
_OTHER_OBJECTIVES = {
    AnnealedELBO: "a blend of two losses",
    RenyiELBO: "a Rényi bound",
    ReweightedWakeSleep: "the wake and sleep objectives",
}


def comparison_of(measurement: Measurement) -> Comparison:
    """All figures of a measurement."""
    return _Rows(measurement).comparison()


class _Rows:
    def __init__(self, measurement: Measurement) -> None:
        self._measurement = measurement
        self._reference = measurement.reference
        self._measured = {
            name: measured
            for name, measured in measurement.measured.items()
            if name not in measurement.errors
        }
        self._gradients = {
            name: {group: self._gradient_row(measured, group) for group in measured.figures}
            for name, measured in self._measured.items()
        }

    def comparison(self) -> Comparison:
        rows = [self._row(name) for name in self._measurement.losses]
        groups = [
            {"name": name, "group": group, **row}
            for name, by_group in self._gradients.items()
            for group, row in by_group.items()
            if group != "all"
        ]
        reference = {} if self._reference is None else self._reference.row()
        return Comparison(rows, groups, reference, tuple(self._notes(rows)))

    def _row(self, name: str) -> dict[str, Any]:
        """All figures of one loss."""
        if name not in self._measured:
            return {"name": name, **_NO_FIGURES, "error": self._measurement.errors[name]}
        measured, cost = self._measured[name], self._measurement.costs[name]
        gradient, count = self._gradients[name]["all"], measured.loss.count
        biased_in = self._biased_groups(name)
        variance, seconds = gradient["grad_std"] ** 2, cost.seconds
        variance_se = 2 * gradient["grad_std"] * gradient["grad_std_se"]
        return {
            "name": name,
            "loss_mean": float(measured.loss.mean[0]),
            "loss_std": float(measured.loss.std[0]),
            **gradient,
            "biased": bool(biased_in),
            "biased_in": biased_in,
            "exact": measured.exact,
            "seconds_per_step": seconds,
            "seconds_se": cost.seconds_se,
            "peak_bytes": self._measurement.peaks[name],
            "efficiency": variance * seconds,
            "efficiency_se": math.hypot(variance_se * seconds, variance * cost.seconds_se),
            "num_samples": count,
            "error": None,
        }

    def _gradient_row(self, measured: MeasuredLoss, group: str) -> dict[str, Any]:
        """The ``grad_`` figures of a group, and the verdict on its bias."""
        found = measured.figures[group]
        deviate = _DEVIATE if group in WHOLE else _DEVIATE_OF_ONE
        if self._measurement.parameters.groups.get(group) == {"baseline"}:
            deviate = math.inf  # its gradient is not that of the loss
        bias, bias_se, biased = self._bias(found, measured, deviate)
        return {
            "grad_norm": found.norm,
            "grad_std": found.std,
            "grad_std_se": found.std_se,
            "grad_bias": bias,
            "grad_bias_se": bias_se,
            "grad_bias_limit": self._limit(found, measured.loss.count, bias_se, group),
            "grad_rmse": math.nan if math.isnan(bias) else found.rmse,
            "grad_cosine": self._cosine(found, group),
            "biased": biased,
        }

    def _biased_groups(self, name: str) -> tuple[str, ...]:
        """Where a bias was found: among all parameters, the guide's, the model's, or else in some."""
        found = [group for group, row in self._gradients[name].items() if row["biased"]]
        return tuple([group for group in found if group in WHOLE] or found)

    def _bias(
        self, found: GradientFigures, measured: MeasuredLoss, deviate: float
    ) -> tuple[float, float, bool]:
        """The bias, its standard error, and whether it is beyond chance and beyond rounding.

        Rounding is sqrt(epsilon) of the whole gradient, or 10 epsilon of the loss where the gradient
        vanishes. One that is beyond both is told as the norm that it has: then its direction is known
        well enough to be there, but perhaps not well enough to show all of it.
        """
        if self._reference is None:
            return math.nan, math.nan, False
        bias, se = found.bias, found.bias_se
        if se == 0 and not (measured.exact and self._reference.exact):
            return bias, math.nan, False  # as many equal draws say nothing of rarer ones
        epsilon, whole = measured.epsilon, self._reference.figures["all"].norm
        rounding = math.sqrt(epsilon) * whole + 10 * epsilon * abs(float(measured.loss.mean[0]))
        if not (bias > rounding and bias > standard_errors(deviate, measured.loss.count - 2) * se):
            return bias, se, False
        scale = max(math.sqrt(max(found.bias_square, 0.0)) / bias, 1.0)
        return bias * scale, se * scale, True

    def _limit(self, found: GradientFigures, count: int, bias_se: float, group: str) -> float:
        """The norm of a bias that could have been seen."""
        if self._reference is None:
            return math.nan
        known = self._reference.figures.get(group)
        return visible_bias(found.std, count, bias_se, 0.0 if known is None else known.mean_se)

    def _cosine(self, found: GradientFigures, group: str) -> float:
        if self._reference is None or group not in self._reference.figures:
            return math.nan
        signal = found.square * self._reference.figures[group].norm ** 2
        if not signal > 0:
            return math.nan
        return min(max(found.product / math.sqrt(signal), -1.0), 1.0)

    def _notes(self, rows: list[dict[str, Any]]) -> Iterator[str]:
        yield from self._measurement.notes
        if self._reference is not None and not math.isfinite(self._reference.row()["grad_norm"]):
            yield f"The reference {self._reference.name} gave gradients that are not finite."
        for row in rows:
            if row["error"] is None:
                yield from self._notes_on(row)

    def _notes_on(self, row: dict[str, Any]) -> Iterator[str]:
        """Remarks on one loss."""
        name, square = row["name"], self._measured[row["name"]].figures["all"].square
        if not math.isfinite(row["grad_std"]):
            yield f"{name} gave values or gradients that are not finite."
        elif row["grad_std"] == 0 and not row["exact"] and square > 0:
            yield (
                f"{name} drew random numbers, but all {row['num_samples']} gradients were equal: what "
                "happens more rarely was not seen."
            )
        if not row["biased"]:
            return
        if self._on_other_branch(name):
            yield (
                f"{name} runs the analytic branch of twins, the reference the expressive one: its bias "
                "is the distance between the two."
            )
        if not set(row["biased_in"]) & set(WHOLE):
            yield f"{name} is biased in {_shortened(row['biased_in'])}."
        for kind, objective in _OTHER_OBJECTIVES.items():
            if isinstance(self._measurement.losses[name], kind):
                yield f"{name} follows {objective}: its bias is the distance from there to the reference."

    def _on_other_branch(self, name: str) -> bool:
        """Whether twins run another branch than in the reference that was chosen by default."""
        by_default = self._reference is not None and self._reference.by_default
        twins = self._measurement.parameters.have_twins
        return by_default and twins and isinstance(self._measurement.losses[name], SilentELBO)


_NO_FIGURES: dict[str, Any] = {
    **dict.fromkeys(("loss_mean", "loss_std", "grad_norm", "grad_std", "grad_std_se"), math.nan),
    **dict.fromkeys(("grad_bias", "grad_bias_se", "grad_rmse", "grad_cosine"), math.nan),
    "grad_bias_limit": math.nan,
    "biased": False,
    "biased_in": (),
    "exact": False,
    "seconds_per_step": math.nan,
    "seconds_se": math.nan,
    "peak_bytes": None,
    "efficiency": math.nan,
    "efficiency_se": math.nan,
    "num_samples": 0,
}


def _shortened(names: tuple[str, ...]) -> str:
    """The first of many names."""
    more = f" and {len(names) - 3} more parameters" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
