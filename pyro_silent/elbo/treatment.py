"""Treatments: what value the model sees at a guide's sample site."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_silent.errors import user_location
from pyro_silent.random_tensor.draw import random_parameters_of, sampled_site
from pyro_silent.random_tensor.latent import tensor_of
from pyro_silent.random_tensor.source import find_source
from pyro_silent.random_tensor.tensor import RandomTensor

_WRAPPERS = (Independent, dist.MaskedDistribution, dist.ExpandedDistribution)


class Treated(NamedTuple):
    """A guide site with the value chosen for it.

    :ivar method: "analytic" (a random tensor with its law), "conditional" (a random tensor that is known
        only given the values of others), "point" (a Delta) or "sampled" (a plain sample).
    :ivar entropy_from: the distribution whose entropy is the site's, where that is known.
    """

    value: Any
    method: str
    entropy_from: Distribution | None = None


def innermost(fn: Distribution) -> Distribution:
    """The distribution under to_event, mask and expand."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def _rewrap(fn: Distribution, base: Distribution) -> Distribution:
    """The same wrappers around another innermost distribution."""
    if not isinstance(fn, _WRAPPERS):
        return base
    fn = copy.copy(fn)
    fn.base_dist = _rewrap(fn.base_dist, base)
    return fn


def _centered(fn: Distribution) -> Distribution | None:
    """A Gaussian with random location and plain spread, moved to the origin; None for others."""
    base = innermost(fn)
    if not isinstance(
        base,
        (
            torch.distributions.Normal,
            torch.distributions.MultivariateNormal,
            torch.distributions.LowRankMultivariateNormal,
        ),
    ):
        return None
    loc = base.loc
    if not isinstance(loc, RandomTensor) or loc._form is None:
        return None
    moved = copy.copy(base)
    moved.loc = torch.zeros_like(loc)
    if random_parameters_of(moved):
        return None
    return _rewrap(fn, moved)


def analytic(name: str, fn: Distribution) -> Treated | None:
    """The treatment by law: a source, a linear-Gaussian step of a chain, or a point; None elsewhere."""
    if isinstance(innermost(fn), dist.Delta):
        return Treated(fn.rsample(), "point")
    if not random_parameters_of(fn):
        source = find_source(fn, name)
        return None if source is None else Treated(tensor_of(source), "analytic", fn)
    centered = _centered(fn)
    source = None if centered is None else find_source(centered, name)
    if source is None:
        return None
    return Treated(innermost(fn).loc + tensor_of(source), "analytic", centered)


def conditional(name: str, fn: Distribution, reason: str) -> Treated:
    """A site that depends on earlier latents beyond closed forms: it can only be drawn with them."""
    return Treated(sampled_site(name, fn, user_location(), reason), "conditional")


class TreatmentMessenger(Messenger):
    """Gives each latent site of a guide the value its treatment says. Put it around the guide.

    :param policy: ``policy(msg) -> Treated | None``; None leaves the site to Pyro (a plain sample).
    """

    def __init__(self, policy: Callable[[dict], Treated | None]) -> None:
        super().__init__()
        self.policy = policy
        self.treated: dict[str, Treated] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        if msg["args"] or msg["kwargs"] or not isinstance(msg["fn"], Distribution):
            return
        treated = self.policy(msg)
        if treated is not None:
            msg["value"] = treated.value
            msg["done"] = True
            self.treated[msg["name"]] = treated

    def __enter__(self) -> TreatmentMessenger:
        self.treated = {}
        return super().__enter__()


def negative_entropy(fn: Distribution) -> Tensor:
    """E[log q] of a distribution with plain parameters, respecting its masks."""
    if isinstance(fn, dist.MaskedDistribution):
        if isinstance(fn._mask, bool):
            return negative_entropy(fn.base_dist) if fn._mask else _zeros(fn)
        values = negative_entropy(fn.base_dist)
        return torch.where(fn._mask, values, values.new_zeros(()))
    if isinstance(fn, Independent):
        width = fn.reinterpreted_batch_ndims
        values = negative_entropy(fn.base_dist)
        return values.sum(list(range(-width, 0))) if width else values
    if isinstance(fn, dist.ExpandedDistribution):
        return negative_entropy(fn.base_dist).expand(fn.batch_shape)
    return -fn.entropy()


def _zeros(fn: Distribution) -> Tensor:
    return torch.zeros(fn.batch_shape)
