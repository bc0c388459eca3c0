"""Expectations of any smooth function of one or two Gaussian scalars per element, by quadrature.

The rule is the trapezoidal one with Gaussian weights, on equally spaced nodes around the mean:

    E[f(mean + std e)] ~ sum_j w_j f(mean + std z_j),   z_j = j h,   w_j proportional to exp(-z_j^2 / 2).

For a function whose nearest pole is at the distance ``a`` its error is ``exp(-2 pi a / (std h))``. At 32
nodes that is what the Gauss-Hermite rule of 32 nodes has; with more nodes it falls with their
number instead of its root, old nodes stay nodes when the step is halved, and the differences
between three steps tell the error. So the count is chosen while summing: from ``points`` on, the step
is halved until the estimated error relative to E|f| is below 1e-9 (in single precision 2e-6), and
the range is widened where the outermost nodes still count, as they do for exponentials. Where the
most nodes allowed leave more than 1e-6 (1e-5), a :class:`QuadratureWarning` says so: for functions
with kinks, whose error falls only with the square of the step, and for std far above the distance
of a pole.

An element much smaller than the others (E|f| below 1e-3 of their mean) is held to the accuracy of
one that is not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_silent.expectation.method import note

__all__ = ["QuadratureWarning", "can_look", "expect", "expect_pair", "integrate", "standard_nodes"]

_MOST_NODES = {1: 700, 2: 4000}  # per element, by number of scalars
_REACH = 8.5  # standard deviations covered at first: beyond is a probability of 2e-17


class QuadratureWarning(UserWarning):
    """An expectation found by quadrature is not known to be accurate to a relative error of 1e-6."""


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


def expect_pair(
    function: Callable[[Tensor, Tensor], Tensor],
    means: tuple[Tensor, Tensor],
    stds: tuple[Tensor, Tensor],
    covariance: Tensor,
    points: int = 32,
) -> Tensor:
    """``E[function(x, y)]`` for jointly Gaussian scalars ``x`` and ``y``, elementwise and differentiable.

    As :func:`expect`, on a grid of nodes in the plane. A full correlation is taken for one of
    1 - 1e-12 (in single precision 1 - 2e-6), which keeps the gradients finite.
    """
    first, second, std, other, covariance = torch.broadcast_tensors(*means, *stds, covariance)
    known = std > 0
    slope = torch.where(known, covariance / torch.where(known, std, 1.0), 0.0)
    least = torch.finfo(std.dtype).eps ** 0.75 * other * other
    left = torch.maximum(other * other - slope * slope, least)
    uncertain = left > 0
    rest = torch.where(uncertain, torch.where(uncertain, left, 1.0).sqrt(), 0.0)

    def at(axes: Sequence[Tensor]) -> Tensor:
        return function(first + std * axes[0], second + slope * axes[0] + rest * axes[1])

    return integrate(at, 2, first, first.dim(), points)


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
    element, at least ``points`` and at most 700 for one scalar; for two, a grid that starts with half of
    ``points`` along each axis, and at most 4000 nodes. Accuracy is looked after as the module says,
    except where values cannot be looked at (under ``torch.compile``, ``make_fx``, ``vmap``, CUDA
    graph capture or on fake tensors): there the first count is taken and nothing is checked.
    Gradients are those of the sum.
    """
    double = like.dtype == torch.float64
    enough, claimed = (1e-9, 1e-6) if double else (2e-6, 1e-5)
    widest = 36.0 if double else 12.0
    start = points if scalars == 1 else max(points // 2, 8)
    grid = _grid(start, scalars, "")
    values: list[Tensor] = []
    while True:
        axes = torch.as_tensor(grid.new, dtype=like.dtype, device=like.device)
        count = grid.new.shape[1]
        value = at([axis.reshape(-1, *[1] * num_dims) for axis in axes])
        values.append(value.expand(count, *value.shape[1:]))
        if not can_look(value):
            break
        error, tail = _errors(grid, values)
        if tail > enough and grid.reach < widest:
            following = grid.path + "wider "
        elif not error <= enough:
            following = grid.path + "finer "
        else:
            break
        if (
            not math.isfinite(error + tail)
            or _grid(start, scalars, following).num_nodes > _MOST_NODES[scalars]
        ):
            worst = max(error, tail)
            if not worst <= claimed:
                warnings.warn(_warning(grid.num_nodes, worst), QuadratureWarning, stacklevel=2)
            break
        grid = _grid(start, scalars, following)
    note(f"quadrature({grid.num_nodes})")
    weights = torch.as_tensor(grid.rules[0], dtype=like.dtype, device=like.device)
    total = torch.tensordot(weights[: len(values[0])], values[0], 1)
    done = len(values[0])
    for value in values[1:]:
        total = total + torch.tensordot(weights[done : done + len(value)], value, 1)
        done += len(value)
    return total


def standard_nodes(
    points: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Nodes and weights, each ``[points]``, of a fixed rule for the expectation under N(0, 1)."""
    # few nodes: balance the step against the tail that is cut off
    reach = min(max(_REACH, 8.0 + points / 64), math.sqrt(math.pi * points))
    nodes = np.linspace(-reach, reach, points)
    weights = np.exp(-0.5 * nodes**2)
    return (
        torch.as_tensor(nodes, dtype=dtype, device=device),
        torch.as_tensor(weights / weights.sum(), dtype=dtype, device=device),
    )


class _Grid(NamedTuple):
    """Nodes so far: ``path`` says how they came about, ``new`` are those of the last step."""

    path: str
    step: float
    reach: float
    nodes: np.ndarray  # [scalars, count]
    new: np.ndarray
    rules: np.ndarray  # [3, count]: weights for one, two and four times the step
    outer: np.ndarray  # [count]: the outermost ones

    @property
    def num_nodes(self) -> int:
        return self.nodes.shape[1]


@lru_cache(maxsize=128)
def _grid(points: int, scalars: int, path: str) -> _Grid:
    if not path:
        number = max(points // 2, 2)
        # few nodes: balance the step against the tail that is cut off
        reach = min(_REACH, math.sqrt(math.pi * (2 * number + 1)))
        step = reach / number
        nodes = new = _ball(step, reach, scalars)
    else:
        *before, last = path.split()
        old = _grid(points, scalars, "".join(word + " " for word in before))
        if last == "finer":
            step, reach = old.step / 2, old.reach
            candidates = _ball(step, reach, scalars)
            new = candidates[:, (np.rint(candidates / step) % 2 == 1).any(0)]
        else:
            step, reach = old.step, old.reach + math.ceil(0.5 * _REACH / old.step) * old.step
            candidates = _ball(step, reach, scalars)
            new = candidates[:, np.linalg.norm(candidates, axis=0) >= old.reach + 0.5 * step]
        nodes = np.concatenate([old.nodes, new], axis=1)
    index = np.rint(nodes / step)
    density = np.exp(-0.5 * (nodes**2).sum(0))
    rules = np.stack([density * (index % 2**level == 0).all(0) for level in range(3)])
    rules /= rules.sum(-1, keepdims=True)
    outer = np.linalg.norm(nodes, axis=0) > reach - 0.5 * step
    return _Grid(path, step, reach, nodes, new, rules, outer)


def _ball(step: float, reach: float, scalars: int) -> np.ndarray:
    """All nodes ``[scalars, count]`` of the grid that are not further out than ``reach``."""
    number = round(reach / step)
    axis = np.arange(-number, number + 1) * step
    nodes = np.stack([side.ravel() for side in np.meshgrid(*[axis] * scalars, indexing="ij")])
    return nodes[:, np.linalg.norm(nodes, axis=0) < reach + 0.5 * step]


@torch.no_grad()
def _errors(grid: _Grid, values: Sequence[Tensor]) -> tuple[float, float]:
    """Estimated errors of the step and of the range, relative to E|f|, the largest of all elements."""
    like = values[0]
    if like.numel() == 0:
        return 0.0, 0.0
    rules = torch.as_tensor(grid.rules, dtype=like.dtype, device=like.device)
    sums = like.new_zeros(3, like[0].numel())
    scale, tail = torch.zeros_like(sums[0]), torch.zeros_like(sums[0])
    done = 0
    for value in values:
        part = slice(done, done + len(value))
        done += len(value)
        flat = value.reshape(len(value), -1)
        sums.addmm_(rules[:, part], flat)
        scale += _absolute_sum(flat, rules[2, part], np.flatnonzero(grid.rules[2, part]))
        tail += _absolute_sum(flat, rules[0, part], np.flatnonzero(grid.outer[part]))
    tiny = torch.finfo(like.dtype).tiny
    scale = torch.maximum(scale, sums[0].abs())
    scale = torch.maximum(scale, 1e-3 * scale.mean()).clamp_min(tiny)
    now, before = (sums[0] - sums[1]).abs(), (sums[1] - sums[2]).abs()
    # Going on at the rate seen: right for kinks, pessimistic for analytic functions.
    step = now * now / torch.maximum(now, before).clamp_min(tiny)
    error, cut = torch.stack([(step / scale).max(), (tail / scale).max()]).tolist()
    return error, cut


def _absolute_sum(values: Tensor, weights: Tensor, rows: np.ndarray) -> Tensor:
    """The weighted sum of the absolute values in some rows."""
    index = torch.as_tensor(rows, device=values.device)
    return weights[index] @ values[index].abs()


def can_look(tensor: Tensor) -> bool:
    """Whether a program may branch on the values of this tensor here and now."""
    return not (
        isinstance(tensor, FakeTensor)
        or tensor.device.type == "meta"
        or get_proxy_mode() is not None
        or torch._C._functorch.is_batchedtensor(tensor)
        or torch.jit.is_tracing()
        or torch._dynamo.is_compiling()
        or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _warning(count: int, error: float) -> str:
    return (
        f"an expectation found by quadrature with {count} nodes has a relative error of about "
        f"{error:.0e}: the function has a kink or a pole that is near the mean in units of the "
        "standard deviation. Write it with functions of closed expectation (abs, relu, clamp ...), or "
        "make the initial scale of the guide smaller."
    )
