"""Closed divergences: log p - log q of a latent site as -KL(q || p), where torch knows it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from pyro.distributions import Delta, LogNormal, MaskedDistribution, Normal
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent
from torch.nn.functional import logsigmoid

from pyro_silent.discrete_sample import DiscreteSample, forgotten
from pyro_silent.elbo.discrete import discrete_law
from pyro_silent.elbo.enumeration import is_enumerated
from pyro_silent.elbo.particle import Particle, Record
from pyro_silent.elbo.score_function import score_function
from pyro_silent.elbo.treatment import innermost
from pyro_silent.errors import IntractableError
from pyro_silent.looking import Decision, Memory, can_look, deciding, may_look
from pyro_silent.random_tensor.program import random_tensors
from pyro_silent.random_tensor.shapes import sum_rightmost
from pyro_silent.random_tensor.tensor import RandomTensor


def is_random(site: dict) -> bool:
    """Whether anything in the site's term is random."""
    return any(isinstance(site[key], RandomTensor) for key in ("value", "scale", "mask")) or bool(
        random_tensors(site["fn"])
    )


def _latent_order(trace: Trace) -> list[str]:
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"]
    ]


def _is_builtin(fn: Any) -> bool:
    """Whether a distribution and all it wraps are torch's or Pyro's own classes, without a mask."""
    while True:
        if isinstance(fn, MaskedDistribution) or not type(fn).__module__.startswith(
            ("torch.", "pyro.")
        ):
            return False
        if not hasattr(fn, "base_dist"):
            return True
        fn = fn.base_dist


def _enter_alike(site: dict, prior: dict) -> bool:
    """Whether both terms enter the ELBO with the same scale and the same mask."""
    return all(_alike(site[key], prior[key]) for key in ("scale", "mask"))


def _alike(a: Any, b: Any) -> bool:
    """Whether two scales or masks are plain and equal."""
    if a is b:
        return not isinstance(a, (RandomTensor, DiscreteSample))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b
    if not type(a) is type(b) is Tensor or a.device != b.device:
        return False
    decision = Decision("alike", a)
    if may_look(a):
        answer = torch.equal(a, b)
        decision.keep(answer)
        return answer
    # without the look both terms are taken as they are: no less right, at times less exact
    return not can_look(a) and decision.answer is True


def _left_out(fn: Any) -> bool:
    """Whether the table of divergences is wrong for a law.

    Pyro's entry for a Delta drops its log_density. torch compares the bases of transformed laws, which
    is right only where the transforms (equal ones: it checks that) are one-to-one.
    """
    fn = innermost(fn)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        return not all(transform.bijective for transform in fn.transforms)
    return isinstance(fn, Delta)


def _divergence(site: dict, prior: dict) -> Tensor | None:
    """KL(q || p), or None where its parameters are random or torch does not know it."""
    q, p = site["fn"], prior["fn"]
    divergence = _between_normals(q, p)
    if divergence is not None:
        return divergence
    if not (_is_builtin(q) and _is_builtin(p)):
        return None
    if _left_out(q) or _left_out(p):
        return None
    if q.batch_shape != p.batch_shape or 0 in q.shape():
        return None
    if random_tensors(q) or random_tensors(p):
        return None
    try:
        divergence = _closed_form(q, p)
    except (NotImplementedError, IntractableError):
        return None
    return divergence if divergence.shape == q.batch_shape else None


