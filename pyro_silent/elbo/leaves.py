"""Leaves: the tensors that a backward pass ends at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LEAF = "torch::autograd::AccumulateGrad"


class Graph(NamedTuple):
    """What a backward pass from a tensor goes through.

    :ivar leaves: where it ends.
    :ivar is_shared: whether it runs on into nodes that were made before the tensor's own.
    """

    leaves: list[Tensor]
    is_shared: bool


def graph_of(tensor: Tensor, first: int = 0) -> Graph:
    """The graph behind a tensor.

    :param first: the number of the first node that is the tensor's own, see :func:`next_node_number`.
    """
    if tensor.grad_fn is None:
        return Graph([tensor], False)
    leaves, is_shared = [], False
    seen: set[Any] = {tensor.grad_fn}
    stack: list[Any] = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node.name() == _LEAF:
            leaves.append(node.variable)
            continue
        is_shared |= node._sequence_nr() < first
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return Graph(leaves, is_shared)


def next_node_number() -> int:
    """A number that no node of an older graph has, and every later node of this thread exceeds."""
    with torch.enable_grad():
        node: Any = torch.empty(0, requires_grad=True, device="cpu").view(0).grad_fn
    number: int = node._sequence_nr()
    return number


@contextmanager
def without_hooks(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Inside, hooks that users registered on parameters rest: they are for the whole gradient."""
    hooks = [(leaf, leaf._backward_hooks) for leaf in leaves if leaf._backward_hooks]
    for leaf, _ in hooks:
        leaf._backward_hooks = None
    try:
        yield
    finally:
        for leaf, registered in hooks:
            leaf._backward_hooks = registered
