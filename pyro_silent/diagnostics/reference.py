"""What the bias of gradients is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from pyro.infer import ELBO

from pyro_silent.diagnostics.experiment import Experiment
from pyro_silent.diagnostics.explain import explain_run
from pyro_silent.diagnostics.explanation import Explanation
from pyro_silent.diagnostics.gradient_moments import GradientMoments
from pyro_silent.diagnostics.gradient_sampler import (
    GradientSample,
    GradientSampler,
    Programs,
)
from pyro_silent.diagnostics.losses import Loss, check_loss
from pyro_silent.diagnostics.sampling import draw_samples
from pyro_silent.elbo.engine import TreatmentELBO
from pyro_silent.elbo.leave_one_out import LeaveOneOutELBO
from pyro_silent.elbo.silent import SilentELBO
from pyro_silent.errors import ConfigurationError
from pyro_silent.nn import branch

_PARTICLES = 10


class Reference(NamedTuple):
    """A loss whose expected gradient the others' are compared with.

    :ivar name: how the report calls it.
    :ivar by_default: chosen by us: then twins run their expressive branch, which is the user's model.
    """

    name: str
    loss: Loss
    by_default: bool = False


class MeasuredReference:
    """A reference, and the mean of its gradient from samples of its own.

    :ivar exact: whether it draws no random numbers and comes to the same result every time.
    :ivar mean: of its gradient.
    :ivar figures: of its gradient, by group of parameters.
    :ivar loss: moments of its value.
    """

    def __init__(
        self,
        reference: Reference,
        programs: Programs,
        roles: Mapping[str, set[str]],
        num_samples: int,
    ) -> None:
        self.name = reference.name
        self.by_default = reference.by_default
        self._loss, self._programs = reference.loss, programs
        self._sampler = GradientSampler(reference.loss, programs)
        moments = GradientMoments(roles, {})
        with self._on_branch():
            self._sampler.warm_up()
        self.loss, self.exact = draw_samples(self.sample, moments, num_samples, self._is_explained)
        self.mean, self.figures = moments.mean, moments.figures()

    def sample(self) -> GradientSample:
        """One sample."""
        with self._on_branch():
            return self._sampler()

    def _is_explained(self) -> bool:
        with self._on_branch():
            return is_silent(self._loss, self._programs)

    def _on_branch(self) -> AbstractContextManager:
        return branch("expressive") if self.by_default else nullcontext()

    def row(self) -> dict[str, Any]:
        """What the report says of it."""
        found = self.figures["all"]
        return {
            "name": self.name,
            "exact": self.exact,
            "num_samples": self.loss.count,
            "loss_mean": float(self.loss.mean[0]),
            "grad_norm": found.norm,
            "grad_se": found.mean_se,
        }


def candidates(
    reference: Any, losses: Mapping[str, Loss], programs: Programs
) -> Iterator[Reference]:
    """References in the order in which they are tried.

    One that the user named; else :class:`SilentELBO` where every term is exact, else
    :class:`LeaveOneOutELBO`, which is unbiased for every guide. Programs run, so whoever calls keeps
    the surroundings.
    """
    if reference is not None:
        yield named(reference, losses)
        return
    with branch("expressive"):  # of twins that is the user's model
        explanation = _explanation(SilentELBO(), programs)
    if explanation is not None and explanation.is_silent:
        yield Reference("SilentELBO()", SilentELBO(), by_default=True)
    loss = LeaveOneOutELBO(num_particles=_PARTICLES)
    yield Reference(f"LeaveOneOutELBO(num_particles={_PARTICLES})", loss, by_default=True)


def named(reference: Any, losses: Mapping[str, Loss]) -> Reference:
    """The reference that a user asked for.

    :raises ConfigurationError: if it is neither the name of one of the losses nor a loss.
    """
    if isinstance(reference, str):
        if reference not in losses:
            raise ConfigurationError(
                f"reference: got {reference!r}, expected one of the names {sorted(losses)}, a loss, or "
                "None for an exact one where there is one."
            )
        return Reference(reference, losses[reference])
    check_loss("reference", reference)
    name = type(reference).__name__ if isinstance(reference, ELBO) else "the function given"
    return Reference(name, reference)


def is_silent(loss: Loss, programs: Programs) -> bool:
    """Whether ``explain`` finds that no term of a loss is sampled, and no plate."""
    explanation = _explanation(loss, programs)
    return explanation is not None and explanation.is_silent and not explanation.notes


def _explanation(loss: Loss, programs: Programs) -> Explanation | None:
    """How a loss finds its terms; None for one that is not ours or does not take these programs."""
    if not isinstance(loss, TreatmentELBO):
        return None
    try:
        return explain_run(Experiment(*programs[:4], loss))
    except Exception:  # whatever it is, it is no reason to measure nothing
        return None
