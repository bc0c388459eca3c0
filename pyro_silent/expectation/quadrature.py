"""Expectations of any smooth function of one or two Gaussian scalars per element, by quadrature.

The rule is the trapezoidal one with Gaussian weights, on equally spaced nodes around the mean:

    E[f(mean + std e)] ~ sum_j w_j f(mean + std z_j),   z_j = j h,   w_j proportional to exp(-z_j^2 / 2).

For a function whose nearest pole is at the distance ``a`` its error is ``exp(-2 pi a / (std h))``. At 32
nodes that is what the Gauss-Hermite rule of 32 nodes has; with more nodes it falls with their
number instead of its root, old nodes stay nodes when the step is halved, and the differences
between three steps tell the error. So the count is chosen while summing. From ``points`` on, the
step is halved until that changes the result by less than 1e-6 and the rate of convergence leaves an
error below 1e-9, both relative to E|f| (in single precision 1e-5 and 2e-6); and the range is widened
where the outermost nodes still count, as they do for exponentials. Where the most nodes allowed
leave a change above 1e-6 (1e-5), a :class:`QuadratureWarning` says so: for functions with kinks, whose
error falls only with the square of the step, and for std far above the distance of a pole.

The nodes cannot see waves that fit between them: sin(w x) with ``w std`` above 10 looks like a slower
one at times. (By itself it has a closed expectation.)

An element much smaller than the others (E|f| below 1e-3 of their mean) is held to the accuracy of
one that is not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_silent.constants import constant
from pyro_silent.errors import QuadratureWarning
from pyro_silent.expectation.method import note
from pyro_silent.expectation.nodes import Check, checks_of, grid_of
from pyro_silent.looking import Decision, can_look

__all__ = ["can_look", "expect", "integrate"]

_MOST_NODES = {1: 1100, 2: 16000}  # per element, by number of scalars
_MOST_VALUES = 2**26  # nodes times elements, beyond the first count


def expect(
    function: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor, points: int = 32
) -> Tensor:
    r"""``E[function(x)]`` for ``x ~ N(mean, std^2)``, elementwise and differentiable.

    ``function`` maps a tensor of shape ``[n, *shape]``, ``n`` nodes for each element of the broadcast
    ``mean`` and ``std``, to one of the same shape; it is called again, with other ``n``, where more
    nodes are needed. See :func:`integrate` for cost and accuracy.

    >>> expect(torch.nn.functional.softplus, torch.tensor(0.0), torch.tensor(1.0)).item()
    0.806...
    """
    mean, std = torch.broadcast_tensors(mean, std)
    return integrate(lambda axes: function(mean + std * axes[0]), 1, mean, mean.dim(), points)


def integrate(
    at: Callable[[Sequence[Tensor]], Tensor],
    scalars: int,
    like: Tensor,
    num_dims: int,
    points: int = 32,
) -> Tensor:
    """``E[at(e)]`` for one or two independent N(0, 1) ``scalars``, shared by all elements of the result.

    ``at`` maps ``scalars`` tensors of nodes, each of shape ``[n, 1, ..., 1]`` with ``num_dims`` ones and
    of the dtype and device of ``like``, to the values there, ``[n, *shape]``. Cost: ``n`` evaluations per
    element, at least ``points`` and at most 1100 for one scalar; for two, a grid that starts with half
    of ``points`` along each axis and has at most 16000 nodes. More than 2^26 values are not held for
    the sake of accuracy. Accuracy is looked after as the module says, except where values cannot be
    looked at (under ``torch.compile``, ``make_fx``, ``vmap``, CUDA graph capture or on fake tensors):
    there the count that the loss took last is taken again, else the first one, and nothing is
    checked. Gradients are those of the sum.
    """
    double = like.dtype == torch.float64
    enough, claimed = (1e-9, 1e-6) if double else (2e-6, 1e-5)
    widest = 36.0 if double else 12.0
    start = points if scalars == 1 else max(points // 2, 8)
    grid = grid_of(start, scalars, ())
    values: list[Tensor] = []
    decision: Decision | None = None
    while True:
        axes = constant(like, _new_nodes, start, scalars, grid.path)
        count = grid.new.shape[1]
        value = at([axis.reshape(-1, *[1] * num_dims) for axis in axes])
        values.append(value.expand(count, *value.shape[1:]))
        if decision is None:
            decision = Decision("grid", value)
        if not decision.looks:
            path, certain = decision.answer or ((), False)
            if len(grid.path) < len(path):
                grid = grid_of(start, scalars, path[: len(grid.path) + 1])
                continue
            if certain and decision.can_be_verified:
                checks = checks_of(start, scalars, grid.path, value.dtype, like.device)
                decision.verify(~(_errors(checks, values).amax() > claimed))
            break
        checks = checks_of(start, scalars, grid.path, value.dtype, like.device)
        change, error, tail = _errors(checks, values).tolist()
        if tail > enough and grid.reach < widest:
            following = (*grid.path, "wider")
        elif not (change <= claimed and error <= enough):
            following = (*grid.path, "finer")
        else:
            break
        most = min(_MOST_NODES[scalars], _MOST_VALUES // max(value[0].numel(), 1))
        if not math.isfinite(change + tail) or grid_of(start, scalars, following).num_nodes > most:
            if not (change <= claimed and tail <= claimed):
                text = _warning(grid.num_nodes, max(change, tail))
                warnings.warn(text, QuadratureWarning, stacklevel=2)
            break
        grid = grid_of(start, scalars, following)
    if decision.looks:
        decision.keep((grid.path, change <= claimed and tail <= claimed))
    note(f"quadrature({grid.num_nodes})")
    weights = constant(values[0], _weights, start, scalars, grid.path)
    total = torch.tensordot(weights[: len(values[0])], values[0], 1)
    done = len(values[0])
    for value in values[1:]:
        total = total + torch.tensordot(weights[done : done + len(value)], value, 1)
        done += len(value)
    return total


def _new_nodes(points: int, scalars: int, path: tuple[str, ...]) -> np.ndarray:
    return grid_of(points, scalars, path).new


def _weights(points: int, scalars: int, path: tuple[str, ...]) -> np.ndarray:
    return grid_of(points, scalars, path).rules[0]


@torch.no_grad()
def _errors(checks: Sequence[Check], values: Sequence[Tensor]) -> Tensor:
    """How much the last halving changed, and estimated errors of the step and of the range.

    All relative to E|f|, the largest of all elements.
    """
    if values[0].numel() == 0:
        return values[0].new_zeros(3)
    sums = sizes = None
    for check, value in zip(checks, values):
        flat = value.reshape(len(value), -1)
        part = check.rules @ flat, check.sizes @ flat[check.rows].abs()
        sums = part[0] if sums is None else sums + part[0]
        sizes = part[1] if sizes is None else sizes + part[1]
    assert sums is not None and sizes is not None
    tiny = torch.finfo(sums.dtype).tiny
    fine, middle, coarse = sums.reshape(3, len(sums) // 3, -1)
    scale = torch.maximum(sizes[0], fine[0].abs())
    scale = torch.maximum(scale, 1e-3 * scale.mean()).clamp_min_(tiny)
    now, before = (fine - middle).abs_().sum(0), (middle - coarse).abs_().sum(0)
    # Going on at the rate seen: right for kinks, pessimistic for analytic functions.
    step = now * now / torch.maximum(now, before).clamp_min_(tiny)
    return torch.stack([now, step, sizes[1]]).div_(scale).amax(1)


def _warning(count: int, change: float) -> str:
    return (
        f"an expectation found by quadrature with {count} nodes is uncertain by a relative {change:.0e}: "
        "the function has a kink, or a pole that is near the mean in units of the standard deviation. "
        "Write it with functions of closed expectation (abs, relu, clamp ...), or make the initial "
        "scale of the guide smaller."
    )
