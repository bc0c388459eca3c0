"""The figure by which trained parameters are judged, the same for every loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, RenyiELBO
from pyro.infer.util import torch_item
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import site_is_subsample
from torch import nn

from pyro_silent.diagnostics.explain import explain
from pyro_silent.diagnostics.losses import Loss, check_loss, copy_of
from pyro_silent.diagnostics.random_stream import RandomStream, go_to
from pyro_silent.diagnostics.trained_tensors import evaluating
from pyro_silent.diagnostics.training_data import Batches
from pyro_silent.diagnostics.undisturbed import undisturbed
from pyro_silent.elbo.silent import SilentELBO
from pyro_silent.errors import ConfigurationError
from pyro_silent.nn import branch

_NUM_SAMPLES = 100
_SEED = 0


class MeasureError(Exception):
    """What a measure raised; errors of the data are not wrapped."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Yardstick:
    """What is measured and on which data; lower is better.

    :param measure: an ELBO, of which ``loss`` is taken, or a function of model, guide and arguments.
    :param name: of the measure, as the report calls it.
    :param data: batches; the value is the mean over them.
    :param on_training_data: whether that is what is trained on.
    """

    def __init__(self, measure: Loss, name: str, data: Iterable, on_training_data: bool) -> None:
        self._measure, self._name = measure, name
        self._on_training_data = on_training_data
        self._batches = Batches("data" if on_training_data else "held_out", data, _SEED)
        self._noise = RandomStream(_SEED, 1).state

    def __call__(self, model: Callable, guide: Callable, modules: list[nn.Module]) -> float:
        """The value at the present parameters; nothing is left behind.

        Random numbers are the same at every call, so that values of two losses, or of two steps,
        differ by the parameters alone.

        :raises MeasureError: if the measure raises.
        """
        with undisturbed(model, guide), evaluating(modules), torch.no_grad(), branch("expressive"):
            go_to(self._noise)
            values = [
                self._value(model, guide, args, kwargs) for args, kwargs in self._batches.one_pass()
            ]
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values)

    def _value(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> float:
        measure: Any = self._measure
        function = measure.loss if isinstance(measure, ELBO) else measure
        try:
            value = function(model, guide, *args, **kwargs)
        except Exception as cause:
            raise MeasureError(cause) from cause
        try:
            return float(torch_item(value))
        except (AttributeError, TypeError, ValueError, RuntimeError):
            error = ConfigurationError(
                f"yardstick: got {value!r} from {self._name}, expected a number; write an ELBO or a "
                "function of model, guide and the batch that returns a float."
            )
            raise MeasureError(error) from None

    def __str__(self) -> str:
        where = (
            "the training data, since held_out is None" if self._on_training_data else "held_out"
        )
        return f"{self._name}, mean over the batches of {where}; lower is better"


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
