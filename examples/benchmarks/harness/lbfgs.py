"""L-BFGS of scipy on a torch loss: a few microseconds of its own an iteration."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

HISTORY = 30


class Minimisation:
    """A run of L-BFGS on a loss of some leaves.

    :ivar points: where the loss was evaluated.
    :ivar seconds: of processor time, after each evaluation.
    """

    def __init__(self, loss: Callable[[], Tensor], leaves: Sequence[Tensor]) -> None:
        self.loss, self.leaves = loss, list(leaves)
        self._flat = torch.cat([leaf.detach().flatten() for leaf in leaves])
        parts = self._flat.split([leaf.numel() for leaf in leaves])
        self._views = [part.view(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        self.points: list[np.ndarray] = []
        self.seconds: list[float] = []

    def move_to(self, point: np.ndarray) -> None:
        """Write a point into the leaves."""
        with torch.no_grad():
            self._flat.copy_(torch.from_numpy(point))
            torch._foreach_copy_(self.leaves, self._views)

    def run(self, max_iter: int = 200) -> None:
        """Minimise from where the leaves are."""
        began = time.process_time()

        def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
            self.points.append(point.copy())
            self.move_to(point)
            value = self.loss()
            gradients = torch.autograd.grad(value, self.leaves)
            gradient = torch.cat([part.flatten() for part in gradients]).double().numpy()
            self.seconds.append(time.process_time() - began)
            return value.item(), gradient

        # In single precision the loss has seven digits, and a line search that asks for more fails.
        options = {"maxiter": max_iter, "maxcor": HISTORY, "ftol": 1e-7, "gtol": 0.0}
        start = self._flat.double().numpy()
        minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options)
