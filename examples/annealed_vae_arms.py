"""The gradient estimators of the annealed VAE, the four arms each is trained in, and their settings.

==============  ==========================================================================
plain           the estimator alone
KL warm-up      the estimator alone, the weight of the KL term rising from 0 to 1
control         ``AnnealedELBO`` of the estimator with *itself* on the linear decoder
silent          ``AnnealedELBO`` of the estimator with ``SilentELBO()`` on the linear decoder
==============  ==========================================================================

Control and silent share decoders and schedules: what lies between them is due to silence alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pyro.infer import ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

from pyro_silent import (
    AnnealedELBO,
    Cosine,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    Linear,
    RelaxedELBO,
    SilentELBO,
    StraightThroughELBO,
    StraightThroughGumbelSoftmax,
)

ARMS = ("plain", "KL warm-up", "control", "silent")
BLENDED = ARMS[2:]


# Each gives a loss, given a temperature.
ESTIMATORS: dict[str, Callable[[float], ELBO]] = {
    "reparam": lambda _: TraceMeanField_ELBO(),  # KL in closed form, as is usual for a VAE
    "GS": RelaxedELBO,
    "ST-GS": lambda tau: StraightThroughELBO(StraightThroughGumbelSoftmax(tau)),
    "GR": lambda tau: GumbelRaoELBO(tau, num_gumbels=None),
    "GR-MC10": lambda tau: GumbelRaoELBO(tau, num_gumbels=10),
    "REINFORCE": lambda _: TraceGraph_ELBO(),
    "RLOO": lambda _: LeaveOneOutELBO(2, vectorize_particles=True, max_plate_nesting=1),
}
TEMPERED = ("GS", "ST-GS", "GR", "GR-MC10")


@dataclass(frozen=True)
class Step:
    """1 for ``num_steps`` steps, then 0."""

    num_steps: int

    def __call__(self, step: int) -> float:
        """The weight at ``step``."""
        return float(step < self.num_steps)


class CatchUp:
    """1 until the deep decoder's loss has caught up with the linear one's, then a line down to 0.

    :param num_steps: length of the line.
    :param memory: steps over which the lead of the linear decoder is averaged.
    """

    def __init__(self, num_steps: int, memory: int = 20) -> None:
        self.num_steps = num_steps
        self.memory = memory
        self.caught_up: int | None = None
        self._lead = 0.0

    def compare(self, step: int, linear_loss: float, deep_loss: float) -> None:
        """Take note of both losses of a step."""
        self._lead += (deep_loss - linear_loss - self._lead) / min(step + 1, self.memory)
        if self.caught_up is None and step >= self.memory and self._lead < 0:
            self.caught_up = step

    def __call__(self, step: int) -> float:
        """The weight at ``step``."""
        if self.caught_up is None:
            return 1.0
        return min(1.0, max(0.0, 1 - (step - self.caught_up) / self.num_steps))


# Fall from 1 to 0, given the number of steps it takes.
SCHEDULES: dict[str, Callable[[int], Callable[[int], float]]] = {
    "linear": lambda num_steps: Linear(1.0, 0.0, num_steps),
    "cosine": lambda num_steps: Cosine(1.0, 0.0, num_steps),
    "step": Step,
    "adaptive": CatchUp,
}


def make_loss(arm: str, estimator: str, tau: float, schedule: Callable[[int], float]) -> ELBO:
    """Return what trains an arm."""
    stochastic = ESTIMATORS[estimator](tau)
    if arm not in BLENDED:
        return stochastic
    guiding = SilentELBO() if arm == "silent" else ESTIMATORS[estimator](tau)
    return AnnealedELBO(guiding, stochastic, schedule)


class Settings(NamedTuple):
    """What is chosen for an arm.

    :ivar schedule: of the linear decoder's weight; under KL warm-up, of what the KL term lacks.
    :ivar length: of the schedule, as a share of the steps.
    """

    learning_rate: float = 1e-3
    schedule: str = "linear"
    length: float = 0.2


# Found by annealed_vae.py --search, by the estimator that was searched and the arm.
_BLEND = Settings(schedule="step", length=0.75)
SETTINGS: dict[str, dict[str, Settings]] = {
    name: {
        "plain": Settings(schedule="none", length=0.0),
        "KL warm-up": warm_up,
        "control": _BLEND,
        "silent": _BLEND,
    }
    for name, warm_up in (
        ("reparam", Settings(schedule="step", length=0.75)),
        ("GR", Settings(schedule="cosine", length=0.5)),
        ("RLOO", Settings(schedule="step", length=0.2)),
    )
}
TEMPERATURE = 0.5

# Estimators that take the settings of another.
SETTINGS_OF: Mapping[str, str] = {
    "GS": "GR",
    "ST-GS": "GR",
    "GR-MC10": "GR",
    "REINFORCE": "RLOO",
}

RATES = (5e-4, 1e-3, 2e-3)
SCHEDULES_TRIED = (
    *(("linear", length) for length in (0.1, 0.2, 0.5, 1.0)),
    ("cosine", 0.5),
    ("step", 0.2),
    ("step", 0.5),
    ("step", 0.75),
)

# Tried for control and silent and not to be chosen: the first has no counterpart in KL warm-up, the
# second never lets the deep decoder's loss reach the encoder.
FURTHER_SCHEDULES = (("adaptive", 0.25), ("step", 1.0))
