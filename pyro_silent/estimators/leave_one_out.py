"""Leave-one-out baselines of the score function: RLOO, also known as VarGrad."""

from __future__ import annotations

from torch import Tensor


def leave_one_out(signals: Tensor, dim: int = 0) -> Tensor:
    r"""Each learning signal minus the mean of the others.

    .. math::
        \hat g = \frac1K \sum_k \Big(f_k - \frac1{K-1} \sum_{j \ne k} f_j\Big)
        \nabla_\theta \log q_\theta(z_k)

    is unbiased for independent :math:`z_k`: the other samples say nothing of the :math:`k`-th score,
    whose mean is 0. (Kool, van Hoof and Welling, "Buy 4 REINFORCE Samples, Get a Baseline for Free!",
    2019; Richter et al., "VarGrad", 2020.)

    :param Tensor signals: f of independent samples along ``dim``, of which there are K >= 2.
    :return: the weights of the scores, of the same shape.

    Example::

        >>> import torch
        >>> from pyro_silent.estimators.leave_one_out import leave_one_out
        >>> leave_one_out(torch.tensor([1.0, 2.0, 6.0])).tolist()
        [-3.0, -1.5, 4.5]
    """
    size = signals.shape[dim]
    return (size * signals - signals.sum(dim, keepdim=True)) / (size - 1)
