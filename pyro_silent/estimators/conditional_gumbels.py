r"""Gumbel-softmax gradients averaged over the noise that is still free once the sample is known.

Given that category k won, and with normalised probabilities p, exponential variables E make

.. math::
    X_k = -\log E_k, \qquad X_j = -\log (E_k + E_j / p_j)

a draw of the perturbed log probabilities: exponential clocks with rates p, of which k rings first. What
the softmax of X / tau needs is the ratios of these times, :math:`e^{X_j - X_k} = 1 / (1 + r_j)` with
:math:`r_j = E_j / (E_k p_j)`: weights in [0, 1] relative to the winner's, which do not overflow.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_silent.estimators.point_set import POINT_SETS, PointSet

# Elements worked on at a time: on a CPU they stay in the second-level cache, on a GPU they fill it.
_CPU_CHUNK = 2**16
_GPU_CHUNK = 2**24
_MAX_ROWS = 512
_MAX_SQUARED_POWER = 128


def one_hot_product(
    log_probs: Tensor,
    hard: Tensor,
    gradient: Tensor,
    temperature: float,
    num_gumbels: int,
    points: str,
) -> Tensor:
    r"""The mean over conditional draws of :math:`(\mathrm{diag}(s) - s s^\top) v / \tau`.

    The draws are made and used up in chunks, so that memory does not depend on their number.

    :param Tensor log_probs: normalised, ``[*, n]`` with n >= 2.
    :param Tensor hard: the one-hot sample, same shape.
    :param Tensor gradient: v, same shape.
    :param float temperature: tau > 0.
    :param int num_gumbels: K, how many draws.
    :param str points: a key of ``POINT_SETS``.
    """
    num_categories = log_probs.shape[-1]
    log_probs = log_probs.reshape(-1, num_categories)
    gradient = gradient.reshape(-1, num_categories)
    drawn = hard.reshape(-1, num_categories).argmax(-1, keepdim=True)
    # the categories that lost: all from 1 on, with 0 in the place of the winner
    others = torch.arange(1, num_categories, device=log_probs.device).expand(len(log_probs), -1)
    others = torch.where(others == drawn, 0, others)
    # a constant added to v changes nothing: let the winner's be 0
    relative = gradient.gather(1, others) - gradient.gather(1, drawn)
    log_probs = log_probs.gather(1, others)

    product = torch.empty_like(log_probs)
    for rows in _row_blocks(log_probs, num_categories):
        product[rows] = _block_product(
            log_probs[rows].t().contiguous(),
            relative[rows].t().contiguous(),
            temperature,
            num_gumbels,
            POINT_SETS[points],
        ).t()
    result = hard.new_empty(hard.shape)
    flat = result.view(-1, num_categories)
    flat.scatter_(1, others, product).scatter_(1, drawn, -product.sum(-1, keepdim=True))
    return result


def _block_product(
    log_probs: Tensor,
    gradient: Tensor,
    temperature: float,
    num_gumbels: int,
    point_set: type[PointSet],
) -> Tensor:
    """The product for ``[n - 1, rows]`` categories that lost, v relative to the winner's."""
    weigher = RelativeWeights(log_probs, temperature)
    gradient = torch.where(weigher.possible, gradient, 0.0)
    num_others, num_rows = log_probs.shape
    points = point_set(num_gumbels, num_others + 1, num_rows, log_probs)
    product = torch.zeros_like(gradient)
    for size in _chunk_sizes(num_gumbels, (num_others + 1) * num_rows, log_probs):
        clocks = points.chunk(size).log2_()  # -E, in a unit that the ratio does not know
        ratio = clocks[:, 1:].mul_(clocks[:, :1].reciprocal())
        weights = weigher(ratio)
        slope = weights * gradient
        total = weights.sum(1, keepdim=True).add_(1).reciprocal_()
        mean = slope.sum(1, keepdim=True).mul_(total)
        torch.sub(gradient, mean, out=slope)
        product += slope.mul_(weights.mul_(total)).sum(0)
    return product.div_(num_gumbels * temperature)


def bernoulli_derivative(
    log_odds: Tensor, temperature: float, num_gumbels: int, points: str
) -> Tensor:
    r"""The mean over conditional draws of :math:`s (1 - s) / \tau`, elementwise.

    With two categories only :math:`E_j / E_k` matters, which is the odds of one uniform variable.

    :param Tensor log_odds: of the value that was drawn, any shape.
    """
    flat = log_odds.reshape(-1)
    derivative = torch.empty_like(flat)
    for rows in _row_blocks(flat, 1):
        weigher = RelativeWeights(torch.nn.functional.logsigmoid(-flat[rows]), temperature)
        stream = POINT_SETS[points](num_gumbels, 1, len(flat[rows]), flat)
        total = torch.zeros_like(flat[rows])
        for size in _chunk_sizes(num_gumbels, len(total), flat):
            uniform = stream.chunk(size).squeeze(1)
            weights = weigher(uniform.div_(1 - uniform))
            total += weights.div_((1 + weights).square_()).sum(0)
        derivative[rows] = total.div_(num_gumbels * temperature)
    return derivative.view(log_odds.shape)


class RelativeWeights:
    r"""The weights :math:`(1 + E_j / (E_k p_j))^{-1/\tau}` of the categories that lost.

    :param Tensor log_probs: log p_j of these categories; ``-inf`` gives weight 0.
    :ivar Tensor possible: where the weight is not always 0.
    """

    def __init__(self, log_probs: Tensor, temperature: float) -> None:
        self._power = 1 / temperature
        self._factored = temperature > 1
        if self._factored:
            # p^(1/tau) (p + E_j / E_k)^(-1/tau), for 1 / p overflows where the weight still counts
            self._probs = log_probs.exp()
            self._scale = (log_probs / temperature).exp()
            self.possible = self._scale > 0
        else:
            self._scale = (-log_probs).exp()
            self.possible = self._scale < torch.inf

    def __call__(self, ratio: Tensor) -> Tensor:
        """The weights at ``ratio`` = E_j / E_k, which is overwritten."""
        if self._factored:
            return _inverse_power(ratio.add_(self._probs), self._power).mul_(self._scale)
        return _inverse_power(ratio.mul_(self._scale).add_(1), self._power)


def _inverse_power(base: Tensor, power: float) -> Tensor:
    """``base ** -power`` for a positive base, which is overwritten; infinity becomes 0.

    A whole power is found by squaring, which is faster than ``pow`` or a logarithm.
    """
    whole = round(power)
    if abs(power - whole) > 1e-9 * power or whole > _MAX_SQUARED_POWER:
        return base.log2_().mul_(-power).exp2_()
    product = base if whole % 2 else None
    while whole > 1:
        whole //= 2
        base = base * base if product is base else base.square_()
        if whole % 2:
            product = base if product is None else product.mul_(base)
    assert product is not None
    return product.reciprocal_()


def _row_blocks(rows: Tensor, width: int) -> Iterator[slice]:
    """Slices of the first dim."""
    limit = _CPU_CHUNK if rows.device.type == "cpu" else _GPU_CHUNK
    size = max(1, limit // width)
    if rows.device.type == "cpu":
        size = min(size, _MAX_ROWS)
    return (slice(start, start + size) for start in range(0, len(rows), size))


def _chunk_sizes(count: int, width: int, like: Tensor) -> Iterator[int]:
    """Parts of ``count``, equal but for the last."""
    limit = _CPU_CHUNK if like.device.type == "cpu" else _GPU_CHUNK
    size = max(1, min(count, limit // max(width, 1)))
    return (min(size, count - start) for start in range(0, count, size))
