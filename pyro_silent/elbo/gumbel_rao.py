"""GumbelRaoELBO: hard discrete samples with Rao-Blackwellised straight-through gradients."""

from __future__ import annotations

from typing import Any

from pyro_silent.elbo.straight_through import StraightThroughELBO
from pyro_silent.estimators import GumbelRao
from pyro_silent.estimators.estimator import Temperature


class GumbelRaoELBO(StraightThroughELBO):
    r"""The ELBO of hard discrete samples, with Gumbel-Rao gradients.

    The straight-through Gumbel-softmax estimator uses the one Gumbel sample that decided the value
    :math:`D`. Its expectation given :math:`D`,

    .. math::
        \nabla_\theta \mathcal L \approx
        E\Big[\tfrac1\tau \big(\mathrm{diag}(s) - s s^\top\big) \Big| D\Big]
        \frac{\partial \mathcal L}{\partial D}, \qquad
        s = \mathrm{softmax}\big((\theta + G)/\tau\big),

    has the same bias and a smaller variance, at low temperatures very much smaller (Paulus, Maddison and
    Krause, "Rao-Blackwellizing the Straight-Through Gumbel-Softmax Gradient Estimator", ICLR 2021).
    All else is as in :class:`StraightThroughELBO`.

    :param temperature: :math:`\tau > 0`, or a schedule. Low: less bias, more variance.
    :param num_gumbels: conditional samples that estimate the expectation, drawn in the backward pass;
        memory does not depend on it. None: the exact expectation, for binary sites.
    :param str points: how they are placed, see :class:`GumbelRao`.

    Example::

        >>> from pyro_silent import GumbelRaoELBO
        >>> loss = GumbelRaoELBO(temperature=0.5, num_gumbels=100)
        >>> exact_for_binary_sites = GumbelRaoELBO(temperature=0.1, num_gumbels=None)
    """

    def __init__(
        self,
        temperature: Temperature = 1.0,
        num_gumbels: int | None = 100,
        *,
        points: str = "lattice",
        **kwargs: Any,
    ) -> None:
        super().__init__(GumbelRao(temperature, num_gumbels, points=points), **kwargs)
