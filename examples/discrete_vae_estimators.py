"""The gradient estimators that train the discrete VAE, each as a loss for Pyro's ``SVI``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pyro.infer import ELBO, TraceGraph_ELBO

from pyro_silent import (
    ZGR,
    DisARMELBO,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    ReinMax,
    RelaxedELBO,
    StraightThrough,
    StraightThroughELBO,
    StraightThroughGumbelSoftmax,
)

_GUMBEL_TEMPERATURES = (0.35, 0.65)
_RATES = (1e-2, 3e-2)
_RATE_FACTORS = {20: 1, 200: 3}  # larger minibatches bear larger rates


class Contender(NamedTuple):
    """A gradient estimator.

    :ivar loss: the loss, given a temperature.
    :ivar family: "straight-through" (hard samples, biased), "relaxed" or "score function" (unbiased).
    :ivar temperatures: tried by the search; a single 1 where there is none to choose.
    :ivar rates: the learning rates tried at batch size 20.
    :ivar arities: the arities it is run for.
    :ivar family: "straight-through" (biased, hard samples), "relaxed" or "score function" (unbiased).
    :ivar settings_of: the contender whose search it shares, if it has none of its own.
    """

    loss: Callable[[float], ELBO]
    family: str
    temperatures: tuple[float, ...] = (1.0,)
    rates: tuple[float, ...] = _RATES
    arities: tuple[int, ...] = (2, 4, 8, 16)
    settings_of: str | None = None


CONTENDERS: dict[str, Contender] = {
    "GS": Contender(RelaxedELBO, "relaxed", _GUMBEL_TEMPERATURES),
    # Pyro's own; the running mean is asked for by the guide's site
    "REINFORCE": Contender(lambda _: TraceGraph_ELBO(), "score function", rates=(3e-5, 1e-4, 3e-4)),
    "RLOO": Contender(
        lambda _: LeaveOneOutELBO(num_particles=2), "score function", rates=(1e-3, 3e-3, 1e-2)
    ),
    "DisARM": Contender(lambda _: DisARMELBO(), "score function", arities=(2,), settings_of="RLOO"),
    "ST": Contender(lambda _: StraightThroughELBO(StraightThrough()), "straight-through"),
    "ST-GS": Contender(
        lambda tau: StraightThroughELBO(StraightThroughGumbelSoftmax(tau)),
        "straight-through",
        _GUMBEL_TEMPERATURES,
    ),
    "GR-MC10": Contender(
        lambda tau: GumbelRaoELBO(tau, num_gumbels=10), "straight-through", _GUMBEL_TEMPERATURES
    ),
    "GR-MC100": Contender(
        lambda tau: GumbelRaoELBO(tau, num_gumbels=100), "straight-through", settings_of="GR-MC10"
    ),
    "GR exact": Contender(
        lambda tau: GumbelRaoELBO(tau, num_gumbels=None),
        "straight-through",
        arities=(2,),
        settings_of="GR-MC10",
    ),
    "ZGR": Contender(lambda _: StraightThroughELBO(ZGR()), "straight-through"),
    # at temperature 1 it is ZGR
    "ReinMax": Contender(
        lambda tau: StraightThroughELBO(ReinMax(tau)), "straight-through", (1.1, 1.5)
    ),
}


class Settings(NamedTuple):
    """What is chosen for a contender at a batch size.

    :ivar learning_rate: for the loss per digit.
    :ivar temperature: 1 where the contender has none.
    """

    learning_rate: float
    temperature: float = 1.0


# Found by discrete_vae.py --search at its default budget, by batch size and estimator.
SETTINGS: dict[tuple[int, str], Settings] = {
    (20, "GS"): Settings(3e-2, 0.65),
    (20, "REINFORCE"): Settings(3e-5),
    (20, "RLOO"): Settings(3e-3),
    (20, "ST"): Settings(3e-2),
    (20, "ST-GS"): Settings(3e-2, 0.65),
    (20, "GR-MC10"): Settings(3e-2, 0.65),
    (20, "ZGR"): Settings(3e-2),
    (20, "ReinMax"): Settings(3e-2, 1.5),
    (200, "GS"): Settings(9e-2, 0.35),
    (200, "REINFORCE"): Settings(9e-5),
    (200, "RLOO"): Settings(3e-2),
    (200, "ST"): Settings(9e-2),
    (200, "ST-GS"): Settings(9e-2, 0.65),
    (200, "GR-MC10"): Settings(9e-2, 0.35),
    (200, "ZGR"): Settings(9e-2),
    (200, "ReinMax"): Settings(9e-2, 1.5),
}


def candidates(name: str, batch_size: int) -> list[Settings]:
    """Return the grid the search tries for a contender."""
    contender, factor = CONTENDERS[name], _RATE_FACTORS[batch_size]
    return [
        Settings(round(factor * rate, 6), tau)
        for rate in contender.rates
        for tau in contender.temperatures
    ]
