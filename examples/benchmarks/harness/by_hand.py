"""Losses of the regressions under ``AutoNormal``, written by hand in plain torch.

Every function returns -ELBO in closed form, or by Gauss-Hermite quadrature where there is none, of
the guide's locations and scales by site (of the unconstrained latent) and the data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

NUM_NODES = 32
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

Latents = Mapping[str, Tensor]


@functools.cache
def _nodes(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the expectation under a standard Gaussian."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    return torch.tensor(nodes, dtype=dtype), torch.tensor(
        weights / math.sqrt(2 * math.pi), dtype=dtype
    )


def _expectation(function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor) -> Tensor:
    """Return the expectation of an elementwise function of Gaussians, of the shape of ``mean``."""
    nodes, weights = _nodes(mean.dtype)
    return function(mean[..., None] + variance.sqrt()[..., None] * nodes) @ weights


def _kl(loc: Tensor, scale: Tensor, prior_scale: float = 1.0) -> Tensor:
    """KL divergence from N(0, prior_scale), summed."""
    second_moment = (loc.square() + scale.square()) / prior_scale**2
    return (0.5 * second_moment - 0.5 - scale.log() + math.log(prior_scale)).sum()


def _entropy(scale: Tensor) -> Tensor:
    return (scale.log() + HALF_LOG_TWO_PI + 0.5).sum()


def line_loss(loc: Latents, scale: Latents, covariate: Tensor, response: Tensor) -> Tensor:
    """Return the loss of the line; its scale has a log-normal posterior."""
    kl = sum(_kl(loc[name], scale[name]) for name in ("coefficient", "bias", "scale"))
    error = response - loc["bias"] - loc["coefficient"] * covariate
    variance = scale["bias"].square() + scale["coefficient"].square() * covariate.square()
    precision = (2 * scale["scale"].square() - 2 * loc["scale"]).exp()
    data = 0.5 * precision * (error.square() + variance).sum()
    return kl + data + len(response) * (HALF_LOG_TWO_PI + loc["scale"])


def eight_schools_loss(
    loc: Latents, scale: Latents, standard_errors: Tensor, effects: Tensor
) -> Tensor:
    """Return the loss of eight schools, non-centered; the half-Cauchy prior by quadrature."""
    log_spread, deviation = loc["spread"], scale["spread"]
    cauchy = _expectation(
        lambda u: softplus(2 * (u - math.log(5))), log_spread, deviation.square()
    ) - math.log(2 / (5 * math.pi))
    kl = _kl(loc["mean"], scale["mean"], 5.0) + _kl(loc["z"], scale["z"])
    kl = kl + cauchy - log_spread - _entropy(deviation)
    first = (log_spread + 0.5 * deviation.square()).exp()
    second = (2 * log_spread + 2 * deviation.square()).exp()
    variance = scale["mean"].square() - (first * loc["z"]).square()
    variance = variance + second * (loc["z"].square() + scale["z"].square())
    error = effects - loc["mean"] - first * loc["z"]
    data = 0.5 * (error.square() + variance) / standard_errors.square()
    return kl + (data + standard_errors.log() + HALF_LOG_TWO_PI).sum()


def logistic_loss(loc: Latents, scale: Latents, covariates: Tensor, benign: Tensor) -> Tensor:
    """Return the loss of logistic regression, by quadrature over the log odds of a row."""
    kl = _kl(loc["intercept"], scale["intercept"], 2.0) + _kl(loc["slope"], scale["slope"])
    mean = loc["intercept"] + covariates @ loc["slope"]
    variance = scale["intercept"].square() + covariates.square() @ scale["slope"].square()
    return kl + (_expectation(softplus, mean, variance) - benign * mean).sum()


def poisson_loss(
    loc: Latents, scale: Latents, covariates: Tensor, groups: Tensor, counts: Tensor
) -> Tensor:
    """Return the loss of Poisson regression with group effects, all of it in closed form."""
    log_spread, deviation = loc["spread"], scale["spread"]
    half_normal = 0.5 * (2 * log_spread + 2 * deviation.square()).exp() - 0.5 * math.log(
        2 / math.pi
    )
    kl = _kl(loc["intercept"], scale["intercept"], 2.0) + _kl(loc["slope"], scale["slope"])
    kl = kl + half_normal - log_spread - _entropy(deviation)
    precision = (2 * deviation.square() - 2 * log_spread).exp()
    moment = (loc["effect"].square() + scale["effect"].square()).sum()
    kl = kl + 0.5 * precision * moment + len(loc["effect"]) * (HALF_LOG_TWO_PI + log_spread)
    kl = kl - _entropy(scale["effect"])
    mean = loc["intercept"] + covariates @ loc["slope"] + loc["effect"][groups]
    variance = scale["intercept"].square() + covariates.square() @ scale["slope"].square()
    variance = variance + scale["effect"].square()[groups]
    data = (mean + 0.5 * variance).exp() - counts * mean + torch.lgamma(counts + 1)
    return kl + data.sum()
