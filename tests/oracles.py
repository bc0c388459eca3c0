"""Independent truths: the law of a plain torch program of latent variables, by brute force.

Nothing here knows random tensors. A program is a function of plain tensors; its moments come from

- enumeration of every joint value of the discrete latents, each with its probability, and
- dense Gaussian algebra for the others: all latents flattened to one vector with mean ``m`` and
  covariance ``S``, the program evaluated at 0 and at every unit vector gives ``y = A z + b``, so
  that ``E[y] = A m + b`` and ``Cov[y] = A S A'`` (the law of total covariance joins the two).

Everything is differentiable, so autograd through an oracle is the oracle of a gradient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution

ENUMERATION_LIMIT = 100


class Moments(NamedTuple):
    """``mean`` and ``variance`` shaped as the program's output, and the dense ``covariance``."""

    mean: Tensor
    variance: Tensor
    covariance: Tensor


def base_distribution(distribution: Distribution) -> Distribution:
    """Strip ``to_event`` and ``mask``, neither of which changes the law of a value."""
    while hasattr(distribution, "base_dist"):
        if type(distribution).__name__ not in ("Independent", "MaskedDistribution"):
            raise TypeError(f"no oracle for {type(distribution).__name__}")
        distribution = distribution.base_dist
    return distribution


def is_discrete(distribution: Distribution) -> bool:
    """Whether the values of a distribution can be listed."""
    discrete = (td.Bernoulli, td.Categorical, td.OneHotCategorical)
    return isinstance(base_distribution(distribution), discrete)


def block_values(distribution: Distribution) -> tuple[Tensor, Tensor]:
    """Values of one independent block of a discrete distribution and the probability of each.

    Returns ``values`` [V, block size] and ``probabilities`` [number of blocks, V], the blocks in
    row-major order of the batch shape.
    """
    base = base_distribution(distribution)
    probs = base.probs
    if isinstance(base, td.Bernoulli):
        probs = probs.reshape(-1, 1)
        return probs.new_tensor([[0.0], [1.0]]), torch.cat([1 - probs, probs], -1)
    cardinality = probs.shape[-1]
    probs = probs.reshape(-1, cardinality)
    if isinstance(base, td.Categorical):
        return torch.arange(cardinality)[:, None], probs
    return torch.eye(cardinality, dtype=probs.dtype), probs


def number_of_values(distribution: Distribution) -> int:
    """Count the joint values of a discrete distribution."""
    values, probabilities = block_values(distribution)
    return len(values) ** len(probabilities)


def joint_number_of_values(distributions: Sequence[Distribution]) -> int:
    """Count the joint values of the discrete ones among independent distributions."""
    return math.prod(number_of_values(d) for d in distributions if is_discrete(d))


def joint_values(
    distributions: Sequence[Distribution],
) -> Iterator[tuple[list[Tensor], Tensor | float]]:
    """Every joint value of independent discrete latents, with its probability."""
    tables = [block_values(d) for d in distributions]
    choices = [range(len(values)) for values, probs in tables for _ in probs]
    for choice in itertools.product(*choices):
        chosen = iter(choice)
        latents, probability = [], 1.0
        for distribution, (values, probs) in zip(distributions, tables, strict=True):
            picks = list(itertools.islice(chosen, len(probs)))
            shape = distribution.batch_shape + distribution.event_shape
            latents.append(values[picks].reshape(shape))
            for block, pick in enumerate(picks):
                probability = probability * probs[block, pick]
        yield latents, probability


