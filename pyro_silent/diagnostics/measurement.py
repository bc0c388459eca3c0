"""The measurement of losses: gradients are drawn beside a reference's, and evaluations are timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from pyro_silent.diagnostics.cost import Cost, peak_bytes, time_in_turn
from pyro_silent.diagnostics.gradient_moments import GradientFigures, GradientMoments
from pyro_silent.diagnostics.gradient_sampler import GradientSampler, Programs
from pyro_silent.diagnostics.losses import Loss, one_line
from pyro_silent.diagnostics.parameters import Parameters
from pyro_silent.diagnostics.random_stream import seed_everything
from pyro_silent.diagnostics.reference import MeasuredReference, candidates, is_silent
from pyro_silent.diagnostics.running import Running
from pyro_silent.diagnostics.sampling import draw_samples

FOR_PREPARATION, _FOR_REFERENCE, _FOR_SAMPLES = range(3)
"""Purposes of random numbers, none of which shares them with another."""


class MeasuredLoss(NamedTuple):
    """What was drawn of one loss.

    :ivar figures: of its gradient, by group of parameters.
    :ivar epsilon: of the coarsest dtype among the gradients.
    :ivar on_cuda: whether some gradient lies on a CUDA device.
    :ivar loss: moments of its value.
    :ivar exact: whether it draws no random numbers and comes to the same result every time.
    """

    figures: dict[str, GradientFigures]
    epsilon: float
    on_cuda: bool
    loss: Running
    exact: bool


class Measurement:
    """The measurement of losses beside a reference; whoever calls keeps the surroundings.

    :ivar errors: why a loss has no figures, by name.
    :ivar notes: why there is no reference.
    """

    def __init__(
        self,
        programs: Programs,
        losses: dict[str, Loss],
        parameters: Parameters,
        seed: int,
        num_samples: int,
    ) -> None:
        self.losses = losses
        self.errors: dict[str, str] = {}
        self.notes: list[str] = []
        self.reference: MeasuredReference | None = None
        self.measured: dict[str, MeasuredLoss] = {}
        self.costs: dict[str, Cost] = {}
        self.peaks: dict[str, int | None] = {}
        self.parameters = parameters
        self._programs = programs
        self._seed = seed
        self._num_samples = num_samples
        self._samplers: dict[str, GradientSampler] = {}

    def prepare(self, reference: Any) -> None:
        """Run the first steps of all losses, choose the reference and find its mean."""
        for name, loss in self.losses.items():
            with self._caught(name):
                sampler = GradientSampler(loss, self._programs)
                sampler.warm_up()
                self._samplers[name] = sampler
        seed_everything(self._seed, _FOR_REFERENCE)
        tried = []
        for candidate in candidates(reference, self.losses, self._programs):
            try:
                self.reference = MeasuredReference(
                    candidate, self._programs, self.parameters.groups, self._num_samples
                )
                return
            except Exception as error:
                tried.append(f"{candidate.name} cannot be the reference: {one_line(error)}")
        self.notes += tried

    def draw(self, progress: bool) -> None:
        """Draw the gradients of all losses."""
        total = self._num_samples * len(self._samplers)
        with tqdm(total=total, desc="compare", disable=not progress) as bar:
            for name in self._samplers:
                seed_everything(self._seed, _FOR_SAMPLES)
                start = bar.n
                with self._caught(name):
                    try:
                        self.measured[name] = self._measure(name, bar)
                    except _ReferenceFailedError as failure:
                        self.notes.append(str(failure))
                        self.reference = None
                        self.measured[name] = self._measure(name, bar)
                bar.update(start + self._num_samples - bar.n)

    def _measure(self, name: str, bar: Any) -> MeasuredLoss:
        reference = self.reference
        moments = GradientMoments(
            self.parameters.groups, {} if reference is None else reference.mean
        )
        before = None
        if reference is not None and not reference.exact:
            before = partial(_add_reference, moments, reference)
        loss, exact = draw_samples(
            self._samplers[name],
            moments,
            self._num_samples,
            lambda: is_silent(self.losses[name], self._programs),
            before=before,
            drawn=bar.update,
        )
        return MeasuredLoss(moments.figures(), moments.epsilon, moments.on_cuda, loss, exact)

    def measure_costs(self, memory: bool) -> None:
        """Time the losses in turn, and see what memory a step takes."""

        def failed(name: str, error: Exception) -> None:
            self.errors[name] = one_line(error)

        self.costs = time_in_turn({name: self._samplers[name] for name in self.measured}, failed)
        for name in self.costs:
            with self._caught(name):
                on_cuda = self.measured[name].on_cuda
                self.peaks[name] = peak_bytes(self._samplers[name], on_cuda) if memory else None

    @contextmanager
    def _caught(self, name: str) -> Iterator[None]:
        """Inside, an exception becomes the error of a loss."""
        try:
            yield
        except Exception as error:
            self.errors[name] = one_line(error)


def _add_reference(moments: GradientMoments, reference: MeasuredReference) -> None:
    try:
        gradient = reference.sample().gradient
    except Exception as error:
        raise _ReferenceFailedError(
            f"The reference {reference.name} failed, so that no bias is known: {one_line(error)}"
        ) from error
    moments.add_reference(gradient)


class _ReferenceFailedError(Exception):
    """The reference raised while it was drawn beside a loss."""
