"""RandomTensor: a tensor without storage that carries the law of a tensor through torch code."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from pyro_silent.errors import LeakError, user_location
from pyro_silent.random_tensor.affine import Affine, NoForm, Term
from pyro_silent.random_tensor.outputs import Blank, blank_outputs, on_meta, type_of_outputs
from pyro_silent.random_tensor.program import (
    DIRECT,
    RULES,
    Call,
    Lost,
    Node,
    latents_of,
    operation_name,
    random_tensors,
)


class RandomTensor(Node):
    """A ``torch.Tensor`` that stands for the *law* of a tensor and holds no values.

    It has shape, dtype and device. Linear and structural torch functions keep the affine form
    ``y = offset + sum_s C_s (z_s - E z_s)`` at once; any other function leaves a tensor that is known by
    its program, which is read when an expectation is asked of it: :func:`mean` says what it can find, and
    refuses the rest. What would turn the tensor into numbers (``bool``, ``float``, ``numpy``, in-place
    writes, ``out=``) raises :class:`LeakError`.

    Cost: one rule takes 8 to 17 us beside the torch function (``examples/benchmarks/rule_overhead.py``);
    coefficients have size 1 along every dim they do not depend on.

    Made by :func:`random_tensor` and by the losses, not by its constructor.
    """

    _form: Affine | None = None
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
    if any(term.source.under_grad for term in form.terms):
        _check_outside_autograd_function(tuple(term.source.name for term in form.terms))
    return detach_form(form)


def _check_outside_autograd_function(latents: tuple[str, ...]) -> None:
    """Refuse what ``forward`` of a custom function does to a latent under ``torch.no_grad()``."""
    if _inside_autograd_function():
        raise LeakError(
            f"a random tensor was passed to a custom autograd.Function at {user_location()}: its "
            "backward cannot be carried through an expectation. Write the function with torch "
            'operations, or mark the guide site with infer={"silent": False}.',
            latents=tuple(dict.fromkeys(latents)),
        )


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
    base = None if form.base is None else form.base.detach()
    return Affine(form.offset.detach(), terms, form.dtype, base)


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


def _was_made_with_grad(tensor: RandomTensor) -> bool:
    if tensor._source is not None:
        return tensor._source.under_grad
    return tensor._call is not None and tensor._call.grad_enabled


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
    if not torch.is_grad_enabled() and any(map(_was_made_with_grad, inputs)):
        _check_outside_autograd_function(tuple(name for t in inputs for name in latents_of(t)))
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
