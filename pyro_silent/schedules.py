"""Schedules: numbers that change with the step, for weights and temperatures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral, Real

from pyro_silent.errors import ConfigurationError

__all__ = ["Constant", "Cosine", "Exponential", "Linear"]


@dataclass(frozen=True)
class Constant:
    """The same number at every step.

    :param float w: the number, finite.
    :raises ConfigurationError: for anything else.

    Example::

        >>> from pyro_silent import Constant
        >>> Constant(0.5)(1000)
        0.5
    """

    w: float

    def __post_init__(self) -> None:
        _check_number("w", self.w)

    def __call__(self, step: int) -> float:
        """The number."""
        return float(self.w)


@dataclass(frozen=True)
class _Ramp(ABC):
    """``start`` for the first ``hold`` steps and the one after, ``stop`` from ``hold + num_steps`` on."""

    start: float
    stop: float
    num_steps: int
    hold: int = 0

    def __post_init__(self) -> None:
        _check_number("start", self.start)
        _check_number("stop", self.stop)
        _check_count("num_steps", self.num_steps, least=1)
        _check_count("hold", self.hold, least=0)

    def __call__(self, step: int) -> float:
        """The number at ``step``, counted from 0."""
        fraction = (step - self.hold) / self.num_steps
        if fraction <= 0:
            return float(self.start)
        if fraction >= 1:
            return float(self.stop)
        # rounding leads out of the range no more than the formula does
        low, high = sorted((float(self.start), float(self.stop)))
        return min(max(low, float(self._between(fraction))), high)

    @abstractmethod
    def _between(self, fraction: float) -> float:
        """The number where ``fraction`` of ``num_steps`` has passed."""


class Linear(_Ramp):
    r"""A straight line from ``start`` to ``stop``.

    .. math::
        w(t) = a + (b - a) u, \qquad u = \mathrm{clip}((t - \text{hold}) / \text{num\_steps}, 0, 1)

    :param float start: the number a until step ``hold``.
    :param float stop: the number b from step ``hold + num_steps`` on.
    :param int num_steps: how many steps the change takes, >= 1.
    :param int hold: how many steps pass before it begins, >= 0.
    :raises ConfigurationError: for an argument out of its range.

    Example::

        >>> from pyro_silent import Linear
        >>> weight = Linear(1.0, 0.0, num_steps=4, hold=2)
        >>> [weight(step) for step in range(8)]
        [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    def _between(self, fraction: float) -> float:
        return self.start + (self.stop - self.start) * fraction


class Cosine(_Ramp):
    r"""Half a cosine wave from ``start`` to ``stop``: level at both ends.

    .. math::
        w(t) = b + (a - b) (1 + \cos \pi u) / 2, \qquad
        u = \mathrm{clip}((t - \text{hold}) / \text{num\_steps}, 0, 1)

    :param float start: the number a until step ``hold``.
    :param float stop: the number b from step ``hold + num_steps`` on.
    :param int num_steps: how many steps the change takes, >= 1.
    :param int hold: how many steps pass before it begins, >= 0.
    :raises ConfigurationError: for an argument out of its range.

    Source of the shape: Loshchilov and Hutter 2017, "SGDR", arXiv 1608.03983.

    Example::

        >>> from pyro_silent import Cosine
        >>> [round(Cosine(1.0, 0.0, num_steps=4)(step), 3) for step in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
    """

    def _between(self, fraction: float) -> float:
        return self.stop + (self.start - self.stop) * (1 + math.cos(math.pi * fraction)) / 2


class Exponential(_Ramp):
    r"""A constant ratio per step from ``start`` to ``stop``: the usual way to cool a temperature.

    .. math::
        w(t) = a (b / a)^u, \qquad u = \mathrm{clip}((t - \text{hold}) / \text{num\_steps}, 0, 1)

    :param float start: the number a > 0 until step ``hold``.
    :param float stop: the number b > 0 from step ``hold + num_steps`` on.
    :param int num_steps: how many steps the change takes, >= 1.
    :param int hold: how many steps pass before it begins, >= 0.
    :raises ConfigurationError: for an argument out of its range.

    Example::

        >>> from pyro_silent import Exponential, GumbelSoftmax
        >>> cooling = Exponential(1.0, 0.25, num_steps=2)
        >>> [cooling(step) for step in range(4)]
        [1.0, 0.5, 0.25, 0.25]
        >>> GumbelSoftmax(cooling).temperature_at(1)
        0.5
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for argument in ("start", "stop"):
            if getattr(self, argument) <= 0:
                raise ConfigurationError(
                    f"{argument}: got {getattr(self, argument)!r}, expected a number > 0, since a "
                    "constant ratio reaches neither 0 nor the other sign; write Linear or Cosine."
                )

    def _between(self, fraction: float) -> float:
        # a power of each, because the ratio of the two may overflow
        return self.start ** (1 - fraction) * self.stop**fraction


def _check_number(argument: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigurationError(f"{argument}: got {value!r}, expected a finite number.")


def _check_count(argument: str, value: object, *, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{argument}: got {value!r}, expected an integer >= {least}.")
