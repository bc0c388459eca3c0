"""The figure by which trained parameters are judged, the same for every loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import ELBO, RenyiELBO
from pyro.infer.util import torch_item
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import site_is_subsample
from torch import nn

from pyro_silent.diagnostics.explain import explain
from pyro_silent.diagnostics.losses import Loss, check_loss, copy_of
from pyro_silent.diagnostics.random_stream import seed_everything
from pyro_silent.diagnostics.trained_tensors import evaluating
from pyro_silent.diagnostics.training_data import Batches
from pyro_silent.diagnostics.undisturbed import undisturbed
from pyro_silent.elbo.silent import SilentELBO
from pyro_silent.errors import ConfigurationError
from pyro_silent.nn import branch

_NUM_SAMPLES = 100
_SEED = 0


class Yardstick(NamedTuple):
    """What is measured and on which data; lower is better.

    :ivar measure: an ELBO, of which ``loss`` is taken, or a function of model, guide and arguments.
    :ivar name: of the measure, as the report calls it.
    :ivar data: batches; the value is the mean over them.
    :ivar on_training_data: whether that is what is trained on.
    """

    measure: Loss
    name: str
    data: Iterable
    on_training_data: bool

    def __call__(self, model: Callable, guide: Callable, modules: list[nn.Module]) -> float:
        """The value at the present parameters; nothing is left behind.

        Random numbers are the same at every call, so that values of two losses, or of two steps,
        differ by the parameters alone.
        """
        values = []
        with undisturbed(model, guide), evaluating(modules), torch.no_grad(), branch("expressive"):
            for args, kwargs in self._batches():
                values.append(self._value(model, guide, args, kwargs))
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values)

    def _batches(self) -> Iterator[tuple[tuple, dict[str, Any]]]:
        batches = Batches("held_out", self.data, _SEED)
        seed_everything(_SEED, 1)
        is_empty = True
        for arguments in batches.one_pass():
            is_empty = False
            yield arguments
        if is_empty:
            raise ConfigurationError("held_out: got no batches, expected at least one.")

    def _value(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> float:
        measure: Any = self.measure
        value = (measure.loss if isinstance(measure, ELBO) else measure)(
            model, guide, *args, **kwargs
        )
        try:
            return float(torch_item(value))
        except (AttributeError, TypeError, ValueError, RuntimeError):
            raise ConfigurationError(
                f"yardstick: got {value!r} from {self.name}, expected a number; write an ELBO or a "
                "function of model, guide and the batch that returns a float."
            ) from None

    def __str__(self) -> str:
        where = "the training data, since held_out is None" if self.on_training_data else "held_out"
        return f"{self.name}, mean over the batches of {where}; lower is better"


def choose(
    measure: Loss | None, model: Callable, guide: Callable, args: tuple, kwargs: dict
) -> tuple[Loss, str]:
    """The measure with its name: the one given, or exact -ELBO where there is one, or a bound.

    The bound is that of importance sampling (Burda, Grosse and Salakhutdinov 2016), which lies
    between the -ELBO and the negative log evidence.

    :raises ConfigurationError: for another thing, or if none can be chosen.
    """
    if measure is not None:
        check_loss("yardstick", measure)
        if isinstance(measure, ELBO):
            return copy_of(measure), f"{type(measure).__name__}.loss"
        return measure, getattr(measure, "__name__", type(measure).__name__)
    with undisturbed(model, guide), branch("expressive"):
        enumerated = _check_sites(model, guide, args, kwargs)
        if explain(model, guide, *args, **kwargs).is_silent:
            return SilentELBO(), "exact -ELBO (SilentELBO)"
    bound = RenyiELBO(alpha=0, num_particles=_NUM_SAMPLES)
    name = f"importance-sampled bound on -log evidence ({_NUM_SAMPLES} samples)"
    if not enumerated:
        return bound, name

    def bound_of_samples(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        drawn = poutine.infer_config(guide, lambda site: {"enumerate": None})
        value: float = bound.loss(model, drawn, *args, **kwargs)
        return value

    return bound_of_samples, name


def _check_sites(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether the guide enumerates; refuses latents of the model that the guide leaves out."""
    if isinstance(poutine.unwrap(guide), GuideMessenger):
        return False
    proposal = poutine.trace(guide).get_trace(*args, **kwargs)
    target = poutine.trace(poutine.replay(model, trace=proposal)).get_trace(*args, **kwargs)
    missing = [
        name
        for name, site in target.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not site_is_subsample(site)
        and name not in proposal
    ]
    if missing:
        raise ConfigurationError(
            f"yardstick: got None, and the guide has no site for {', '.join(map(repr, missing))}, "
            "expected a yardstick that sums these latents out; write for example "
            "yardstick=TraceEnum_ELBO(max_plate_nesting=1)."
        )
    return any(
        site["type"] == "sample" and bool(site["infer"].get("enumerate"))
        for site in proposal.nodes.values()
    )
