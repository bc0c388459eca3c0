"""AnnealedELBO: an exact gradient for the guide first, a stochastic one in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from pyro.infer import ELBO, TraceGraph_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_silent.elbo.baselines import own_baselines
from pyro_silent.elbo.blend import NO_GRADIENTS, Blend, Gradients, alone, blended
from pyro_silent.elbo.engine import TreatmentELBO, check_positive_int, warn_of_nan
from pyro_silent.elbo.evaluation import Evaluation, differentiable_loss, value_and_gradients
from pyro_silent.elbo.random_state import random_state, restore
from pyro_silent.elbo.recorded_guide import record
from pyro_silent.elbo.stateful_module import (
    StatefulELBOModule,
    check_state,
    known,
    warn_if_changed,
)
from pyro_silent.elbo.weight import WeightSchedule, as_schedule, checked_weight
from pyro_silent.errors import ConfigurationError, IntractableError
from pyro_silent.looking import Memory, read
from pyro_silent.nn import branch, forget_twins, stop_resting_branches, watched_twins

_Result = TypeVar("_Result")

_REMEDY = (
    " In the model it sees, a TwinDecoder(analytic=..., expressive=...) runs its analytic branch: give "
    "that a decoder affine in the latents, such as nn.Linear."
)


class AnnealedELBO(ELBO):
    r"""A blend of two losses: the silent one guides the encoder early, the stochastic one ends alone.

    With weight :math:`a` = ``schedule(step)`` the guide's parameters :math:`\phi` follow

    .. math::
        a \, \nabla_\phi \mathcal L_{\text{silent}} +
        (1 - a) \, \nabla_\phi \mathcal L_{\text{stochastic}} ,

    so KL(q || p) has weight 1 in all. A parameter that both losses reach past the guide (a learned
    prior, a noise scale used by both) follows the same blend; one that a single loss reaches follows
    that loss's full gradient all the time, as the two decoders of a :class:`TwinDecoder` do. The silent
    part runs the twin's ``analytic`` branch and the stochastic part its ``expressive`` one. Without a
    twin both losses share all parameters, and the gradient is that of their weighted mean.

    The guide runs once a step: both losses hang on the distributions of that run, so its networks go
    forward and backward once. At weight 0 the silent part does not run at all. The run is recorded with
    symbols in place of the latents' values, which a guide must not keep, and whose ``requires_grad`` is
    False. Some guides run once for each part instead, from the first step that shows it until the end
    (:attr:`guide_runs_once` tells): those whose control flow needs a value, that hold a
    :class:`TwinDecoder`, that hide a latent where no distribution shows it (a conditional flow), whose
    dependent sites meet values of another shape than recorded (vectorized particles, enumeration), and
    ``GuideMessenger``. There a parameter that the guide shares with a decoder follows the blend
    altogether.

    The value, of ``loss`` and of the others, is the stochastic part's: the -ELBO of the model that is
    trained for in the end. :meth:`silent_loss` computes the other one, and :attr:`last_silent_loss` is
    what it was in the last step that had it. (A step of a silent warm-up returns the silent loss.)

    When it helps, measured: ``docs/annealed_vae.md``. Compare with a control, which has the same analytic
    decoder and schedule and a stochastic loss in the place of the silent one,
    ``AnnealedELBO(Trace_ELBO(), Trace_ELBO(), schedule)``: only what is gained over it is due to
    silence.

    The idea is that of Shao, Liu and Van den Broeck, "Zero-Variance Gradients for Variational
    Autoencoders", arXiv 2508.03587; schedules and defaults are ours.

    :param ELBO silent: usually :class:`SilentELBO`; any loss with a ``differentiable_loss`` may stand
        here.
    :param ELBO stochastic: such as ``Trace_ELBO()``, ``TraceGraph_ELBO()`` with baselines,
        :class:`GumbelRaoELBO` or :class:`LeaveOneOutELBO`.
    :param schedule: the weight :math:`a \in [0, 1]` of the silent part: a callable of the number of
        steps so far, such as ``Linear(1.0, 0.0, num_steps=1000)``, or a number.
    :param bool silent_warm_up: at weight 1, leave the stochastic part out: the expressive decoder is
        not trained then, and the value of such a step is the silent loss.
    :param int num_particles: blended evaluations that are averaged, each with a run of the guide.
        Cheaper: particles of the stochastic part, ``Trace_ELBO(num_particles=8)``, on one run of it.
    :raises ConfigurationError: for an argument that makes no sense, and for a weight outside [0, 1] by
        more than rounding.
    :raises IntractableError: if the silent part cannot integrate the analytic branch.

    Steps are counted by ``loss_and_grads`` and by training-mode calls of ``elbo(model, guide)``, and the
    temperature schedules of the parts follow the same count. Cost: one guide, two models. Derivatives
    are first ones only; gradients are found where ``differentiable_loss`` is called, its ``backward``
    hands them out. So checkpoints in a decoder must be made with ``use_reentrant=False``, as torch
    says, and a graph cached between the parts (``parametrize.cached``) is refused by torch.

    Other keywords are those of :class:`pyro.infer.ELBO`.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from torch import nn
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_silent import AnnealedELBO, Linear, SilentELBO, TwinDecoder
        >>> deep = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> vae = nn.ModuleDict(
        ...     {"encoder": nn.Linear(5, 2), "decoder": TwinDecoder(nn.Linear(2, 5), deep)}
        ... )
        >>> def model(x):
        ...     pyro.module("vae", vae)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(vae["decoder"](z), 0.5).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("vae", vae)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(vae["encoder"](x), 0.3).to_event(1))
        >>> elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), Linear(1.0, 0.0, num_steps=10))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=elbo)
        >>> for _ in range(3):
        ...     _ = svi.step(torch.randn(8, 5))
        >>> elbo.weight
        0.7
    """

    def __init__(
        self,
        silent: ELBO,
        stochastic: ELBO,
        schedule: WeightSchedule | float,
        *,
        silent_warm_up: bool = False,
        num_particles: int = 1,
        **kwargs: Any,
    ) -> None:
        _check_part("silent", silent, "SilentELBO()")
        _check_part("stochastic", stochastic, "Trace_ELBO()")
        if silent is stochastic:
            raise ConfigurationError(
                f"stochastic: got the object that silent is, {stochastic!r}; expected one of its own, "
                "since a loss counts its steps. Make two."
            )
        if not isinstance(silent_warm_up, bool):
            raise ConfigurationError(
                f"silent_warm_up: got {silent_warm_up!r}, expected True or False."
            )
        check_positive_int("num_particles", num_particles)
        super().__init__(num_particles=num_particles, **kwargs)
        if self.vectorize_particles and num_particles > 1:
            for argument, part in (("silent", silent), ("stochastic", stochastic)):
                if part.vectorize_particles and part.num_particles > 1:
                    raise ConfigurationError(
                        f"{argument}: got {part.num_particles} vectorized particles inside of "
                        f"{num_particles} others; expected one of the two. Leave out "
                        "num_particles of AnnealedELBO."
                    )
        self.silent = silent
        self.stochastic = stochastic
        self.schedule = as_schedule(schedule)
        self.silent_warm_up = silent_warm_up
        self.num_steps = 0
        self._records = True  # until a guide turns out to need its latents' values
        self._silent_value: Tensor | None = None

    def __call__(self, model: Any, guide: Any) -> ELBOModule:
        """The loss as a module, which counts its training steps."""
        return StatefulELBOModule(model, guide, self)

    @property
    def guide_runs_once(self) -> bool:
        """Whether no guide has turned out yet to need a run for each part."""
        return self._records

    @property
    def weight(self) -> float:
        """The silent part's weight in the next step."""
        return checked_weight(self.schedule(self.num_steps), self.schedule, self.num_steps)

    # One evaluation

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Evaluation:
        """One run of the guide, for both parts if both have a say."""
        weight = self.weight
        self._count_in_parts()
        both = 0 < weight and (weight < 1 or not self.silent_warm_up)
        state = random_state()
        recorded = None
        if both and self._records:
            recorded = record(guide, args, kwargs)
            if recorded is None:
                self._records = False
                restore(state)
        return Evaluation(weight, both, model, guide, recorded, args, kwargs, state)

    def _count_in_parts(self) -> None:
        """Parts' schedules follow one count, since a part that rests counts no steps of its own."""
        for part in (self.silent, self.stochastic):
            if hasattr(part, "num_steps"):
                part.num_steps = self.num_steps

    def _evaluated(
        self, evaluation: Evaluation, evaluate: Callable[[Evaluation], _Result]
    ) -> _Result:
        """Evaluate; once more with the user's own guide where that fails with the recorded one.

        Then an error that has another cause is raised again, from the line where the user expects it.
        Either way the random state is as before.
        """
        try:
            return evaluate(evaluation)
        except Exception:
            restore(evaluation.state)
            forget_twins()
            if evaluation.recorded is None:
                raise
        result = self._evaluated(evaluation._replace(recorded=None), evaluate)
        self._records = False
        return result

    def _value(self, evaluation: Evaluation) -> Any:
        """The stochastic part's loss, whatever the weight."""
        program, _ = evaluation.guide_for_part()
        with branch("expressive"), evaluation.subsamples():
            return self.stochastic.loss(
                evaluation.model, program, *evaluation.args, **evaluation.kwargs
            )

    def _blend(self, evaluation: Evaluation) -> Blend:
        """The value with the gradient of the blend."""
        if evaluation.weight == 0:
            with branch("expressive"):
                return alone(differentiable_loss(self.stochastic, evaluation, evaluation.guide))
        with evaluation.subsamples():
            if not evaluation.both:
                value, silent = self._silent_part(evaluation)
                blend = blended(value, 1.0, silent, NO_GRADIENTS)
                return blend._replace(silent_value=value)
            # first, since it draws what it draws in `loss`
            value, stochastic = self._stochastic_part(evaluation)
            if not torch.is_grad_enabled():
                return alone(value)
            silent_value, silent = self._silent_part(evaluation)
        blend = blended(value, evaluation.weight, silent, stochastic)
        return blend._replace(silent_value=silent_value)

    def _blends(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Iterator[Blend]:
        """All blends of a step; notes the silent loss on the way."""
        silent_values = []
        for evaluation in self._get_traces(model, guide, args, kwargs):
            blend = self._evaluated(evaluation, self._blend)
            if blend.silent_value is not None:
                silent_values.append(blend.silent_value)
            yield blend
        if silent_values:
            self._silent_value = torch.stack(silent_values).sum() / self.num_particles

    def _stochastic_part(self, evaluation: Evaluation) -> tuple[Tensor, Gradients]:
        try:
            with branch("expressive"):
                return value_and_gradients(self.stochastic, evaluation)
        except Exception:
            self._compare_twins(evaluation)
            raise

    def _compare_twins(self, evaluation: Evaluation) -> None:
        """Look whether twins of different shapes are behind an error.

        :raises ConfigurationError: from the twin.
        """
        try:
            self._silent_part(evaluation)
        except ConfigurationError:
            raise
        except Exception:
            return

    def _silent_part(self, evaluation: Evaluation) -> tuple[Tensor, Gradients]:
        try:
            with branch("analytic"), self._own_baselines():
                return value_and_gradients(self.silent, evaluation)
        except IntractableError as error:
            remedy = "" if str(error).startswith("guide site") else _REMEDY
            raise IntractableError(
                f"the silent part of AnnealedELBO: {error}{remedy}",
                site=error.site,
                operation=error.operation,
                latents=error.latents,
                location=error.location,
            ) from error

    def _own_baselines(self) -> AbstractContextManager:
        both = isinstance(self.silent, TraceGraph_ELBO)
        both = both and isinstance(self.stochastic, TraceGraph_ELBO)
        return own_baselines("silent") if both else nullcontext()

    # Losses

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The -ELBO of the model with its expressive branch, as a float; steps are not counted."""
        total = 0.0
        for evaluation in self._get_traces(model, guide, args, kwargs):
            loss = self._evaluated(evaluation, self._value)
            total += read(loss, *self._memories()) / self.num_particles
        warn_if_nan(total, "loss")
        return total

    def silent_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The silent part's own loss, on the analytic branch, as a float; steps are not counted."""
        self._count_in_parts()
        with branch("analytic"):
            loss: float = torch_item(self.silent.loss(model, guide, *args, **kwargs))
        return loss

    @property
    def last_silent_loss(self) -> float | None:
        """The silent part's loss when it last ran in a step, kept on the way; None before."""
        return None if self._silent_value is None else torch_item(self._silent_value)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss as a tensor whose gradient is the blend."""
        total: Any = 0.0
        with watched_twins():
            for blend in self._blends(model, guide, args, kwargs):
                total = total + blend.tensor() / self.num_particles
        warn_of_nan(total)
        return total

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a float; gradients are added to the parameters'. One more step of schedules."""
        total = 0.0
        with watched_twins() as twins:
            for blend in self._blends(model, guide, args, kwargs):
                blend.backward(1 / self.num_particles, self.retain_graph)
                total += read(blend.value, *self._memories()) / self.num_particles
        stop_resting_branches(twins)
        warn_if_nan(total, "loss")
        self.num_steps += 1
        return total

    def _memories(self) -> list[Memory]:
        parts = (self.silent, self.stochastic)
        return [part._memory for part in parts if isinstance(part, TreatmentELBO)]

    # State

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: how many steps were taken, and the state of the parts."""
        self._count_in_parts()
        return {
            "num_steps": self.num_steps,
            "max_plate_nesting": self.max_plate_nesting,
            "weight": known(lambda: self.weight),
            "silent": _state_of(self.silent),
            "stochastic": _state_of(self.stochastic),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`; a schedule that is at another weight there warns."""
        check_state(state, self.state_dict(), self)
        parts = {"silent": self.silent, "stochastic": self.stochastic}
        for name, part in parts.items():
            check_state(state[name], _state_of(part), part)
        for name, part in parts.items():
            _load(part, state[name])
        self.max_plate_nesting = state["max_plate_nesting"]
        self.num_steps = int(state["num_steps"])
        warn_if_changed("weight", state["weight"], known(lambda: self.weight))


def _check_part(argument: str, part: Any, example: str) -> None:
    takes = isinstance(part, TraceGraph_ELBO) or hasattr(part, "differentiable_loss")
    if isinstance(part, ELBO) and takes and not isinstance(part, AnnealedELBO):
        return
    got = f"the class {part.__name__}" if isinstance(part, type) else repr(part)
    why = " (it has no differentiable_loss)" if isinstance(part, ELBO) and not takes else ""
    raise ConfigurationError(
        f"{argument}: got {got}{why}, expected a loss with one differentiable value; write for "
        f"example {argument}={example}."
    )


def _state_of(part: Any) -> dict[str, Any]:
    state: dict[str, Any] = part.state_dict() if hasattr(part, "state_dict") else {}
    # Pyro guesses it in the first step, by a run that draws random numbers
    return {**state, "max_plate_nesting": part.max_plate_nesting}


def _load(part: Any, state: dict[str, Any]) -> None:
    if hasattr(part, "load_state_dict"):
        part.load_state_dict(state)
    part.max_plate_nesting = state["max_plate_nesting"]
