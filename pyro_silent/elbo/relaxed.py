"""RelaxedELBO: soft discrete samples, the Gumbel-softmax or Concrete relaxation."""

from __future__ import annotations

from typing import Any

from pyro_silent.elbo.straight_through import StraightThroughELBO
from pyro_silent.estimators import GumbelSoftmax
from pyro_silent.estimators.estimator import Temperature


class RelaxedELBO(StraightThroughELBO):
    r"""A relaxed ELBO: model and guide see soft values at discrete sites.

    .. math:: s = \mathrm{softmax}\big((\theta + G)/\tau\big), \qquad G \sim \mathrm{Gumbel}(0, 1)

    The gradient is that of the relaxed objective, by reparameterization. **The value is biased too**: the
    likelihood is evaluated between the values the latent can take. Train with it, and evaluate with
    ``Trace_ELBO`` or :class:`GumbelRaoELBO`. KL(q || p) is the categorical one, in closed form where
    torch knows it; a prior without one is extended linearly, :math:`\sum_k s_k \log p_k`, and the entropy
    of q is exact (Jang, Gu and Poole 2017; Maddison, Mnih and Teh 2017 score a Concrete density instead).

    A Bernoulli site gives a number between 0 and 1, a OneHotCategorical a point of the simplex. A
    Categorical's value stays an index tensor whose uses (``table[z]``, ``F.one_hot(z)``, ``z == k``) are
    weighted averages over all categories. Operations on the soft values that have no derivative are
    extended linearly in the same way, see :class:`StraightThroughELBO`.

    :param temperature: :math:`\tau > 0`, or a schedule. Low: less bias, more variance.

    Example::

        >>> from pyro_silent import RelaxedELBO
        >>> loss = RelaxedELBO(temperature=0.5)
    """

    def __init__(self, temperature: Temperature = 1.0, **kwargs: Any) -> None:
        super().__init__(GumbelSoftmax(temperature), **kwargs)
