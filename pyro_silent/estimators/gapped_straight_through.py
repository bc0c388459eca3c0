"""GappedStraightThrough: straight-through at logits moved to agree with the sample."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from pyro_silent.errors import ConfigurationError
from pyro_silent.estimators.estimator import (
    Draw,
    Estimator,
    Temperature,
    sigmoid_product,
    softmax_product,
)


class GappedStraightThrough(Estimator):
    r"""Hard samples, with the derivative of a softmax whose largest entry is the one that was drawn.

    .. math::
        J = (\mathrm{diag}(s) - s s^\top) / \tau, \qquad s = \mathrm{softmax}((\theta + m_1 - m_2) / \tau)

    :math:`m_1` lifts the logit that was drawn to the largest of the row, :math:`m_2` lowers others
    to at least ``gap`` below it; both are held fixed in the derivative. What the noise of
    :class:`StraightThroughGumbelSoftmax` does at random is done here without a draw. Biased, in general
    for linear f already. Its cost is that of :class:`StraightThrough`.

    Source: Fan, Chi, Rudnicky and Ramadge 2022, "Training Discrete Deep Generative Models via Gapped
    Straight-Through Estimator", ICML, arXiv 2206.07235.

    :param temperature: a number > 0 or a schedule; of the derivative only, the sample follows the logits.
    :param float gap: least distance of the drawn logit to the others, >= 0.
    :raises ConfigurationError: for a negative gap; see also :class:`Estimator`.

    Example::

        >>> import torch
        >>> from pyro_silent import GappedStraightThrough
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> (GappedStraightThrough(gap=0.0).one_hot(logits) @ torch.tensor([1.0, 3.0])).backward()
        >>> logits.grad
        tensor([-0.5000,  0.5000])
    """

    def __init__(self, temperature: Temperature = 1.0, gap: float = 1.0) -> None:
        super().__init__(temperature)
        if not isinstance(gap, Real) or isinstance(gap, bool) or not 0 <= float(gap) < math.inf:
            raise ConfigurationError(f"gap: got {gap!r}, expected a finite number >= 0.")
        self.gap: float = gap

    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        top = draw.log_probs.amax(-1, keepdim=True)
        others = torch.minimum(draw.log_probs, top - self.gap)
        return softmax_product(torch.where(draw.hard > 0, top, others), gradient, temperature)

    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        # log odds of the value that was drawn, once moved; the derivative is even in them
        moved = (draw.log_probs * (2 * draw.hard - 1)).clamp_min(self.gap)
        return sigmoid_product(moved, gradient, temperature)
