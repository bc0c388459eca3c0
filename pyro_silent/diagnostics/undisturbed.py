"""Running a model and a guide to look at them, and leaving everything as it was found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_silent.diagnostics.random_stream import go_to, random_now
from pyro_silent.elbo.run import _PREPARED


@contextmanager
def undisturbed(*programs: Callable, tensors: Iterable[Tensor] = ()) -> Iterator[Surroundings]:
    """Inside, programs may run and losses be differentiated; outside, nothing shows of it.

    Restored are the random state of torch (all its devices in use), numpy and Python; Pyro's settings
    and its param store; the ``.grad`` of its parameters; and attributes, registered parameters with
    their ``.grad``, and buffers of the programs' modules and of every module that is called inside,
    so that an autoguide that was not set up is so again. Gradients are recorded inside, as in a
    training step, and parameters begin without a ``.grad``.

    Not restored: what the programs write elsewhere (a global counter), values that they write into
    parameters, the ``.grad`` of leaves that are neither parameters nor among ``tensors``, and torch's
    lazy modules once they know their shapes.

    :param programs: models and guides, also wrapped by handlers of ``pyro.poutine``.
    :param tensors: others whose ``.grad`` is restored, for example arguments of the programs.
    :return: what is restored, to which tensors found inside can be added.
    """
    store = pyro.get_param_store()
    surroundings = Surroundings()
    for tensor in (*store.get_state()["params"].values(), *tensors):
        surroundings.remember_gradient(tensor)
    for program in programs:
        surroundings.remember(program)
        surroundings.remember(poutine.unwrap(program))
        surroundings.remember(getattr(program, "__self__", None))
    prepared = list(_PREPARED)
    state, settings = random_now(), pyro.settings.get()
    logger = logging.getLogger("pyro")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    # modules that the programs hold in a closure
    hook = register_module_forward_pre_hook(lambda module, args: surroundings.remember(module))
    try:
        with store.scope(store.get_state()), torch.inference_mode(False), torch.enable_grad():
            yield surroundings
    finally:
        hook.remove()
        surroundings.restore()
        _PREPARED.clear()
        _PREPARED.update(prepared)
        pyro.settings.set(**settings)
        logger.setLevel(level)
        go_to(state)


class Surroundings:
    """What modules were made of when they were first seen, and ``.grad`` of tensors."""

    def __init__(self) -> None:
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._gradients: dict[int, tuple[Tensor, Tensor | None, Any]] = {}

    def remember(self, module: Any) -> None:
        """Note the state of a module and of all modules in it, unless that was done before."""
        if not isinstance(module, nn.Module) or id(vars(module)) in self._containers:
            return
        for part in module.modules():
            self._note(vars(part))
            for buffer in part._buffers.values():
                if buffer is not None and id(buffer) not in self._buffers:
                    self._buffers[id(buffer)] = buffer, buffer.detach().clone()
            for parameter in part._parameters.values():
                if parameter is not None:
                    self.remember_gradient(parameter)

    def remember_gradient(self, tensor: Tensor) -> None:
        """Put the ``.grad`` of a leaf aside, unless that was done before.

        And hooks that run when it has one: some step an optimizer.
        """
        if tensor.is_leaf and id(tensor) not in self._gradients:
            hooks = getattr(tensor, "_post_accumulate_grad_hooks", None) or {}
            self._gradients[id(tensor)] = tensor, tensor.grad, dict(hooks)
            tensor.grad = None
            hooks.clear()

    def _note(self, container: Any) -> None:
        if id(container) in self._containers:
            return
        self._containers[id(container)] = container, container.copy()
        if not isinstance(container, dict):
            return
        for key, value in container.items():
            if key == "_pyro_context":
                self._note(vars(value))
            elif type(value).__name__ in ("dict", "OrderedDict", "list", "set"):
                self._note(value)

    def restore(self) -> None:
        """Give every container its items back, in place, and every buffer its values."""
        for container, items in self._containers.values():
            if isinstance(container, list):
                container[:] = items
            else:
                container.clear()
                container.update(items)
        self.restore_buffers()
        for tensor, gradient, hooks in self._gradients.values():
            tensor.grad = gradient
            if hooks:
                tensor._post_accumulate_grad_hooks.update(hooks)

    def restore_buffers(self) -> None:
        """Give buffers that were written to their values back."""
        for buffer, values in self._buffers.values():
            if not torch.equal(buffer, values):
                with torch.no_grad():
                    buffer.copy_(values)
