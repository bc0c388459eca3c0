"""The nodes of quadrature: equally spaced, to be halved and widened, with weights for three steps."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_REACH = 7.5  # standard deviations covered at first: beyond is a probability of 6e-14


class Grid(NamedTuple):
    """Nodes, in the order in which they came.

    :ivar path: ``"finer"`` or ``"wider"``, for each time that nodes were added.
    :ivar ends: how many there were before each of these times, and at last.
    :ivar nodes: ``[scalars, count]``, and ``new`` the last of them.
    :ivar rules: ``[3, count]``, weights with one, two and four times the step.
    :ivar outer: ``[count]``, which are the outermost.
    """

    path: tuple[str, ...]
    ends: tuple[int, ...]
    step: float
    reach: float
    nodes: np.ndarray
    new: np.ndarray
    rules: np.ndarray
    outer: np.ndarray

    @property
    def num_nodes(self) -> int:
        """The count."""
        return self.ends[-1]


@lru_cache(maxsize=128)
def grid_of(points: int, scalars: int, path: tuple[str, ...]) -> Grid:
    """About ``points`` nodes along each axis, and the finer or wider ones this path leads to."""
    if not path:
        number = max(points // 2, 2)
        # few nodes: balance the step against the tail that is cut off
        reach = min(_REACH, math.sqrt(math.pi * (2 * number + 1)))
        step = reach / number
        nodes = new = _ball(step, reach, scalars)
        ends: tuple[int, ...] = ()
    else:
        old = grid_of(points, scalars, path[:-1])
        ends = old.ends
        if path[-1] == "finer":
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
    return Grid(path, (*ends, nodes.shape[1]), step, reach, nodes, new, rules, outer)


def _ball(step: float, reach: float, scalars: int) -> np.ndarray:
    """All nodes ``[scalars, count]`` of the grid that are not further out than ``reach``."""
    number = round(reach / step)
    axis = np.arange(-number, number + 1) * step
    nodes = np.stack([side.ravel() for side in np.meshgrid(*[axis] * scalars, indexing="ij")])
    return nodes[:, np.linalg.norm(nodes, axis=0) < reach + 0.5 * step]


class Check(NamedTuple):
    """What the error estimate of a grid is made with, for one part of its nodes.

    :ivar rules: ``[3 * (1 + scalars), n]``, for f and e f(e), with one, two and four times the step.
    :ivar rows: the nodes of the coarsest rule and the outermost nodes.
    :ivar sizes: ``[2, rows]``, weights for E|f| and for its share on the outermost nodes.
    """

    rules: Tensor
    rows: Tensor
    sizes: Tensor


@lru_cache(maxsize=128)
def checks_of(
    points: int, scalars: int, path: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> list[Check]:
    """One for each call of the integrand that led to this grid."""
    grid = grid_of(points, scalars, path)
    # With f also e f(e), its gradient in the mean: the error of an odd or even function is
    # invisible to one of the two, and what one misses by chance, the other sees.
    moments = np.stack([np.ones(grid.num_nodes), *grid.nodes])
    rules = (moments * grid.rules[:, None]).reshape(-1, grid.num_nodes)
    sizes = np.stack([grid.rules[2], grid.rules[0] * grid.outer])
    checks = []
    for start, end in zip((0, *grid.ends), grid.ends):
        rows = np.flatnonzero(sizes[:, start:end].any(0))
        arrays = rules[:, start:end], rows, sizes[:, start:end][:, rows]
        parts = (torch.as_tensor(array, device=device) for array in arrays)
        checks.append(
            Check(*(part if part.dtype == torch.int64 else part.to(dtype) for part in parts))
        )
    return checks
