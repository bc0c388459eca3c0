"""Sources: the laws a random tensor can be made from, with their exact first and second moments."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

_Moments = Callable[[Distribution, str], "Source | None"]

_SOURCES: dict[type, _Moments] = {}


class Source:
    """One random vector per position of the leading axes, independent between positions.

    ``Cov(z) = diag(diagonal) + sign * factor @ factor.T`` along the last axis. Without a factor all
    elements are independent.

    :ivar name: the guide's site name, for messages.
    :ivar mean: ``E z``, of the source's shape.
    :ivar diagonal: the elementwise part of the covariance, of the source's shape, or None.
    :ivar factor: shape ``[*shape, rank]``, or None.
    :ivar sign: +1 or -1.
    :ivar kind: "gaussian", "bernoulli" or "categorical" (one-hot along the last axis).
    :ivar distribution: draws of the source are this distribution's.
    :ivar under_grad: whether the source was made with gradients enabled.
    :ivar key: what stays the same when moments are detached; equal keys mean the same latent.
    """

    __slots__ = (
        "_detached",
        "diagonal",
        "distribution",
        "factor",
        "key",
        "kind",
        "mean",
        "name",
        "shape",
        "sign",
        "under_grad",
    )

    def __init__(
        self,
        name: str,
        kind: str,
        distribution: Distribution,
        mean: Tensor,
        diagonal: Tensor | None,
        factor: Tensor | None = None,
        sign: int = 1,
    ) -> None:
        self.name = name
        self.kind = kind
        self.distribution = distribution
        self.shape = mean.shape
        self.mean = mean
        self.diagonal = diagonal
        self.factor = factor
        self.sign = sign
        self.key = object()
        self.under_grad = torch.is_grad_enabled()
        self._detached: Source | None = None

    @property
    def is_discrete(self) -> bool:
        """Whether the source takes finitely many values per position."""
        return self.kind != "gaussian"

    @property
    def is_index(self) -> bool:
        """Whether the latent's value is an integer, so that the source is its one-hot code."""
        return self.kind == "categorical" and len(self.distribution.event_shape) == 0

    def _map(self, function: Callable[[Tensor], Tensor]) -> Source:
        new = copy.copy(self)
        new._detached = None
        new.mean = function(self.mean)
        new.diagonal = None if self.diagonal is None else function(self.diagonal)
        new.factor = None if self.factor is None else function(self.factor)
        new.shape = new.mean.shape
        return new

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can flow into the moments."""
        moments = (self.mean, self.diagonal, self.factor)
        return any(moment is not None and moment.requires_grad for moment in moments)

    def detached(self) -> Source:
        """The same latent with moments that carry no gradient."""
        if not self.requires_grad:
            return self
        if self._detached is None:
            self._detached = self._map(Tensor.detach)
        return self._detached

    def expanded(self, batch_shape: torch.Size, event_dim: int, fn: Distribution) -> Source:
        """Independent copies along new batch dims."""
        event = self.mean.dim() - event_dim

        def expand(tensor: Tensor) -> Tensor:
            shape = tensor.shape[event:]
            return tensor.expand(tuple(batch_shape) + tuple(shape))

        new = self._map(expand)
        new.distribution = fn
        return new


def register_source(
    *classes: type,
) -> Callable[[_Moments], _Moments]:
    """Decorator: how to read the moments of a class of distributions."""

    def decorate(function: _Moments) -> _Moments:
        for cls in classes:
            _SOURCES[cls] = function
        return function

    return decorate


def same_law(cls: type, registered: type) -> bool:
    """A subclass that redefines its density or its draws may have another law."""
    names = ("log_prob", "sample", "rsample")
    return all(getattr(cls, name, None) is getattr(registered, name, None) for name in names)


def find_source(distribution: Distribution, name: str) -> Source | None:
    """The source with the law of a distribution, or None where its moments are not known.

    Subclasses count as their base only while they keep its ``log_prob`` and its draws.
    """
    for cls in type(distribution).__mro__:
        if cls in _SOURCES:
            if not same_law(type(distribution), cls):
                return None
            return _SOURCES[cls](distribution, name)
    return None


@register_source(dist.Normal, torch.distributions.Normal)
def _normal(fn: Distribution, name: str) -> Source:
    return Source(name, "gaussian", fn, fn.loc, fn.scale.square())


@register_source(dist.MultivariateNormal, torch.distributions.MultivariateNormal)
def _multivariate_normal(fn: Distribution, name: str) -> Source:
    factor = fn._unbroadcasted_scale_tril.expand(fn.loc.shape + fn.event_shape)
    return Source(name, "gaussian", fn, fn.loc, None, factor)


@register_source(dist.LowRankMultivariateNormal, torch.distributions.LowRankMultivariateNormal)
def _low_rank_multivariate_normal(fn: Distribution, name: str) -> Source:
    factor = fn._unbroadcasted_cov_factor
    return Source(
        name,
        "gaussian",
        fn,
        fn.loc,
        fn._unbroadcasted_cov_diag.expand(fn.loc.shape),
        factor.expand(fn.loc.shape + factor.shape[-1:]),
    )


@register_source(dist.Bernoulli, torch.distributions.Bernoulli)
def _bernoulli(fn: Distribution, name: str) -> Source:
    if "logits" in fn.__dict__:
        # 1 - p is formed from the logits: it keeps its digits where p rounds to 1.
        p, q = torch.sigmoid(fn.logits), torch.sigmoid(-fn.logits)
    else:
        p = fn.probs
        q = 1 - p
    return Source(name, "bernoulli", fn, p, p * q)


@register_source(
    dist.OneHotCategorical,
    dist.OneHotCategoricalStraightThrough,
    torch.distributions.OneHotCategorical,
    torch.distributions.OneHotCategoricalStraightThrough,
    dist.Categorical,
    torch.distributions.Categorical,
)
def _categorical(fn: Distribution, name: str) -> Source:
    p = fn.probs
    return Source(name, "categorical", fn, p, p, p.unsqueeze(-1), sign=-1)


@register_source(dist.Delta)
def _delta(fn: Distribution, name: str) -> Source:
    return Source(name, "gaussian", fn, fn.v, torch.zeros_like(fn.v))


@register_source(torch.distributions.Independent, dist.MaskedDistribution)
def _wrapped(fn: Distribution, name: str) -> Source | None:
    return find_source(fn.base_dist, name)


@register_source(dist.ExpandedDistribution)
def _expanded(fn: Distribution, name: str) -> Source | None:
    base = find_source(fn.base_dist, name)
    if base is None:
        return None
    num_event = base.mean.dim() - len(fn.base_dist.batch_shape)
    return base.expanded(fn.batch_shape, num_event, fn)
