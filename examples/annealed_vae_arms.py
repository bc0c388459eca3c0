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
from typing import Any, NamedTuple

import pyro
from pyro.infer import ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

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


class _ReinforceELBO(TraceGraph_ELBO):
    """REINFORCE with running means of its own: Pyro's are named after the site alone.

    Two such losses on one site, as in the control, would each learn from the mean of both.
    """

    def __init__(self) -> None:
        super().__init__()
        self._means: dict[str, Tensor] = {}

    def _loss_and_surrogate_loss(self, *args: Any) -> Any:
        store = pyro.get_param_store()
        others = _take_means(store)
        for name, mean in self._means.items():
            store[name] = mean
        try:
            return super()._loss_and_surrogate_loss(*args)
        finally:
            self._means = _take_means(store)
            for name, mean in others.items():
                store[name] = mean


def _take_means(store: Any) -> dict[str, Tensor]:
    names = [name for name in store if name.startswith("__baseline_avg_downstream_cost_")]
    means = {name: store[name] for name in names}
    for name in names:
        del store[name]
    return means


# Each gives a loss, given a temperature.
ESTIMATORS: dict[str, Callable[[float], ELBO]] = {
    "reparam": lambda _: TraceMeanField_ELBO(),  # KL in closed form, as is usual for a VAE
    "GS": RelaxedELBO,
    "ST-GS": lambda tau: StraightThroughELBO(StraightThroughGumbelSoftmax(tau)),
    "GR": lambda tau: GumbelRaoELBO(tau, num_gumbels=None),
    "GR-MC10": lambda tau: GumbelRaoELBO(tau, num_gumbels=10),
    "REINFORCE": lambda _: _ReinforceELBO(),
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
    :param every: steps from one comparison to the next, three of which the deep decoder must win
        in a row.
    """

    def __init__(self, num_steps: int, every: int = 20) -> None:
        self.num_steps = num_steps
        self.every = every
        self.caught_up: int | None = None
        self._wins = 0

    def is_due(self, step: int) -> bool:
        """Whether to compare before this step."""
        return self.caught_up is None and step % self.every == 0

    def compare(self, step: int, linear_loss: float, deep_loss: float) -> None:
        """Take note of both losses of one minibatch."""
        self._wins = self._wins + 1 if deep_loss < linear_loss else 0
        if self._wins == 3:
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
SETTINGS: dict[str, dict[str, Settings]] = {
    name: {
        "plain": Settings(1e-3, "none", 0.0),
        "KL warm-up": Settings(),
        "control": Settings(length=0.5),
        "silent": Settings(length=0.5),
    }
    for name in ("reparam", "GR", "REINFORCE", "RLOO")
}
TEMPERATURE = 0.5

# Estimators that take the settings of another.
SETTINGS_OF: Mapping[str, str] = {"GS": "GR", "ST-GS": "GR", "GR-MC10": "GR"}

RATES = (5e-4, 1e-3, 2e-3)
SCHEDULES_TRIED = (
    *(("linear", length) for length in (0.1, 0.2, 0.5, 1.0)),
    ("cosine", 0.5),
    ("step", 0.2),
    ("step", 0.5),
)
