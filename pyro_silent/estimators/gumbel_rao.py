"""GumbelRao: the straight-through Gumbel-softmax gradient, averaged over the noise that is left."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_silent.errors import ConfigurationError
from pyro_silent.estimators.binary_expectation import binary_derivative
from pyro_silent.estimators.conditional_gumbels import bernoulli_derivative, one_hot_product
from pyro_silent.estimators.estimator import Draw, Estimator, Temperature, weigh
from pyro_silent.estimators.point_set import POINT_SETS
from pyro_silent.estimators.traced import traced_bernoulli_derivative, traced_one_hot_product


class GumbelRao(Estimator):
    r"""Hard samples, with the mean of straight-through Gumbel-softmax gradients given the sample.

    .. math::
        J = E\left[ (\mathrm{diag}(s) - s s^\top) / \tau \mid D \right],
        \qquad s = \mathrm{softmax}((\theta + G) / \tau)

    The expectation is over the Gumbel noise G given the sample D; G is held fixed in the derivative. It
    has the mean of :class:`StraightThroughGumbelSoftmax`, so the same bias, and never more variance; as
    the temperature goes to 0 the variance does not explode, and J becomes the matrix of :class:`ZGR`.

    With ``num_gumbels=K`` the expectation is a mean over K draws of G given D, made in the backward pass
    and used up in chunks: time grows with K, memory does not, and nothing but the logits, the sample
    and a seed is kept for it. Each draw has the conditional law of G, so the mean is unbiased for every
    K, and K = 1 is one gradient of :class:`StraightThroughGumbelSoftmax`, in law.

    ``num_gumbels=None`` is the expectation itself, by quadrature, for ``bernoulli`` and for ``one_hot``
    with at most two categories: an error below 1e-9 in float64, at the cost of about K = 10.

    Source: Paulus, Maddison and Krause 2021, "Rao-Blackwellizing the Straight-Through Gumbel-Softmax
    Gradient Estimator", ICLR, arXiv 2010.04838.

    :param temperature: a number > 0 or a schedule; of the derivative only, the sample follows the logits.
    :param num_gumbels: K >= 1, or None.
    :param str points: how the K draws are placed. ``"lattice"``: evenly, by a lattice that is shifted at
        random for each row (:class:`~pyro_silent.estimators.point_set.LatticePoints`), and at
        temperatures up to 1/3 with a control variate of known mean; both leave the mean as it is and take
        away most of what K draws leave of the variance. ``"independent"``: plain Monte Carlo, as in the
        paper.
    :raises ConfigurationError: see :class:`Estimator`; for ``num_gumbels=None`` and more than two
        categories.

    Example::

        >>> import torch
        >>> from pyro_silent import GumbelRao
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> GumbelRao(temperature=1.0, num_gumbels=None).bernoulli(logits).sum().backward()
        >>> logits.grad
        tensor([0.1667, 0.1667, 0.1667])
    """

    def __init__(
        self,
        temperature: Temperature = 1.0,
        num_gumbels: int | None = 100,
        *,
        points: str = "lattice",
    ) -> None:
        super().__init__(temperature)
        if num_gumbels is not None and (
            isinstance(num_gumbels, bool) or not isinstance(num_gumbels, int) or num_gumbels < 1
        ):
            raise ConfigurationError(
                f"num_gumbels: got {num_gumbels!r}, expected an integer >= 1, or None for the exact "
                "expectation of binary variables."
            )
        if points not in POINT_SETS:
            raise ConfigurationError(
                f"points: got {points!r}, expected one of {', '.join(map(repr, POINT_SETS))}."
            )
        self.num_gumbels = num_gumbels
        self.points = points
        self._draws_in_backward = num_gumbels is not None

    def _draw_one_hot(self, log_probs: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        if self.num_gumbels is None and log_probs.shape[-1] > 2:
            raise ConfigurationError(
                f"num_gumbels: got None for {log_probs.shape[-1]} categories, expected at most 2, where "
                "the expectation is known; write num_gumbels=100."
            )
        return super()._draw_one_hot(log_probs, temperature)

    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        num_categories = draw.log_probs.shape[-1]
        if num_categories == 1:
            return torch.zeros_like(gradient)
        if num_categories > 2 and self.num_gumbels is not None:
            settings = (temperature, self.num_gumbels, self.points)
            if isinstance(draw.seed, Tensor):
                law = (draw.log_probs, draw.hard, gradient)
                product: Tensor = traced_one_hot_product(*law, *settings, draw.seed)
                return product
            return one_hot_product(draw.log_probs, draw.hard, gradient, *settings, draw.generator())
        log_odds = (draw.log_probs[..., 0] - draw.log_probs[..., 1]) * (2 * draw.hard[..., 0] - 1)
        derivative = self._derivative(log_odds, draw, temperature)
        product = weigh(derivative, gradient[..., 0] - gradient[..., 1])
        return torch.stack([product, -product], -1)

    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        log_odds = draw.log_probs * (2 * draw.hard - 1)
        return weigh(self._derivative(log_odds, draw, temperature), gradient)

    def _derivative(self, log_odds: Tensor, draw: Draw, temperature: float) -> Tensor:
        """E[s (1 - s) / tau], given that a value with these log odds was drawn."""
        if self.num_gumbels is None:
            return binary_derivative(log_odds, temperature)
        settings = (temperature, self.num_gumbels, self.points)
        if isinstance(draw.seed, Tensor):
            derivative: Tensor = traced_bernoulli_derivative(log_odds, *settings, draw.seed)
            return derivative
        return bernoulli_derivative(log_odds, *settings, draw.generator())
