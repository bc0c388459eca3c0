"""What a function of discrete scalars gives: a sample with new levels, or a float with a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_silent.discrete_sample.contraction import Attach, Expectation, product_sum
from pyro_silent.discrete_sample.factor import Factor
from pyro_silent.discrete_sample.sample import DiscreteSample, discrete, is_float, is_opaque


def outcome(
    value: Tensor,
    latents: tuple[str, ...],
    factors: tuple[Factor, ...],
    levels_at: Callable[..., Tensor],
    operands: Sequence[Tensor],
) -> Tensor:
    """The result of a function of discrete scalars.

    :param value: the result for the hard values.
    :param factors: the scalars, with as many dims as the value.
    :param levels_at: gives the result at each combination of levels, ``[*dims, L_1, ..., L_m]``.
    :param operands: plain tensors for ``levels_at``.
    """
    if not value.is_floating_point():
        with torch.no_grad():
            levels = levels_at(*operands)
        return discrete(value, latents, factors, levels)
    codes = aligned(value.dim(), [factor.code for factor in factors])
    if True not in [factor.soft for factor in factors]:
        return Attach.apply(value, levels_at, operands, *codes)
    levels = levels_at(*operands)
    levels = levels[(None,) * (codes[0].dim() - levels.dim())].to(value.dtype)
    codes = [code.to(value.dtype) for code in codes]
    return Expectation.apply(levels, value.dim(), *codes).expand(value.shape)


def aligned(num_dims: int, codes: Sequence[Tensor]) -> list[Tensor]:
    """Codes ``[*dims, L_i]`` with ``num_dims`` dims and then a dim for each code."""
    if len(codes) == 1 and codes[0].dim() == num_dims + 1:
        return list(codes)
    result = []
    for i, code in enumerate(codes):
        trailing = [1] * len(codes)
        trailing[i] = code.shape[-1]
        leading = [1] * (num_dims + 1 - code.dim()) + list(code.shape[:-1])
        result.append(code.reshape(leading + trailing))
    return result


def hard(sample: DiscreteSample) -> Tensor:
    """The plain values without gradient; for soft floats those of the most probable level."""
    value = sample._value.detach()
    if not sample._soft or not is_float(sample) or is_opaque(sample):
        return value
    factors = sample.factors
    codes = aligned(value.dim(), [factor.hard_code() for factor in factors])
    levels = sample.levels.to(codes[0].dtype)
    levels = levels[(None,) * (codes[0].dim() - levels.dim())]
    shape = list(value.shape) + [1] * len(factors)
    return product_sum(codes[0], levels, codes[1:], shape).reshape(value.shape).to(value.dtype)


def settled(sample: DiscreteSample) -> Tensor | None:
    """The plain value of a bool sample that is the same at every level, such as a support check."""
    if is_opaque(sample) or sample._value.dtype != torch.bool:
        return None
    levels = sample.levels
    flat = levels.flatten(levels.dim() - len(sample.factors))
    if bool((flat == flat[..., :1]).all()):
        return sample._value
    return None
