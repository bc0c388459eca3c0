"""DiscreteSample: hard discrete values whose torch operations all carry the surrogate gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.factor import Factor
from pyro_silent.discrete_sample.refusals import no_rule
from pyro_silent.discrete_sample.table import RULES


class DiscreteSample(Tensor):
    r"""A tensor of discrete values, each operation on which carries a straight-through gradient.

    A function of a discrete scalar is linear in its one-hot code, :math:`f(z) = \sum_k c_k f(k)`, and so
    :math:`\partial f / \partial c_k = f(k)` is the gradient that goes to the code wherever torch itself
    has none: comparisons, integer and logical arithmetic, casts, ``table[z]``, ``F.embedding``,
    ``F.one_hot``, ``gather``, ``where``. A function of several scalars is multilinear in their codes.
    Float samples (Bernoulli values, one-hot vectors) run through torch's own differentiable
    operations; what comes of samples, numbers and constants remembers so, and a step or a cast that
    follows (``(2 * a + b).long()``, ``a * b == 1``) has its gradient or is refused. What parameters went
    into is an ordinary tensor.

    What would lose the gradient is refused: Python control flow, ``item()``, masks that select, in-place
    writes into a sample (:class:`~pyro_silent.errors.LeakError`), an operation without a rule
    (:class:`~pyro_silent.errors.IntractableError`). ``detach()`` gives the plain values, and so do
    operations under ``torch.no_grad()`` on hard samples. Out of its reach is what torch loses of an
    ordinary tensor, as in ``F.linear(z, weight) > 0``, and for float samples what goes around torch's
    functions: ``torch.tensor(z)``, ``torch.vmap``, ``torch.jit``, reentrant checkpoints.

    Two elements that meet by broadcasting, or through copies of one tensor, are treated as different
    scalars.

    Cost: a float operation costs one Python dispatch, under 5 us; a table lookup one gather forward
    and one matrix product backward.

    Made by :func:`bernoulli_sample`, :func:`one_hot_sample` and :func:`index_sample`.
    """

    _value: Tensor  # the plain tensor
    _version_made: int  # its version then: nothing may have written to it since
    _latents: tuple[str, ...]
    _soft: bool = False  # whether some code may lie between 0 and 1
    _root: object = None  # of a pure sample, whose float values are their own binary codes
    _factors: tuple[Factor, ...] = ()  # made on demand for a pure sample
    _levels: Tensor | None = (
        None  # [*dims, L_1, ..., L_m], or [L_1, ..., L_m] for all elements alike
    )
    _recipe: Callable[[], Tensor] | None = None  # makes the levels when they are asked for
    _rows: Factor | None = None  # the factor whose one-hot codes lie along the last dim
    _lost: str | None = None  # the operation after which the levels are not known
    _surrogate: Tensor | None = None  # then at most the value as a float that carries the gradient

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look the function up in the rule table."""
        if kwargs is None:
            kwargs = {}
        elif not args and "input" in kwargs and "condition" not in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)
        rule = RULES[func] if torch.is_grad_enabled() else RULES.without_gradient
        return rule(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What gets below the level of torch functions would lose the gradient of an integer."""
        return RULES.below(func, args, kwargs or {})

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
        """The one-hot code ``[*shape, L]``, where each element is a function of one scalar."""
        if len(self.factors) != 1:
            raise AttributeError(f"code: a function of {len(self.factors)} scalars has no one code")
        code = self.factors[0].padded(self._value.dim()).code
        return code.expand(*self._value.shape, code.shape[-1])

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The discrete scalars that each element is a function of."""
        if self._root is not None and not self._factors:
            self._factors = (Factor(self._value, self._root, binary=True, soft=self._soft),)
        return self._factors

    @property
    def levels(self) -> Tensor:
        """The value at each level of its scalars, a trailing dim for each scalar.

        Shape ``[*dims, L_1, ..., L_m]`` where ``dims`` broadcast to the shape, or without ``dims`` where
        all elements have the same levels.
        """
        if self._levels is None:
            self._levels = self.make_levels()
        return self._levels

    def make_levels(self) -> Tensor:
        """Make the levels now: an operation on them may be refused."""
        if self._recipe is not None:
            self._levels, self._recipe = self._recipe(), None
        elif self._root is not None:
            self._levels = _zero_one(self._value.dtype, self._value.device)
        if self._levels is None:
            raise no_rule(Tensor.long, self._latents, self._lost)
        return self._levels


def _wrapped(value: Tensor, latents: tuple[str, ...], soft: bool) -> DiscreteSample:
    sample = value.as_subclass(DiscreteSample)
    sample._value = value
    sample._version_made = value._version
    sample._latents = latents
    sample._soft = soft
    return sample


def pure(
    value: Tensor, latents: tuple[str, ...], root: object, soft: bool, rows: Factor | None = None
) -> DiscreteSample:
    """A sample whose float values are their own binary codes."""
    sample = _wrapped(value, latents, soft)
    sample._root = root
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
    sample = _wrapped(value, latents, True in [factor.soft for factor in factors])
    sample._factors = factors
    if isinstance(levels, Tensor):
        sample._levels = levels
    else:
        sample._recipe = levels
    sample._rows = rows
    return sample


def opaque(
    value: Tensor,
    sources: Sequence[DiscreteSample],
    lost: str | None,
    surrogate: Tensor | None = None,
) -> DiscreteSample:
    """A function of some samples whose levels are not known; at most a float surrogate for it is."""
    sample = _wrapped(value, latents_in(sources), any(source._soft for source in sources))
    sample._lost = lost or "an earlier operation"
    sample._surrogate = surrogate
    return sample


@functools.lru_cache(maxsize=256)
def counting(num_levels: int, device: torch.device) -> Tensor:
    """The levels 0, 1, ..., one tensor for all who ask, so that it can be recognised."""
    return torch.arange(num_levels, device=device)


@functools.lru_cache(maxsize=64)
def _zero_one(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([0, 1], dtype=dtype, device=device)


# ---------------------------------------------------------------------------------------------------
# Questions about samples
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


def carries_gradient(sample: DiscreteSample) -> bool:
    """Whether there is a gradient to lose; a soft sample may have none."""
    if is_opaque(sample):
        return True
    return any(factor.origin.requires_grad for factor in sample.factors)


def latents_in(samples: Sequence[DiscreteSample]) -> tuple[str, ...]:
    """The names of the latents of several samples, each once."""
    if len(samples) == 1:
        return samples[0]._latents
    return tuple(dict.fromkeys(name for sample in samples for name in sample._latents))


def forgotten(value: Any) -> Any:
    """A sample as an ordinary float tensor with its gradient; anything else as it is."""
    return value._value if isinstance(value, DiscreteSample) else value
