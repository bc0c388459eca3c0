"""Gradients of a loss, drawn again and again at the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import pyro
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.util import torch_item
from pyro.optim import SGD
from torch import Tensor

from pyro_silent.diagnostics.losses import Loss, copy_of
from pyro_silent.diagnostics.random_stream import random_now, same_state

Gradient = dict[str, Tensor]
"""By the parameter's name, with respect to its unconstrained value, as an optimizer sees it."""


class GradientSample(NamedTuple):
    """One evaluation of a loss.

    :ivar loss: its value; of a loss that returns a tuple (ReweightedWakeSleep) the first.
    :ivar gradient: of parameters that it reached.
    :ivar drew: whether torch, numpy or Python drew random numbers for it.
    """

    loss: float
    gradient: Gradient
    drew: bool


class Programs(NamedTuple):
    """A model, a guide and their arguments.

    :ivar reset: brings what they write to, as buffers of modules, back to where it began.
    """

    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict[str, Any]
    reset: Callable[[], None]


class GradientSampler:
    """Evaluates a loss and its gradient as a step of ``SVI`` does, without the optimizer.

    Every call begins in the same state: that of the loss, of modules' buffers, and of the param store
    (and so of running means of baselines) as :meth:`warm_up` left it; the loss's step counter is where
    it was. Parameters have no ``.grad`` afterwards.
    """

    def __init__(self, loss: Loss, programs: Programs) -> None:
        self._loss = copy_of(loss)
        self._num_steps = getattr(loss, "num_steps", None)
        self._programs = programs
        self._store = pyro.get_param_store().get_state()

    def warm_up(self, calls: int = 2, calls_of_baselines: int = 20) -> None:
        """Let the loss find out what it finds out in its first steps, and running means settle.

        :param calls: for any loss.
        :param calls_of_baselines: more of them, if the loss writes into the param store.
        """
        store = pyro.get_param_store()
        with store.scope(store.get_state()):
            self._run(self._loss, 1)
            before = store.get_state()["params"]
            self._run(self._loss, calls - 1)
            after = store.get_state()["params"]
            if any(after[name] is not value for name, value in before.items()):
                self._run(self._loss, calls_of_baselines)
            self._store = store.get_state()
        if self._num_steps is not None:
            self._loss.num_steps = self._num_steps

    def __call__(self) -> GradientSample:
        """One sample."""
        self._programs.reset()
        state = random_now()
        with self._own_store(), self._evaluated(copy_of(self._loss)) as (loss, params):
            gradient = {
                name: param.grad for name, param in params.items() if param.grad is not None
            }
        return GradientSample(loss, gradient, not same_state(state, random_now()))

    def repeat(self, calls: int) -> None:
        """Some evaluations of which nothing is kept, to be timed."""
        with self._own_store():
            self._run(copy_of(self._loss), calls)

    def _own_store(self) -> AbstractContextManager:
        """Inside, the param store is as the warm-up left it."""
        state: Any = {key: dict(items) for key, items in self._store.items()}
        return pyro.get_param_store().scope(state)

    def _run(self, loss: Loss, calls: int) -> None:
        for _ in range(calls):
            with self._evaluated(loss):
                pass

    @contextmanager
    def _evaluated(self, loss: Loss) -> Iterator[tuple[float, dict[str, Tensor]]]:
        """The loss, and the parameters with their gradients, which are cleared afterwards."""
        model, guide, args, kwargs, _ = self._programs
        svi = SVI(model, guide, SGD({"lr": 0.0}), loss=loss)
        with poutine.trace(param_only=True) as capture:
            try:
                value = svi.loss_and_grads(model, guide, *args, **kwargs)
                yield (
                    torch_item(value[0] if isinstance(value, tuple) else value),
                    params_of(capture),
                )
            finally:
                for param in params_of(capture).values():
                    param.grad = None


def params_of(capture: Any) -> dict[str, Tensor]:
    """The unconstrained parameters of a trace, by name.

    One that was registered under several names has the first of them in the order of the alphabet: an
    optimizer sees it once.
    """
    named = {
        name: _unconstrained(site["value"])
        for name, site in capture.trace.nodes.items()
        if site["type"] == "param"
    }
    first = {id(leaf): name for name, leaf in sorted(named.items(), reverse=True)}
    return {name: leaf for name, leaf in named.items() if first[id(leaf)] == name}


def _unconstrained(value: Any) -> Tensor:
    """The leaf behind a parameter; module-local ones without a constraint are leaves themselves."""
    leaf: Tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
    return leaf
