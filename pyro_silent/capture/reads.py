"""Which tensors' values a program looks at while it is traced, and what those values depend on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import FrameType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_silent.errors import CaptureError, user_location

Origins: TypeAlias = frozenset[str]
"""Where the value of a tensor comes from: names of the graph's inputs, or :data:`RANDOM`."""

RANDOM = "random numbers"
_NONE: Origins = frozenset()

_LOOKS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_MASKS = {torch.bool, torch.uint8}
_WITHOUT_DISPATCH = {
    Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.__deepcopy__,
    Tensor.__reduce_ex__, Tensor.storage, torch.tensor_split, Tensor.tensor_split,
}  # fmt: skip
"""Functions that read values although no operator runs."""

_UNDECLARED = {
    torch.ops.aten.native_batch_norm.default: (3, 4),
    torch.ops.aten.cudnn_batch_norm.default: (3, 4),
    torch.ops.aten.miopen_batch_norm.default: (3, 4),
}
"""Positions of arguments (running means and variances) that an operator writes and does not declare."""


class Reads:
    """Inside, every look at a value is answered, noted, or refused.

    A value that depends on fixed inputs alone (an index set, a mask) may decide the structure of the
    graph: it is given, and those inputs are noted in :attr:`structural`. A value that the next step
    changes, since it depends on a parameter or a random number, is refused.

    :param inputs: the graph's inputs by name.
    :param changing: names of the inputs whose values may decide nothing.
    :ivar structural: names of inputs whose values decided something.
    :ivar before: what inputs held before they were first written to, by name.
    """

    def __init__(self, inputs: Mapping[str, Tensor], changing: Iterable[str]) -> None:
        self.structural: set[str] = set()
        self.before: dict[str, Tensor] = {}
        self._inputs = {name: tensor for name, tensor in inputs.items()}
        self._owners: dict[int, list[str]] = {}
        self._changing = frozenset(changing) | {RANDOM}
        self._origins: dict[int, Origins] = {}
        self._alive: list[Any] = []  # or a new storage could take the place of an old one
        self._modes = ExitStack()
        for name, tensor in inputs.items():
            self._owners.setdefault(_storage(tensor), []).append(name)
        for names in self._owners.values():
            self._add(inputs[names[0]], frozenset(names))

    def __enter__(self) -> Reads:
        self._modes.enter_context(_Functions(self))
        self._modes.enter_context(_Operators(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._modes.close()

    def look(self, tensors: Iterable[Tensor], what: str) -> None:
        """Note or refuse a look at values.

        :raises CaptureError: naming what was looked at and where.
        """
        origins = _NONE.union(*map(self.origins, tensors))
        changing = sorted(origins & self._changing)
        if changing:
            raise CaptureError(
                f"the program's structure depends on a value that changes with each step: {what} "
                f"{_place()} reads {', '.join(changing)}. Write it with torch.where or another "
                "operator on tensors, or take this step with pyro.infer.SVI."
            )
        self.structural |= origins

    def save(self, written: Iterable[Tensor]) -> None:
        """Keep what inputs hold before they are written to."""
        for tensor in written:
            for name in self._owners.get(_storage(tensor), ()):
                if name not in self.before:
                    with disable_proxy_modes_tracing():
                        self.before[name] = self._inputs[name].detach().clone()

    def origins(self, tensor: Tensor) -> Origins:
        """What the value of a tensor depends on."""
        return self._origins.get(_storage(tensor), _NONE)

    def record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Hand the origins on from the arguments of an operator to what it returns and writes."""
        arguments = _tensors((args, kwargs))
        origins = _NONE.union(*map(self.origins, arguments))
        if torch.Tag.nondeterministic_seeded in func.tags:
            origins |= {RANDOM}
        old = {_storage(argument) for argument in arguments}
        for tensor in [*_written(func, args, kwargs), *_tensors(result)]:
            if _storage(tensor) in old:
                self._add(tensor, origins | self.origins(tensor))
            else:
                self._add(tensor, origins)

    def _add(self, tensor: Tensor, origins: Origins) -> None:
        key = _storage(tensor)
        if key not in self._origins:
            self._alive.append(tensor.detach().untyped_storage())
        self._origins[key] = origins


def _place() -> str:
    """Where a value is read: in Pyro's or our own code, where that is so, and in the user's."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("torch", "pyro_silent.capture", "contextlib")):
            break
        frame = frame.f_back
    place = f"at {user_location()}"
    if frame is not None and frame.f_globals.get("__name__", "").startswith("pyro"):
        return f"in {frame.f_globals['__name__']}:{frame.f_lineno}, called {place},"
    return place


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """The same without torch's look at whether the classes are in range."""
    if num_classes < 0:
        return torch.nn.functional.one_hot(tensor, num_classes)
    classes = torch.arange(num_classes, device=tensor.device)
    return (tensor.unsqueeze(-1) == classes).to(torch.int64)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _written(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The arguments that an operator writes to."""
    if func in _UNDECLARED:
        return [args[i] for i in _UNDECLARED[func] if isinstance(args[i], Tensor)]
    if not func._schema.is_mutable:
        return []
    declared = func._schema.arguments
    values = [
        args[i] if i < len(args) else kwargs.get(declared[i].name) for i in range(len(declared))
    ]
    return _tensors(
        [v for a, v in zip(declared, values) if a.alias_info is not None and a.alias_info.is_write]
    )


class _Operators(TorchDispatchMode):
    """Follows every operator below autograd."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(x, torch.Generator) for x in (*args, *kwargs.values())):
            raise CaptureError(
                f"{func.overloadpacket} at {user_location()} draws from a generator of its own; "
                "draw from torch's global one."
            )
        if not _LOOKS.isdisjoint(func.tags):
            looked_at = _tensors((args, kwargs))
            if func is torch.ops.aten.index.Tensor:  # of masks only; other indices leave no trace
                looked_at = [index for index in _tensors(args[1]) if index.dtype in _MASKS]
            self._reads.look(looked_at, str(func.overloadpacket))
        self._reads.save(_written(func, args, kwargs))
        result = func(*args, **kwargs)
        self._reads.record(func, args, kwargs, result)
        return result


class _Functions(TorchFunctionMode):
    """Follows the methods that look at a value without an operator."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WITHOUT_DISPATCH:
            looked_at = args[1:] if func.__name__ == "tensor_split" else args[:1]
            self._reads.look(_tensors(looked_at), f"Tensor.{func.__name__}")
        if func is torch.nn.functional.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
