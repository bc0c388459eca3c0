"""One run of guide and model under a treatment: the pair of traces that is scored."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger

from pyro_silent.elbo.enumeration import EnumerationMessenger
from pyro_silent.elbo.treatment import TreatmentMessenger
from pyro_silent.expectation.coercion import random_parameters

_PREPARED: weakref.WeakSet = weakref.WeakSet()
"""Guide messengers that have run once on plain samples."""


def run(
    model: Any,
    guide: Any,
    treatment: TreatmentMessenger,
    first_dim: int | None,
    args: tuple,
    kwargs: dict,
) -> tuple[Trace, Trace]:
    """The traces of the model and of the guide, in this order, as Pyro's ELBOs make them.

    A guide is run first and the model is replayed against it; a ``GuideMessenger`` runs the model itself
    and gives its sites their posteriors on the way.

    :param first_dim: the rightmost dim for values of enumerated sites; None if there are no such sites.
    """
    messenger = poutine.unwrap(guide)
    enumerates = first_dim is not None
    if not isinstance(messenger, GuideMessenger):
        if enumerates:
            guide = EnumerationMessenger(first_dim)(guide)
            model = EnumerationMessenger()(model)  # goes on from the guide's dims
        with random_parameters():
            with treatment:
                guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            return poutine.trace(replayed).get_trace(*args, **kwargs), guide_trace
    if messenger not in _PREPARED:
        # It makes its parameters in the first run, from priors that must have values for that.
        with poutine.block():
            guide(*args, **kwargs)
        _PREPARED.add(messenger)
    with random_parameters(), treatment:
        with EnumerationMessenger(first_dim) if enumerates else nullcontext():
            guide(*args, **kwargs)
    return messenger.get_traces()
