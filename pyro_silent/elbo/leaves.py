"""Leaves: the tensors that a backward pass ends at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def leaves_of(tensor: Tensor) -> Iterator[Tensor]:
    """The leaves of a tensor's graph."""
    seen: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn]
    if tensor.grad_fn is None:
        yield tensor
        return
    while stack:
        node = stack.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            yield leaf
            continue
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)


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
