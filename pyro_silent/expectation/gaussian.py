"""E[log p] of Gaussians whose value or location is random."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.expectation.registry import closed_form, no_closed_form, require_plain
from pyro_silent.random_tensor.affine import Affine, NoForm, merge_terms, pad_terms, scale_terms
from pyro_silent.random_tensor.covariance import covariance
from pyro_silent.random_tensor.rows import multiplied
from pyro_silent.random_tensor.rules.structural import reshaped, unsqueezed
from pyro_silent.random_tensor.shapes import broadcast_shapes, compact, expanded_to, sum_rightmost
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of, constant

_LOG_2PI = math.log(2 * math.pi)


def summed_over(tensor: Tensor, shape: Sequence[int], num_summed: int) -> Tensor:
    """``sum_rightmost(tensor.expand(shape), num_summed)`` without spreading the tensor out."""
    kept = len(shape) - num_summed
    repeats = 1
    for dim in range(-num_summed, 0):
        if tensor.dim() < -dim or tensor.size(dim) == 1:
            repeats *= shape[dim]
    width = min(num_summed, tensor.dim())
    if width:
        tensor = tensor.sum(list(range(-width, 0)))
    if repeats != 1:
        tensor = tensor * repeats
    return expanded_to(tensor, shape[:kept])


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
    """-1/2 [(E[x - mu]^2 + Var[x - mu]) / s^2 + log 2 pi] - log s, with a plain scale s.

    Exact for any joint law of value and location: only two moments of their difference enter.
    """
    require_plain(distribution, value, "scale")
    form = difference(distribution, value)
    scale = compact(distribution.scale)
    shape = broadcast_shapes(form.shape, distribution.batch_shape)
    precision = scale.square().reciprocal()
    error = weighted_sum(form.offset.square(), precision, shape, num_summed)
    form = Affine(expanded_to(form.offset, shape), pad_terms(form, len(shape)))
    spread = weighted_variance(distribution, value, form, precision, list(range(-num_summed, 0)))
    constant_part = summed_over(scale.log() + 0.5 * _LOG_2PI, shape, num_summed)
    return -0.5 * (error + spread) - constant_part


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
    form = difference(distribution, value)
    tril = distribution._unbroadcasted_scale_tril
    eye = torch.eye(tril.size(-1), dtype=tril.dtype, device=tril.device)
    inverse = torch.linalg.solve_triangular(tril, eye, upper=False)
    quadratic = _quadratic(distribution, value, form, inverse.mT)
    half_log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_prob = -0.5 * (quadratic + tril.size(-1) * _LOG_2PI) - half_log_det
    return _summed(log_prob, distribution, form, num_summed)


@closed_form(dist.LowRankMultivariateNormal, torch.distributions.LowRankMultivariateNormal)
def low_rank_multivariate_normal(
    distribution: Distribution, value: Tensor, num_summed: int
) -> Tensor:
    """As the full Gaussian, by Woodbury's identity.

    ``y' S^-1 y = |D^-1/2 y|^2 - |K^-1 W' D^-1 y|^2`` with ``K K' = I + W' D^-1 W``.
    """
    require_plain(distribution, value, "_unbroadcasted_cov_factor", "_unbroadcasted_cov_diag")
    form = difference(distribution, value)
    factor, diagonal = distribution._unbroadcasted_cov_factor, distribution._unbroadcasted_cov_diag
    capacitance = distribution._capacitance_tril
    first = _quadratic(distribution, value, form, torch.diag_embed(diagonal.rsqrt()))
    root = torch.linalg.solve_triangular(
        capacitance, (factor / diagonal.unsqueeze(-1)).mT, upper=False
    )
    second = _quadratic(distribution, value, form, root.mT)
    log_det = 2 * capacitance.diagonal(dim1=-2, dim2=-1).log().sum(-1) + diagonal.log().sum(-1)
    size = diagonal.size(-1)
    log_prob = -0.5 * (first - second + size * _LOG_2PI + log_det)
    return _summed(log_prob, distribution, form, num_summed)


def _summed(log_prob: Tensor, distribution: Distribution, form: Affine, num_summed: int) -> Tensor:
    shape = broadcast_shapes(distribution.batch_shape, form.shape[:-1])
    return sum_rightmost(log_prob.expand(shape), num_summed)
