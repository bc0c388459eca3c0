"""E[log p] of Gaussians whose value or location is random."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.expectation.gaussian_moments import share_a_source
from pyro_silent.expectation.links import log_of
from pyro_silent.expectation.moments import mean, variance
from pyro_silent.expectation.registry import closed_form, no_closed_form, require_plain
from pyro_silent.expectation.terms import compacted, independent, shape_of, summed_over, total
from pyro_silent.looking import holds
from pyro_silent.random_tensor.affine import Affine, NoForm, merge_terms, pad_terms, scale_terms
from pyro_silent.random_tensor.covariance import covariance, variance_of_source
from pyro_silent.random_tensor.rows import multiplied
from pyro_silent.random_tensor.rules.structural import reshaped, unsqueezed
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.shapes import broadcast_shapes, expanded_to, sum_rightmost
from pyro_silent.random_tensor.squares import weighted_squares
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of, constant

_LOG_2PI = math.log(2 * math.pi)


def weighted_sum(tensor: Tensor, weight: Tensor, shape: Sequence[int], num_summed: int) -> Tensor:
    """``sum_rightmost(tensor * weight, num_summed)`` for a compact weight.

    A weight that is the same along a summed dim is applied after that sum, so that neither the product
    nor its gradient is spread out over the data.
    """
    tensor = expanded_to(tensor, shape)
    if weight.dim() != len(shape):
        weight = weight.reshape((1,) * (len(shape) - weight.dim()) + weight.shape)
    last = num_summed and weight.size(-1) != 1 and all(n == 1 for n in weight.shape[:-1])
    if last:
        total = tensor @ weight.reshape(-1)
        return sum_rightmost(total, num_summed - 1)
    if num_summed and all(n == 1 for n in weight.shape[len(shape) - num_summed :]):
        kept = weight.reshape(weight.shape[: len(shape) - num_summed])
        return sum_rightmost(tensor, num_summed) * kept
    return sum_rightmost(tensor * weight, num_summed)


def difference(distribution: Distribution, value: Tensor) -> Affine:
    """``value - loc`` as an affine form; what the two share cancels."""
    try:
        a = affine_of(value) if isinstance(value, RandomTensor) else constant(value)
        loc = distribution.loc
        b = affine_of(loc) if isinstance(loc, RandomTensor) else constant(loc)
    except NoForm:
        raise no_closed_form(distribution, value, "") from None
    offset = a.offset - b.offset
    num_dims = offset.dim()
    if not a.terms:
        # The sign of a random part alone is of no account to its variance.
        return Affine(offset, pad_terms(b, num_dims))
    terms = pad_terms(a, num_dims) + scale_terms(b, -1.0, num_dims)
    return Affine(offset, merge_terms(terms, num_dims))


def weighted_variance(
    distribution: Distribution, value: Tensor, form: Affine, weight: Tensor | None, dims: list[int]
) -> Tensor:
    """``sum(weight * Var[y], dims)``."""
    try:
        return covariance(form, form, weight, dims)
    except NoForm as reason:
        raise no_closed_form(distribution, value, str(reason)) from None


@closed_form(dist.Normal, torch.distributions.Normal)
def normal(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """-1/2 [(E[y]^2 + Var[y]) E[s^-2] + log 2 pi] - E log s, with y = x - mu independent of s.

    Exact for any joint law of value and location: only two moments of their difference enter. Where the
    scale shares a latent with them the middle is E[y^2 s^-2].
    """
    prior = _of_fresh_latent(distribution, value, num_summed)
    if prior is not None:
        return prior
    scale = compacted(distribution.scale)
    exponential = _exponential_moments(scale, value, distribution.loc)
    if exponential is not None:
        return _around_affine(distribution, value, num_summed, *exponential)
    log_scale = mean(log_of(scale))
    if isinstance(scale, RandomTensor) and not independent(scale, (value, distribution.loc)):
        ratio = (value - compacted(distribution.loc)).square() * scale.pow(-2)
        return total(
            distribution, value, num_summed, -0.5 * mean(ratio), -log_scale - 0.5 * _LOG_2PI
        )
    precision = mean(scale.pow(-2))
    if not _is_affine(value) or not _is_affine(distribution.loc):
        squares = _square_of_pointwise(value - compacted(distribution.loc))
        shape = shape_of(distribution, value)
        constant_part = summed_over(log_scale + 0.5 * _LOG_2PI, shape, num_summed)
        return -0.5 * weighted_sum(squares, precision, shape, num_summed) - constant_part
    return _around_affine(distribution, value, num_summed, log_scale, precision)


def _of_fresh_latent(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor | None:
    """A prior with plain parameters at a latent's own value: a short cut past contractions."""
    loc, scale = distribution.loc, distribution.scale
    if type(value) is not RandomTensor or value._form is None:
        return None
    if isinstance(loc, RandomTensor) or isinstance(scale, RandomTensor):
        return None
    form = affine_of(value)
    variance = variance_of_source(form)
    if variance is None:
        return None
    squares = (form.offset - loc).square() + variance
    log_prob = -0.5 * squares / scale.square() - scale.log() - 0.5 * _LOG_2PI
    return sum_rightmost(log_prob, num_summed)


