"""A program: the calls that random tensors came from, and how to walk through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform
from torch.overrides import resolve_name

from pyro_silent.errors import LeakError
from pyro_silent.random_tensor.source import Source

if TYPE_CHECKING:
    from pyro_silent.random_tensor.tensor import RandomTensor

RULES: dict[Callable, Callable] = {}

"""torch function -> rule, which takes the function's arguments and returns an Affine, or several."""

DIRECT: dict[Callable, Callable] = {}

"""torch function -> what to do instead, for functions that return something else than random tensors."""


class Call:
    """How a random tensor was made: enough to make it again from concrete values."""

    __slots__ = ("args", "function", "grad_enabled", "kwargs", "location", "versions")

    def __init__(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.grad_enabled = torch.is_grad_enabled()
        self.location: str | None = None
        self.versions = _versions(args)
        if kwargs:
            self.versions += _versions(kwargs.values())

    def check_unchanged(self) -> None:
        """Refuse to go on with a plain operand that was changed in place since.

        :raises LeakError: naming the operation.
        """
        if self.versions != _versions(self.args) + _versions(self.kwargs.values()):
            raise LeakError(
                f"a plain operand of {operation_name(self.function)} was changed in place after it met "
                "a random tensor; write a new tensor instead of reusing the buffer."
            )


def _versions(values: Iterable[Any]) -> list[int]:
    """How often each plain tensor among the arguments has been written to."""
    versions = []
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is torch.nn.Parameter:
            versions.append(-1 if value.is_inference() else value._version)
        elif kind is tuple or kind is list:
            versions += _versions(value)
    return versions


class Lost(NamedTuple):
    """Where and why a tensor lost its form."""

    operation: str
    location: str
    reason: str


class Node(Tensor):
    """A tensor that is known by the call it came from; random tensors are the only ones.

    :ivar _call: what made it; None for a fresh latent, which has a source.
    :ivar _index: which output of the call it is.
    :ivar _lost: where its affine form was lost, if it was.
    """

    _call: Call | None = None
    _index: int | None = None
    _source: Source | None = None
    _lost: Lost | None = None


LEAVES = frozenset((Tensor, torch.nn.Parameter, int, float, bool, str, type(None), torch.Size))

"""Types of arguments that hold no random tensor: most arguments, told by one look."""


def is_cache(key: str) -> bool:
    """Whether an attribute is where transforms remember each other and their last value."""
    return key == "_inv" or key.startswith("_cached")


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to every tensor in a nest of tuples, lists, dicts and slices."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, (tuple, list)):
        items = [map_tensors(function, item) for item in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(map_tensors(function, v) for v in (value.start, value.stop, value.step)))
    return value


def random_tensors(value: Any) -> list[RandomTensor]:
    """All random tensors in a nest of arguments, distributions and transforms."""
    found: list[RandomTensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[RandomTensor]) -> None:
    kind = type(value)
    if kind in LEAVES:
        return
    if kind is tuple or kind is list:
        items = value
    elif issubclass(kind, Node):
        found.append(value)
        return
    elif kind is dict:
        items = value.values()
    elif isinstance(value, (Distribution, Transform)):
        items = [item for key, item in vars(value).items() if not is_cache(key)]
    elif isinstance(value, (tuple, list)):
        items = value
    elif kind is slice:
        items = (value.start, value.stop, value.step)
    elif isinstance(value, dict):
        items = value.values()
    else:
        return
    for item in items:
        if type(item) not in LEAVES:  # told here too: a call for each would cost more than the look
            _collect(item, found)


def sources_of(*tensors: RandomTensor) -> Iterator[Source]:
    """The latents that random tensors are functions of, in the order their programs meet them."""
    for node in nodes_of(*tensors):
        if node._source is not None:
            yield node._source


def plain_operands(tensor: RandomTensor) -> list[Tensor]:
    """The plain tensors that a random tensor's program takes in, its latents' laws apart."""
    found: list[Tensor] = []

    def visit(operand: Tensor) -> Tensor:
        if not isinstance(operand, Node):
            found.append(operand)
        return operand

    for node in nodes_of(tensor):
        if node._call is not None:
            map_tensors(visit, (node._call.args, node._call.kwargs))
    return found


def nodes_of(*tensors: RandomTensor, seen: set[int] | None = None) -> Iterator[RandomTensor]:
    """Some random tensors and all that their programs make on the way.

    :param seen: ids of those to leave out; the others are added.
    """
    seen = set() if seen is None else seen
    stack = list(tensors)
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if node._call is not None:
            stack.extend(random_tensors((node._call.args, node._call.kwargs)))


def latents_of(tensor: RandomTensor) -> tuple[str, ...]:
    """Names of the latents a random tensor depends on, in the order they were met."""
    return tuple(dict.fromkeys(source.name for source in sources_of(tensor)))


def operation_name(function: Callable) -> str:
    """A function as the user wrote it: ``torch.tanh``, ``Tensor.view``."""
    name = resolve_name(function) or getattr(function, "__name__", repr(function))
    return str(name).replace("torch.Tensor.", "Tensor.")
