"""GumbelSoftmax: relaxed samples and their pathwise derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_silent.estimators.estimator import Draw, Estimator, sigmoid_product, softmax_product


class GumbelSoftmax(Estimator):
    r"""Soft samples (Gumbel-softmax, also called Concrete) with their exact pathwise derivative.

    .. math::
        s = \mathrm{softmax}((\theta + G) / \tau), \qquad
        J = \partial s / \partial \theta = (\mathrm{diag}(s) - s s^\top) / \tau

    The one estimator here whose value is not hard: f sees a point inside the simplex, or inside (0, 1).
    The gradient is unbiased for :math:`E[f(s)]` and biased for :math:`E[f(D)]`, the less the lower the
    temperature, while its variance grows. The largest entry of s is that of the hard sample that the
    other estimators return at the same seed.

    Sources: Jang, Gu and Poole 2017, arXiv 1611.01144; Maddison, Mnih and Teh 2017, "The Concrete
    Distribution", arXiv 1611.00712.

    :param temperature: a number > 0 or a schedule; of the value and of its derivative.
    :raises ConfigurationError: see :class:`Estimator`.

    Example::

        >>> import torch
        >>> from pyro_silent import GumbelSoftmax
        >>> value = GumbelSoftmax(temperature=0.5).one_hot(torch.zeros(3, 4))
        >>> torch.allclose(value.sum(-1), torch.ones(3))
        True
    """

    _keeps_noise = True

    def _draw_one_hot(self, log_probs: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        _, perturbed = super()._draw_one_hot(log_probs, temperature)
        return torch.softmax(perturbed / temperature, -1), perturbed

    def _draw_bernoulli(self, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        _, perturbed = super()._draw_bernoulli(logits, temperature)
        return torch.sigmoid(perturbed / temperature), perturbed

    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        return softmax_product(draw.noisy, gradient, temperature)

    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        return sigmoid_product(draw.noisy, gradient, temperature)