def _around_affine(
    distribution: Distribution, value: Tensor, num_summed: int, log_scale: Tensor, precision: Tensor
) -> Tensor:
    """E log N for an affine value and location, from E log s and E s^-2 of an independent scale."""
    form = difference(distribution, value)
    shape = broadcast_shapes(form.shape, distribution.batch_shape)
    error = _weighted_errors(form.offset, precision, shape, num_summed)
    form = Affine(expanded_to(form.offset, shape), pad_terms(form, len(shape)))
    spread = weighted_variance(distribution, value, form, precision, list(range(-num_summed, 0)))
    constant_part = summed_over(log_scale + 0.5 * _LOG_2PI, shape, num_summed)
    return -0.5 * (error + spread) - constant_part


def _weighted_errors(
    error: Tensor, weight: Tensor, shape: Sequence[int], num_summed: int
) -> Tensor:
    """The sum of weighted squares; with a weight along the last dim alone no square is kept."""
    if num_summed and weight.numel() == shape[-1] != 1 and weight.size(-1) == shape[-1]:
        squares = weighted_squares(expanded_to(error, shape), weight.reshape(-1))
        return sum_rightmost(squares, num_summed - 1)
    return weighted_sum(error.square(), weight, shape, num_summed)


_EXP = frozenset(functions("exp"))


def _exponential_moments(scale: Tensor, value: Tensor, loc: Tensor) -> tuple[Tensor, Tensor] | None:
    """E log s and E s^-2 of a scale s = exp(b), for an affine b that shares no latent with the rest.

    A short cut past reading the program: this is how positive latents come out of Pyro's guides.
    """
    if type(scale) is not RandomTensor or scale._form is not None or scale._call is None:
        return None
    if not scale._call.grad_enabled or scale._call.function not in _EXP:
        return None
    if not (_is_affine(value) and _is_affine(loc)):
        return None
    exponent = scale._call.args[0]
    form = exponent._form
    if form is None or any(term.source.is_discrete for term in form.terms):
        return None
    for other in (value, loc):
        if isinstance(other, RandomTensor) and share_a_source(form, affine_of(other)):
            return None
    scale._call.check_unchanged()
    return form.offset, (2 * (covariance(form, form) - form.offset)).exp()


