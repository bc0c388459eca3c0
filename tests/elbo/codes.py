"""The families of latent codes: site, input to the decoder, moments and divergence, each by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.formulas import (
    block_diagonal,
    categorical_covariance,
    kl_bernoulli,
    kl_categorical,
    kl_multivariate_normal,
    kl_normal,
)

BATCH, CODE, DATA = 3, 4, 6
BLOCKS, ARITY = 2, 2


class Code(NamedTuple):
    """One family of latent: its site, its input to the decoder, its moments and its KL, per row."""

    encoder_outputs: int
    prior: Callable[[], dist.Distribution]
    posterior: Callable[[Tensor], dist.Distribution]
    moments: Callable[[Tensor], tuple[Tensor, Tensor]]
    kl: Callable[[Tensor], Tensor]
    to_decoder: Callable[[Tensor], Tensor] = lambda z: z


def _square(h: Tensor) -> Tensor:
    """A well-conditioned lower triangle from encoder outputs [B, 16]."""
    matrix = h.reshape(-1, CODE, CODE).tril(-1)
    return matrix + torch.diag_embed(h.reshape(-1, CODE, CODE).diagonal(dim1=-2, dim2=-1).exp())


def _tril_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    factor = _square(h[:, CODE:])
    return h[:, :CODE], factor @ factor.mT


def _precision_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    mean, precision = _tril_moments(h)
    return mean, torch.linalg.inv(precision)


def _low_rank(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    factor = h[:, CODE : 3 * CODE].reshape(-1, CODE, 2)
    return h[:, :CODE], factor, h[:, 3 * CODE :].exp()


def _low_rank_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    mean, factor, diagonal = _low_rank(h)
    return mean, factor @ factor.mT + torch.diag_embed(diagonal)


def _standard_normal() -> dist.Distribution:
    return dist.Normal(0.0, 1.0).expand([CODE]).to_event(1)


def _multivariate(make: Callable, moments: Callable, outputs: int = CODE + CODE**2) -> Code:
    return Code(
        outputs, _standard_normal, make, moments, lambda h: kl_multivariate_normal(*moments(h))
    )


def _bernoulli_prior() -> dist.Distribution:
    return dist.Bernoulli(torch.sigmoid(pyro.param("prior"))).to_event(1)


def _bernoulli_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.sigmoid(h)
    return p, torch.diag_embed(p * (1 - p))


def _bernoulli_kl(h: Tensor) -> Tensor:
    return kl_bernoulli(torch.sigmoid(h), torch.sigmoid(pyro.param("prior"))).sum(-1)


def _one_hot_probs(h: Tensor) -> Tensor:
    return torch.softmax(h.reshape(-1, BLOCKS, ARITY), -1)


def _one_hot_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    p = _one_hot_probs(h)
    return p.flatten(-2), block_diagonal(categorical_covariance(p))


def _one_hot(**arguments: Callable[[Tensor], Tensor]) -> Code:
    def prior() -> dist.Distribution:
        logits = pyro.param("prior").reshape(BLOCKS, ARITY)
        return dist.OneHotCategorical(logits=logits).to_event(1)

    def posterior(h: Tensor) -> dist.Distribution:
        made = {name: function(h) for name, function in arguments.items()}
        return dist.OneHotCategorical(**made).to_event(1)

    def kl(h: Tensor) -> Tensor:
        weights = torch.softmax(pyro.param("prior").reshape(BLOCKS, ARITY), -1)
        return kl_categorical(_one_hot_probs(h), weights).sum(-1)

    return Code(
        CODE, prior, posterior, _one_hot_moments, kl, lambda z: z.reshape(*z.shape[:-2], -1)
    )


CODES = {
    "normal": Code(
        2 * CODE,
        _standard_normal,
        lambda h: dist.Normal(h[:, :CODE], h[:, CODE:].exp()).to_event(1),
        lambda h: (h[:, :CODE], torch.diag_embed((2 * h[:, CODE:]).exp())),
        lambda h: kl_normal(h[:, :CODE], h[:, CODE:].exp()).sum(-1),
    ),
    "scale_tril": _multivariate(
        lambda h: dist.MultivariateNormal(h[:, :CODE], scale_tril=_square(h[:, CODE:])),
        _tril_moments,
    ),
    "covariance_matrix": _multivariate(
        lambda h: dist.MultivariateNormal(h[:, :CODE], covariance_matrix=_tril_moments(h)[1]),
        _tril_moments,
    ),
    "precision_matrix": _multivariate(
        lambda h: dist.MultivariateNormal(h[:, :CODE], precision_matrix=_tril_moments(h)[1]),
        _precision_moments,
    ),
    "low_rank": _multivariate(
        lambda h: dist.LowRankMultivariateNormal(*_low_rank(h)), _low_rank_moments, 4 * CODE
    ),
    "bernoulli_probs": Code(
        CODE,
        _bernoulli_prior,
        lambda h: dist.Bernoulli(torch.sigmoid(h)).to_event(1),
        _bernoulli_moments,
        _bernoulli_kl,
    ),
    "bernoulli_logits": Code(
        CODE,
        _bernoulli_prior,
        lambda h: dist.Bernoulli(logits=h).to_event(1),
        _bernoulli_moments,
        _bernoulli_kl,
    ),
    "plus_minus_one": Code(
        CODE,
        _bernoulli_prior,
        lambda h: dist.Bernoulli(logits=h).to_event(1),
        lambda h: (2 * torch.sigmoid(h) - 1, 4 * _bernoulli_moments(h)[1]),
        _bernoulli_kl,
        lambda z: 2 * z - 1,
    ),
    "one_hot_probs": _one_hot(probs=_one_hot_probs),
    "one_hot_logits": _one_hot(logits=lambda h: h.reshape(-1, BLOCKS, ARITY)),
}
