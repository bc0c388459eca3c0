"""Making a traced graph run fast: compiled where there is a compiler, as a CUDA graph on a GPU."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence, Set
from typing import Any, TypeAlias

from torch import Tensor, fx

from pyro_silent.capture.cuda_graph import CudaGraph
from pyro_silent.errors import CaptureWarning, ConfigurationError

Run: TypeAlias = Callable[[list[Tensor]], Sequence[Tensor]]

BACKENDS = ("inductor", "eager")


def check_backend(backend: str) -> None:
    """Refuse an unknown backend.

    :raises ConfigurationError: naming those there are.
    """
    if backend not in BACKENDS:
        raise ConfigurationError(
            f'backend: got {backend!r}, expected "inductor" (compile the graph) or "eager" (run its '
            "operators one by one)."
        )


def prepare(
    module: fx.GraphModule, examples: list[Tensor], moving: Set[int], backend: str
) -> tuple[Run, float]:
    """A function that runs the graph, and the seconds it took to compile.

    Random operators keep torch's own generators, so that a graph draws what the program would draw.
    Without a working compiler the graph runs uncompiled, with a warning.

    :param examples: inputs of the kind that there will be.
    :param moving: positions of inputs that are other tensors in each step.
    """
    started = time.perf_counter()
    if backend == "inductor":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, about its parts
                run = _compiled(module, examples)
            if examples and all(example.is_cuda for example in examples):
                run = CudaGraph(run, moving)
            return run, time.perf_counter() - started
        except Exception as error:  # of the compiler, its toolchain or its cache: many types
            warnings.warn(
                f"the captured graph runs uncompiled, since compiling it failed: {_first_line(error)}. "
                'Write backend="eager" to ask for that.',
                CaptureWarning,
                stacklevel=2,
            )
    return _interpreted(module), time.perf_counter() - started


_OPTIONS = {
    "fallback_random": True,  # torch's own generators
    "size_asserts": False,  # shapes and strides are looked at before each step
}


def _compiled(module: fx.GraphModule, examples: list[Tensor]) -> Run:
    # These take a second to import.
    import torch._inductor
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Fake inputs and their environment, as torch.compile makes them: the caches on disk ask for these.
    mode = FakeTensorMode(shape_env=ShapeEnv())
    inputs = [mode.from_tensor(example.detach(), static_shapes=True) for example in examples]
    with torch.no_grad(), tracing(TracingContext(mode)):
        function: Any = torch._inductor.compile(module, [*inputs], options=_OPTIONS)

    # without the guard of torch.compile around it, which costs a tenth of a small step
    function = getattr(function, "_torchdynamo_orig_callable", function)

    def run(inputs: list[Tensor]) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = function(*inputs)
        return outputs

    return run


def _interpreted(module: fx.GraphModule) -> Run:
    return lambda inputs: module(*inputs)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
