"""DisARM: binary gradients from two antithetic evaluations."""

from __future__ import annotations

import torch
from torch import Tensor


def disarm_weights(logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    r"""What half the difference of two evaluations is multiplied with, element by element.

    For :math:`b = [\phi + \epsilon > 0]` and :math:`\tilde b = [\phi - \epsilon > 0]` with logistic
    :math:`\epsilon`,

    .. math::
        \hat g_i = \tfrac12 \big(f(b) - f(\tilde b)\big) (-1)^{\tilde b_i}
        [b_i \ne \tilde b_i]\, \sigma(|\phi_i|)

    is unbiased for :math:`\nabla_{\phi_i} E[f(b)]` (Dong, Mnih and Tucker, "DisARM", 2020; found
    independently by Yin, Ho, Yan, Qian and Zhou as "U2G"). The elements may be many, given that
    their noise is independent.

    :param Tensor logits: phi.
    :param Tensor first: b, 0 or 1, of that shape.
    :param Tensor second: the antithetic b.
    :return: :math:`(-1)^{\tilde b} [b \ne \tilde b] \sigma(|\phi|)`, of that shape.

    Example::

        >>> import torch
        >>> from pyro_silent.estimators.disarm import disarm_weights
        >>> first, second = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0])
        >>> disarm_weights(torch.zeros(3), first, second).tolist()
        [0.5, -0.5, 0.0]
    """
    return (first - second) * torch.sigmoid(logits.abs())
