"""StraightThrough: the derivative of the mean, whatever was drawn."""

from __future__ import annotations

from torch import Tensor

from pyro_silent.estimators.estimator import Draw, Estimator, sigmoid_product, softmax_product


class StraightThrough(Estimator):
    r"""Hard samples, with the derivative of the mean in place of that of the sample.

    .. math::
        J = (\mathrm{diag}(s) - s s^\top) / \tau, \qquad s = \mathrm{softmax}(\theta / \tau)

    At :math:`\tau = 1` the gradient is unbiased where f is linear, and biased elsewhere: the slope at
    the sample is taken to hold everywhere. It has little variance, and no draws but the sample's.

    Source: Bengio, Leonard and Courville 2013, "Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation", arXiv 1308.3432.

    :param temperature: a number > 0 or a schedule; of the derivative only, the sample follows the logits.
    :raises ConfigurationError: see :class:`Estimator`.

    Example::

        >>> import torch
        >>> from pyro_silent import StraightThrough
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> (StraightThrough().one_hot(logits) @ torch.tensor([1.0, 3.0])).backward()
        >>> logits.grad
        tensor([-0.5000,  0.5000])
    """

    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        return softmax_product(draw.log_probs, gradient, temperature)

    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        return sigmoid_product(draw.log_probs, gradient, temperature)
