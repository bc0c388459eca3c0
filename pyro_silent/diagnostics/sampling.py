"""Gradients of a loss, drawn as often as it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pyro_silent.diagnostics.gradient_moments import GradientMoments
from pyro_silent.diagnostics.gradient_sampler import GradientSample
from pyro_silent.diagnostics.running import Running

_SAMPLES_OF_CONSTANTS = 10
"""Of a loss that draws no random numbers: programs may have other sources."""


class Sampled(NamedTuple):
    """What samples of a loss showed beside the moments of its gradient.

    :ivar loss: moments of its value.
    :ivar exact: whether it comes to the same result every time, and by no accident.
    """

    loss: Running
    exact: bool


def draw_samples(
    draw: Callable[[], GradientSample],
    moments: GradientMoments,
    num_samples: int,
    explained: Callable[[], bool],
    *,
    before: Callable[[], None] | None = None,
    drawn: Callable[[], object] = lambda: None,
) -> Sampled:
    """Draw gradients and add them to the moments; 10 of a loss that draws no random numbers.

    :param explained: whether the loss is known to sample nothing, asked where all samples were the same
        though random numbers were drawn: programs may draw some that have no effect, such as initial
        values of parameters that have their values.
    :param before: called before each sample but the first; then there is no early end.
    :param drawn: called after each sample.
    """
    loss, equal, drew = Running(), True, False
    for index in range(num_samples):
        if index > 0 and before is not None:
            before()
        sample = draw()
        moments.add(sample.gradient)
        loss.add(np.array([sample.loss]))
        drew |= sample.drew
        del sample  # the next one takes its place in memory
        drawn()
        equal = equal and moments.are_equal and loss.is_constant
        enough = loss.count == _SAMPLES_OF_CONSTANTS and before is None
        if equal and not drew and enough:
            break
    return Sampled(loss, equal and (not drew or explained()))
