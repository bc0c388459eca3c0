"""The affine form y = offset + sum_s C_s (z_s - E z_s), and the few moves all linear rules are made of.

A :class:`Term` is one summand. Each axis of its source is in one of three states:

* ``None``: *contracted*. The coefficient has a leading dim that runs over the axis.
* a negative ``int`` ``j``: *aligned*. The axis is dim ``j`` of y, element by element.
* an integer tensor: *gathered*. Its entry at y's element is the position on the axis.

A coefficient has one leading dim per contracted axis, in the order of the source's axes, and then
the dims of y, of size 1 wherever it does not vary ("compact"). So a decoder shared by a batch keeps a
coefficient ``[latent, 1, data]`` and no batch of Jacobians is ever built. ``None`` stands for 1.
Axes of size 1 are always contracted: then an aligned dim is never broadcast, and expanding is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pyro_silent.random_tensor.shapes import pad_dims

if TYPE_CHECKING:
    from pyro_silent.random_tensor.source import Source

Axis = int | Tensor | None


class NoForm(Exception):
    """A rule cannot express its result in the affine form; the argument says why."""


def same_position(a: Axis, b: Axis) -> bool:
    """Whether two axes are read at the same positions by construction."""
    return a is b or (isinstance(a, int) and isinstance(b, int) and a == b)


class Term:
    """One summand ``C (z - E z)`` of an affine form; see the module's docstring."""

    __slots__ = ("axes", "coefficient", "source")

    def __init__(self, source: Source, axes: tuple[Axis, ...], coefficient: Tensor | None) -> None:
        self.source = source
        self.axes = axes
        self.coefficient = coefficient

    @property
    def num_contracted(self) -> int:
        """How many leading dims the coefficient has."""
        return sum(axis is None for axis in self.axes)

    def dense_coefficient(self, num_dims: int) -> Tensor:
        """The coefficient as a tensor also where it is 1."""
        if self.coefficient is not None:
            return self.coefficient
        return self.source.mean.new_ones((1,) * num_dims)

    def matches(self, other: Term) -> bool:
        """Whether two terms read their source at the same positions, so that they add up to one."""
        return self.source is other.source and all(
            same_position(a, b) or (size == 1 and (a is None) == (b is None))
            for a, b, size in zip(self.axes, other.axes, self.source.shape)
        )


_MAX_DEFERRED = 32

"""How many ops may wait in a row before terms are computed: keeps Python's stack shallow."""


class Affine:
    """A random tensor that is affine in its sources.

    The mean is computed at once, the terms when a second moment or another law first asks for them:
    many tensors on a program's way are only ever asked for their mean, or sampled.

    :ivar offset: the mean, a plain tensor of the full shape.
    :ivar dtype: the dtype the user sees, where it is not the offset's (integers, bools).
    :ivar guard: called before deferred terms are computed: may refuse.
    :ivar base: ``offset - sum_s C_s E z_s``, compact, where it is known exactly (functions of a
        discrete scalar); None where nobody asked for it.
    """

    __slots__ = ("_compute", "_depth", "_terms", "base", "dtype", "guard", "offset")

    def __init__(
        self,
        offset: Tensor,
        terms: tuple[Term, ...],
        dtype: torch.dtype | None = None,
        base: Tensor | None = None,
    ) -> None:
        self.offset = offset
        self.dtype = dtype
        self.base = base
        self._terms: tuple[Term, ...] | None = terms
        self._compute: Callable[[], tuple[Term, ...]] | None = None
        self._depth = 0
        self.guard: Callable[[], None] | None = None

    @classmethod
    def deferred(
        cls,
        offset: Tensor,
        compute: Callable[[], tuple[Term, ...]],
        parents: Sequence[Affine],
        dtype: torch.dtype | None = None,
        base: Tensor | None = None,
    ) -> Affine:
        """A form whose terms are computed, from its parents', when they are first needed."""
        form = cls(offset, (), dtype, base)
        depth, constant = 0, True
        for parent in parents:
            if parent._terms != ():
                constant = False
                depth = max(depth, parent._depth)
        if constant:
            return form
        if depth >= _MAX_DEFERRED or not torch.is_grad_enabled():
            form._terms = compute()
        else:
            form._terms, form._compute, form._depth = None, compute, depth + 1
        return form

    @property
    def terms(self) -> tuple[Term, ...]:
        """What is random about the tensor."""
        if self._terms is None:
            assert self._compute is not None  # set together with _terms = None
            if self.guard is not None:
                self.guard()
            with torch.enable_grad():
                self._terms = self._compute()
            self._compute, self._depth = None, 0
        return self._terms

    @property
    def is_constant(self) -> bool:
        """Whether there is nothing random."""
        return self._terms == ()

    @property
    def shape(self) -> torch.Size:
        """Shape of the random tensor."""
        return self.offset.shape