def source_moments(distribution: Distribution) -> tuple[Tensor, Tensor]:
    """Mean vector and dense covariance of a source flattened in row-major order."""
    base = base_distribution(distribution)
    if is_discrete(base):
        values, probs = block_values(base)
        means = probs @ values.to(probs.dtype)
        centred = values - means[:, None, :]
        blocks = torch.einsum("bv,bvi,bvj->bij", probs, centred, centred)
    elif isinstance(base, td.Normal):
        means = base.loc.reshape(-1, 1)
        blocks = base.scale.reshape(-1, 1, 1) ** 2
    elif isinstance(base, td.LowRankMultivariateNormal):
        means = base.loc
        factor, diagonal = base.cov_factor, base.cov_diag
        blocks = factor @ factor.mT + torch.diag_embed(diagonal)
    elif isinstance(base, td.MultivariateNormal):
        means = base.loc
        given = vars(base)
        if "precision_matrix" in given:
            blocks = torch.linalg.inv(given["precision_matrix"])
        elif "covariance_matrix" in given:
            blocks = given["covariance_matrix"]
        else:
            blocks = given["scale_tril"] @ given["scale_tril"].mT
    else:
        raise TypeError(f"no oracle for {type(base).__name__}")
    size = means.shape[-1]
    blocks = blocks.reshape(-1, size, size)
    return means.reshape(-1), torch.block_diag(*blocks) if len(blocks) else blocks.new_zeros(0, 0)


def affine_coefficients(
    program: Callable[..., Tensor], shapes: Sequence[torch.Size], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Matrix [n, latents] and offset [n] of an affine program; ValueError if it is not affine."""
    sizes = [math.prod(shape) for shape in shapes]

    def evaluate(flat: Tensor) -> Tensor:
        parts = flat.split(sizes) if sizes else ()
        return program(*(p.reshape(s) for p, s in zip(parts, shapes, strict=True))).reshape(-1)

    total = sum(sizes)
    offset = evaluate(torch.zeros(total, dtype=dtype))
    units = torch.eye(total, dtype=dtype)
    columns = [evaluate(unit) - offset for unit in units]
    matrix = torch.stack(columns, -1) if columns else offset.new_zeros(len(offset), 0)
    probe = torch.linspace(-3.0, 2.0, total, dtype=dtype)
    with torch.no_grad():
        for probed in (probe, -probe, 6.0 * probe, -6.0 * probe):  # kinks may lie far out
            if not torch.allclose(matrix @ probed + offset, evaluate(probed), rtol=1e-4, atol=1e-4):
                raise ValueError("the program is not affine in its continuous latents")
    return matrix, offset


def moments(
    program: Callable[..., Tensor], *distributions: Distribution, limit: int | None = None
) -> Moments:
    """Moments of ``program(z_1, ..., z_n)`` where ``z_i`` are independent with these distributions.

    Discrete latents are enumerated jointly; with more than ``limit`` joint values (by default
    ``ENUMERATION_LIMIT``), only the integer ones are, and the program must be affine in the others.
    """
    listed = [is_discrete(d) for d in distributions]
    if joint_number_of_values(distributions) > (ENUMERATION_LIMIT if limit is None else limit):
        listed = [isinstance(base_distribution(d), td.Categorical) for d in distributions]
    dense = [d for d, x in zip(distributions, listed, strict=True) if not x]
    enumerated = [d for d, x in zip(distributions, listed, strict=True) if x]

    laws = [source_moments(d) for d in dense]
    dtype = laws[0][0].dtype if laws else torch.float64
    location = torch.cat([law[0] for law in laws]) if laws else torch.zeros(0, dtype=dtype)
    spread = torch.block_diag(*(law[1] for law in laws)) if laws else location.new_zeros(0, 0)
    shapes = [d.batch_shape + d.event_shape for d in dense]

    shape = torch.Size()
    terms: list[tuple[Tensor | float, Tensor, Tensor]] = []
    for values, probability in joint_values(enumerated):

        def given(*continuous: Tensor, values: list[Tensor] = values) -> Tensor:
            nonlocal shape
            fixed, free = iter(values), iter(continuous)
            out = program(*(next(fixed) if x else next(free) for x in listed))
            shape = out.shape
            return out.to(torch.promote_types(out.dtype, dtype))

        matrix, offset = affine_coefficients(given, shapes, dtype)
        terms.append((probability, matrix @ location + offset, matrix @ spread @ matrix.mT))

    mean = sum(p * m for p, m, _ in terms)
    covariance = sum(p * (c + torch.outer(m - mean, m - mean)) for p, m, c in terms)
    return Moments(mean.reshape(shape), covariance.diagonal().reshape(shape), covariance)
