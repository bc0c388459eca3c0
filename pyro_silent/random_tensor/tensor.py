"""RandomTensor: a tensor without storage that carries the law of a tensor through torch code."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform
from torch.overrides import resolve_name

from pyro_silent.errors import LeakError, user_location
from pyro_silent.random_tensor.affine import Affine, NoForm, Term
from pyro_silent.random_tensor.shapes import broadcast_shapes
from pyro_silent.random_tensor.source import Source

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


class RandomTensor(Tensor):
    """A ``torch.Tensor`` that stands for the *law* of a tensor and holds no values.

    It has shape, dtype and device. Linear and structural torch functions keep the affine form
    ``y = offset + sum_s C_s (z_s - E z_s)`` exact; any other function leaves a tensor whose law is known
    only as a program, which can be sampled but has no :func:`mean`. What would turn it into numbers
    (``bool``, ``float``, ``numpy``, in-place writes, ``out=``) raises :class:`LeakError`.

    Cost: one rule takes 8 to 17 us beside the torch function (``examples/benchmarks/rule_overhead.py``);
    coefficients have size 1 along
    every dim they do not depend on.

    Made by :func:`random_tensor` and by the losses, not by its constructor.
    """

    _form: Affine | None = None
    _call: Call | None = None
    _index: int | None = None  # which output of the call
    _source: Source | None = None  # for a fresh latent
    _lost: Lost | None = None
    _alias: RandomTensor | None = None  # whose memory it would share in torch
    _written: str | None = None  # where it was changed in place
    _integral: bool = False  # the dtype is not the offset's
    _reading: Any = None  # its pointwise form, once it was asked for
    _mean: Tensor | None = None  # its expectation, once it was asked for

    @staticmethod
    def __new__(cls, *args: Any, **kwargs: Any) -> RandomTensor:
        """Refuse: use :func:`random_tensor`."""
        raise TypeError(
            "RandomTensor has no public constructor; write pyro_silent.random_tensor(distribution)"
        )

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look the function up in the rule tables."""
        direct = DIRECT.get(func)
        if direct is not None:
            return direct(*args, **kwargs) if kwargs else direct(*args)
        return apply_rule(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Whatever gets below the function level (vmap, jit, C++ code) would need values: refuse."""
        raise leak(func, *random_tensors((args, kwargs or {})))

    def __repr__(self, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
        """Shape, latents, and where exactness was lost if it was."""
        head = f"RandomTensor(shape={tuple(self.shape)}, dtype={self.dtype}"
        if self._form is not None:
            names = list(dict.fromkeys(term.source.name for term in self._form.terms))
            return f"{head}, affine in {names})"
        if self._lost is None:
            return f"{head}, sampled in {list(latents_of(self))})"
        return f"{head}, no form since {self._lost.operation} at {self._lost.location})"

    def __format__(self, spec: str) -> str:
        """The repr; a numeric format would need a value."""
        if spec:
            raise leak(Tensor.__format__, self)
        return repr(self)

    def __hash__(self) -> int:
        """Identity, as for every tensor."""
        return id(self)

    def __iadd__(self, other: Any) -> Tensor:  # type: ignore[misc]
        """``z += a`` rebinds the name to ``z + a``; the old tensor must not be used again."""
        return rebound(self, self + other)

    def __isub__(self, other: Any) -> Tensor:  # type: ignore[misc]
        """``z -= a`` rebinds the name to ``z - a``."""
        return rebound(self, self - other)

    def __imul__(self, other: Any) -> Tensor:  # type: ignore[misc]
        """``z *= a`` rebinds the name to ``z * a``."""
        return rebound(self, self * other)

    def __itruediv__(self, other: Any) -> Tensor:  # type: ignore[misc]
        """``z /= a`` rebinds the name to ``z / a``."""
        return rebound(self, self / other)

    def __ipow__(self, other: Any) -> Tensor:  # type: ignore[misc]
        """``z **= a`` rebinds the name to ``z ** a``."""
        return rebound(self, self**other)


_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim"}


def apply_rule(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The function's rule where there is one and it applies; else a tensor without a form."""
    rule = RULES.get(func)
    if kwargs:
        kwargs = {_NUMPY_NAMES.get(key, key): value for key, value in kwargs.items()}
        if kwargs.get("out") is not None:
            raise leak(func, *random_tensors((args, kwargs)))
    if rule is None:
        return lazy(func, args, kwargs, "")
    try:
        result = rule(*args, **kwargs)
    except NoForm as reason:
        return lazy(func, args, kwargs, str(reason))
    call = Call(func, args, kwargs)
    if type(result) is Affine:
        return wrap(result, call, None)
    return type_of_outputs(func)(wrap(form, call, i) for i, form in enumerate(result))


def type_of_outputs(func: Callable) -> type:
    """torch returns a tuple of tensors almost everywhere."""
    return list if func in (torch.meshgrid,) else tuple


_make = Tensor._make_wrapper_subclass


def blank_tensor(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> RandomTensor:
    """A random tensor that knows nothing but its shape, dtype and device."""
    return _make(RandomTensor, shape, dtype=dtype, device=device)


def wrap(form: Affine, call: Call, index: int | None) -> Tensor:
    """A random tensor for the result of a rule; a plain one where nothing random is left."""
    if form.is_constant:
        return form.offset
    if not call.grad_enabled:
        form = _without_grad(form)
    if form._compute is not None:
        form.guard = call.check_unchanged
    offset = form.offset
    dtype = form.dtype or offset.dtype
    if form.dtype is None and any_integral(call.args):
        outputs = on_meta(call.function, call.args, call.kwargs)
        dtype = (outputs if index is None else outputs[index]).dtype
        if dtype.is_floating_point and dtype is not offset.dtype:
            form = map_values(form, lambda tensor: tensor.to(dtype))
            offset = form.offset
    tensor = _make(RandomTensor, offset.shape, dtype=dtype, device=offset.device)
    if dtype is not offset.dtype:
        tensor._integral = True
    tensor._form = form
    tensor._call = call
    if index is not None:
        tensor._index = index
    return tensor


def map_values(form: Affine, function: Callable[[Tensor], Tensor]) -> Affine:
    """A real-linear function of each value, such as a cast, on mean and coefficients."""
    num_dims = form.offset.dim()

    def compute() -> tuple[Term, ...]:
        return tuple(
            Term(term.source, term.axes, function(term.dense_coefficient(num_dims)))
            for term in form.terms
        )

    return Affine.deferred(function(form.offset), compute, (form,))


def constant(value: Tensor) -> Affine:
    """A plain tensor as an affine form without terms."""
    return Affine(value, ())


def any_integral(args: Sequence[Any]) -> bool:
    """Whether a random tensor of an integer or bool dtype is among the arguments."""
    for arg in args:
        if type(arg) is RandomTensor:
            if arg._integral:
                return True
        elif isinstance(arg, (list, tuple)) and any_integral(arg):
            return True
    return False


def _without_grad(form: Affine) -> Affine:
    """What an op inside ``torch.no_grad()`` leaves: no gradient into coefficients or moments."""
    if any(term.source.under_grad for term in form.terms) and _inside_autograd_function():
        names = tuple(dict.fromkeys(term.source.name for term in form.terms))
        raise LeakError(
            f"a random tensor was passed to a custom autograd.Function at {user_location()}: its "
            "backward cannot be carried through an expectation. Write the function with torch "
            'operations, or mark the guide site with infer={"silent": False}.',
            latents=names,
        )
    return detach_form(form)


def detach_form(form: Affine) -> Affine:
    """The same law with no gradient."""
    terms = tuple(
        Term(
            term.source.detached(),
            term.axes,
            None if term.coefficient is None else term.coefficient.detach(),
        )
        for term in form.terms
    )
    return Affine(form.offset.detach(), terms)


def _inside_autograd_function() -> bool:
    """Whether the code that runs was called by ``torch.autograd.Function.apply``."""
    forwards = set()
    classes = list(torch.autograd.Function.__subclasses__())
    while classes:
        cls = classes.pop()
        classes.extend(cls.__subclasses__())
        forward = cls.__dict__.get("forward")
        code = getattr(getattr(forward, "__func__", forward), "__code__", None)
        forwards.add(code)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in forwards:
            return True
        frame = frame.f_back
    return False


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


LEAVES = frozenset((Tensor, torch.nn.Parameter, int, float, bool, str, type(None), torch.Size))

"""Types of arguments that hold no random tensor: most arguments, told by one look."""


CACHES = frozenset(("_inv", "_cached_x_y", "_cached_intermediates"))
"""Attributes in which transforms remember each other and their last value."""


def _collect(value: Any, found: list[RandomTensor]) -> None:
    kind = type(value)
    if kind in LEAVES:
        return
    if kind is RandomTensor:
        found.append(value)
    elif isinstance(value, (Distribution, Transform)):
        for key, item in vars(value).items():
            if key not in CACHES:
                _collect(item, found)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _collect(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, found)
    elif kind is slice:
        _collect((value.start, value.stop, value.step), found)


def on_meta(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The outputs' shapes and dtypes, from a run without data."""

    def blank(tensor: Tensor) -> Tensor:
        if isinstance(tensor, RandomTensor):
            if tensor.dim() == 0 and not tensor.dtype.is_floating_point:
                return torch.zeros((), dtype=tensor.dtype)  # read as a number by indexing
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        return tensor.detach().to("meta")

    kwargs = {k: v for k, v in kwargs.items() if k != "device"}
    with torch.no_grad():
        return function(*map_tensors(blank, args), **map_tensors(blank, kwargs))


_OUTPUTS: dict[tuple, Any] = {}
_MAX_OUTPUTS = 4096


ARITHMETIC: set[Callable] = set()
"""Elementwise functions whose result has the dtype of their floating operands."""


class Blank(NamedTuple):
    """What is known of a tensor before there is one."""

    shape: torch.Size
    dtype: torch.dtype


def _blank_of_arithmetic(args: tuple) -> Blank | None:
    """Shape and dtype of an elementwise function of numbers and tensors of one floating dtype."""
    dtype = None
    shapes = []
    for arg in args:
        if isinstance(arg, Tensor):
            if dtype is not None and arg.dtype is not dtype:
                return None
            dtype = arg.dtype
            shapes.append(arg.shape)
        elif type(arg) is not float and type(arg) is not int:
            return None
    if dtype is None or not dtype.is_floating_point:
        return None
    return Blank(shapes[0] if len(shapes) == 1 else broadcast_shapes(*shapes), dtype)


def blank_outputs(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Shapes and dtypes of a call's outputs, remembered where the arguments' shapes decide them."""
    if not kwargs and function in ARITHMETIC:
        blank = _blank_of_arithmetic(args)
        if blank is not None:
            return blank
    key = _signature((function, args, kwargs))
    if key is None:
        return on_meta(function, args, kwargs)
    outputs = _OUTPUTS.get(key)
    if outputs is None:
        outputs = on_meta(function, args, kwargs)
        if len(_OUTPUTS) >= _MAX_OUTPUTS:
            _OUTPUTS.clear()
        _OUTPUTS[key] = outputs
    return outputs


def _signature(value: Any) -> Any:
    """Shapes, dtypes and plain arguments as a key; None where values may matter."""
    if isinstance(value, Tensor):
        if value.dtype is torch.bool and type(value) is not RandomTensor:
            return None  # a mask decides the shape of what it selects
        return (Tensor, value.shape, value.dtype)
    if isinstance(value, (tuple, list)):
        items = [_signature(item) for item in value]
        return None if None in items else (type(value), *items)
    if isinstance(value, dict):
        items = [(key, _signature(item)) for key, item in value.items()]
        return None if any(item[1] is None for item in items) else (dict, *items)
    if value is None or isinstance(value, (int, float, str, torch.dtype, torch.device)):
        return (type(value), value)
    if callable(value) and value in RULES:
        return (id(value),)  # the table keeps it alive
    return None


def operation_name(function: Callable) -> str:
    """A function as the user wrote it: ``torch.tanh``, ``Tensor.view``."""
    name = resolve_name(function) or getattr(function, "__name__", repr(function))
    return str(name).replace("torch.Tensor.", "Tensor.")


def leak(function: Callable, *tensors: RandomTensor) -> LeakError:
    """The error for an operation that needs the values of a random tensor."""
    names = sorted({name for tensor in tensors for name in latents_of(tensor)})
    latent = f" of latent {', '.join(map(repr, names))}" if names else ""
    return LeakError(
        f"{operation_name(function)} at {user_location()} needs the value{latent}, but an analytic "
        "latent is a law and has no value; one drawn value would bias the expectation. Write the "
        "step with torch operations out of place (torch.where instead of if, z = z + 1 instead of "
        "z.add_(1), torch.stack instead of writing into a buffer), or mark the guide site with "
        'infer={"silent": False} to have it sampled.',
        latents=tuple(names),
    )


def latents_of(tensor: RandomTensor) -> tuple[str, ...]:
    """Names of the latents a random tensor depends on, in the order they were met."""
    names: dict[str, None] = {}
    seen: set[int] = set()
    stack = [tensor]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node._source is not None:
            names[node._source.name] = None
        if node._call is not None:
            stack.extend(random_tensors((node._call.args, node._call.kwargs)))
    return tuple(names)


def lazy(function: Callable, args: tuple, kwargs: dict[str, Any], reason: str) -> Any:
    """The result of an op without a rule: a tensor that is known as a program only."""
    name = getattr(function, "__name__", "")
    inputs = random_tensors((args, kwargs))
    if getattr(function, "__module__", "") == "torch.nn.functional":
        args, kwargs = _out_of_place(function, args, kwargs)
    if kwargs.get("out") is not None or (name.endswith("_") and not name.endswith("__")):
        raise leak(function, *inputs)
    for tensor in inputs:
        check_not_overwritten(tensor)
    try:
        outputs = blank_outputs(function, args, kwargs)
    except NotImplementedError as error:
        raise leak(function, *inputs) from error
    call = Call(function, args, kwargs)
    call.location = user_location()
    lost = next((t._lost for t in inputs if t._form is None), None)
    if lost is None:
        operation = operation_name(function)
        lost = Lost(operation, call.location, reason or f"{operation} is not affine")
    device = inputs[0].device

    def node(output: Any, index: int | None) -> RandomTensor:
        if not isinstance(output, (Tensor, Blank)):
            raise leak(function, *inputs)
        tensor = blank_tensor(output.shape, output.dtype, device)
        tensor._call = call
        tensor._index = index
        tensor._lost = lost
        return tensor

    if isinstance(outputs, (tuple, list)) and type(outputs) is not Blank:
        items = [node(output, i) for i, output in enumerate(outputs)]
        return type(outputs)(items)
    return node(outputs, None)


def _out_of_place(function: Callable, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """``F.relu(h, inplace=True)`` as an op that makes a new tensor and retires the old one."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return args, kwargs
    if not bound.arguments.get("inplace"):
        return args, kwargs
    retire(bound.args[0])
    bound.arguments["inplace"] = False
    return bound.args, bound.kwargs


def storage_of(tensor: RandomTensor) -> RandomTensor:
    """The tensor whose memory this one would share in torch: itself, or what it is a view of."""
    return tensor if tensor._alias is None else tensor._alias


def retire(tensor: RandomTensor) -> None:
    """Note that a tensor, and all that shares memory with it, was changed in place."""
    storage_of(tensor)._written = user_location()


def rebound(old: RandomTensor, new: Tensor) -> Tensor:
    """The result of an in-place operator: a new tensor; the old one is retired."""
    if new.shape != old.shape:
        raise RuntimeError(
            f"output with shape {list(old.shape)} doesn't match the broadcast shape {list(new.shape)}"
        )
    retire(old)
    return new


def check_not_overwritten(tensor: RandomTensor) -> None:
    """An in-place operator rebinds one name; using the old tensor by another name is refused."""
    base = storage_of(tensor)
    if base._written is not None:
        raise LeakError(
            f"a random tensor is used at {user_location()} after it, or a tensor it shares memory "
            f"with, was changed in place at {base._written}. Write that line out of place: "
            "z = z + 1 instead of z += 1.",
            latents=latents_of(tensor),
        )


def affine_of(tensor: Any) -> Affine:
    """The form of a rule's argument."""
    if tensor._written is not None or tensor._alias is not None:
        check_not_overwritten(tensor)
    if tensor._form is None:
        raise NoForm("")
    return tensor._form


def opaque(call: Call, like: Tensor, shape: Sequence[int], lost: Lost) -> RandomTensor:
    """A tensor known only through how it is drawn."""
    tensor = blank_tensor(shape, like.dtype, like.device)
    tensor._call = call
    tensor._lost = lost
    return tensor