def _between_normals(q: Any, p: Any) -> Tensor | None:
    """KL between Normals or LogNormals, under ``to_event`` alike: torch's formula, past its table.

    Latents are of these laws more often than of any other, and finding the way through the table costs
    more than the formula. None for everything else.
    """
    width = 0
    while isinstance(q, Independent) and isinstance(p, Independent):
        if q.reinterpreted_batch_ndims != p.reinterpreted_batch_ndims:
            return None
        width += q.reinterpreted_batch_ndims
        q, p = q.base_dist, p.base_dist
    if type(q) is type(p) is LogNormal:
        q, p = q.base_dist, p.base_dist
    if not type(q) is type(p) is Normal or q.batch_shape != p.batch_shape or 0 in q.batch_shape:
        return None
    if any(type(value) is RandomTensor for value in (q.loc, q.scale, p.loc, p.scale)):
        return None
    ratio, distance = q.scale / p.scale, (q.loc - p.loc) / p.scale
    divergence = 0.5 * (ratio.square() + distance.square() - 1) - ratio.log()
    return sum_rightmost(divergence, width)


def _closed_form(q: Any, p: Any) -> Tensor:
    divergence = _between_discrete(q, p)
    return torch.distributions.kl_divergence(q, p) if divergence is None else divergence


def _between_discrete(q: Any, p: Any) -> Tensor | None:
    """KL between two laws of one discrete kind, from logits.

    torch's is inf where a probability underflows. A value without mass under q counts 0.
    """
    law, prior = discrete_law(q), discrete_law(p)
    if law is None or prior is None or law.kind != prior.kind:
        return None
    if law.logits.shape != prior.logits.shape:
        return None
    if law.kind == "bernoulli":
        divergence = _mean_log_ratio(logsigmoid(law.logits), logsigmoid(prior.logits))
        divergence = divergence + _mean_log_ratio(
            logsigmoid(-law.logits), logsigmoid(-prior.logits)
        )
    else:
        divergence = _mean_log_ratio(law.logits, prior.logits).sum(-1)
    return sum_rightmost(divergence, divergence.dim() - len(q.batch_shape))


def _mean_log_ratio(log_q: Tensor, log_p: Tensor) -> Tensor:
    """q log(q / p), and 0 where q is."""
    log_q, log_p = forgotten(log_q), forgotten(log_p)
    probs = log_q.exp()
    return probs * torch.where(probs == 0, 0.0, log_q - log_p)


def use_closed_divergences(particle: Particle, memory: Memory) -> None:
    """Replace log p - log q by -KL(q || p) at every latent site where that is allowed and known.

    Neither distribution may have random parameters, and the two terms must enter the ELBO alike (equal
    scales, equal masks). For a latent that is *sampled* there is one more condition: the prior's
    parameters may depend on the latents before the site in the model, so all of those must come before
    it in the guide as well; then none of them depends on the site's own value. Left out are laws for
    which the table of divergences is wrong or loses digits, and users' own classes, whose density it
    does not see.
    """
    model_trace, guide_trace = particle.model_trace, particle.guide_trace
    model_order, guide_order = _latent_order(model_trace), _latent_order(guide_trace)
    for name in guide_order:
        if name not in model_order:
            continue
        site, prior = guide_trace.nodes[name], model_trace.nodes[name]
        with deciding(memory, "divergence", name):
            if is_enumerated(site) or not _enter_alike(site, prior):
                continue
        if not isinstance(site["value"], RandomTensor):
            before = model_order[: model_order.index(name)]
            if not set(before) <= set(guide_order[: guide_order.index(name)]):
                continue
        divergence = _divergence(site, prior)
        if divergence is None:
            continue
        score = score_function(site, particle.treated)
        log_ratio = scale_and_mask(-forgotten(divergence), site["scale"], site["mask"])
        zeros, zero = _zeros(divergence.shape, divergence.dtype, divergence.device)
        prior["log_prob"], prior["log_prob_sum"] = log_ratio, log_ratio.sum()
        site["log_prob"], site["log_prob_sum"] = zeros, zero
        site["score_parts"] = ScoreParts(zeros, score, 0.0)
        for kind in ("model", "guide"):
            particle.records[kind, name] = Record(["divergence"])


@functools.lru_cache(maxsize=256)
def _zeros(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """A term that has been moved elsewhere, and its sum; nobody writes into terms."""
    zero = torch.zeros((), dtype=dtype, device=device)
    return zero.expand(shape), zero
