r"""Gumbel-softmax gradients averaged over the noise that is still free once the sample is known.

Given that category k won, and with normalised probabilities p, exponential variables E make

.. math::
    X_k = -\log E_k, \qquad X_j = -\log (E_k + E_j / p_j)

a draw of the perturbed log probabilities: exponential clocks with rates p, of which k rings first. What
the softmax of X / tau needs is the ratios of these times, :math:`e^{X_j - X_k} = 1 / (1 + r_j)` with
:math:`r_j = E_j / (E_k p_j)`: weights in [0, 1] relative to the winner's, which do not overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_silent.estimators.binary_expectation import binary_derivative
from pyro_silent.estimators.point_set import POINT_SETS

# Elements worked on at a time: few enough for the caches of a CPU, many enough to outweigh the calls;
# and how many draws of a row at least, lest its random shift becomes the work.
_CPU_CHUNK = 2**18
_GPU_CHUNK = 2**24
_MIN_DRAWS = 8
# Up to this temperature the control variate pays for its time at any number of categories.
_MAX_CONTROLLED = 1 / 3
# The largest exponent 1 / tau that is worked out by squaring.
_MAX_SQUARED_POWER = 128


def one_hot_product(
    log_probs: Tensor,
    hard: Tensor,
    gradient: Tensor,
    temperature: float,
    num_gumbels: int,
    points: str,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The mean over conditional draws of :math:`(\mathrm{diag}(s) - s s^\top) v / \tau`.

    The draws are made and used up in chunks, so that memory does not depend on their number.

    With lattice points and a temperature up to 1/3, the softmax of the winner and each other category
    alone, whose expectation :func:`~pyro_silent.estimators.binary_expectation.binary_derivative` knows,
    is a control variate: at low temperatures two others are rarely close to the winner at once. Its
    factor falls with the temperature and does not depend on the draws, so that nothing is biased.

    :param Tensor log_probs: normalised, ``[*, n]`` with n >= 2.
    :param Tensor hard: the one-hot sample, same shape.
    :param Tensor gradient: v, same shape.
    :param float temperature: tau > 0.
    :param int num_gumbels: K, how many draws.
    :param str points: a key of ``POINT_SETS``.
    :param generator: of the draws.
    """
    num_categories = log_probs.shape[-1]
    drawn = hard.reshape(-1, num_categories).argmax(-1).unsqueeze(0)
    log_probs = _others(log_probs.reshape(-1, num_categories).t(), drawn)
    gradient = gradient.reshape(-1, num_categories).t()
    # a constant added to v changes nothing: let the winner's be 0
    gradient = _others(gradient, drawn).sub_(gradient.gather(0, drawn))
    weigher = RelativeWeights(log_probs, temperature)
    gradient = torch.where(weigher.possible, gradient, 0.0)

    product, pairs = torch.zeros_like(gradient), torch.zeros_like(gradient)
    point_set = POINT_SETS[points]
    # one draw alone stays one draw of ST-GS
    controlled = point_set.is_even and num_gumbels > 1 and temperature <= _MAX_CONTROLLED
    factor = 1 - 0.75 * temperature if controlled else 0.0
    for chunk in _chunks(gradient, num_gumbels, num_categories):
        if chunk.is_first:
            block = gradient[:, chunk.rows]
            stream = point_set(num_gumbels, num_categories, block.shape[1], block, generator)
        clocks = stream.fill(chunk.buffer).log2_()  # -E, in a unit that their ratio does not know
        weights = weigher(clocks[:, :1], clocks[:, 1:], chunk.rows)
        slope = chunk.spare[:, 1:]
        if factor:
            torch.add(weights, 1, out=slope).square_()
            pairs[:, chunk.rows] += torch.div(weights, slope, out=slope).sum(0)
        torch.mul(weights, block, out=slope)
        total = weights.sum(1, keepdim=True).add_(1).reciprocal_()
        mean = slope.sum(1, keepdim=True).mul_(total)
        torch.sub(block, mean, out=slope)
        product[:, chunk.rows] += slope.mul_(weights.mul_(total)).sum(0)
    product.div_(num_gumbels * temperature)
    if factor:
        # log odds of "not j": of the winner, were j the only other category
        log_odds = torch.log(-torch.expm1(log_probs)).sub_(log_probs)
        surplus = pairs.div_(num_gumbels * temperature).sub_(
            binary_derivative(log_odds, temperature)
        )
        product.addcmul_(surplus, gradient, value=-factor)
    return _with_winner(product, drawn).t().reshape(hard.shape)


def _others(table: Tensor, drawn: Tensor) -> Tensor:
    """Drop the winner of each column: all entries but the first, which takes the winner's place."""
    moved = torch.where(drawn == 0, table[1], table[0])
    others = table[1:].clone(memory_format=torch.contiguous_format)
    return others.scatter_(0, (drawn - 1).clamp_min_(0), moved)


