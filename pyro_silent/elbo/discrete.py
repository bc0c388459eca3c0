"""Discrete guide sites: what estimators of their gradient need to know of their distributions."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.discrete_sample import (
    bernoulli_sample,
    forgotten,
    index_sample,
    one_hot_sample,
)
from pyro_silent.elbo.treatment import innermost
from pyro_silent.errors import ConfigurationError
from pyro_silent.estimators import Estimator, GumbelSoftmax
from pyro_silent.random_tensor.source import same_law

_KINDS: dict[type, str] = {
    dist.Bernoulli: "bernoulli",
    torch.distributions.Bernoulli: "bernoulli",
    dist.OneHotCategorical: "one-hot",
    dist.OneHotCategoricalStraightThrough: "one-hot",
    torch.distributions.OneHotCategorical: "one-hot",
    torch.distributions.OneHotCategoricalStraightThrough: "one-hot",
    dist.Categorical: "index",
    torch.distributions.Categorical: "index",
}


class DiscreteLaw(NamedTuple):
    """The law of a discrete site.

    :ivar kind: "bernoulli", "one-hot" or "index".
    :ivar logits: of the value's shape; with one more dim, the categories, for an index. A probability
        of 0 is a logit of ``-inf``.
    """

    kind: str
    logits: Tensor


def discrete_law(fn: Distribution) -> DiscreteLaw | None:
    """The law of a Bernoulli, OneHotCategorical or Categorical under any wrappers; None for others."""
    base = innermost(fn)
    for cls in type(base).__mro__:
        if cls in _KINDS:
            if not same_law(type(base), cls):
                return None
            kind, shape = _KINDS[cls], fn.shape()
            logits = _bernoulli_logits(base) if kind == "bernoulli" else _categorical_logits(base)
            if kind == "index":
                shape += logits.shape[-1:]
            return DiscreteLaw(kind, logits if logits.shape == shape else logits.expand(shape))
    return None


def estimated_sample(estimator: Estimator, name: str, law: DiscreteLaw, step: int) -> Tensor:
    """A sample of a site that carries an estimator's gradient.

    :raises ConfigurationError: what the estimator says, with the site's name.
    """
    draw = estimator.bernoulli if law.kind == "bernoulli" else estimator.one_hot
    try:
        value = draw(forgotten(law.logits), step=step)
    except ConfigurationError as error:
        raise ConfigurationError(f"guide site {name!r}: {error}") from error
    return _SAMPLES[law.kind](value, name, soft=is_soft(estimator))


def unvalidated(fn: Distribution) -> Distribution:
    """A copy that takes any value, whatever it wraps included."""
    fn = copy.copy(fn)
    fn._validate_args = False
    if hasattr(fn, "base_dist"):
        fn.base_dist = unvalidated(fn.base_dist)
    return fn


def is_soft(estimator: Estimator) -> bool:
    """Whether an estimator's samples lie between the values that the variable can take."""
    return isinstance(estimator, GumbelSoftmax)


_SAMPLES = {"bernoulli": bernoulli_sample, "one-hot": one_hot_sample, "index": index_sample}


def _categorical_logits(base: Distribution) -> Tensor:
    law: Any = getattr(base, "_categorical", base)
    return law.logits if _has_logits(law) else _log(law.probs)


def _bernoulli_logits(base: Distribution) -> Tensor:
    if _has_logits(base):
        return base.logits
    logits = _log(base.probs) - _log(1 - base.probs)
    return logits.clamp(max=torch.finfo(logits.dtype).max)


def _has_logits(base: Distribution) -> bool:
    """Whether it was made from logits; the attribute alone may have been made from probs since."""
    return base._param is base.__dict__.get("logits")


def _log(probs: Tensor) -> Tensor:
    """The logarithm, -inf at 0 with derivative 0 there; torch clamps, so the impossible happens."""
    probs = forgotten(probs)  # the comparison is about torch's digits, no step of the program
    impossible = probs == 0
    return torch.where(impossible, 1.0, probs).log().masked_fill(impossible, -math.inf)
