"""StraightThrough: the derivative of the mean, whatever was drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_silent.estimators.estimator import Draw, Estimator, softmax_product, weigh


class StraightThrough(Estimator):
    r"""Hard samples, with the derivative of the mean in place of that of the sample.

    .. math::
        J = (\mathrm{diag}(s) - s s^\top) / \tau, \qquad s = \mathrm{softmax}(\theta / \tau)

    At :math:`\tau = 1` the gradient is unbiased where f is linear, and biased elsewhere: f is treated as
    if its slope at the sample held everywhere. It has little variance, and no draws but the sample's.

    Source: Bengio, Leonard and Courville 2013, "Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation", arXiv 1308.3432.

    :param temperature: of the derivative only; the sample's law is that of the logits.

    Example::

        >>> import torch
        >>> from pyro_silent import StraightThrough
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> (StraightThrough().one_hot(logits) @ torch.tensor([1.0, 3.0])).backward()
        >>> logits.grad
        tensor([-0.5000,  0.5000])
    """

    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        weights = torch.softmax(draw.log_probs / temperature, -1)
        return softmax_product(weights, gradient) / temperature

    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        scaled = draw.log_probs / temperature
        return weigh(torch.sigmoid(scaled) * torch.sigmoid(-scaled), gradient) / temperature