def _with_winner(others: Tensor, drawn: Tensor) -> Tensor:
    """Undo :func:`_others`; the winner's entry makes every column sum to 0."""
    winner = -others.sum(0, keepdim=True)
    moved = others.gather(0, (drawn - 1).clamp_min_(0))
    table = torch.cat([torch.where(drawn == 0, winner, moved), others])
    return table.scatter_(0, drawn, winner)


def bernoulli_derivative(
    log_odds: Tensor,
    temperature: float,
    num_gumbels: int,
    points: str,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The mean over conditional draws of :math:`s (1 - s) / \tau`, elementwise.

    With two categories only :math:`E_j / E_k` matters, which is the odds of one uniform variable.

    :param Tensor log_odds: of the value that was drawn, any shape.
    """
    flat = log_odds.reshape(-1)
    weigher = RelativeWeights(torch.nn.functional.logsigmoid(-flat), temperature)
    derivative = torch.zeros_like(flat)
    point_set = POINT_SETS[points]
    for chunk in _chunks(flat, num_gumbels, 1):
        if chunk.is_first:
            block = derivative[chunk.rows]
            stream = point_set(num_gumbels, 1, len(block), block, generator)
        uniform = stream.fill(chunk.buffer)
        weights = weigher(torch.sub(1, uniform, out=chunk.spare), uniform, chunk.rows)
        block += weights.div_(torch.add(weights, 1, out=chunk.spare).square_()).sum((0, 1))
    return derivative.div_(num_gumbels * temperature).view(log_odds.shape)


class RelativeWeights:
    r"""The weights :math:`(E_k / (E_k + E_j / p_j))^{1/\tau}` of the categories that lost.

    :param Tensor log_probs: log p_j of these categories; ``-inf`` gives weight 0.
    :ivar Tensor possible: where the weight is not always 0.
    """

    def __init__(self, log_probs: Tensor, temperature: float) -> None:
        self._power = 1 / temperature
        self._factored = temperature > 1
        if self._factored:
            # p^(1/tau) (E_k / (E_k p + E_j))^(1/tau): 1 / p overflows where the weight still counts
            self._probs = log_probs.exp()
            self._scale = (log_probs / temperature).exp()
            self.possible = self._scale > 0
        else:
            self._scale = (-log_probs).exp()
            self.possible = self._scale < torch.inf

    def __call__(self, winner: Tensor, others: Tensor, rows: slice) -> Tensor:
        """The weights at E_k = ``winner`` and E_j = ``others``, which is overwritten.

        Both may have any common factor; ``others`` has shape ``[draws, *categories, rows]``.
        """
        scale = self._scale[..., rows]
        if self._factored:
            times = torch.addcmul(others, winner, self._probs[..., rows], out=others)
        else:
            times = torch.addcmul(winner, others, scale, out=others)
        weights = _power(torch.div(winner, times, out=times), self._power)
        return weights.mul_(scale) if self._factored else weights


def _power(base: Tensor, power: float) -> Tensor:
    """``base ** power`` for base and power > 0; the base is overwritten.

    A whole power is found by squaring, which is faster than ``pow`` or a logarithm.
    """
    whole = round(power)
    if abs(power - whole) > 1e-9 * power or whole > _MAX_SQUARED_POWER:
        return base.log2_().mul_(power).exp2_()
    product = base if whole % 2 else None
    while whole > 1:
        whole //= 2
        base = base * base if product is base else base.square_()
        if whole % 2:
            product = base if product is None else product.mul_(base)
    return base if product is None else product


class Chunk(NamedTuple):
    """Some draws of some rows.

    :ivar rows: which rows.
    :ivar is_first: whether no draws of these rows came before.
    :ivar buffer: memory to work in, ``[draws, width, rows]``; the same for all chunks.
    :ivar spare: as much again.
    """

    rows: slice
    is_first: bool
    buffer: Tensor
    spare: Tensor


def _chunks(table: Tensor, num_draws: int, width: int) -> Iterator[Chunk]:
    """All draws of the rows along the last dim of ``table``, of ``width`` elements each."""
    num_rows = table.shape[-1]
    limit = _CPU_CHUNK if table.device.type == "cpu" else _GPU_CHUNK
    rows_at_once = min(num_rows, max(1, limit // (width * min(num_draws, _MIN_DRAWS))))
    draws_at_once = min(num_draws, max(1, limit // (width * max(rows_at_once, 1))))
    memory = table.new_empty(2, draws_at_once * width * rows_at_once)
    for start in range(0, num_rows, max(rows_at_once, 1)):
        rows = slice(start, min(start + rows_at_once, num_rows))
        for first in range(0, num_draws, draws_at_once):
            shape = min(draws_at_once, num_draws - first), width, rows.stop - rows.start
            buffer, spare = memory[:, : math.prod(shape)].view(2, *shape)
            yield Chunk(rows, first == 0, buffer, spare)