@closed_form(dist.NanMaskedNormal)
def nan_masked_normal(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """As a Normal where the value is finite, 0 where it is missing."""
    if isinstance(value, RandomTensor):
        return normal(distribution, value, num_summed)
    known = value.isfinite()
    log_prob = normal(distribution, value.masked_fill(~known, 0.0), 0)
    return total(distribution, value, num_summed, log_prob.masked_fill(~known, 0.0))


@closed_form(dist.NanMaskedMultivariateNormal)
def nan_masked_multivariate_normal(
    distribution: Distribution, value: Tensor, num_summed: int
) -> Tensor:
    """As a MultivariateNormal where no entry is missing."""
    if not isinstance(value, RandomTensor) and not holds("missing", value.isfinite().all()):
        raise no_closed_form(distribution, value, "entries are missing")
    return multivariate_normal(distribution, value, num_summed)


def _is_affine(tensor: Tensor) -> bool:
    return not isinstance(tensor, RandomTensor) or tensor._form is not None


def _square_of_pointwise(y: Tensor) -> Tensor:
    """E[y^2] = E[y]^2 + Var[y], which keeps its digits where the variance is small."""
    return mean(y).square() + variance(y)


def _quadratic(distribution: Distribution, value: Tensor, form: Affine, root: Tensor) -> Tensor:
    """E |y root|^2 along the last dim."""
    vector = form.offset.dim() == 1
    if vector:
        form = Affine(form.offset.unsqueeze(0), pad_terms(form, 2))
    if root.dim() > 2:
        # A root of its own for each position of the batch: y gets a row dim to be multiplied.
        rows = unsqueezed(form, -2)
        image = multiplied(rows, rows.offset @ root, root)
        image = reshaped(image, image.offset.squeeze(-2))
    else:
        image = multiplied(form, form.offset @ root, root)
    total = image.offset.square().sum(-1) + weighted_variance(
        distribution, value, image, None, [-1]
    )
    return total.squeeze(0) if vector else total


@closed_form(dist.MultivariateNormal, torch.distributions.MultivariateNormal)
def multivariate_normal(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """-1/2 [E |L^-1 (x - mu)|^2 + d log 2 pi] - log det L, with a plain covariance L L'."""
    require_plain(distribution, value, "_unbroadcasted_scale_tril")
    tril = distribution._unbroadcasted_scale_tril
    eye = torch.eye(tril.size(-1), dtype=tril.dtype, device=tril.device)
    inverse = torch.linalg.solve_triangular(tril, eye, upper=False)
    quadratic = _expected_quadratic(distribution, value, inverse.mT)
    half_log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_prob = -0.5 * (quadratic + tril.size(-1) * _LOG_2PI) - half_log_det
    return total(distribution, value, num_summed, log_prob)


def _expected_quadratic(distribution: Distribution, value: Tensor, root: Tensor) -> Tensor:
    """E |(x - mu) root|^2."""
    if _is_affine(value) and _is_affine(distribution.loc):
        return _quadratic(distribution, value, difference(distribution, value), root)
    rows = (value - compacted(distribution.loc)).unsqueeze(-2)
    return _square_of_pointwise(rows @ root).squeeze(-2).sum(-1)


@closed_form(dist.LowRankMultivariateNormal, torch.distributions.LowRankMultivariateNormal)
def low_rank_multivariate_normal(
    distribution: Distribution, value: Tensor, num_summed: int
) -> Tensor:
    """As the full Gaussian, by Woodbury's identity.

    ``y' S^-1 y = |D^-1/2 y|^2 - |K^-1 W' D^-1 y|^2`` with ``K K' = I + W' D^-1 W``.
    """
    require_plain(distribution, value, "_unbroadcasted_cov_factor", "_unbroadcasted_cov_diag")
    factor, diagonal = distribution._unbroadcasted_cov_factor, distribution._unbroadcasted_cov_diag
    capacitance = distribution._capacitance_tril
    first = _expected_quadratic(distribution, value, torch.diag_embed(diagonal.rsqrt()))
    root = torch.linalg.solve_triangular(
        capacitance, (factor / diagonal.unsqueeze(-1)).mT, upper=False
    )
    second = _expected_quadratic(distribution, value, root.mT)
    log_det = 2 * capacitance.diagonal(dim1=-2, dim2=-1).log().sum(-1) + diagonal.log().sum(-1)
    size = diagonal.size(-1)
    log_prob = -0.5 * (first - second + size * _LOG_2PI + log_det)
    return total(distribution, value, num_summed, log_prob)
