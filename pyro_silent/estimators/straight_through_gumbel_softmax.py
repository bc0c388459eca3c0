"""StraightThroughGumbelSoftmax: the derivative of the relaxed sample that decided."""

from __future__ import annotations

from torch import Tensor

from pyro_silent.estimators.estimator import Draw, Estimator, sigmoid_product, softmax_product


class StraightThroughGumbelSoftmax(Estimator):
    r"""Hard samples, with the derivative of the Gumbel-softmax sample that shares their noise.

    .. math::
        J = (\mathrm{diag}(s) - s s^\top) / \tau, \qquad s = \mathrm{softmax}((\theta + G) / \tau),
        \qquad D = \text{one-hot of } \arg\max (\theta + G)

    A low temperature lowers the bias and raises the variance, without bound as :math:`\tau \to 0`.
    :class:`GumbelRao` has the same mean and never more variance.

    Source: Jang, Gu and Poole 2017, "Categorical Reparameterization with Gumbel-Softmax",
    arXiv 1611.01144.

    :param temperature: a number > 0 or a schedule; of the derivative only, the sample follows the logits.
    :raises ConfigurationError: see :class:`Estimator`.

    Example::

        >>> import torch
        >>> from pyro_silent import StraightThroughGumbelSoftmax
        >>> logits = torch.zeros(3, 4, requires_grad=True)
        >>> sample = StraightThroughGumbelSoftmax(temperature=0.5).one_hot(logits)
        >>> sample.sum(-1)
        tensor([1., 1., 1.], grad_fn=<SumBackward1>)
    """

    _keeps_noise = True

    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        return softmax_product(draw.noisy, gradient, temperature)

    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        return sigmoid_product(draw.noisy, gradient, temperature)
