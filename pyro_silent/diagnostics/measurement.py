"""The measurement of losses: gradients are drawn, compared with a reference's, timed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from pyro.infer import RenyiELBO, ReweightedWakeSleep
from tqdm.auto import tqdm

from pyro_silent.diagnostics.comparison import Comparison
from pyro_silent.diagnostics.cost import Cost, peak_bytes, time_in_turn
from pyro_silent.diagnostics.gradient_moments import GradientFigures, GradientMoments
from pyro_silent.diagnostics.gradient_sampler import GradientSampler, Programs
from pyro_silent.diagnostics.losses import Loss
from pyro_silent.diagnostics.random_stream import seed_everything
from pyro_silent.diagnostics.reference import (
    SAMPLES_OF_CONSTANTS,
    MeasuredReference,
    candidates,
    is_constant,
)
from pyro_silent.diagnostics.running import Running
from pyro_silent.elbo.annealed import AnnealedELBO

FOR_PREPARATION, _FOR_REFERENCE, _FOR_SAMPLES = range(3)
"""Purposes of random numbers, none of which shares them with another."""
_DEVIATE = 3.0
_OTHER_OBJECTIVES = {
    AnnealedELBO: "a blend of two losses",
    RenyiELBO: "a Rényi bound",
    ReweightedWakeSleep: "the wake and sleep objectives",
}


class _Measured(NamedTuple):
    """What was drawn of one loss."""

    moments: GradientMoments
    loss: Running
    exact: bool


class Measurement:
    """The measurement of losses beside a reference; whoever calls keeps the surroundings."""

    def __init__(
        self,
        programs: Programs,
        losses: dict[str, Loss],
        roles: dict[str, set[str]],
        seed: int,
        num_samples: int,
    ) -> None:
        self.programs = programs
        self.losses = losses
        self.roles = roles
        self.seed = seed
        self.num_samples = num_samples
        self.samplers: dict[str, GradientSampler] = {}
        self.errors: dict[str, str] = {}
        self.notes: list[str] = []
        self.reference: MeasuredReference | None = None
        self.measured: dict[str, _Measured] = {}
        self.costs: dict[str, Cost] = {}
        self.peaks: dict[str, int | None] = {}

    def prepare(self, reference: Any) -> None:
        """Run the first steps of all losses, choose the reference and find its mean."""
        for name, loss in self.losses.items():
            with self._caught(name):
                sampler = GradientSampler(loss, self.programs)
                sampler.warm_up()
                self.samplers[name] = sampler
        tried = []
        seed_everything(self.seed, _FOR_REFERENCE)
        for candidate in candidates(reference, self.losses, self.programs):
            try:
                self.reference = MeasuredReference(
                    candidate, self.programs, self.roles, self.num_samples
                )
                return
            except Exception as error:
                tried.append(f"{candidate.name} cannot be the reference: {_told(error)}")
        self.notes += tried

    def draw(self, progress: bool) -> None:
        """Draw the gradients of all losses."""
        total = self.num_samples * len(self.samplers)
        with tqdm(total=total, desc="compare", disable=not progress) as bar:
            for name in list(self.samplers):
                seed_everything(self.seed, _FOR_SAMPLES)
                start = bar.n
                with self._caught(name):
                    self.measured[name] = self._measure(self.samplers[name], bar)
                bar.update(start + self.num_samples - bar.n)

    def _measure(self, sampler: GradientSampler, bar: Any) -> _Measured:
        reference = self.reference
        mean = {} if reference is None else reference.moments.mean
        against_exact = reference is None or reference.exact
        moments, loss, exact = GradientMoments(self.roles, mean), Running(), False
        for index in range(self.num_samples):
            if reference is not None and not against_exact:
                moments.add_reference(reference.sample().gradient)
            sample = sampler()
            if index == 0:
                exact = is_constant(sample, sampler)
            moments.add(sample.gradient)
            loss.add(np.array([sample.loss]))
            del sample  # the next one takes its place in memory
            bar.update()
            if exact and against_exact and index + 1 == SAMPLES_OF_CONSTANTS:
                break
        moments.release()
        return _Measured(moments, loss, exact)

    def measure_costs(self, memory: bool) -> None:
        """Time the losses in turn, and see what memory a step takes."""

        def failed(name: str, error: Exception) -> None:
            self.errors[name] = _told(error)

        self.costs = time_in_turn({n: self.samplers[n] for n in self.measured}, failed)
        for name in self.costs:
            with self._caught(name):
                # a new copy: the profiler cannot size what earlier steps left in the loss
                sampler = GradientSampler(self.losses[name], self.programs)
                on_cuda = self.measured[name].moments.on_cuda
                self.peaks[name] = peak_bytes(sampler, on_cuda) if memory else None

    @contextmanager
    def _caught(self, name: str) -> Iterator[None]:
        """Inside, an exception becomes the error of a loss."""
        try:
            yield
        except Exception as error:
            self.errors[name] = _told(error)

    def comparison(self) -> Comparison:
        """All figures."""
        rows = [self._row(name) for name in self.losses]
        groups = [
            {"name": name, "group": group, **self._gradient_row(measured, group)}
            for name, measured in self.measured.items()
            if name not in self.errors
            for group in measured.moments.groups[1:]
        ]
        reference = {} if self.reference is None else self.reference.row()
        return Comparison(rows, groups, reference, tuple(self._notes()))

    def _row(self, name: str) -> dict[str, Any]:
        if name in self.errors:
            return {"name": name, **_NO_FIGURES, "error": self.errors[name]}
        measured, cost = self.measured[name], self.costs[name]
        gradient = self._gradient_row(measured, "all")
        biased_in = self._biased_groups(measured)
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
            "peak_bytes": self.peaks[name],
            "efficiency": variance * seconds,
            "efficiency_se": math.hypot(variance_se * seconds, variance * cost.seconds_se),
            "num_samples": measured.loss.count,
            "error": None,
        }

    def _biased_groups(self, measured: _Measured) -> tuple[str, ...]:
        """Where a bias was found: among all parameters, the guide's, the model's."""
        groups = [g for g in ("all", "guide", "model") if g in measured.moments.groups]
        return tuple(g for g in groups if self._gradient_row(measured, g)["biased"])

    def _gradient_row(self, measured: _Measured, group: str) -> dict[str, Any]:
        """The ``grad_`` figures of a group, and the verdict on its bias."""
        found = measured.moments.figures(group)
        bias, bias_se, biased = self._bias(found, measured)
        return {
            "grad_norm": found.norm,
            "grad_std": found.std,
            "grad_std_se": found.std_se,
            "grad_bias": bias,
            "grad_bias_se": bias_se,
            "grad_rmse": math.nan if math.isnan(bias) else found.rmse,
            "grad_cosine": self._cosine(found, group),
            "biased": biased,
        }

    def _bias(self, found: GradientFigures, measured: _Measured) -> tuple[float, float, bool]:
        """The bias, its standard error, and whether it is beyond chance and beyond rounding.

        Rounding is sqrt(epsilon) of the whole gradient, or 10 epsilon of the loss where the gradient
        vanishes. One that is beyond both is told as the norm that it has: then its direction is known
        well enough to be there, but perhaps not well enough to show all of it.
        """
        if self.reference is None:
            return math.nan, math.nan, False
        bias, se = found.bias, found.bias_se
        if se == 0 and not (measured.exact and self.reference.exact):
            return bias, math.nan, False  # as many equal draws say nothing of rarer ones
        epsilon, whole = measured.moments.epsilon, self.reference.moments.figures().norm
        rounding = math.sqrt(epsilon) * whole + 10 * epsilon * abs(float(measured.loss.mean[0]))
        if not (bias > rounding and bias > _limit(measured.loss.count) * se):
            return bias, se, False
        scale = max(math.sqrt(max(found.bias_square, 0.0)) / bias, 1.0)
        return bias * scale, se * scale, True

    def _cosine(self, found: GradientFigures, group: str) -> float:
        if self.reference is None or group not in self.reference.moments.groups:
            return math.nan
        signal = found.square * self.reference.moments.figures(group).norm ** 2
        if not signal > 0:
            return math.nan
        return min(max(found.product / math.sqrt(signal), -1.0), 1.0)

    def _notes(self) -> Iterable[str]:
        yield from self.notes
        for name, measured in self.measured.items():
            if name in self.errors:
                continue
            figures = measured.moments.figures()
            if not math.isfinite(figures.std):
                yield f"{name} gave values or gradients that are not finite."
            elif figures.std == 0 and not measured.exact and figures.square > 0:
                yield (
                    f"{name} drew random numbers, but all {measured.loss.count} gradients were equal: "
                    "what happens more rarely was not seen."
                )
        for name, loss in self.losses.items():
            for kind, objective in _OTHER_OBJECTIVES.items():
                if isinstance(loss, kind):
                    yield f"{name} follows {objective}, not the ELBO: its bias is the way between them."


_NO_FIGURES: dict[str, Any] = {
    **dict.fromkeys(("loss_mean", "loss_std", "grad_norm", "grad_std", "grad_std_se"), math.nan),
    **dict.fromkeys(("grad_bias", "grad_bias_se", "grad_rmse", "grad_cosine"), math.nan),
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


def _limit(count: int) -> float:
    """How many standard errors a mean of few terms must have to be as rare as 3 of a normal variable.

    The quantile of Student's t by the inverse of the approximation of Wallace (1959).
    """
    degrees = count - 2  # n samples give n - 1 terms
    deviate = _DEVIATE * (8 * degrees + 3) / (8 * degrees + 1)
    return math.sqrt(degrees * math.expm1(deviate**2 / degrees))


def _told(error: Exception) -> str:
    """The kind of an error and the first line of its text."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
