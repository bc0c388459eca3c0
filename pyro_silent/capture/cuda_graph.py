"""CudaGraph: a compiled step whose kernels a GPU launches together.

Written for CUDA and untested there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from pyro_silent.errors import CaptureWarning


class CudaGraph:
    """A run that is recorded at its second call and replayed from then on.

    A CUDA graph reads and writes fixed addresses. Parameters and the optimizer's state rest at theirs;
    inputs that move are copied to where the recorded ones lie. Where something at rest has moved after
    all, the run is recorded anew. What cannot be recorded runs kernel by kernel, with a warning.

    :param run: takes all inputs; its kernels are loaded by the first call.
    :param moving: positions of inputs that are other tensors in each step.
    """

    def __init__(self, run: Callable[[list[Tensor]], Sequence[Tensor]], moving: Set[int]) -> None:
        self._run = run
        self._moving = sorted(moving)
        self._is_loaded = self._is_refused = False
        self._graph: Any = None
        self._inputs: list[Tensor] = []
        self._resting: list[int] = []
        self._outputs: Sequence[Tensor] = ()

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """Run on these inputs."""
        if not self._is_loaded or self._is_refused:
            self._is_loaded = True
            return self._run(inputs)
        if self._graph is None or self._pointers(inputs) != self._resting:
            try:
                self._record(inputs)
            except RuntimeError as error:
                warnings.warn(
                    f"the captured step runs without a CUDA graph: {str(error).splitlines()[0]}",
                    CaptureWarning,
                    stacklevel=2,
                )
                self._is_refused = True
                return self._run(inputs)
        for i in self._moving:
            self._inputs[i].copy_(inputs[i])
        self._graph.replay()
        return [output.clone() for output in self._outputs]

    def _pointers(self, inputs: list[Tensor]) -> list[int]:
        moving = set(self._moving)
        return [t.data_ptr() for i, t in enumerate(inputs) if i not in moving]

    def _record(self, inputs: list[Tensor]) -> None:
        moving = set(self._moving)
        self._inputs = [t.clone() if i in moving else t for i, t in enumerate(inputs)]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = self._run(self._inputs)
        self._resting = self._pointers(inputs)
