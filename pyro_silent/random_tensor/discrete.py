"""Functions of one discrete scalar are affine: f(b) = f(0) + b (f(1) - f(0)), f(z) = sum_k f(k) [z = k].

So any elementwise function of a Bernoulli element, of one entry of a one-hot code, or of an integer
categorical latent keeps the affine form exactly, and so does a table read at a categorical index.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_silent.random_tensor.affine import Affine, Axis, Term, pad_term
from pyro_silent.random_tensor.covariance import expectation
from pyro_silent.random_tensor.rounding import STEPS, snapped
from pyro_silent.random_tensor.shapes import pad_dims
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of


class Levels(NamedTuple):
    """A tensor each of whose elements is a function of one discrete scalar.

    :ivar values: its value at each level of the scalar, shape ``[levels, *dims of y]``, compact.
    :ivar term: where each element reads the source; its coefficient is of no account.
    """

    values: Tensor
    term: Term

    @property
    def is_binary(self) -> bool:
        """Whether the scalar is one 0/1 element rather than a categorical latent."""
        return self.term.axes[-1] is not None if self.term.axes else True


def levels(tensor: RandomTensor) -> Levels | None:
    """Read a random tensor as a function of one discrete scalar per element, if it is one."""
    form = affine_of(tensor)
    if len(form.terms) != 1 or not form.terms[0].source.is_discrete:
        return None
    term = _aligned(form.terms[0], form.offset.dim())
    if term is None:
        return None
    shape = form.offset.shape
    weight = term.dense_coefficient(len(shape))
    base = form.base
    if base is None:
        base = form.offset - expectation(term, term.source.mean, shape)
    if term.axes and term.axes[-1] is None:
        values = weight + base
    else:
        values = torch.stack(torch.broadcast_tensors(base, base + weight))
    if tensor._integral:
        values = values.round().to(tensor.dtype)
    return Levels(values, term)


def _aligned(term: Term, num_dims: int) -> Term | None:
    """The term with axes of size 1 read at position 0, or None if another axis is contracted."""
    categorical = term.source.kind == "categorical"
    axes: list[Axis] = []
    squeezed: list[int] = []
    lead = 0
    for k, axis in enumerate(term.axes):
        last = categorical and k == len(term.axes) - 1
        if axis is None:
            if last:
                axes.append(None)
            elif term.source.shape[k] == 1:
                axes.append(_first(num_dims, term.source.mean.device))
                squeezed.append(lead)
            else:
                return None
            lead += 1
        else:
            axes.append(axis)
    coefficient = term.coefficient
    if coefficient is not None and squeezed:
        coefficient = coefficient.squeeze(tuple(squeezed))
    return Term(term.source, tuple(axes), coefficient)


@functools.lru_cache(maxsize=256)
def _first(num_dims: int, device: torch.device) -> Tensor:
    """Position 0 for all of y; one tensor for all who ask, so that their terms match."""
    return torch.zeros((1,) * num_dims, dtype=torch.long, device=device)


def from_levels(values: Tensor, shape: torch.Size, term: Term) -> Affine:
    """The affine form with the given value at each level; ``values`` is ``[levels, *dims]``, compact."""
    dtype = values.dtype
    if not (values.is_floating_point() or values.is_complex()):
        values = values.to(term.source.mean.dtype)
    if term.axes and term.axes[-1] is None:
        term = Term(term.source, term.axes, values)
        base = values.new_zeros((1,) * len(shape))
        return Affine(expectation(term, term.source.mean, shape), (term,), dtype, base)
    base = values[0]
    term = Term(term.source, term.axes, values[1] - base)
    offset = base + expectation(term, term.source.mean, shape)
    return Affine(offset.expand(shape), (term,), dtype, base)


def pointwise(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Affine | None:
    """An elementwise function of tensors that all depend on the same discrete scalar per element."""
    read = [levels(arg) if isinstance(arg, RandomTensor) else None for arg in args]
    found = [item for item in read if item is not None]
    random = sum(isinstance(arg, RandomTensor) for arg in args)
    if not found or len(found) < random:
        return None
    shape = torch.broadcast_shapes(*(arg.shape for arg in args if isinstance(arg, Tensor)))
    terms = [pad_term(_bare(item.term), len(shape) - (item.values.dim() - 1)) for item in found]
    if not all(terms[0].matches(term) for term in terms[1:]):
        return None
    plain = []
    for arg, item in zip(args, read):
        if item is not None:
            arg = pad_dims(item.values, 1, len(shape) - (item.values.dim() - 1))
        elif isinstance(arg, Tensor):
            arg = pad_dims(arg, 0, len(shape) - arg.dim())
        plain.append(arg)
    if function in STEPS:
        plain = snapped(plain)
    return from_levels(function(*plain, **kwargs), shape, terms[0])


def _bare(term: Term) -> Term:
    return Term(term.source, term.axes, None)