def pad_term(term: Term, num_new: int) -> Term:
    """The term of y seen with ``num_new`` more dims on the left."""
    if num_new == 0:
        return term
    axes = tuple(pad_dims(a, 0, num_new) if isinstance(a, Tensor) else a for a in term.axes)
    coefficient = term.coefficient
    if coefficient is not None:
        coefficient = pad_dims(coefficient, term.num_contracted, num_new)
    return Term(term.source, axes, coefficient)


def pad_terms(form: Affine, num_dims: int) -> tuple[Term, ...]:
    """The terms of a form seen with ``num_dims`` dims."""
    num_new = num_dims - form.offset.dim()
    if num_new == 0:
        return form.terms
    return tuple(pad_term(term, num_new) for term in form.terms)


def scale_terms(form: Affine, factor: Tensor | float, num_dims: int) -> tuple[Term, ...]:
    """Terms of ``y * factor`` for a plain factor; ``num_dims`` counts the dims of the product."""
    if isinstance(factor, Tensor) and not (factor.is_floating_point() or factor.is_complex()):
        factor = factor.to(form.offset.dtype)
    terms = []
    for term in pad_terms(form, num_dims):
        coefficient = term.coefficient
        if coefficient is not None:
            coefficient = coefficient * factor
        elif isinstance(factor, Tensor):
            coefficient = pad_dims(factor, 0, num_dims - factor.dim())
        else:
            coefficient = term.source.mean.new_full((1,) * num_dims, factor)
        terms.append(Term(term.source, term.axes, coefficient))
    return tuple(terms)


def mask_terms(form: Affine, mask: Tensor, num_dims: int) -> tuple[Term, ...]:
    """Terms of y where a plain mask is True and 0 elsewhere: selected, so that 0 * inf cannot be."""
    mask = pad_dims(mask, 0, num_dims - mask.dim())
    terms = []
    for term in pad_terms(form, num_dims):
        coefficient = term.dense_coefficient(num_dims)
        zero = coefficient.new_zeros(())
        terms.append(Term(term.source, term.axes, torch.where(mask, coefficient, zero)))
    return tuple(terms)


def _is_constant(axis: Axis) -> bool:
    return isinstance(axis, Tensor) and axis.numel() == 1


def contract_constants(term: Term, num_dims: int) -> Term:
    """Rewrite axes read at one fixed position (``z[3]``) as contracted ones, so that terms can merge."""
    if not any(_is_constant(axis) for axis in term.axes):
        return term
    return contract(term, num_dims, lambda axis: _is_constant(axis))


def merge_terms(terms: Sequence[Term], num_dims: int) -> tuple[Term, ...]:
    """Add the terms that read the same source at the same positions."""
    if len(terms) < 2:
        return tuple(terms)
    sources = {term.source for term in terms}
    if len(sources) == len(terms):
        return tuple(terms)
    merged: list[Term] = []
    for term in terms:
        term = contract_constants(term, num_dims)
        for i, other in enumerate(merged):
            if term.matches(other):
                total = term.dense_coefficient(num_dims) + other.dense_coefficient(num_dims)
                merged[i] = Term(term.source, term.axes, total)
                break
        else:
            merged.append(term)
    return tuple(merged)


def depends_on(axis: Axis, dims: Sequence[int]) -> bool:
    """Whether the position read on a source's axis changes along any of y's ``dims`` (negative)."""
    if isinstance(axis, int):
        return axis in dims
    if isinstance(axis, Tensor):
        return any(axis.size(dim) != 1 for dim in dims)
    return False


def positions(term: Term, k: int, num_dims: int) -> Tensor:
    """Where y's elements read axis ``k`` of the source: a compact integer tensor with y's dims."""
    axis = term.axes[k]
    if axis is None:
        raise ValueError(f"axis {k} is contracted: it has no positions")
    if isinstance(axis, Tensor):
        return axis
    size = term.source.shape[k]
    shape = (1,) * (num_dims + axis) + (size,) + (1,) * (-axis - 1)
    return torch.arange(size, device=term.source.mean.device).view(shape)


def contract(term: Term, num_dims: int, which: Callable[[Axis], bool]) -> Term:
    """Turn the chosen aligned or gathered axes into contracted ones.

    ``C'[k, y] = C[y] * [position(y) == k]``: an identity where it was aligned, a one-hot where gathered.
    """
    axes = list(term.axes)
    coefficient = term.dense_coefficient(num_dims)
    for k, axis in enumerate(axes):
        if axis is None or not which(axis):
            continue
        size = term.source.shape[k]
        before = sum(a is None for a in axes[:k])
        after = sum(a is None for a in axes[k + 1 :])
        grid = torch.arange(size, device=coefficient.device).view((size,) + (1,) * num_dims)
        indicator = grid == positions(term, k, num_dims)
        indicator = pad_dims(indicator, 1, after).to(coefficient.dtype)
        coefficient = coefficient.unsqueeze(before) * indicator
        axes[k] = None
    return Term(term.source, tuple(axes), coefficient)


