"""Discrete scalars inside functions: all their joint values, and affine tensors given each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_silent.expectation.tilting import read_at
from pyro_silent.random_tensor.affine import Affine, Term, contract, merge_terms, pad_terms
from pyro_silent.random_tensor.pointwise import NotPointwise
from pyro_silent.random_tensor.shapes import pad_dims
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of, blank_tensor

MAX_LEVELS = 1024

"""How many joint values per element are enumerated."""


class Enumerated(NamedTuple):
    """All joint values of the discrete scalars, in a new leading dim.

    :ivar weights: their probabilities, ``[values, *y]``, compact.
    :ivar given: by the id of each atom, the tensor given the values: plain, or Gaussian.
    """

    weights: Tensor
    given: dict[int, Tensor]


class _Scalars:
    """The scalars of one source: what each level adds to each atom, and how likely it is."""

    def __init__(self, terms: Sequence[Term], num_dims: int) -> None:
        first = terms[0]
        binary = first.source.kind == "bernoulli"
        if not binary and all(t.axes[-1] is not None for t in terms) and _alike(terms):
            binary = True  # one entry of a code
        if not binary:
            terms = [_last_contracted(term, num_dims) for term in terms]
        if not _alike(terms):
            terms = [contract(term, num_dims, lambda axis: True) for term in terms]
            if not _alike(terms):
                raise NotPointwise("a discrete latent is read at different places")
        self.terms = list(terms)
        self.binary = binary
        first = terms[0]
        self.num_dims = num_dims
        self.probabilities = read_at(first, first.source.mean, num_dims)
        lead = self.probabilities.shape[: first.num_contracted]
        if binary:
            self.levels, self.count = 2, math.prod(lead)
        else:
            self.levels, self.count = lead[-1], math.prod(lead[:-1])

    def tables(self) -> list[tuple[Tensor, list[Tensor]]]:
        """Per scalar: probabilities ``[levels, *y]`` and, per term, the deviations ``[levels, *y]``."""
        first = self.terms[0]
        p = self._flat(self.probabilities, first)
        coefficients = [
            self._flat(term.dense_coefficient(self.num_dims), first) for term in self.terms
        ]
        tables = []
        for i in range(self.count):
            at, own = p[i], [c[i] for c in coefficients]
            if self.binary:
                deviations = [torch.stack((-c * at, c * (1 - at))) for c in own]
                tables.append((torch.stack((1 - at, at)), deviations))
            else:
                deviations = [c - (c * at).sum(0, keepdim=True) for c in own]
                tables.append((at, deviations))
        return tables

    def _flat(self, tensor: Tensor, term: Term) -> Tensor:
        """``[scalars, (levels,) *y]``"""
        width = self.num_dims + (0 if self.binary else 1)
        inner = tensor.shape[tensor.dim() - width :]
        lead = self.probabilities.shape[: self.probabilities.dim() - width]
        return tensor.expand((*lead, *inner)).reshape((-1, *inner))


def _alike(terms: Sequence[Term]) -> bool:
    return all(term.matches(terms[0]) for term in terms[1:])


def _last_contracted(term: Term, num_dims: int) -> Term:
    last = term.axes[-1]
    return contract(term, num_dims, lambda axis: axis is last and axis is not None)


def enumerate_discrete(atoms: Sequence[RandomTensor], num_dims: int) -> Enumerated:
    """All joint values of the discrete scalars that affine tensors depend on, element by element.

    :raises NotPointwise: if there are too many, or a latent is read at places that may coincide.
    """
    forms = [affine_of(atom) for atom in atoms]
    terms = [merge_terms(pad_terms(form, num_dims), num_dims) for form in forms]
    offsets = [
        form.offset.reshape((1,) * (num_dims - form.offset.dim()) + form.shape).unsqueeze(0)
        for form in forms
    ]
    by_source: dict[int, list[tuple[int, Term]]] = {}
    for i, found in enumerate(terms):
        for term in found:
            if term.source.is_discrete:
                by_source.setdefault(id(term.source.key), []).append((i, term))
    scalars = [
        (owners, _Scalars([term for _, term in owners], num_dims)) for owners in by_source.values()
    ]
    total = math.prod(s.levels**s.count for _, s in scalars)
    if total > MAX_LEVELS:
        raise NotPointwise(
            f"its discrete latents have {total} joint values per element, more than {MAX_LEVELS}"
        )
    weights: Tensor = offsets[0].new_ones((1,) * (num_dims + 1))
    for owners, source in scalars:
        for probabilities, deviations in source.tables():
            weights = _outer(weights, probabilities, torch.mul)
            added = dict.fromkeys(range(len(atoms)), None)
            sums: dict[int, Tensor] = {}
            for (i, _), deviation in zip(owners, deviations):
                sums[i] = sums[i] + deviation if i in sums else deviation
            for i in added:
                step = sums.get(i)
                if step is None:
                    step = offsets[i].new_zeros((source.levels,) + (1,) * num_dims)
                offsets[i] = _outer(offsets[i], step, torch.add)
    given: dict[int, Tensor] = {}
    for atom, offset, found in zip(atoms, offsets, terms):
        value = _given(offset, [t for t in found if not t.source.is_discrete], num_dims)
        if not atom.dtype.is_floating_point and not isinstance(value, RandomTensor):
            value = value.round().to(atom.dtype)
        given[id(atom)] = value
    return Enumerated(weights, given)


def _outer(a: Tensor, b: Tensor, combine: object) -> Tensor:
    """``[A, *y]`` and ``[B, *y]`` to ``[A B, *y]``."""
    result = combine(a.unsqueeze(1), b.unsqueeze(0))  # type: ignore[operator]
    return result.reshape(-1, *result.shape[2:])


def _given(offset: Tensor, terms: Sequence[Term], num_dims: int) -> Tensor:
    """An affine tensor given the discrete values: Gaussian where it was so, else plain."""
    if not terms:
        return offset
    padded = []
    for term in terms:
        axes = tuple(pad_dims(a, 0, 1) if isinstance(a, Tensor) else a for a in term.axes)
        coefficient = term.coefficient
        if coefficient is not None:
            coefficient = pad_dims(coefficient, term.num_contracted, 1)
        padded.append(Term(term.source, axes, coefficient))
    tensor = blank_tensor(offset.shape, offset.dtype, offset.device)
    tensor._form = Affine(offset, tuple(padded))
    return tensor
