"""Estimator: what every gradient estimator of a discrete variable has in common."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributions import Distribution

from pyro_silent.errors import ConfigurationError
from pyro_silent.estimators.surrogate import Draw, Surrogate, new_seed, work_dtype

Temperature: TypeAlias = float | Callable[[int], float]


class Estimator(ABC):
    r"""A sample of a discrete variable whose backward pass is a surrogate gradient.

    For logits :math:`\theta`, a sample :math:`D \sim \mathrm{softmax}(\theta)` is drawn and handed on;
    given :math:`v = \partial f / \partial D`, the backward pass returns :math:`J v` with a matrix
    :math:`J` that may depend on :math:`\theta`, :math:`D` and the noise that decided. The estimators
    differ in :math:`J` alone, so with one seed all of them return the same first hard sample. What they
    estimate is the gradient of :math:`E[f(D)]`; most are biased, each says how.

    A subclass supplies the two products :math:`J v`, :meth:`_one_hot_gradient` and
    :meth:`_bernoulli_gradient`; these two laws hold for each:

    * ``bernoulli(logits)`` is the first entry of ``one_hot`` at the logits ``(logit, 0)``, in value
      and in gradient;
    * the products are given a gradient that is 0 at masked categories (logit ``-inf``), and return 0
      there; a category whose weight has underflowed to 0 is not counted (:func:`weigh`).

    An argument of the constructor is kept in the attribute of its name. Estimators have no state:
    the step of a schedule is passed in.

    :param temperature: a number > 0, or a callable from the step to one, such as a schedule.
    :raises ConfigurationError: for an argument that makes no sense, for logits that are NaN, ``+inf`` or
        all ``-inf`` (while torch.distributions validates arguments), and for a schedule's bad result.
    """

    _keeps_noise: ClassVar[bool] = False
    _draws_in_backward: bool = False
    _expected_temperature: ClassVar[str] = "a finite number > 0"

    def __init__(self, temperature: Temperature = 1.0) -> None:
        if not callable(temperature):
            self._check_temperature(temperature, "")
        self.temperature = temperature

    # -- for everyone ------------------------------------------------------------------------------

    def one_hot(self, logits: Tensor, *, step: int = 0) -> Tensor:
        """A one-hot sample along the last dim, which carries the surrogate gradient to ``logits``.

        :param Tensor logits: shape ``[*, n]``, floating, not necessarily normalised; ``-inf`` masks a
            category.
        :param int step: what a temperature schedule is called with.
        :return: shape and dtype of ``logits``.
        """
        temperature = self.temperature_at(step)
        _check_logits(logits)
        if logits.dim() == 0 or logits.shape[-1] == 0:
            raise ConfigurationError(
                f"logits: got shape {tuple(logits.shape)}, expected at least one category along the last "
                "dim; for a single 0/1 variable write bernoulli(logits)."
            )
        _check_values(logits, one_hot=True)
        return self._sample(
            logits, _log_softmax, self._draw_one_hot, self._one_hot_gradient, temperature
        )

    def bernoulli(self, logits: Tensor, *, step: int = 0) -> Tensor:
        """A 0/1 sample of every element, which carries the surrogate gradient to ``logits``.

        :param Tensor logits: log odds of 1, any shape, floating; ``-inf`` means always 0.
        :param int step: what a temperature schedule is called with.
        :return: shape and dtype of ``logits``.
        """
        temperature = self.temperature_at(step)
        _check_logits(logits)
        _check_values(logits, one_hot=False)
        return self._sample(
            logits, _unchanged, self._draw_bernoulli, self._bernoulli_gradient, temperature
        )

    def temperature_at(self, step: int) -> float:
        """The temperature in use at ``step``."""
        if not callable(self.temperature):
            return float(self.temperature)
        value = self.temperature(step)
        self._check_temperature(value, f" from {self.temperature!r} at step {step}")
        return float(value)

    def __repr__(self) -> str:
        names = inspect.signature(type(self)).parameters
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"

    # -- for subclasses ----------------------------------------------------------------------------

    @abstractmethod
    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        """The surrogate Jacobian times ``gradient``, of shape ``[*, n]``."""

    @abstractmethod
    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        """The surrogate derivative in the log odds times ``gradient``, elementwise."""

    def _draw_one_hot(self, log_probs: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """A value and the perturbed log probabilities that decided it (Gumbel-max)."""
        perturbed = exponential_like(log_probs).log_().neg_().add_(log_probs)
        index = perturbed.argmax(-1, keepdim=True)
        return torch.zeros_like(perturbed).scatter_(-1, index, 1.0), perturbed

    def _draw_bernoulli(self, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """A value and the perturbed logits that decided it."""
        perturbed = logistic_like(logits).add_(logits)
        return (perturbed > 0).to(logits.dtype), perturbed

    def _sample(
        self,
        logits: Tensor,
        normalise: Callable[[Tensor], Tensor],
        draw: Callable[[Tensor, float], tuple[Tensor, Tensor]],
        product: Callable[[Draw, Tensor, float], Tensor],
        temperature: float,
    ) -> Tensor:
        if not (torch.is_grad_enabled() and logits.requires_grad):
            value, _ = draw(normalise(work_dtype(logits)), temperature)
            if self._draws_in_backward:
                new_seed(logits)  # what follows is drawn alike with and without gradients
            return value.to(logits.dtype)
        sample: Tensor = Surrogate.apply(
            logits,
            normalise,
            draw,
            product,
            temperature,
            self._keeps_noise,
            self._draws_in_backward,
        )
        return sample

    def _check_temperature(self, value: Any, origin: str) -> None:
        if isinstance(value, Real) and not isinstance(value, bool) and self._admits(float(value)):
            return
        raise ConfigurationError(
            f"temperature: got {value!r}{origin}, expected {self._expected_temperature}"
            f"{'' if origin else ', or a callable from the step to one'}."
        )

    def _admits(self, temperature: float) -> bool:
        return 0 < temperature < math.inf


# -- parts that estimators share -------------------------------------------------------------------


def uniform_like(tensor: Tensor) -> Tensor:
    """Uniform noise inside (0, 1)."""
    noise = torch.rand_like(tensor, memory_format=torch.contiguous_format)
    return noise.clamp_min_(torch.finfo(tensor.dtype).tiny)


def exponential_like(tensor: Tensor) -> Tensor:
    """Exponential noise that is neither 0 nor infinite, so that its logarithm is finite."""
    # on a CPU five times as fast as Tensor.exponential_, whose 0 would have to be replaced as well
    return uniform_like(tensor).log_().neg_()


def logistic_like(tensor: Tensor) -> Tensor:
    """Logistic noise, finite: a Bernoulli draw is ``logits + noise > 0``."""
    uniform = uniform_like(tensor)
    return torch.log1p(-uniform).sub_(uniform.log_())


def weigh(weights: Tensor, gradient: Tensor) -> Tensor:
    """``weights * gradient``, where weight 0 wins over a gradient that is infinite or NaN."""
    return torch.where(weights == 0, 0.0, weights * gradient)


def covariance_product(weights: Tensor, gradient: Tensor) -> Tensor:
    """(diag(s) - s s') v along the last dim, for s = ``weights`` and v = ``gradient``."""
    weighted = weigh(weights, gradient)
    return weighted - weights * weighted.sum(-1, keepdim=True)


def softmax_product(scores: Tensor, gradient: Tensor, temperature: float) -> Tensor:
    """The Jacobian of softmax(x / temperature) at x = ``scores``, times ``gradient``."""
    return covariance_product(torch.softmax(scores / temperature, -1), gradient) / temperature


def sigmoid_product(scores: Tensor, gradient: Tensor, temperature: float) -> Tensor:
    """The derivative of sigmoid(x / temperature) at x = ``scores``, times ``gradient``."""
    scaled = scores / temperature
    return weigh(torch.sigmoid(scaled) * torch.sigmoid(-scaled), gradient) / temperature


# -- logits --------------------------------------------------------------------------------------


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1)


def _unchanged(logits: Tensor) -> Tensor:
    return logits


def _check_logits(logits: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise ConfigurationError(
            f"logits: got {type(logits).__name__}, expected a floating-point tensor; write "
            "torch.tensor(...)."
        )
    if not logits.is_floating_point():
        raise ConfigurationError(
            f"logits: got dtype {logits.dtype}, expected a floating-point tensor; write "
            "logits.float()."
        )


def _check_values(logits: Tensor, *, one_hot: bool) -> None:
    """Refuse logits that are the logits of no law; costs a device synchronisation."""
    if not Distribution._validate_args or logits.is_meta or isinstance(logits, FakeTensor):
        return
    # the largest of a row is NaN, +inf or -inf exactly if the row is at fault
    values = logits.detach().amax(-1) if one_hot else logits.detach()
    if not (values < math.inf).all():
        raise ConfigurationError(
            "logits: got NaN or +inf, expected finite values or -inf (a masked category); look upstream "
            "for where they come from."
        )
    if one_hot and not (values > -math.inf).all():
        raise ConfigurationError(
            "logits: got a row whose categories are all masked (-inf), expected at least one category "
            "that can occur."
        )
