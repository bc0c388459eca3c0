"""DisARMELBO: unbiased gradients of binary latents from two antithetic evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.elbo.dependence import DependenceTracker
from pyro_silent.elbo.discrete import DiscreteLaw, discrete_law
from pyro_silent.elbo.engine import TreatmentELBO
from pyro_silent.elbo.leave_one_out import across_runs, sampled
from pyro_silent.elbo.particle import Particle
from pyro_silent.elbo.score_function import by_element, log_ratio, scores_of, sum_scores
from pyro_silent.elbo.subsamples import SharedSubsamples
from pyro_silent.elbo.treatment import Treated, negative_entropy
from pyro_silent.estimators.disarm import disarm_weights
from pyro_silent.estimators.estimator import logistic_like
from pyro_silent.looking import holds


class AntitheticDraw(NamedTuple):
    """One draw of a binary site: ``value = logits + noise > 0``.

    :ivar is_root: whether the logits are a function of the parameters and the data alone.
    """

    logits: Tensor
    noise: Tensor
    value: Tensor
    is_root: bool


class DisARMELBO(TreatmentELBO):
    r"""The ELBO with DisARM gradients for Bernoulli sites: unbiased, two evaluations.

    Guide and model run twice. The second run draws each Bernoulli element with the mirrored noise,
    :math:`b = [\phi + \epsilon > 0]`, :math:`\tilde b = [\phi - \epsilon > 0]`, and

    .. math::
        \tfrac12 \big(f(b) - f(\tilde b)\big) (-1)^{\tilde b_i} [b_i \ne \tilde b_i]\, \sigma(|\phi_i|)

    estimates the derivative with respect to :math:`\phi_i`, where f holds the terms of the ELBO in the
    site's plates (Dong, Mnih and Tucker 2020, "DisARM"; Yin et al. 2020, "U2G"). The formula asks for a
    :math:`\phi_i` that is the same function of the parameters in both runs. A site that depends on
    earlier samples is therefore drawn afresh in the second run and gets the leave-one-out estimate of the
    two, so that the whole is unbiased for dependent sites as well. What depends on what is found by
    marking the samples that the guide sees; once it has made a Python value of one (``if z > 0``), all
    later sites count as dependent.

    Latents that are neither Bernoulli nor reparameterizable get the leave-one-out estimate too;
    continuous ones are reparameterized; KL is in closed form where torch knows it. Both runs see one
    subsample of a subsampling plate.

    :param int num_particles: pairs that are averaged; ``vectorize_particles=True`` takes them at once.

    Cost: two runs of guide and model per pair.

    Example::

        >>> from pyro_silent import DisARMELBO
        >>> loss = DisARMELBO()
    """

    def __init__(self, num_particles: int = 1, **kwargs: Any) -> None:
        super().__init__(num_particles=num_particles, **kwargs)
        self._first: dict[str, Treated] = {}  # what the first run of a pair drew
        self._tracker = DependenceTracker()

    @property
    def num_evaluations(self) -> int:
        """Two for each pair."""
        return 2 * self.num_particles

    def treat(self, msg: dict) -> Treated | None:
        """Bernoulli sites by noise that the second run mirrors, other discrete ones by a plain sample."""
        fn, name = msg["fn"], msg["name"]
        law = discrete_law(fn)
        try:
            return None if law is None else self._treatment(name, fn, law, msg["infer"])
        finally:
            self._tracker.count_site()

    def _treatment(self, name: str, fn: Distribution, law: DiscreteLaw, infer: dict) -> Treated:
        if law.kind != "bernoulli" or not infer.get("silent", True):
            return sampled(fn)
        draw = self._draw(law.logits, self._first.get(name))
        return Treated(draw.value, "antithetic", lambda: negative_entropy(fn), draw)

    def _draw(self, logits: Tensor, first: Treated | None) -> AntitheticDraw:
        mirrored = None if first is None else first.draw
        is_root = not self._tracker.depends(logits)
        with torch.no_grad():
            noise = logistic_like(logits)
            if mirrored is not None and mirrored.is_root and is_root:
                if _are_equal(mirrored.logits, logits):
                    noise = -mirrored.noise
                else:
                    is_root = False  # the guide is random in another way, such as dropout
            value = (logits + noise > 0).to(logits.dtype)
        return AntitheticDraw(logits, noise, value, is_root)

    def _run(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Any:
        follows = not isinstance(poutine.unwrap(guide), GuideMessenger)
        self._tracker.clear(follows)
        if follows:
            guide = self._tracker(guide)
        return super()._run(model, guide, args, kwargs)

    def _groups(
        self, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> Iterator[list[Particle]]:
        firsts = self._get_traces(model, guide, args, kwargs)
        seconds = self._get_traces(model, guide, args, kwargs)
        while True:
            with SharedSubsamples():
                first = next(firsts, None)
                if first is None:
                    return
                self._first = first.treated
                try:
                    second = next(seconds)
                finally:
                    self._first = {}
            yield [first, second]

    def _score_terms(self, group: list[Particle]) -> Tensor | float:
        total = sum_scores(across_runs([scores_of(particle) for particle in group]))
        draws: dict[str, list[tuple[AntitheticDraw, Any]]] = {}
        for particle in group:
            ratio = log_ratio(particle)
            for name, treated in particle.treated.items():
                if treated.method == "antithetic":
                    site = particle.guide_trace.nodes[name]
                    signal = ratio.sum_to(particle.enumeration.frames(site))
                    signal = by_element(signal, site["fn"].event_dim)
                    draws.setdefault(name, []).append((treated.draw, signal))
        for pair in draws.values():
            total = total + _surrogate(pair)
        return total


def _are_equal(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    return holds("logits", (first == second).all(), trusted=False)


def _surrogate(pair: list[tuple[AntitheticDraw, Any]]) -> Tensor:
    """The sum over a pair of runs whose gradient is twice the estimate."""
    draws = [draw for draw, _ in pair]
    signals = [signal for _, signal in pair]
    scores = [draw.value - torch.sigmoid(draw.logits) for draw in draws]
    total: Any = 0.0
    if len(pair) == 2 and all(draw.is_root for draw in draws):
        first, second = draws
        weights = disarm_weights(first.logits, first.value, second.value)
        return _weighted((signals[0] - signals[1]) * weights, first.logits)
    if len(pair) == 2 and scores[0].shape == scores[1].shape:
        difference = signals[0] - signals[1]
        signals = [difference, -difference]
    for draw, signal, score in zip(draws, signals, scores, strict=True):
        total = total + _weighted(signal * score, draw.logits)
    return total


def _weighted(weight: Tensor, logits: Tensor) -> Tensor:
    """Their summed product, where weight 0 wins over a logit that is infinite."""
    weight = weight.detach()
    return torch.where(weight == 0, 0.0, weight * logits).sum()
