"""A step as a graph of plain tensors: what was traced, and the tensors it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_silent.capture.reads import Reads


class Graph(NamedTuple):
    """A traced function of named tensors.

    :ivar module: takes the tensors of :attr:`inputs`, in this order, and writes to some of them.
    :ivar inputs: names of the tensors that the graph reads or writes.
    :ivar structural: names of those whose values decided the structure.
    :ivar before: what those that were written to held before, by name.
    :ivar unowned: inputs that were there before the trace and that nobody named.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    structural: frozenset[str]
    before: dict[str, Tensor]
    unowned: dict[str, Tensor]


def trace(
    function: Callable[[], Any], inputs: Mapping[str, Tensor], changing: frozenset[str]
) -> Graph:
    """Run a function once and record the operators it applies to the inputs.

    The function takes no arguments: it meets the tensors where a program has them (in the param store, in
    a module, in a closure), and they are told by identity.

    :param inputs: every tensor that may have another value when the graph runs again, each once.
    :param changing: names of those on whose values no structure may depend.
    :raises CaptureError: where the structure does depend on them, or an operator cannot be recorded.
    """
    reads = Reads(inputs, changing)

    def run(*tensors: Tensor) -> Any:
        with reads:
            return function()

    try:
        with _without_metadata():
            module = make_fx(run, tracing_mode="real", _error_on_data_dependent_ops=False)(
                *inputs.values()
            )
    finally:
        with torch.no_grad():
            for name, value in reads.before.items():
                inputs[name].copy_(value)
    unowned = _own(module)
    module.graph.eliminate_dead_code()
    structural = frozenset(reads.structural) & inputs.keys()
    used = _drop_unused_inputs(module, (*inputs, *unowned), structural)
    module.graph.lint()
    module.recompile()
    return Graph(module, used, structural, reads.before, unowned)


@contextmanager
def _without_metadata() -> Iterator[None]:
    """Inside, torch notes no shapes in the nodes of a trace: that is half of its time, and unused."""
    kept = getattr(proxy_tensor, "set_meta", None)
    proxy_tensor.set_meta = lambda proxy, val: proxy
    try:
        yield
    finally:
        if kept is None:
            del proxy_tensor.set_meta
        else:
            proxy_tensor.set_meta = kept


def _own(module: fx.GraphModule) -> dict[str, Tensor]:
    """Make inputs of the constants that are not written in the program's text."""
    unowned: dict[str, Tensor] = {}
    last = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, node.target)
        if all(user.target in _LITERAL for user in node.users):
            continue
        name = f"constant {len(unowned)}"
        with module.graph.inserting_after(last):
            last = module.graph.placeholder(f"constant_{len(unowned)}")
        node.replace_all_uses_with(last)
        module.graph.erase_node(node)
        unowned[name] = tensor
    return unowned


_LITERAL = {torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default}
"""What torch applies to the tensor that ``torch.tensor([1.0, 2.0])`` made of numbers."""


def _drop_unused_inputs(
    module: fx.GraphModule, names: tuple[str, ...], structural: frozenset[str]
) -> tuple[str, ...]:
    used = []
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for name, node in zip(names, placeholders, strict=True):
        if node.users or name in structural:
            used.append(name)
        else:
            module.graph.erase_node(node)
    return tuple(used)
