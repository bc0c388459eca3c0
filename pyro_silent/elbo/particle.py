"""One run of guide and model, scored: what a loss is added up from."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyro.poutine import Trace
from torch import Tensor

from pyro_silent.elbo.enumeration import Enumeration
from pyro_silent.elbo.treatment import Treated
from pyro_silent.errors import IntractableError
from pyro_silent.random_tensor.draw import Draw


class Record(NamedTuple):
    """How the term of one site was found.

    :ivar methods: empty for a closed form; else "divergence" (a closed KL in place of both terms),
        "plain" (nothing random in it), "sampled", or what the expectation noted of itself; then
        "enumerated" if the term is weighted with probabilities of enumerated sites.
    :ivar error: why it is sampled.
    """

    methods: list[str]
    error: IntractableError | None = None


class Particle(NamedTuple):
    """What one run of guide and model left: traces whose sites carry their expected log densities.

    :ivar sampled: terms evaluated at the shared draw: ``(frames, signed log density)``.
    :ivar treated: guide sites whose value was chosen for them.
    :ivar records: by ``("model" or "guide", site name)``, one for each sample site.
    :ivar enumeration: the guide's enumerated sites.
    """

    model_trace: Trace
    guide_trace: Trace
    draw: Draw
    sampled: list[tuple[Any, Tensor]]
    treated: dict[str, Treated]
    records: dict[tuple[str, str], Record]
    enumeration: Enumeration
