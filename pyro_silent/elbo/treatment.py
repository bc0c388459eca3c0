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

from pyro_silent.elbo.enumeration import check_enumerable
from pyro_silent.errors import LeakError, user_location
from pyro_silent.random_tensor.draw import sampled_site
from pyro_silent.random_tensor.latent import tensor_of
from pyro_silent.random_tensor.program import random_tensors
from pyro_silent.random_tensor.shapes import sum_rightmost
from pyro_silent.random_tensor.source import find_source
from pyro_silent.random_tensor.tensor import RandomTensor
from pyro_silent.random_tensor.transformed import images, is_image, is_pushforward, log_abs_det

_WRAPPERS = (Independent, dist.MaskedDistribution, dist.ExpandedDistribution)


DRAWN = frozenset(("straight-through", "relaxed", "score function", "antithetic"))
"""Methods of treatment that give a site a plain value for the whole run."""


class Treated(NamedTuple):
    """A guide site with the value chosen for it.

    :ivar method: "analytic" (a random tensor with its law), "conditional" (a random tensor that is known
        only given the values of others), "point" (a Delta), "straight-through" (a hard sample that
        carries a surrogate gradient), "relaxed" (a soft one), "score function" (a plain sample) or
        "antithetic" (one of a pair).
    :ivar log_density: makes a tensor of the site's batch shape whose mean is E[log q], where that is
        known without scoring the value; it is random where a Jacobian is.
    :ivar draw: how an antithetic value was drawn.
    """

    value: Any
    method: str
    log_density: Callable[[], Tensor] | None = None
    draw: Any = None


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
    if random_tensors(moved):
        return None
    return _rewrap(fn, moved)


def analytic(name: str, fn: Distribution) -> Treated | None:
    """The treatment by law; None where it is not known.

    A source, a linear-Gaussian step of a chain, one of these under transforms, or a point.
    """
    base = innermost(fn)
    if isinstance(base, dist.Delta):
        return Treated(fn.rsample(), "point")
    if is_image(base):
        return _image(name, fn, base)
    if not random_tensors(fn):
        source = find_source(fn, name)
        if source is None:
            return None
        return Treated(tensor_of(source), "analytic", lambda: negative_entropy(fn))
    centered = _centered(fn)
    if centered is None:
        return None
    source = find_source(centered, name)
    if source is None:
        return None
    value = base.loc + tensor_of(source)
    return Treated(value, "analytic", lambda: negative_entropy(centered))


def _image(name: str, fn: Distribution, transformed: Distribution) -> Treated | None:
    """A base under transforms; None where the base, or the transforms' code, refuses.

    E[log q] = -entropy of the base - E[log |det J|]; of a folded law, its own entropy.
    """
    base = analytic(name, transformed.base_dist)
    if base is None or base.log_density is None or _is_expanded(fn):
        return None
    entropy = base.log_density
    invertible = is_pushforward(transformed)
    if not invertible and (random_tensors(fn) or not _has_entropy(transformed)):
        return None
    try:
        values = images(transformed, base.value)
        log_det = log_abs_det(transformed, values) if invertible else None
    except LeakError:
        return None  # a transform needs values

    def log_density() -> Tensor:
        if log_det is None:
            return negative_entropy(fn)
        of_base = entropy()
        of_base = sum_rightmost(of_base, of_base.dim() - len(transformed.batch_shape))
        density = (of_base - log_det).expand(transformed.batch_shape)
        return _with_wrappers(fn, density)

    return Treated(values[-1], "analytic", log_density)


def _has_entropy(fn: Distribution) -> bool:
    return type(fn).entropy is not Distribution.entropy


def _is_expanded(fn: Distribution) -> bool:
    """Whether positions of the batch share one base by ``ExpandedDistribution``."""
    while isinstance(fn, _WRAPPERS):
        if isinstance(fn, dist.ExpandedDistribution):
            return True
        fn = fn.base_dist
    return False


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
        if msg["is_observed"] or site_is_subsample(msg):
            return
        check_enumerable(msg)
        if msg["done"] or msg["value"] is not None:
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
    return _with_wrappers(fn, -innermost(fn).entropy())


def _with_wrappers(fn: Distribution, density: Tensor) -> Tensor:
    """What to_event, mask and expand make of the innermost distribution's log density."""
    if not isinstance(fn, _WRAPPERS):
        return density
    density = _with_wrappers(fn.base_dist, density)
    if isinstance(fn, dist.MaskedDistribution):
        if isinstance(fn._mask, bool):
            return density if fn._mask else density.new_zeros(fn.batch_shape)
        zero = torch.zeros((), dtype=density.dtype, device=density.device)
        return torch.where(fn._mask, density, zero)
    if isinstance(fn, Independent):
        return sum_rightmost(density, fn.reinterpreted_batch_ndims)
    return density.expand(fn.batch_shape)
