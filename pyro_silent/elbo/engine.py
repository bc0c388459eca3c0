"""One engine for all losses: ELBO = sum over model sites E[log p] - sum over guide sites E[log q]."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import ELBO
from pyro.infer.elbo import ELBOModule
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape, warn_if_nan
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.discrete_sample import DiscreteSample, forgotten
from pyro_silent.elbo.devices import check_program, check_site, outside_autocast
from pyro_silent.elbo.discrete import unvalidated
from pyro_silent.elbo.divergence import is_random, use_closed_divergences
from pyro_silent.elbo.enumeration import EnumeratedSite, Enumeration, check_model_enumeration
from pyro_silent.elbo.finite import check_finite
from pyro_silent.elbo.particle import Particle, Record
from pyro_silent.elbo.random_state import random_state, restore
from pyro_silent.elbo.run import run
from pyro_silent.elbo.score_function import score_function, scores_of, sum_scores
from pyro_silent.elbo.stateful_module import StatefulELBOModule, check_state, known, warn_if_changed
from pyro_silent.elbo.treatment import Treated, TreatmentMessenger
from pyro_silent.errors import (
    ConfigurationError,
    IntractableError,
    PyroSilentError,
    SampledSiteWarning,
)
from pyro_silent.estimators import Estimator
from pyro_silent.expectation.coercion import check_plain_parameters
from pyro_silent.expectation.method import recording
from pyro_silent.expectation.moments import mean
from pyro_silent.expectation.registry import expectation_of
from pyro_silent.looking import Memory, deciding, may_look, read
from pyro_silent.random_tensor.draw import Draw
from pyro_silent.random_tensor.tensor import RandomTensor


def check_positive_int(argument: str, value: Any) -> None:
    """Refuse anything but a positive integer.

    :raises ConfigurationError: naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{argument}: got {value!r}, expected a positive integer.")


def warn_of_nan(loss: Any) -> None:
    """Pyro's warning of a loss or gradient that is NaN, where nothing has to wait for the look."""
    if not isinstance(loss, Tensor) or may_look(loss):
        warn_if_nan(loss, "loss")


