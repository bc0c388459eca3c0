"""Decisions that need the value of a tensor, and steps that do not wait for one.

A look at a value stops a program on an accelerator until the device has caught up. So a loss looks at
values where that is free (on the CPU) and where Pyro's validation asks for it; elsewhere only in the
first step of a term. After it the answers are remembered, and the program computes on the device
whether they still hold, which is read together with the loss. An answer that does not hold any more
is forgotten: the next step looks again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled, torch_item
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_silent.errors import CaptureError

# missing in old versions of torch, where nothing here can be compiled either
_is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)


_CAPTURING = False


@contextmanager
def capturing() -> Iterator[None]:
    """Inside, a step is traced on real values, to be taken by its graph from then on.

    Answers come from memory, and whether they hold is traced along: the doubts stay in the memories.
    """
    global _CAPTURING
    _CAPTURING = True
    try:
        yield
    finally:
        _CAPTURING = False


def can_look(tensor: Tensor) -> bool:
    """Whether a program may branch on the values of this tensor here and now."""
    return not (
        isinstance(tensor, FakeTensor)
        or tensor.device.type == "meta"
        or get_proxy_mode() is not None
        or torch._C._functorch.is_batchedtensor(tensor)
        or torch.jit.is_tracing()
        or _is_compiling()
        or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def is_free(tensor: Tensor) -> bool:
    """Whether a look at this tensor's values waits for no device."""
    return _is_near(tensor.device) and can_look(tensor)


def _is_near(device: torch.device) -> bool:
    return device.type == "cpu"


def may_look(tensor: Tensor) -> bool:
    """Whether a step should branch on the values of this tensor, each time anew."""
    return is_free(tensor) or (is_validation_enabled() and can_look(tensor))


class Memory:
    """The answers that a loss found by looking at values, by term and question.

    :ivar answers: the last ones.
    :ivar doubts: by device, whether an answer that was used without looking did not hold.
    """

    def __init__(self) -> None:
        self.answers: dict[tuple, Any] = {}
        self.doubts: dict[torch.device, Tensor] = {}

    def verify(self, holds: Tensor) -> None:
        """Note, without looking, whether the answers in use hold."""
        doubt = ~holds.detach()
        known = self.doubts.get(doubt.device)
        self.doubts[doubt.device] = doubt if known is None else known | doubt

    def __getstate__(self) -> dict[str, Any]:
        """Without what is still on a device; a copy looks for itself."""
        return {"answers": {}, "doubts": {}}


def read(value: Any, *memories: Memory) -> float:
    """A loss as a float; with it is read whether remembered answers hold, and those that do not go."""
    if _CAPTURING and isinstance(value, Tensor):
        return value.detach()  # type: ignore[return-value]  # a graph has no floats
    doubts = [(memory, doubt) for memory in memories for doubt in memory.doubts.values()]
    if not doubts or not isinstance(value, Tensor):
        return torch_item(value)
    here = [doubt.to(value.device, value.dtype, non_blocking=True) for _, doubt in doubts]
    number, *wrong = torch.stack([value.detach(), *here]).tolist()
    for (memory, _), doubt in zip(doubts, wrong):
        memory.doubts.clear()
        if doubt:
            memory.answers.clear()
    return number


class _Term:
    """A term that is being worked out, and the questions asked for it so far."""

    def __init__(self, memory: Memory, name: tuple[str, ...]) -> None:
        self.memory = memory
        self.name = name
        self.count = 0


_TERMS: list[_Term] = []


@contextmanager
def deciding(memory: Memory, *name: str) -> Iterator[None]:
    """Inside, decisions belong to the term of this name and are kept in the memory."""
    _TERMS.append(_Term(memory, name))
    try:
        yield
    finally:
        _TERMS.pop()


class Decision:
    """One question whose answer depends on values.

    :param str question: what is asked; with the term and the count of its questions the key of the
        answer.
    :param Tensor like: the values in question.
    :param bool has_default: whether there is a way that is right at all values, for lack of an answer.
    :ivar bool looks: whether to find the answer by looking, and :meth:`keep` it. If not, take the one
        in :attr:`answer` (None where there is none) and say by :meth:`verify` how it would be seen
        that it does not hold.
    """

    def __init__(self, question: str, like: Tensor, *, has_default: bool = False) -> None:
        self.answer: Any = None
        self._memory: Memory | None = None
        self._can_look = can_look(like)
        self._is_traced = _CAPTURING and not torch._C._functorch.is_batchedtensor(like)
        self.looks = self._can_look
        if _TERMS:
            term = _TERMS[-1]
            self._memory = term.memory
            self._key = (*term.name, term.count, question)
            term.count += 1
            if not may_look(like):
                self.answer = self._memory.answers.get(self._key)
                self.looks = self._can_look and self.answer is None
        if self._is_traced and self.answer is None and not has_default:
            raise CaptureError(
                f"how to compute a term ({question}) depends on values, which no step before decided."
            )

    def keep(self, answer: Any) -> None:
        """Remember what was found by looking."""
        if self._memory is not None:
            self._memory.answers[self._key] = answer

    @property
    def can_be_verified(self) -> bool:
        """Whether a remembered answer was used for values that are there."""
        return (self._can_look or self._is_traced) and not self.looks

    def verify(self, holds: Tensor) -> None:
        """Hand over, without looking, whether the remembered answer holds."""
        if self.can_be_verified and self._memory is not None:
            self._memory.verify(holds)


def holds(question: str, condition: Tensor, *, trusted: bool = True) -> bool:
    """A condition, one bool on its device, as the answer to a question.

    :param trusted: the answer where values cannot be looked at and never were.
    """
    decision = Decision(question, condition)
    if decision.looks:
        answer = bool(condition)
        decision.keep(answer)
        return answer
    if decision.answer is None:
        return trusted
    decision.verify(condition if decision.answer else ~condition)
    return decision.answer
