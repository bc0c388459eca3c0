"""Schedules: numbers that change with the step, for weights and temperatures.

A schedule is any callable from the step, counted from 0, to a number; those here are validated, print
what they do, compare equal by their arguments and draw themselves.

A hard step is a ramp of one step: ``Linear(1.0, 0.0, num_steps=1, hold=n)`` is 1 up to step ``n`` and 0
from step ``n + 1`` on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from typing import ClassVar

from pyro_silent.errors import ConfigurationError
from pyro_silent.figures import draw_lines

__all__ = ["Constant", "Cosine", "Exponential", "Linear", "Schedule"]

_POINTS_DRAWN = 500
_CONSTANT_STEPS_DRAWN = 100


class Schedule(ABC):
    """A number for each step.

    ``repr`` can be typed back, ``str`` says in words what the schedule does.
    """

    def __call__(self, step: int) -> float:
        """The number at ``step``.

        :param int step: counted from 0.
        :raises ConfigurationError: unless ``step`` is an integer >= 0.
        """
        _check_count("step", step, least=0)
        return self._at(step)

    def plot(self, path: str | PathLike[str], num_steps: int | None = None) -> None:
        """Draw the numbers of steps 0 to ``num_steps`` to a file.

        Needs matplotlib, which ``pip install "pyro_silent[examples]"`` brings; its global state
        (backend, open figures) is left alone.

        :param path: the file; its suffix chooses the format: png, svg, pdf.
        :param int num_steps: the last step drawn, >= 1; by default a little after the last change.
        :raises ConfigurationError: for another ``num_steps``.
        :raises ImportError: where matplotlib is not installed.
        """
        changes = self._changes()
        if num_steps is None:
            num_steps = math.ceil(1.1 * changes[-1]) if changes else _CONSTANT_STEPS_DRAWN
        _check_count("num_steps", num_steps, least=1)
        shown = min(num_steps, _POINTS_DRAWN)
        even = {round(num_steps * i / shown) for i in range(shown + 1)}
        # the corners are drawn where they are, however far the points are apart
        steps = sorted(even | {step for step in changes if step <= num_steps})
        draw_lines(
            path, {repr(self): (steps, [self(step) for step in steps])}, x="step", title=str(self)
        )

    @abstractmethod
    def _at(self, step: int) -> float:
        """The number at a step that was checked."""

    @abstractmethod
    def _changes(self) -> Sequence[int]:
        """The steps where a change begins and ends."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same number at every step.

    :param float w: the number, finite.
    :raises ConfigurationError: for anything else.

    Example::

        >>> from pyro_silent import Constant
        >>> Constant(0.5)(1000)
        0.5
        >>> print(Constant(0.5))
        0.5 at every step
    """

    w: float

    def __post_init__(self) -> None:
        _check_number("w", self.w)

    def __str__(self) -> str:
        return f"{self.w:g} at every step"

    def _at(self, step: int) -> float:
        return float(self.w)

    def _changes(self) -> Sequence[int]:
        return ()


@dataclass(frozen=True)
class _Ramp(Schedule):
    """``start`` for the first ``hold`` steps and the one after, ``stop`` from ``hold + num_steps`` on."""

    start: float
    stop: float
    num_steps: int
    hold: int = 0

    _way: ClassVar[str]

    def __post_init__(self) -> None:
        _check_number("start", self.start)
        _check_number("stop", self.stop)
        _check_count("num_steps", self.num_steps, least=1)
        _check_count("hold", self.hold, least=0)

    def __str__(self) -> str:
        begin, end = self._changes()
        if self.num_steps == 1:
            return f"{self.start:g} up to step {begin}, {self.stop:g} from step {end} on"
        held = f"{self.start:g} up to step {begin}, then " if begin else f"from {self.start:g} "
        return f"{held}{self._way} to {self.stop:g} at step {end}"

    def _at(self, step: int) -> float:
        fraction = (step - self.hold) / self.num_steps
        if fraction <= 0:
            return float(self.start)
        if fraction >= 1:
            return float(self.stop)
        # rounding leads out of the range no more than the formula does
        low, high = sorted((float(self.start), float(self.stop)))
        return min(max(low, float(self._between(fraction))), high)

    def _changes(self) -> Sequence[int]:
        return (self.hold, self.hold + self.num_steps)

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
        >>> print(weight)
        1 up to step 2, then in a straight line to 0 at step 6
        >>> switch = Linear(1.0, 0.0, num_steps=1, hold=2)  # a hard step
        >>> [switch(step) for step in range(5)]
        [1.0, 1.0, 1.0, 0.0, 0.0]
    """

    _way = "in a straight line"

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

    _way = "along half a cosine wave"

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

    _way = "at a constant ratio per step"

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
