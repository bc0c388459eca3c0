"""A walk from programs to everything that their code can read."""

from __future__ import annotations

import array
import builtins
import dis
import functools
import operator
import os
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from enum import Enum
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.nn.module import _Context
from pyro.params.param_store import ParamStoreDict
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_silent.capture.slots import Slot, length_of
from pyro_silent.errors import CaptureError
from pyro_silent.random_tensor.program import is_cache

CACHE = "the cache of"
_LIMIT = 20_000
_LONG = 64  # a list of so many plain values is compared as a whole
ATOMS = (
    int, float, complex, str, bytes, bool, type(None), type(...), range, slice, Enum, np.generic,
    torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size,
)  # fmt: skip
_OPAQUE = (
    ParamStoreDict, _Context, torch.Generator, types.BuiltinFunctionType,
    types.GeneratorType, torch._ops.OpOverload, torch._ops.OpOverloadPacket,
)  # fmt: skip
_LIBRARIES = {"torch", "pyro", "pyro_silent", "numpy", "scipy", *sys.stdlib_module_names}
_HOOKS = {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"}
_OF_MODULES = _HOOKS | {
    "training", "_parameters", "_buffers", "_modules", "_pyro_samples", "_pyro_params",
}  # fmt: skip
_NOT_OF_MODULES = {
    "_non_persistent_buffers_set", "_is_full_backward_hook",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks", "__constants__", "_pyro_name",
    # of Pyro's autoguides: what they learned from the model once, and plates that each run makes anew
    "prototype_trace", "_prototype_frames", "_cond_indep_stacks", "_event_dims", "plates",
}  # fmt: skip
_DYNAMIC = {"getattr", "hasattr", "vars", "__dict__", "__getattribute__", "attrgetter"}
"""Names that say that code reads attributes by other names than it shows."""

_ENVIRONMENT = {"environ", "getenv"}
_UNSEEN = {"eval", "exec", "globals", "locals"}
_RECORDS = {"trace", "guide_trace", "model_trace", "args_kwargs"}
"""Attributes in which Pyro's handlers keep their last run."""

_COUNTERS = {"num_steps", "max_plate_nesting"}
"""Attributes of a loss, besides private ones, that change as it runs."""


class Walk:
    """One walk: slots in the order they are met, each object once."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.contents: list[tuple[Any, Any, str]] = []
        self._names: set[str] = set()  # that reachable code mentions
        self._imports: set[str] = set()  # of modules, inside of functions
        self._seen: dict[int, Any] = {}  # kept alive, so that no identity is used twice
        self._by_name: list[tuple[Mapping[str, Any], Callable, str]] = []
        self._with_defaults: list[tuple[Mapping[str, Any], Set[str], str]] = []
        self._taken: set[tuple[int, str]] = set()

    def finish(self) -> None:
        """Look for attributes again, until no more code comes into reach."""
        before = None
        while before != (before := (len(self._names), len(self.slots), len(self._by_name))):
            for attributes, read, label in list(self._by_name):
                dynamic = not _DYNAMIC.isdisjoint(self._names)
                for name in attributes if dynamic else self._names & attributes.keys():
                    self._attribute(attributes, read, name, label)
            for attributes, defaults, label in list(self._with_defaults):
                for name in self._names & defaults - attributes.keys():
                    self._absent(attributes, name, label)
            for name in self._imports & sys.modules.keys():
                self.visit(sys.modules[name], name)
        if not _UNSEEN.isdisjoint(self._names):
            named = ", ".join(sorted(_UNSEEN & self._names))
            raise CaptureError(f"the programs call {named}, which can read anything by any name.")
        if not _ENVIRONMENT.isdisjoint(self._names):
            self.contents.append((os.environ, dict(os.environ), "the environment"))

    def slot(self, read: Callable[[Any], Any], key: Any, label: str) -> None:
        """A place, and what can be reached through it."""
        try:
            value = read(key)
        except (LookupError, AttributeError, ValueError):
            return  # an empty closure cell, an attribute never set
        if len(self.slots) >= _LIMIT:
            raise CaptureError(
                f"the programs reach more than {_LIMIT} Python values, the last of them {label}; too "
                "many to look at in each step. Keep data in tensors, and pass them as arguments."
            )
        self.slots.append(Slot(read, key, value, label))
        self.visit(value, label)

    def visit(self, value: Any, label: str) -> None:
        """What can be reached through a value."""
        if isinstance(value, (*ATOMS, Tensor)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, _OPAQUE):
            return
        for kind, follow in _FOLLOW.items():
            if isinstance(value, kind):
                return follow(self, value, label)
        self._object(value, label)

    def _attribute(self, attributes: Mapping, read: Callable, name: str, label: str) -> None:
        if (id(attributes), name) not in self._taken:
            self._taken.add((id(attributes), name))
            self.slot(read, name, f"{label}.{name}")

    def _absent(self, attributes: Mapping, name: str, label: str) -> None:
        """A name that would hide another, once it is there."""
        self._attribute(attributes, functools.partial(_get_or_absent, attributes), name, label)

    def _function(self, function: types.FunctionType, label: str) -> None:
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or ()):
            self.slot(cell.__getattribute__, "cell_contents", f"{name!r} in {label}")
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            if getattr(function, name):
                self.slot(function.__getattribute__, name, f"{label}.{name}")
        if not _is_library(function) or function.__code__.co_filename.startswith("<"):
            variables = function.__globals__
            self._imports.update(_imports(function.__code__))
            for name in _names(function.__code__):
                self._names.add(name)
                if name in variables:
                    self._attribute(variables, variables.__getitem__, name, "global")
                elif hasattr(builtins, name):
                    self._absent(variables, name, "global")
            if vars(function):
                self._by_name.append((vars(function), vars(function).__getitem__, label))

    def _method(self, method: types.MethodType, label: str) -> None:
        self.visit(method.__self__, f"{label}'s object")
        self.visit(method.__func__, label)

    def _partial(self, partial: functools.partial, label: str) -> None:
        for name in ("func", "args", "keywords"):  # which stay what they are
            self.visit(getattr(partial, name), f"{label}.{name}")

    def _tuple(self, values: tuple, label: str) -> None:
        for i, value in enumerate(values):
            if isinstance(value, Tensor):
                self.slot(values.__getitem__, i, f"{label}[{i}]")
            else:
                self.visit(value, f"{label}[{i}]")

    def _sequence(self, sequence: Any, label: str) -> None:
        self.slots.append(Slot(length_of, sequence, len(sequence), f"len({label})"))
        if len(sequence) > _LONG and all(isinstance(item, ATOMS) for item in sequence):
            self.contents.append((sequence, list(sequence), label))
            return
        for i in range(len(sequence)):
            self.slot(sequence.__getitem__, i, f"{label}[{i}]")

    def _mapping(self, mapping: Mapping, label: str) -> None:
        self.slots.append(Slot(length_of, mapping, len(mapping), f"len({label})"))
        for key in list(mapping):
            self.slot(mapping.__getitem__, key, f"{label}[{key!r}]")

    def _set(self, values: Any, label: str) -> None:
        self.contents.append((values, set(values), label))

    def _array(self, array: np.ndarray, label: str) -> None:
        self.contents.append((array, array.copy(), label))

    def _trace(self, trace: Trace, label: str) -> None:
        for name, node in trace.nodes.items():
            for key in ("value", "fn"):
                if key in node:
                    self.slot(node.__getitem__, key, f"{key} of {name!r} in {label}")

    def _bytes(self, value: Any, label: str) -> None:
        self.contents.append((value, bytes(value), label))

    def _reference(self, reference: weakref.ref, label: str) -> None:
        self.slot(_referent, reference, label)

    def _getter(self, getter: Any, label: str) -> None:
        self._names.update(part for name in getter.__reduce__()[1] for part in str(name).split("."))

    def _cached(self, function: Any, label: str) -> None:
        self.visit(function.__wrapped__, label)
        self.slot(_misses, function, f"{CACHE} {label}")

    def _module(self, module: nn.Module, label: str) -> None:
        attributes = vars(module)
        own = _OF_MODULES & attributes.keys()
        if _is_library(type(module)):
            own = attributes.keys() - _NOT_OF_MODULES
        else:
            self._later(module, label)
        for name in [name for name in attributes if name in own]:
            if is_cache(name) or name in _RECORDS:
                continue
            if name in _OF_MODULES and name != "training":
                self._mapping(attributes[name], f"{label}.{name}")
            else:
                self._attribute(attributes, attributes.__getitem__, name, label)

        self._absent(attributes, "forward", label)

    def _python_module(self, module: types.ModuleType, label: str) -> None:
        if module.__name__.partition(".")[0] not in _LIBRARIES:
            self._by_name.append((vars(module), vars(module).__getitem__, label))

    def _class(self, cls: type, label: str) -> None:
        for i, base in enumerate(cls.__mro__):
            if not _is_library(base):
                attributes = vars(base)
                inherited = {name for other in cls.__mro__[i + 1 :] for name in vars(other)}
                self._with_defaults.append((attributes, inherited, base.__name__))
                self._by_name.append((attributes, attributes.__getitem__, base.__name__))
                # methods that libraries call: no code of the user's has to name them
                hooks = {n for b in cls.__mro__[:-1] if _is_library(b) for n in vars(b)}
                for name in list(attributes):
                    is_hook = name in hooks or name.startswith("_pyro_")
                    if is_hook or (name.startswith("__") and callable(attributes[name])):
                        self._attribute(attributes, attributes.__getitem__, name, base.__name__)

    def _property(self, value: Any, label: str) -> None:
        for name in ("fget", "func", "__func__", "__wrapped__"):
            function = getattr(value, name, None)
            if function is not None:
                self.visit(function, label)

    def _object(self, value: Any, label: str) -> None:
        attributes = getattr(value, "__dict__", {})
        if _is_library(type(value)):
            passed_by = _COUNTERS if isinstance(value, ELBO) else _RECORDS
            for name in attributes:
                if (
                    is_cache(name)
                    or name in passed_by
                    or (name[0] == "_" and passed_by is _COUNTERS)
                ):
                    continue
                self._attribute(attributes, attributes.__getitem__, name, label)
        else:
            self._later(value, label)

    def _later(self, value: Any, label: str) -> None:
        """An object of the user's: what reachable code names, of it and of its class."""
        self.visit(type(value), type(value).__name__)
        attributes = getattr(value, "__dict__", {})
        self._by_name.append((attributes, attributes.__getitem__, label))
        defaults = {name for base in type(value).__mro__[:-1] for name in vars(base)}
        self._with_defaults.append((attributes, defaults, label))
        slots = [name for base in type(value).__mro__ for name in _slots_of(base)]
        if slots:
            members = {name: None for name in slots}
            self._seen[id(members)] = members
            self._by_name.append((members, functools.partial(getattr, value), label))


_FOLLOW: dict[Any, Callable[[Walk, Any, str], None]] = {
    types.FunctionType: Walk._function,
    types.MethodType: Walk._method,
    functools.partial: Walk._partial,
    nn.Module: Walk._module,
    tuple: Walk._tuple,
    (list, deque): Walk._sequence,
    (dict, types.MappingProxyType): Walk._mapping,
    (set, frozenset): Walk._set,
    Trace: Walk._trace,
    np.ndarray: Walk._array,
    (bytearray, memoryview, array.array): Walk._bytes,
    weakref.ref: Walk._reference,
    functools._lru_cache_wrapper: Walk._cached,
    (operator.attrgetter, operator.methodcaller): Walk._getter,
    types.ModuleType: Walk._python_module,
    type: Walk._class,
    (property, staticmethod, classmethod, functools.cached_property): Walk._property,
}


def _names(code: types.CodeType) -> Iterator[str]:
    """Names of globals and attributes in a code object and in those nested in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _imports(code: types.CodeType) -> Iterator[str]:
    """Names of modules that a code object imports."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imports(constant)


def _get_or_absent(attributes: Mapping[str, Any], name: str) -> Any:
    """What an object has of its own; a class attribute of the name shows where that is nothing."""
    return attributes.get(name, _ABSENT)


_ABSENT = type("Absent", (), {})


def _is_library(item: Any) -> bool:
    return (getattr(item, "__module__", None) or "").partition(".")[0] in _LIBRARIES


def _slots_of(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    private = f"_{cls.__name__.lstrip('_')}"  # as Python writes names like __weight in a class
    return tuple(private + n if n.startswith("__") and not n.endswith("__") else n for n in names)


def _referent(reference: weakref.ref) -> Any:
    return reference()


def _misses(cached: Any) -> tuple[int, int]:
    """What changes when a cache is filled or cleared, and not when it is read."""
    info = cached.cache_info()
    return info.misses, info.currsize
