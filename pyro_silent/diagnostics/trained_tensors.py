"""The tensors that training writes to: by name, and the values they were found with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_silent.errors import ConfigurationError


class TrainedTensors(Messenger):
    """Watches programs while they run, and knows their parameters and modules.

    Entered as a context, around everything: at its end all have the values, and the ``.grad``, that they
    were found with. Parameters are known by the names of their sites, be they in Pyro's param store or
    local to a module; buffers, and parameters of modules that have no site, by their places in the
    modules that ran in :meth:`meet`.

    :param programs: models and guides.
    :ivar stepping: leaves that were met since :meth:`clear_step`.
    :ivar waiting: values for parameters of the param store that are still to be made, by name.
    :ivar on_met: told of a name and a leaf when a site is met.
    """

    def __init__(self, *programs: Callable) -> None:
        super().__init__()
        self._programs = programs
        self._leaves: dict[str, Tensor] = {}
        self._found = WeakTensorKeyDictionary()
        self._gradients = WeakTensorKeyDictionary()
        self._without_gradient = WeakTensorKeyDictionary()
        self._roots: list[nn.Module] = []
        self._modules: dict[int, nn.Module] = {}
        self._in_store: set[str] = set()
        self._slots: list[tuple[dict, str]] = []
        self.stepping: dict[int, Tensor] = {}
        self.waiting: dict[str, Tensor] = {}
        self.on_met: Callable[[str, Tensor], None] | None = None

    def __enter__(self) -> TrainedTensors:
        for program in self._programs:
            for part in (program, poutine.unwrap(program), getattr(program, "__self__", None)):
                self._know(part)
        for leaf in dict(pyro.get_param_store().named_parameters()).values():
            self._note(leaf)
        self._hook = register_module_forward_pre_hook(lambda module, args: self._know(module))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hook.remove()
        super().__exit__(*exception)
        self._restore_values()
        for leaf, gradient in self._gradients.items():
            leaf.grad = gradient
        for tensor in self._without_gradient:
            tensor.requires_grad_(False)

    # What programs show of themselves

    def _know(self, module: Any) -> None:
        if not isinstance(module, nn.Module) or id(module) in self._modules:
            return
        self._roots.append(module)
        for part in module.modules():
            self._modules[id(part)] = part
            for parameter in part._parameters.values():
                if parameter is not None and not isinstance(
                    parameter, nn.parameter.UninitializedTensorMixin
                ):
                    self._note(parameter)

    def _note(self, leaf: Tensor) -> None:
        """Keep the values that a leaf is found with."""
        if leaf not in self._found:
            self._found[leaf] = leaf.detach().clone()
            if leaf.grad is not None:
                self._gradients[leaf] = leaf.grad
                leaf.grad = None

    def _pyro_param(self, msg: Any) -> None:
        store = pyro.get_param_store()
        if msg["name"] in store or len(msg["args"]) < 2:
            return
        first = msg["args"][1]
        if msg["name"] in self.waiting:
            leaf = self.waiting.pop(msg["name"]).clone().requires_grad_()
            constraint = msg["kwargs"].get("constraint", constraints.real)
            store.set_state(
                {"params": {msg["name"]: leaf}, "constraints": {msg["name"]: constraint}}
            )
        elif isinstance(first, Tensor) and not first.requires_grad and first.is_leaf:
            # the store trains this very tensor, unless a constraint makes another one of it
            self._without_gradient[first] = None

    def _pyro_post_param(self, msg: Any) -> None:
        value = msg["value"]
        leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        if not leaf.is_leaf or not leaf.requires_grad:
            return
        self._note(leaf)
        self._leaves[msg["name"]] = leaf
        if pyro.get_param_store().param_name(leaf) == msg["name"]:
            self._in_store.add(msg["name"])
        self.stepping[id(leaf)] = leaf
        if self.on_met is not None:
            self.on_met(msg["name"], leaf)

    # One run

    @contextmanager
    def one_run(self) -> Iterator[None]:
        """Inside, values may change; a run begins and ends with those that were found."""
        modules, roots = dict(self._modules), list(self._roots)
        self._forget()
        try:
            yield
        finally:
            self._forget()
            self._modules, self._roots = modules, roots
            self._restore_values()
            for leaf in self._found:
                leaf.grad = None

    def _forget(self) -> None:
        self.on_met = None
        for known in (self._leaves, self._in_store, self._slots, self.stepping, self.waiting):
            known.clear()

    def _restore_values(self) -> None:
        with torch.no_grad():
            for leaf, values in self._found.items():
                if not torch.equal(leaf, values):
                    leaf.copy_(values)

    def meet(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
        """Run the programs once, which makes their parameters; buffers keep their values."""
        before = [
            (owner._buffers, key, buffer, buffer.clone())
            for owner in list(self._modules.values())
            for key, buffer in owner._buffers.items()
            if buffer is not None
        ]
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        if not isinstance(poutine.unwrap(guide), GuideMessenger):  # that has run the model
            poutine.replay(model, trace=guide_trace)(*args, **kwargs)
        with torch.no_grad():
            for buffers, key, buffer, values in before:
                buffer.copy_(values)
                buffers[key] = buffer
        named = {id(leaf) for leaf in self.parameters().values()}
        slots = {
            id(tensor): (container, key)
            for part in self.modules
            for container in (part._parameters, part._buffers)
            for key, tensor in container.items()
            if tensor is not None and id(tensor) not in named
        }
        self._slots = list(slots.values())

    def clear_step(self) -> None:
        """Begin to collect the leaves of a step."""
        self.stepping.clear()

    @property
    def modules(self) -> list[nn.Module]:
        """All that are known, with those in them."""
        parts = {id(part): part for root in self._roots for part in root.modules()}
        return list(parts.values())

    def parameters(self) -> dict[str, Tensor]:
        """The leaves of this run by the names of their sites."""
        # a loss may have put another tensor there, as running means of baselines are
        store = dict(pyro.get_param_store().named_parameters())
        return {
            name: store.get(name, leaf) if name in self._in_store else leaf
            for name, leaf in self._leaves.items()
        }

    def others(self) -> list[Tensor]:
        """Buffers, and parameters that had no site, of the modules that ran in :meth:`meet`."""
        tensors = [container.get(key) for container, key in self._slots]
        return [tensor for tensor in tensors if tensor is not None]


@contextmanager
def evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """Inside, modules are in evaluation mode."""
    flags = [(module, module.training) for module in modules]
    with ExitStack() as stack:
        for module, flag in flags:
            stack.callback(setattr, module, "training", flag)
            module.training = False
        yield


def write(argument: str, tensors: list[Tensor], values: list[Tensor]) -> None:
    """Copy values into tensors.

    :raises ConfigurationError: if they do not fit.
    """
    shapes = [[tuple(tensor.shape) for tensor in those] for those in (tensors, values)]
    if shapes[0] != shapes[1]:
        raise ConfigurationError(
            f"{argument}: got tensors of the shapes {shapes[1]}, and the programs have {shapes[0]}; "
            "expected the same model and guide, with the same parameters, in every run."
        )
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            if not torch.equal(tensor, value.to(tensor.device)):
                tensor.copy_(value)