def contract_dims(term: Term, shape: Sequence[int], dims: Sequence[int]) -> Term:
    """Contract every axis that depends on ``dims`` and spell the coefficient out along them."""
    term = contract(term, len(shape), lambda axis: depends_on(axis, dims))
    coefficient = term.dense_coefficient(len(shape))
    full = list(coefficient.shape)
    for dim in dims:
        full[dim] = shape[dim]
    return Term(term.source, term.axes, coefficient.expand(full))


Move = Callable[[Tensor, int], Tensor]

"""``move(tensor, num_leading)``: an op done on a compact tensor that has leading dims."""


class Plan(NamedTuple):
    """How an op that only moves, repeats, drops or zero-fills elements does it.

    :ivar move: the op on a compact tensor.
    :ivar dim_map: where y's dims go that the op leaves whole (negative -> negative). Axes aligned with
        any other dim become gathered.
    :ivar moved: remembers the positions such axes get, where they depend on the plan alone. The same op
        then gives the same tensor, and terms read alike are seen to be.
    """

    move: Move
    dim_map: Mapping[int, int]
    moved: dict[tuple, Tensor] | None = None


def restructure(form: Affine, offset: Tensor, plan: Callable[[], Plan]) -> Affine:
    """The form after an op that only moves elements; the plan is made when terms are asked for."""
    base = None
    if form.base is not None:
        base = plan().move(form.base, 0)
    return Affine.deferred(offset, lambda: _moved_terms(form, plan()), (form,), form.dtype, base)


def _moved_terms(form: Affine, plan: Plan) -> tuple[Term, ...]:
    num_dims = form.offset.dim()
    terms = []
    for term in form.terms:
        axes: list[Axis] = []
        for k, axis in enumerate(term.axes):
            if axis is None:
                axes.append(None)
            elif isinstance(axis, int) and axis in plan.dim_map:
                axes.append(plan.dim_map[axis])
            else:
                axes.append(_gathered(term, k, num_dims, plan))
        coefficient = term.coefficient
        if coefficient is not None:
            coefficient = plan.move(coefficient, term.num_contracted)
        terms.append(Term(term.source, tuple(axes), coefficient))
    return tuple(terms)


def _gathered(term: Term, k: int, num_dims: int, plan: Plan) -> Tensor:
    if plan.moved is None or not isinstance(term.axes[k], int):
        return plan.move(positions(term, k, num_dims), 0)
    key = (term.axes[k], term.source.shape[k], term.source.mean.device)
    if key not in plan.moved:
        plan.moved[key] = plan.move(positions(term, k, num_dims), 0)
    return plan.moved[key]


def apply_linear(
    form: Affine,
    offset: Tensor,
    dims: Sequence[int],
    function: Move,
    dim_map: Mapping[int, int],
) -> Affine:
    """The form after a linear map that mixes elements along ``dims`` (negative).

    :param function: applies the map (without any constant part) to a coefficient that is spelled out
        along ``dims`` and compact elsewhere.
    :param dim_map: where the other dims go. An axis aligned with one of them stays aligned.
    """

    def compute() -> tuple[Term, ...]:
        num_dims = form.offset.dim()
        terms = []
        for term in form.terms:
            term = contract_dims(term, form.shape, dims)
            coefficient = function(term.dense_coefficient(num_dims), term.num_contracted)
            axes = move_axes(term, num_dims, offset.dim(), dim_map)
            terms.append(Term(term.source, axes, coefficient))
        return tuple(terms)

    return Affine.deferred(offset, compute, (form,))


def move_axes(
    term: Term, num_dims: int, new_num_dims: int, dim_map: Mapping[int, int]
) -> tuple[Axis, ...]:
    """Axes after dims move by ``dim_map``; gathered axes do not depend on the dims that vanish."""
    axes: list[Axis] = []
    for axis in term.axes:
        if isinstance(axis, int):
            axis = dim_map[axis]
        elif isinstance(axis, Tensor):
            kept = sorted(dim_map, key=lambda dim: dim_map[dim])
            shape = [1] * new_num_dims
            for dim in kept:
                shape[dim_map[dim]] = axis.size(dim)
            order = [dim for dim in range(-num_dims, 0) if dim not in dim_map] + kept
            axis = axis.permute(order).reshape(shape)
        axes.append(axis)
    return tuple(axes)
