"""ReinMax: Heun's second-order rule in place of straight-through's first-order one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_silent.estimators.estimator import Draw, Estimator, covariance_product, weigh


class ReinMax(Estimator):
    r"""Hard samples, with a second-order accurate surrogate.

    .. math::
        J = 2 C(\pi_D) - \tfrac12 C(p), \qquad \pi_D = \tfrac12 (\mathrm{softmax}(\theta / \tau) + D),
        \qquad C(x) = \mathrm{diag}(x) - x x^\top, \qquad p = \mathrm{softmax}(\theta)

    At :math:`\tau = 1` it equals :class:`ZGR` and is unbiased where f is quadratic; a higher temperature
    trades bias for variance. Its cost is that of :class:`StraightThrough`.

    Source: Liu, Dong, Liu, Yu and Gao 2023, "Bridging Discrete and Backpropagation: Straight-Through and
    Beyond", NeurIPS, arXiv 2304.08612.

    :param temperature: a number >= 1 or a schedule of such.
    :raises ConfigurationError: for a temperature below 1; see also :class:`Estimator`.

    Example::

        >>> import torch
        >>> from pyro_silent import ReinMax
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> (ReinMax(temperature=1.2).one_hot(logits) @ torch.tensor([1.0, 3.0])).backward()
        >>> logits.grad
        tensor([-0.5000,  0.5000])
    """

    _expected_temperature = "a finite number >= 1"

    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        probs = draw.log_probs.exp()
        tempered = torch.softmax(draw.log_probs / temperature, -1)
        midpoint = (tempered + draw.hard) / 2
        return 2 * covariance_product(midpoint, gradient) - covariance_product(probs, gradient) / 2

    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        logits, scaled = draw.log_probs, draw.log_probs / temperature
        # four times midpoint * (1 - midpoint), each factor with its own sigmoid: 1 - p would round
        middle = (torch.sigmoid(scaled) + draw.hard) * (torch.sigmoid(-scaled) + 1 - draw.hard)
        first_order = torch.sigmoid(logits) * torch.sigmoid(-logits)
        return weigh((middle - first_order) / 2, gradient)

    def _admits(self, temperature: float) -> bool:
        return 1 <= temperature < math.inf
