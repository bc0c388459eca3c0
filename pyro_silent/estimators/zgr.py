"""ZGR: the limit of Gumbel-Rao at temperature 0, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_silent.estimators.estimator import Draw, Estimator, covariance_product, weigh


class ZGR(Estimator):
    r"""Hard samples, with the limit of :class:`GumbelRao` at temperature 0: no temperature, no draws.

    .. math::
        J = \tfrac12 \left( \mathrm{diag}(p) - p p^\top + (D - p)(D - p)^\top \right),
        \qquad p = \mathrm{softmax}(\theta)

    Half straight-through, half the score-function estimator on f linearised at D. Unbiased where f is
    quadratic, biased where f has third derivatives. The same matrix as :class:`ReinMax` at temperature 1.
    Its cost is that of :class:`StraightThrough`.

    Source: Shekhovtsov 2023, "Cold Analysis of Rao-Blackwellized Straight-Through Gumbel-Softmax
    Gradient Estimator", ICML.

    :raises ConfigurationError: see :class:`Estimator`.

    Example::

        >>> import torch
        >>> from pyro_silent import ZGR
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> (ZGR().one_hot(logits) @ torch.tensor([1.0, 3.0])).backward()
        >>> logits.grad
        tensor([-0.5000,  0.5000])
    """

    def __init__(self) -> None:
        super().__init__()

    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        probs = draw.log_probs.exp()
        chosen = weigh(draw.hard, gradient).sum(-1, keepdim=True)
        mean = weigh(probs, gradient).sum(-1, keepdim=True)
        slope = (draw.hard - probs) * (chosen - mean)
        return (covariance_product(probs, gradient) + slope) / 2

    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        # p (1 - p) + (b - p)^2 is the probability of the value that was not drawn
        other = torch.sigmoid(draw.log_probs * (1 - 2 * draw.hard))
        return weigh(other, gradient) / 2
