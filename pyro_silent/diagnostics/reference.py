"""What the bias of gradients is measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO

from pyro_silent.diagnostics.experiment import Experiment
from pyro_silent.diagnostics.explain import explain_run
from pyro_silent.diagnostics.gradient_moments import flattened
from pyro_silent.diagnostics.gradient_sampler import Gradient, GradientSample, GradientSampler
from pyro_silent.diagnostics.losses import Loss, check_loss
from pyro_silent.elbo.leave_one_out import LeaveOneOutELBO
from pyro_silent.elbo.silent import SilentELBO
from pyro_silent.errors import ConfigurationError
from pyro_silent.nn import branch

_PARTICLES = 10


class Reference(NamedTuple):
    """A loss whose expected gradient the others' are compared with.

    :ivar name: how the report calls it.
    :ivar loss: None where there is none.
    :ivar by_default: chosen by us: then twins run their expressive branch, which is the user's model.
    :ivar note: why there is none.
    """

    name: str
    loss: Loss | None
    by_default: bool = False
    note: str = ""

    def sampler(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict
    ) -> ReferenceSampler:
        """Draws its gradients."""
        return ReferenceSampler(self, GradientSampler(self.loss, model, guide, args, kwargs))


class ReferenceSampler:
    """Draws gradients of a reference; one that draws no random numbers is evaluated once.

    :ivar constant: whether it is the same every time.
    """

    def __init__(self, reference: Reference, sampler: GradientSampler) -> None:
        self._reference = reference
        self._sampler = sampler
        self._held: GradientSample | None = None
        with self._branch():
            sampler.warm_up()
        sample = self._draw()
        self.constant = is_constant(sample, self._draw)
        if self.constant:
            self._held = sample

    def __call__(self) -> GradientSample:
        """One sample."""
        return self._draw() if self._held is None else self._held

    def _draw(self) -> GradientSample:
        with self._branch():
            loss, gradient, drew = self._sampler()
        return GradientSample(loss, flattened(gradient), drew)

    def _branch(self) -> Any:
        return branch("expressive") if self._reference.by_default else nullcontext()


def is_constant(sample: GradientSample, draw: Callable[[], GradientSample]) -> bool:
    """Whether a loss draws no random numbers and comes to the same result again."""
    if sample.drew:
        return False
    again = draw()
    same_loss = sample.loss == again.loss or sample.loss != sample.loss
    return not again.drew and same_loss and _equal(sample.gradient, again.gradient)


def _equal(a: Gradient, b: Gradient) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def candidates(
    reference: Any,
    losses: Mapping[str, Loss],
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
) -> Iterator[Reference]:
    """References in the order in which they are tried.

    One that the user named; else :class:`SilentELBO` where every term is exact, else
    :class:`LeaveOneOutELBO`, which is unbiased for every guide. Programs run, so whoever calls keeps
    the surroundings.
    """
    if reference is not None:
        yield named(reference, losses)
        return
    if _is_exact(model, guide, args, kwargs):
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


def _is_exact(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether SilentELBO samples nothing, on the branch of twins that is the user's model."""
    try:
        with branch("expressive"):
            return explain_run(Experiment(model, guide, args, kwargs, None)).is_silent
    except Exception:  # whatever it is, this loss does not take these programs
        return False
