"""DiscreteSample: hard discrete values whose torch operations all carry the surrogate gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.contraction import Attach, Expectation, product_sum
from pyro_silent.discrete_sample.factor import Factor
from pyro_silent.discrete_sample.table import RULES
from pyro_silent.errors import ConfigurationError, IntractableError, LeakError, user_location

_plain_torch = torch._C.DisableTorchFunctionSubclass


class DiscreteSample(Tensor):
    r"""A tensor of discrete values, each operation on which carries a straight-through gradient.

    A function of a discrete scalar is linear in its one-hot code, :math:`f(z) = \sum_k c_k f(k)`, and so
    :math:`\partial f / \partial c_k = f(k)` is the gradient that goes to the code wherever torch itself
    has none: comparisons, integer and logical arithmetic, casts, ``table[z]``, ``F.embedding``,
    ``F.one_hot``, ``gather``, ``where``. A function of several scalars is multilinear in their codes.
    Float samples (Bernoulli values, one-hot vectors) run through torch's own differentiable
    operations as plain tensors do.

    What would lose the gradient is refused: Python control flow, ``item()``, masks that select, in-place
    writes into a sample (:class:`~pyro_silent.errors.LeakError`), an operation without a rule
    (:class:`~pyro_silent.errors.IntractableError`). Under ``torch.no_grad()`` and after ``detach()`` it
    is a plain tensor. Two things are out of its reach, as for every tensor: what torch loses of a plain
    float result (``F.linear(z, w) > 0``), and ``torch.tensor([z[0], z[1]])``, which reads the numbers.

    Two elements that meet by broadcasting or through copies are treated as different scalars.

    Cost: a float operation costs one Python dispatch, under 5 us; a table lookup one gather forward
    and one matrix product backward.

    Made by :func:`bernoulli_sample`, :func:`one_hot_sample` and :func:`index_sample`.
    """

    _value: Tensor  # the plain tensor
    _latents: tuple[str, ...]
    _factors: tuple[Factor, ...] | None = None  # None: a pure 0/1 float value, or an opaque one
    _levels: Tensor | None = (
        None  # [*dims, L_1, ..., L_m], or [L_1, ..., L_m] for all elements alike
    )
    _recipe: Callable[[], Tensor] | None = None  # makes the levels when they are asked for
    _rows: Factor | None = None  # the factor whose one-hot codes lie along the last dim
    _root: object = None  # of a pure float value
    _soft: bool = False  # of a pure float value
    _surrogate: Tensor | None = None  # the value as a float that carries the gradient
    _lost: str | None = None  # the operation after which the levels are not known

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look the function up in the rule table; a float sample runs as a plain tensor otherwise."""
        rule = RULES.get(func)
        if rule is not None and torch.is_grad_enabled():
            return rule(func, args, kwargs or {})
        return run_plain(func, args, kwargs or {})

    def __repr__(self, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
        """The values and the latents they come from."""
        names = ", ".join(map(repr, self._latents))
        return f"DiscreteSample({self._value.detach()!r}, latent={names})"

    def __format__(self, spec: str) -> str:
        """The repr, or the number of a single element."""
        return format(self._value.detach(), spec) if spec else repr(self)

    def __hash__(self) -> int:
        """Identity, as for every tensor."""
        return id(self)

    def __copy__(self) -> DiscreteSample:
        """Itself: a sample is never written to."""
        return self

    def __deepcopy__(self, memo: dict) -> DiscreteSample:
        """Itself: a sample is never written to."""
        return self

    @property
    def latents(self) -> tuple[str, ...]:
        """The names of the latents the values come from."""
        return self._latents

    @property
    def code(self) -> Tensor:
        """The one-hot code ``[*shape, L]`` of a function of one scalar per element."""
        (factor,) = factors_of(self)
        code = factor.padded(self._value.dim()).code
        return code.expand(*self._value.shape, code.shape[-1])

    @property
    def levels(self) -> Tensor:
        """The value at each level of the scalars, which broadcasts to ``[*shape, L]``."""
        return levels_of(self)


def bernoulli_sample(value: Tensor, name: str, *, soft: bool | None = None) -> Tensor:
    """A discrete sample of 0/1 floats that carry a gradient.

    :param value: hard 0/1 values, or soft ones in [0, 1].
    :param name: name of the latent, for error messages.
    :param soft: whether the values may lie between 0 and 1; None: look, which waits for the device.
    :returns: a tensor of the same shape and dtype; ``value`` itself if it carries no gradient.

    Example::

        >>> b = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> z = bernoulli_sample(b, "z")
        >>> torch.where(z == 1, torch.tensor([5.0, 6.0]), 2.0).sum().backward()
        >>> b.grad
        tensor([3., 4.])
    """
    _check_floating("value", value)
    if not _carries_gradient(value):
        return value
    return pure(value, (name,), value, _is_soft(value, soft), None)


def one_hot_sample(value: Tensor, name: str, *, soft: bool | None = None) -> Tensor:
    """A discrete sample of one-hot floats that carry a gradient, categories along the last dim.

    ``argmax(-1)`` and ``max(-1).indices`` give an index sample with the value as its code.

    :param value: one-hot vectors, or soft ones on the simplex, shape ``[*, n]``.
    :param name: name of the latent, for error messages.
    :param soft: whether the values may lie between 0 and 1; None: look, which waits for the device.
    :returns: a tensor of the same shape and dtype; ``value`` itself if it carries no gradient.

    Example::

        >>> d = torch.tensor([0.0, 0.0, 1.0], requires_grad=True)
        >>> torch.tensor([3.0, 4.0, 5.0])[one_hot_sample(d, "d").argmax(-1)].backward()
        >>> d.grad
        tensor([3., 4., 5.])
    """
    _check_floating("value", value)
    if value.dim() == 0:
        raise ConfigurationError("value: got a scalar, expected one-hot vectors [*, n]")
    if not _carries_gradient(value):
        return value
    soft = _is_soft(value, soft)
    return pure(value, (name,), value, soft, Factor(value, value, binary=False, soft=soft))


def index_sample(one_hot: Tensor, name: str, *, soft: bool | None = None) -> Tensor:
    """A discrete sample of integers ``0 .. n - 1`` with a one-hot code that carries a gradient.

    :param one_hot: one-hot vectors, or soft ones on the simplex, shape ``[*, n]``.
    :param name: name of the latent, for error messages.
    :param soft: whether the code may lie between 0 and 1; None: look, which waits for the device. The
        values are then those of the largest entry, and float results the soft contraction.
    :returns: an int64 tensor of shape ``[*]``; a plain one if ``one_hot`` carries no gradient.

    Example::

        >>> code = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)
        >>> z = index_sample(code, "z")
        >>> (torch.tensor([10.0, 20.0])[z] * torch.tensor([1.0, 2.0])).sum().backward()
        >>> code.grad
        tensor([[10., 20.],
                [20., 40.]])
    """
    _check_floating("one_hot", one_hot)
    if one_hot.dim() == 0:
        raise ConfigurationError("one_hot: got a scalar, expected one-hot vectors [*, n]")
    value = one_hot.detach().argmax(-1)
    if not _carries_gradient(one_hot):
        return value
    factor = Factor(one_hot, one_hot, binary=False, soft=_is_soft(one_hot, soft))
    return discrete(value, (name,), (factor,), counting(one_hot.shape[-1], one_hot.device))


def _check_floating(argument: str, value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ConfigurationError(f"{argument}: got {got}, expected a floating point tensor")


def _carries_gradient(value: Tensor) -> bool:
    return value.requires_grad and torch.is_grad_enabled()


def _is_soft(value: Tensor, soft: bool | None) -> bool:
    if soft is None:
        value = value.detach()
        return not bool(((value == 0) | (value == 1)).all())
    return soft


# ---------------------------------------------------------------------------------------------------
# Making samples
# ---------------------------------------------------------------------------------------------------


def pure(
    value: Tensor, latents: tuple[str, ...], root: object, soft: bool, rows: Factor | None
) -> DiscreteSample:
    """A sample whose float values are their own binary codes."""
    sample = value.as_subclass(DiscreteSample)
    sample._value = value
    sample._latents = latents
    sample._root = root
    sample._soft = soft
    sample._rows = rows
    return sample


def discrete(
    value: Tensor,
    latents: tuple[str, ...],
    factors: tuple[Factor, ...],
    levels: Tensor | Callable[[], Tensor],
    rows: Factor | None = None,
) -> DiscreteSample:
    """A sample that is a function of the scalars of some factors."""
    sample = value.as_subclass(DiscreteSample)
    sample._value = value
    sample._latents = latents
    sample._factors = factors
    if isinstance(levels, Tensor):
        sample._levels = levels
    else:
        sample._recipe = levels
    sample._rows = rows
    return sample


def opaque(
    value: Tensor, latents: tuple[str, ...], lost: str, surrogate: Tensor | None = None
) -> DiscreteSample:
    """A sample whose levels are not known any more; at most a float surrogate for its value is."""
    sample = value.as_subclass(DiscreteSample)
    sample._value = value
    sample._latents = latents
    sample._lost = lost
    sample._surrogate = surrogate
    return sample


@functools.lru_cache(maxsize=256)
def counting(num_levels: int, device: torch.device) -> Tensor:
    """The levels 0, 1, ..., one tensor for all who ask, so that it can be recognised."""
    return torch.arange(num_levels, device=device)


@functools.lru_cache(maxsize=64)
def _binary_levels(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([0, 1], dtype=dtype, device=device)


# ---------------------------------------------------------------------------------------------------
# Reading samples
# ---------------------------------------------------------------------------------------------------


def is_float(sample: DiscreteSample) -> bool:
    """Whether the value is a float, and thus carries its gradient itself."""
    return sample._value.is_floating_point()


def is_pure(sample: DiscreteSample) -> bool:
    """Whether the float values are their own binary codes."""
    return sample._root is not None


def is_opaque(sample: DiscreteSample) -> bool:
    """Whether the levels are not known any more."""
    return sample._lost is not None


def factors_of(sample: DiscreteSample) -> tuple[Factor, ...]:
    """The scalars the sample is a function of."""
    if sample._factors is None:
        if sample._root is None:
            raise refusal(sample._lost or "", sample._latents)
        value = sample._value
        sample._factors = (Factor(value, sample._root, binary=True, soft=sample._soft),)
    return sample._factors


def levels_of(sample: DiscreteSample) -> Tensor:
    """The value at each combination of levels of the factors."""
    if sample._levels is None:
        if sample._recipe is not None:
            sample._levels = sample._recipe()
            sample._recipe = None
        elif sample._root is not None:
            sample._levels = _binary_levels(sample._value.dtype, sample._value.device)
        else:
            raise refusal(sample._lost or "", sample._latents)
    return sample._levels


def hard(sample: DiscreteSample) -> Tensor:
    """The plain values without gradient; for soft floats those of the most probable level."""
    value = sample._value.detach()
    if not is_float(sample) or is_opaque(sample):
        return value
    factors = factors_of(sample)
    if not any(factor.soft for factor in factors):
        return value
    num_dims = value.dim()
    aligned = align(factors, num_dims, [factor.hard_code() for factor in factors])
    levels = levels_of(sample).to(aligned[0].dtype)
    levels = levels[(None,) * (aligned[0].dim() - levels.dim())]
    shape = list(value.shape) + [1] * len(factors)
    return product_sum(aligned[0], levels, aligned[1:], shape).reshape(value.shape).to(value.dtype)


def align(factors: Sequence[Factor], num_dims: int, codes: Sequence[Tensor]) -> list[Tensor]:
    """The codes with a trailing dim for each factor."""
    aligned = []
    for i, code in enumerate(codes):
        shape = [1] * (num_dims + 1 - code.dim()) + list(code.shape[:-1])
        trailing = [1] * len(factors)
        trailing[i] = code.shape[-1]
        aligned.append(code.reshape(shape + trailing))
    return aligned


def outcome(
    value: Tensor,
    latents: tuple[str, ...],
    factors: tuple[Factor, ...],
    levels_at: Callable[..., Tensor],
    operands: Sequence[Tensor],
) -> Tensor:
    """The result of a function of discrete scalars.

    :param value: the result for the hard values.
    :param factors: the scalars, with as many dims as the value.
    :param levels_at: gives the result at each combination of levels, ``[*dims, L_1, ..., L_m]``.
    :param operands: plain tensors for ``levels_at``.
    """
    if not value.is_floating_point():
        with torch.no_grad():
            levels = levels_at(*operands)
        return discrete(value, latents, factors, levels)
    codes = align(factors, value.dim(), [factor.code for factor in factors])
    if any(factor.soft for factor in factors):
        levels = levels_at(*operands)
        levels = levels[(None,) * (codes[0].dim() - levels.dim())].to(value.dtype)
        codes = [code.to(value.dtype) for code in codes]
        return Expectation.apply(levels, value.dim(), *codes).expand(value.shape)
    return Attach.apply(value, levels_at, operands, *codes)


def samples_in(arguments: Any) -> Iterator[DiscreteSample]:
    """The samples among the arguments of a function, also inside lists, tuples and dicts."""
    if isinstance(arguments, DiscreteSample):
        yield arguments
    elif isinstance(arguments, (list, tuple)):
        for item in arguments:
            yield from samples_in(item)
    elif isinstance(arguments, dict):
        for item in arguments.values():
            yield from samples_in(item)


def latents_in(samples: Sequence[DiscreteSample]) -> tuple[str, ...]:
    """The names of the latents of several samples, each once."""
    if len(samples) == 1:
        return samples[0]._latents
    return tuple(dict.fromkeys(name for sample in samples for name in sample._latents))


# ---------------------------------------------------------------------------------------------------
# Functions without a rule
# ---------------------------------------------------------------------------------------------------


def run_plain(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """torch's own function on the plain tensors, if nothing of the gradient is lost by that."""
    if not torch.is_grad_enabled():
        with _plain_torch():
            return func(*args, **kwargs)
    for arg in args:
        kind = type(arg)
        if kind is DiscreteSample:
            if not arg._value.is_floating_point():
                raise no_rule(func, arg)
        elif kind is list or kind is tuple:
            check_floats(func, arg)
    if kwargs:
        check_floats(func, kwargs)
    with _plain_torch():
        result = func(*args, **kwargs)
    if type(result) is Tensor and result.requires_grad:
        return result
    return _checked(func, result, args, kwargs)


def check_floats(func: Callable, arguments: Any) -> None:
    """Refuse integer and bool samples, whose gradient torch's function does not know of."""
    for sample in samples_in(arguments):
        if not is_float(sample):
            raise no_rule(func, sample)


def _checked(func: Callable, result: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A result that is no tensor with a gradient: refused, or handed on with what was lost noted."""
    samples = list(samples_in((args, kwargs)))
    latents = latents_in(samples)
    if isinstance(result, DiscreteSample):
        raise in_place(func, latents)
    if isinstance(result, (list, tuple)) and all(isinstance(item, Tensor) for item in result):
        items = [
            item if item.requires_grad else opaque(item, latents, operation_name(func))
            for item in result
        ]
        return type(result)(items)
    if isinstance(result, Tensor):
        raise no_rule(func, *samples)
    raise leak(func, latents)


def operation_name(func: Callable) -> str:
    """The name by which a user knows a torch function."""
    name = getattr(func, "__name__", str(func))
    owner = getattr(func, "__self__", None)
    if name == "__get__" and owner is not None:
        return f"Tensor.{owner.__name__}"
    if getattr(func, "__objclass__", None) is not None or hasattr(Tensor, name):
        return f"Tensor.{name}" if not hasattr(torch, name) else f"torch.{name}"
    module = getattr(func, "__module__", None) or "torch"
    return f"F.{name}" if module == "torch.nn.functional" else f"torch.{name}"


def _named(latents: Sequence[str]) -> str:
    return ", ".join(map(repr, latents))


def no_rule(func: Callable, *samples: DiscreteSample) -> IntractableError:
    """The error for an operation that would lose the gradient for want of a rule."""
    lost = next((sample._lost for sample in samples if sample._lost is not None), None)
    return refusal(operation_name(func), latents_in(samples), lost)


def refusal(operation: str, latents: tuple[str, ...], lost: str | None = None) -> IntractableError:
    """The error for an operation whose gradient is not known."""
    location = user_location()
    after = f" on the result of {lost}" if lost is not None and lost != operation else ""
    return IntractableError(
        f"{operation}{after} at {location} would lose the straight-through gradient of latent "
        f"{_named(latents)}: there is no rule for it on a discrete sample. Write the step with "
        "comparisons, arithmetic, torch.where, table[z] or F.one_hot(z, n).float(), call z.detach() "
        'if no gradient is wanted, or mark the guide site with infer={"silent": False} to have it '
        "sampled with a score-function term.",
        operation=operation,
        latents=latents,
        location=location,
    )


def leak(func: Callable, latents: tuple[str, ...], remedy: str = "") -> LeakError:
    """The error for an operation that turns a sample into a Python value or a shape."""
    remedy = remedy or "Keep it in tensor operations (torch.where instead of if)"
    return LeakError(
        f"{operation_name(func)} at {user_location()} turns latent {_named(latents)} into a Python "
        f"value, and its straight-through gradient would be lost. {remedy}, or mark the guide site "
        'with infer={"silent": False} to have it sampled with a score-function term.',
        latents=latents,
    )


def in_place(func: Callable, latents: tuple[str, ...]) -> LeakError:
    """The error for an in-place write that would lose the gradient."""
    return LeakError(
        f"{operation_name(func)} at {user_location()} writes in place with latent {_named(latents)}, "
        "and its straight-through gradient would be lost. Write the step out of place (z = z + 1 "
        "instead of z += 1, torch.where or torch.stack instead of writing into a buffer).",
        latents=latents,
    )
