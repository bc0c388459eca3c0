"""Numbers that a loss takes from its schedules: constants of a graph as long as they rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_silent.capture.slots import Slot
from pyro_silent.elbo import AnnealedELBO, SilentELBO
from pyro_silent.elbo.engine import TreatmentELBO


def schedule_slots(loss: Any) -> list[Slot]:
    """Where the weight and the temperatures of the next step can be read."""
    slots = []
    if isinstance(loss, AnnealedELBO):
        slots.append(Slot(_weight, loss, loss.weight, "the weight of the schedule"))
    for part in parts_of(loss):
        if isinstance(part, SilentELBO):
            slots.append(Slot(_sampled, part, _sampled(part), "the latents that the loss samples"))
        if isinstance(part, TreatmentELBO) and part.estimator is not None:
            key = (part.estimator, loss)
            slots.append(Slot(_temperature, key, _temperature(key), "the temperature schedule"))
    return slots


def parts_of(loss: Any) -> list[Any]:
    """A loss and those it is made of."""
    return [loss, loss.silent, loss.stochastic] if isinstance(loss, AnnealedELBO) else [loss]


def silent_loss_of(loss: Any) -> Tensor | None:
    """What a blend remembers of its silent part."""
    return loss._silent_value if isinstance(loss, AnnealedELBO) else None


def doubts_of(loss: Any) -> Tensor | None:
    """Whether some answer that a trace took from memory does not hold; the memories forget it."""
    found = []
    for part in parts_of(loss):
        memory = getattr(part, "_memory", None)
        if memory is not None:
            found += memory.doubts.values()
            memory.doubts.clear()
    return torch.stack([doubt.any() for doubt in found]).any() if found else None


def forget_answers(loss: Any) -> None:
    """Have everything looked at again in the next step."""
    for part in parts_of(loss):
        memory = getattr(part, "_memory", None)
        if memory is not None:
            memory.answers.clear()


def count_step(loss: Any) -> None:
    """One more step for the schedules of a loss."""
    if isinstance(loss, (AnnealedELBO, TreatmentELBO)):
        loss.num_steps += 1


@contextmanager
def uncounted(loss: Any) -> Iterator[None]:
    """Inside, runs of a loss count no steps and leave no memory in it."""
    kept = [(part, dict(vars(part))) for part in parts_of(loss) if hasattr(part, "__dict__")]
    try:
        yield
    finally:
        for part, attributes in kept:
            vars(part).clear()
            vars(part).update(attributes)


def _sampled(loss: SilentELBO) -> str:
    return " ".join(sorted(loss._plain))


def _weight(loss: AnnealedELBO) -> float:
    return loss.weight


def _temperature(key: tuple[Any, Any]) -> float | None:
    estimator, loss = key
    temperature: float | None = estimator.temperature_at(loss.num_steps)
    return temperature
