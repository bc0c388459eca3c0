"""Score-function terms: what a sample that carries no gradient contributes to the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyro.distributions.util import is_identically_zero
from pyro.infer.util import MultiFrameTensor
from torch import Tensor

from pyro_silent.elbo.particle import Particle
from pyro_silent.elbo.treatment import Treated
from pyro_silent.random_tensor.shapes import sum_rightmost


class Score(NamedTuple):
    """One sampled latent: the gradient of ``(signal * log_prob).sum()`` is its score-function term.

    :ivar name: of the guide's site.
    :ivar frames: its plates.
    :ivar signal: the terms of the ELBO that may depend on the sample, detached; a tensor that
        broadcasts with ``log_prob``, or 0.
    :ivar log_prob: log q of the sample, by plates, neither scaled nor masked.
    """

    name: str
    frames: Any
    signal: Any
    log_prob: Tensor


def score_function(site: dict, treated: dict[str, Treated]) -> Any:
    """log q of a guide site's sample where the gradient needs it; 0 where it flows through the value."""
    treatment = treated.get(site["name"])
    if treatment is not None and treatment.method != "score function":
        return 0.0
    return site["fn"].score_parts(site["value"]).score_function


def scores_of(particle: Particle) -> list[Score]:
    """The scores of a run: sites sampled in it first, then draws made for sampled terms alone."""
    guide_trace, frames = particle.guide_trace, particle.enumeration.frames
    scores, ratio = [], None
    for name, site in guide_trace.nodes.items():
        if site["type"] != "sample":
            continue
        score = site["score_parts"].score_function
        if is_identically_zero(score):
            continue
        if ratio is None:
            ratio = log_ratio(particle)
        scores.append(Score(name, frames(site), ratio.sum_to(frames(site)), score))
    for name, fn, value in particle.draw.scored:
        # Only terms evaluated at the draw depend on it: the exact ones would add noise alone.
        site = guide_trace.nodes[name]
        log_q = fn.log_prob(value)
        log_q = sum_rightmost(log_q, log_q.dim() - len(site["fn"].batch_shape))
        signal = MultiFrameTensor(*particle.sampled).sum_to(frames(site))
        scores.append(Score(name, frames(site), signal, log_q))
    return scores


def sum_scores(scores: list[Score]) -> Tensor | float:
    """The surrogate of some scores."""
    total: Any = 0.0
    for score in scores:
        total = total + (score.signal * score.log_prob).sum()
    return total


def log_ratio(particle: Particle) -> MultiFrameTensor:
    """log p - log q by plate: what a sampled site's score is weighted with.

    Unlike Pyro's own it has auxiliary guide sites too, whose entropy may depend on the sample.
    """
    ratio = MultiFrameTensor()
    for trace, sign in ((particle.model_trace, 1), (particle.guide_trace, -1)):
        for site in trace.nodes.values():
            if site["type"] == "sample":
                frames = particle.enumeration.frames(site)
                ratio.add((frames, sign * site["log_prob"].detach()))
    return ratio


def by_element(signal: Any, event_dim: int) -> Any:
    """A signal by plates, laid out for the elements of a site's value."""
    return signal.reshape(signal.shape + (1,) * event_dim) if isinstance(signal, Tensor) else signal
