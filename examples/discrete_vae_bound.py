"""The importance-sampled bound on the log likelihood of a model with its guide as proposal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor


class Bound(NamedTuple):
    """Upper bounds on -log p(x), one for each datum.

    :ivar importance: -log of the mean of n importance weights; falls to -log p(x) as n grows.
    :ivar elbo: -mean of their logarithms, the same with n = 1.
    """

    importance: Tensor
    elbo: Tensor


@torch.no_grad()
def importance_bound(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Tensor,
    num_samples: int,
    chunk: int = 20,
) -> Bound:
    r"""Bound the negative log likelihood of each datum by importance sampling.

    .. math:: -\log \frac1n \sum_{i=1}^n \frac{p(x, z_i)}{q(z_i \mid x)}, \qquad z_i \sim q(z \mid x)

    The latents are the guide's own (discrete) samples, whichever loss trained the parameters. Each
    weight is computed in the dtype of the networks, the sum over weights in double precision.

    :param model: called as ``model(data)``; its one plate over the data, at dim -1, holds every
        site, and its code admits one more batch dim on the left.
    :param data: shape ``[num_data, ...]``.
    :param num_samples: importance samples per datum.
    :param chunk: samples in memory at a time.
    :return: two tensors ``[num_data]``, float64.
    """
    log_weights = [
        _log_weights(model, guide, data, min(chunk, num_samples - start))
        for start in range(0, num_samples, chunk)
    ]
    weights = torch.cat(log_weights)
    return Bound(math.log(num_samples) - weights.logsumexp(0), -weights.mean(0))


def _log_weights(
    model: Callable[..., Any], guide: Callable[..., Any], data: Tensor, num_samples: int
) -> Tensor:
    """Return log p(x, z) - log q(z | x), float64, shape ``[num_samples, num_data]``."""
    with pyro.plate("importance samples", num_samples, dim=-2):
        proposal = poutine.trace(guide).get_trace(data)
        target = poutine.trace(poutine.replay(model, trace=proposal)).get_trace(data)
    weights = torch.zeros(num_samples, len(data), dtype=torch.float64)
    for trace, sign in ((target, 1), (proposal, -1)):
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and not site_is_subsample(site):
                weights += sign * site["log_prob"].double()
    return weights
