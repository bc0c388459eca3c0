"""A scene: programs, and something that changes in the middle of their training.

A captured step that was stale would go on as if nothing had changed. So each scene is played three
times: eagerly, captured, and eagerly without the change, which has to make a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import constraints

from pyro_silent import CaptureWarning, SilentELBO
from tests.capture.side_by_side import (
    BEFORE_REPLAYS,
    TOLERANCE,
    Training,
    assert_trained_alike,
    captured,
    eager,
    train,
)

STEPS, CHANGE = 13, 5  # the change comes before the sixth step
AFTER_ANOTHER_TRACE = STEPS - 2 * BEFORE_REPLAYS - 1  # replays; a step goes by until things rest

ROWS = torch.tensor(
    [[0.5, -1.0, 0.2], [1.5, 0.3, -0.7], [-0.4, 0.8, 1.1], [0.1, 0.6, -1.2]],
    dtype=torch.float64,
)
DATA = torch.tensor([0.3, -0.9, 1.4, 0.6], dtype=torch.float64)


@dataclass
class Scene:
    """Programs and how they change.

    :ivar change: is called with the SVI object, once.
    :ivar arguments: of a step, by its number.
    """

    model: Any
    guide: Any
    change: Callable[[SVI], object]
    arguments: Callable[[int], tuple] = lambda step: ()
    loss: Callable[[], Any] = SilentELBO
    optim: Callable[[], Any] = lambda: Adam({"lr": 0.05})


Make = Callable[[], Scene]


def training(make: Make, with_change: bool) -> Training:
    """The training of a fresh scene."""
    scenes: list[Scene] = []

    def programs() -> tuple[Any, Any]:
        scenes.append(make())
        return scenes[-1].model, scenes[-1].guide

    def change(step: int, svi: SVI) -> None:
        if with_change and step == CHANGE:
            scenes[-1].change(svi)

    return Training(
        programs,
        lambda step: scenes[-1].arguments(step),
        loss=lambda: scenes[-1].loss(),
        optim=lambda: scenes[-1].optim(),
        change=change,
    )


def play(make: Make, graphs: int | None = 1, refused: str | None = None) -> None:
    """Hold captured steps against eager ones, through the change.

    :param graphs: 1 if the first graph serves at once after the change, 2 if there has to be another,
        None if the first may serve after a step or two.
    :param refused: what the warning says, if steps after the change cannot be captured.
    """
    unchanged = train(eager, training(make, False), STEPS)
    expected = train(eager, training(make, True), STEPS)
    assert unchanged.losses[:CHANGE] == expected.losses[:CHANGE]
    assert unchanged.losses[CHANGE:] != expected.losses[CHANGE:], "the change changes nothing"
    with pytest.warns(CaptureWarning, match=refused) if refused else nullcontext():
        found = train(captured, training(make, True), STEPS)
    assert_trained_alike(found, expected, TOLERANCE)
    statistics = found.svi.statistics
    if refused:
        assert statistics.replays in (0, CHANGE - BEFORE_REPLAYS), statistics
        return
    assert statistics.graphs == graphs or (graphs is None and statistics.graphs <= 2), statistics
    assert statistics.replays >= (STEPS - BEFORE_REPLAYS if graphs == 1 else AFTER_ANOTHER_TRACE), (
        statistics
    )


# The programs of most scenes: a regression with three coefficients.


def guide(*args: Any, **kwargs: Any) -> None:
    """Independent Gaussians."""
    loc = pyro.param("loc", lambda: torch.tensor([0.3, -0.2, 0.1]))
    scale = pyro.param("scale", lambda: torch.full((3,), 0.7), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def point(*args: Any, **kwargs: Any) -> None:
    """One value, which takes few operators: most scenes are about something else."""
    loc = pyro.param("loc", lambda: torch.tensor([0.3, -0.2, 0.1]))
    pyro.sample("z", dist.Delta(loc, event_dim=1))


def coefficients(prior_scale: Any = 1.0) -> Tensor:
    """The latent."""
    return pyro.sample("z", dist.Normal(torch.zeros(3), prior_scale).to_event(1))


def observe(mean: Tensor, data: Tensor = DATA, noise: Any = 0.5) -> None:
    """The data, around a mean."""
    with pyro.plate("rows", len(data)):
        pyro.sample("x", dist.Normal(mean, noise), obs=data)


def regression(data: Tensor = DATA) -> None:
    """A model that reads nothing but its argument."""
    observe(ROWS @ coefficients(), data)