class TreatmentELBO(ELBO):
    """Base of all losses: runs the guide once under a treatment policy, replays the model, adds up.

    A subclass says how a guide site is treated (:meth:`treat`) and what happens where a site's
    expectation has no closed form (:meth:`on_intractable`). Scales, masks, plates and subsampling are
    applied to each site exactly as :class:`~pyro.infer.Trace_ELBO` does.

    :ivar estimator: of the gradient of discrete latents; None where there is none.
    """

    estimator: Estimator | None = None

    def __init__(self, num_particles: int = 1, **kwargs: Any) -> None:
        check_positive_int("num_particles", num_particles)
        super().__init__(num_particles=num_particles, **kwargs)
        self._enumerates: bool | None = None  # not known before the first run
        self.num_steps = 0
        self._memory = Memory()

    @abstractmethod
    def treat(self, msg: dict) -> Treated | None:
        """The treatment of one guide site; None leaves a plain sample."""

    def on_intractable(self, site: dict, error: IntractableError) -> None:
        """Raise, or return to have the site's term estimated from the shared draw.

        A loss of samples estimates nothing that could have been exact: an overflow is refused.
        """
        raise IntractableError(
            f"site {site['name']!r}: {error}",
            site=site["name"],
            operation=error.operation,
            latents=error.latents,
            location=error.location,
        ) from error

    def sampler(self, name: str, fn: Distribution) -> Tensor | None:
        """The shared draw of a latent; None for the distribution's own, scored if it must be."""
        return None

    # Traces

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Particle:
        with deciding(self._memory, "program"):
            model_trace, guide_trace, treated = self._run(model, guide, args, kwargs)
        check_model_enumeration(model_trace, guide_trace)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        guide_trace = prune_subsample_sites(guide_trace)
        particle = Particle(
            model_trace=prune_subsample_sites(model_trace),
            guide_trace=guide_trace,
            draw=Draw(self.sampler),
            sampled=[],
            treated=treated,
            records={},
            enumeration=Enumeration(guide_trace, self.max_plate_nesting),
        )
        try:
            with outside_autocast():
                use_closed_divergences(particle, self._memory)
                _score_soft_values(particle)
                self._score_guide(particle)
                self._score_model(particle)
                _weigh(particle)
        except RuntimeError as error:
            for trace in (guide_trace, model_trace):
                for site in trace.nodes.values():
                    if site["type"] == "sample":
                        check_site(site, error)
            raise
        if is_validation_enabled():
            for trace in (particle.model_trace, particle.guide_trace):
                for site in trace.nodes.values():
                    if site["type"] == "sample":
                        check_site_shape(site, self.max_plate_nesting)
        return particle

    def _run(
        self, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace, dict[str, Treated]]:
        """Both traces and the guide's treatments; learns on the way whether the guide enumerates."""
        treatment = TreatmentMessenger(self.treat)
        try:
            return self._run_treated(model, guide, treatment, args, kwargs)
        except RuntimeError as error:
            latents = {name: treated.value for name, treated in treatment.treated.items()}
            check_program(args, kwargs, latents, error)
            raise

    def _run_treated(
        self, model: Any, guide: Any, treatment: TreatmentMessenger, args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace, dict[str, Treated]]:
        if not self._enumerates:
            state = random_state() if self._enumerates is None else None
            try:
                traces = run(model, guide, treatment, None, args, kwargs)
                self._enumerates = False
                return *traces, treatment.treated
            except EnumeratedSite:
                self._enumerates = True
                if state is not None:
                    restore(state)
                if self.max_plate_nesting == float("inf"):
                    self._guess_max_plate_nesting(model, guide, args, kwargs)
        first_dim = -1 - int(self.max_plate_nesting)
        return *run(model, guide, treatment, first_dim, args, kwargs), treatment.treated

    def _score_model(self, particle: Particle) -> None:
        for name, site in particle.model_trace.nodes.items():
            if site["type"] == "sample" and not _needs_no_score("model", name, site, particle):
                self._score("model", site, particle)
        particle.model_trace.compute_log_prob()
        _forget_samples(particle.model_trace)

    def _score_guide(self, particle: Particle) -> None:
        for name, site in particle.guide_trace.nodes.items():
            if site["type"] == "sample" and not _needs_no_score("guide", name, site, particle):
                self._score("guide", site, particle)
                score = score_function(site, particle.treated)
                site["score_parts"] = ScoreParts(site["log_prob"], score, site["log_prob"])
        particle.guide_trace.compute_score_parts()
        _forget_samples(particle.guide_trace)

    def _score(self, kind: str, site: dict, particle: Particle) -> None:
        """The expected log density of one site, or its value at the shared draw."""
        name, draw = site["name"], particle.draw
        treated = particle.treated.get(name) if kind == "guide" else None
        log_density = None if treated is None else treated.log_density
        with recording() as methods, deciding(self._memory, kind, name):
            try:
                _set_log_prob(site, _expectation(site, log_density), draw)
                check_finite(site)
                record = Record(methods)
            except IntractableError as error:
                self.on_intractable(site, error)
                record = Record(["sampled"], error)
        if record.error is not None:
            _set_log_prob(site, _at(draw, site, log_density), draw)
            if is_validation_enabled():
                warn_if_nan(site["log_prob_sum"], f"log_prob_sum at site '{name}'")
        particle.records[kind, name] = record

    # Losses

    @property
    def num_evaluations(self) -> int:
        """How many runs of the programs one loss is the mean of."""
        return self.num_particles

    def _groups(
        self, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> Iterator[list[Particle]]:
        """Runs whose learning signals may serve as each other's baselines; here each is alone."""
        for particle in self._get_traces(model, guide, args, kwargs):
            yield [particle]

    def _score_terms(self, group: list[Particle]) -> Tensor | float:
        """A surrogate whose gradient is the score-function part of the ELBO's, summed over a group."""
        return sum_scores([score for particle in group for score in scores_of(particle)])

    def _terms(self, group: list[Particle]) -> tuple[Tensor | float, Tensor | float]:
        """The -ELBO summed over a group, and a surrogate whose gradient estimates its gradient."""
        elbo: Any = 0.0
        for particle in group:
            for site in particle.model_trace.nodes.values():
                if site["type"] == "sample":
                    elbo = elbo + site["log_prob_sum"]
        surrogate = elbo
        for particle in group:
            for site in particle.guide_trace.nodes.values():
                if site["type"] != "sample":
                    continue
                elbo = elbo - site["log_prob_sum"]
                entropy = site["score_parts"].entropy_term
                if not is_identically_zero(entropy):
                    surrogate = surrogate - entropy.sum()
        return -elbo, -(surrogate + self._score_terms(group))

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss, -ELBO, as a float."""
        total = 0.0
        for group in self._groups(model, guide, args, kwargs):
            total += read(self._terms(group)[0], self._memory) / self.num_evaluations
        warn_if_nan(total, "loss")
        return total

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss as a tensor whose gradient is the estimator's."""
        total: Any = 0.0
        for group in self._groups(model, guide, args, kwargs):
            loss, surrogate = self._terms(group)
            if isinstance(surrogate, Tensor) and loss is not surrogate:
                detached = loss.detach() if isinstance(loss, Tensor) else loss
                loss = detached + (surrogate - surrogate.detach())
            total = total + loss / self.num_evaluations
        warn_of_nan(total)
        return total

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a float; gradients are added to the parameters'. One more step of schedules."""
        total = 0.0
        for group in self._groups(model, guide, args, kwargs):
            loss, surrogate = self._terms(group)
            total += read(loss, self._memory) / self.num_evaluations
            trainable = any(
                site["type"] == "param"
                for particle in group
                for trace in particle[:2]
                for site in trace.nodes.values()
            )
            if trainable and isinstance(surrogate, Tensor) and surrogate.requires_grad:
                (surrogate / self.num_evaluations).backward(retain_graph=self.retain_graph)
        warn_if_nan(total, "loss")
        self.num_steps += 1
        return total

    def __call__(self, model: Any, guide: Any) -> ELBOModule:
        """The loss as a module, which counts its training steps."""
        return StatefulELBOModule(model, guide, self)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: how many steps were taken, and what they found out.

        ``max_plate_nesting`` is guessed in the first step, by a run that draws random numbers.
        """
        return {
            "num_steps": self.num_steps,
            "max_plate_nesting": self.max_plate_nesting,
            "temperature": known(self._temperature),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`; a schedule that is at another temperature there warns."""
        check_state(state, TreatmentELBO.state_dict(self), self)
        self.num_steps = int(state["num_steps"])
        self.max_plate_nesting = state["max_plate_nesting"]
        warn_if_changed("temperature", state["temperature"], known(self._temperature))

    def _temperature(self) -> float | None:
        """That of the next step, where there is one."""
        return None if self.estimator is None else self.estimator.temperature_at(self.num_steps)


def _needs_no_score(kind: str, name: str, site: dict, particle: Particle) -> bool:
    """Whether a term has its value already, or Pyro can give it one; says so in the records."""
    if "log_prob" in site:
        return True
    treated = particle.treated.get(name)
    by_law = kind == "guide" and treated is not None and treated.log_density is not None
    if by_law or is_random(site):
        return False
    particle.records[kind, name] = Record(["plain"])
    return True


def _score_soft_values(particle: Particle) -> None:
    """Priors at soft values, which lie between the points of the support and would not be valid."""
    for name, treated in particle.treated.items():
        site = particle.model_trace.nodes.get(name)
        if treated.method == "relaxed" and site is not None and "log_prob" not in site:
            log_prob = unvalidated(site["fn"]).log_prob(site["value"])
            _set_log_prob(site, log_prob, particle.draw)
            particle.records["model", name] = Record(["plain"])


def _forget_samples(trace: Trace) -> None:
    """Terms are ordinary tensors, whatever they were computed from."""
    for site in trace.nodes.values():
        if site["type"] == "sample" and isinstance(site["log_prob"], DiscreteSample):
            for key in ("unscaled_log_prob", "log_prob", "log_prob_sum"):
                if key in site:
                    site[key] = forgotten(site[key])
            if "score_parts" in site:
                site["score_parts"] = ScoreParts(*map(forgotten, site["score_parts"]))


def _expectation(site: dict, log_density: Callable[[], Tensor] | None) -> Tensor:
    """E[log density] of a site.

    :raises IntractableError: where it has no closed form, or overflows.
    """
    fn, value = site["fn"], site["value"]
    if isinstance(site["scale"], RandomTensor) or isinstance(site["mask"], RandomTensor):
        raise IntractableError("its scale or mask is random", operation="poutine.scale")
    if log_density is not None:
        return mean(log_density()).expand(fn.batch_shape)
    _check_support(fn, value)
    return expectation_of(fn, value, 0)


def _at(draw: Draw, site: dict, log_density: Callable[[], Tensor] | None) -> Tensor:
    """The log density of a site at the shared draw."""
    if log_density is not None:
        return draw(log_density()).expand(site["fn"].batch_shape)
    drawn = draw.substitute(site["fn"])
    if torch.distributions.Distribution._validate_args:
        check_plain_parameters(drawn)
    return drawn.log_prob(draw(site["value"]))


def _weigh(particle: Particle) -> None:
    """Weigh terms that hold a value for each value of enumerated sites; list the sampled ones."""
    for kind, trace, sign in _signed(particle):
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            record = particle.records[kind, name]
            if particle.enumeration.weigh(site):
                record.methods.append("enumerated")
            if record.error is not None:
                frames = particle.enumeration.frames(site)
                particle.sampled.append((frames, sign * site["log_prob"].detach()))


def _signed(particle: Particle) -> tuple[tuple[str, Trace, int], ...]:
    """Both traces with the signs of their terms in the ELBO."""
    return ("model", particle.model_trace, 1), ("guide", particle.guide_trace, -1)


def _set_log_prob(site: dict, log_prob: Tensor, draw: Draw) -> None:
    log_prob = forgotten(log_prob)
    site["unscaled_log_prob"] = log_prob
    scale, mask = draw(site["scale"]), draw(site["mask"])
    site["log_prob"] = forgotten(scale_and_mask(log_prob, scale, mask))
    site["log_prob_sum"] = site["log_prob"].sum()


def _check_support(fn: Any, value: Any) -> None:
    """torch's check that an observation lies in the support, which random parameters do not move."""
    if isinstance(value, RandomTensor) or not torch.distributions.Distribution._validate_args:
        return
    try:
        support = fn.support
        if torch.distributions.constraints.is_dependent(support) or _is_real(support, value):
            return
        valid = support.check(value)
    except (NotImplementedError, PyroSilentError, AttributeError):
        return
    if not isinstance(valid, RandomTensor) and not valid.all():
        raise ValueError(
            f"Expected value argument ({type(value).__name__} of shape {tuple(value.shape)}) to be "
            f"within the support ({support!r}) of the distribution {type(fn).__name__}, but found "
            f"invalid values:\n{value}"
        )


def _is_real(support: Any, value: Tensor) -> bool:
    """Whether a value lies on the real line, found by one sum: a NaN would show in it."""
    support = getattr(support, "base_constraint", support)
    if support is not torch.distributions.constraints.real or not value.is_floating_point():
        return False
    return not torch.isnan(value.sum())


def warn_sampled(name: str, reason: str) -> None:
    """Say that a term is an estimate."""
    warnings.warn(
        f"the term of site {name!r} is estimated from a sample: {reason}",
        SampledSiteWarning,
        stacklevel=2,
    )
