r"""Exponential tilting: ``E[p(a) e^b] = E[e^b] E~[p(a)]``, where the law of z is weighted with e^b.

For an affine b a Gaussian keeps its covariance and moves by ``Cov(a, b)``; a Bernoulli element with
``b = c z`` gets ``p~ = p e^c / (1 - p + p e^c)``; a categorical ``p~ ~ p e^c``. All in log space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_silent.random_tensor.affine import Affine, NoForm, Term, contract, merge_terms, pad_terms
from pyro_silent.random_tensor.covariance import covariance


class Tilted:
    """The law of a few affine tensors weighted with exp(b), normalised.

    :param exponent: b, an affine form.
    :param num_dims: dims all forms are seen with.
    """

    def __init__(self, exponent: Affine, num_dims: int) -> None:
        self.num_dims = num_dims
        self.gaussian = Affine(exponent.offset, tuple(_terms(exponent, True, num_dims)))
        self._laws: dict[int, _Discrete] = {}
        variance = covariance(self.gaussian, self.gaussian) if self.gaussian.terms else None
        log_mean = exponent.offset
        if variance is not None:
            log_mean = log_mean + 0.5 * variance
        for term in _terms(exponent, False, num_dims):
            law = _Discrete(term, num_dims)
            self._laws[id(term.source.key)] = law
            log_mean = log_mean + law.log_mean
        self.log_mean = log_mean
        """log E[exp(b)]"""

    def mean(self, form: Affine) -> Tensor:
        """E~[a]."""
        total = form.offset
        gaussian = Affine(form.offset, tuple(_terms(form, True, self.num_dims)))
        if gaussian.terms and self.gaussian.terms:
            total = total + covariance(gaussian, self.gaussian)
        for term in _terms(form, False, self.num_dims):
            law = self._laws.get(id(term.source.key))
            if law is not None:
                total = total + law.shift(term)
        return total

    def covariance(self, a: Affine, b: Affine) -> Tensor:
        """Cov~(a, b)."""
        untouched_a, moved_a = self._split(a)
        untouched_b, moved_b = self._split(b)
        total = covariance(Affine(a.offset, untouched_a), Affine(b.offset, untouched_b))
        for term in moved_a:
            for other in moved_b:
                if term.source.key is other.source.key:
                    law = self._laws[id(term.source.key)]
                    total = total + law.covariance(term, other)
        return total

    def _split(self, form: Affine) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
        untouched = [*_terms(form, True, self.num_dims)]
        moved: list[Term] = []
        for term in _terms(form, False, self.num_dims):
            (moved if id(term.source.key) in self._laws else untouched).append(term)
        return tuple(untouched), tuple(moved)


def _terms(form: Affine, gaussian: bool, num_dims: int) -> list[Term]:
    """The Gaussian or the discrete terms; a discrete source read at several places becomes one term."""
    terms = [t for t in pad_terms(form, num_dims) if t.source.is_discrete is not gaussian]
    if gaussian or len({id(t.source.key) for t in terms}) == len(terms):
        return terms
    merged = merge_terms(terms, num_dims)
    keys = [id(t.source.key) for t in merged]
    if len(set(keys)) == len(keys):
        return list(merged)
    dense = [
        contract(t, num_dims, lambda axis: True) if keys.count(key) > 1 else t
        for t, key in zip(merged, keys)
    ]
    return list(merge_terms(dense, num_dims))


class _Discrete:
    """One discrete source under the weight exp(c z): its probabilities where y's elements read it."""

    def __init__(self, term: Term, num_dims: int) -> None:
        self.num_dims = num_dims
        self.binary = term.source.kind == "bernoulli"
        if not self.binary:
            # All categories of a code meet in one normaliser.
            last = term.axes[-1]
            term = contract(term, num_dims, lambda axis: axis is last and axis is not None)
        self.term = term
        self.probabilities = read_at(term, term.source.mean, num_dims)
        coefficient = term.dense_coefficient(num_dims)
        dims = list(range(term.num_contracted))
        mean = coefficient * self.probabilities
        if self.binary:
            off = 1 - self.probabilities
            with torch.no_grad():
                largest = torch.maximum(off.log(), self.probabilities.log() + coefficient)
            on = self.probabilities * _bounded_exp(coefficient - largest)
            sum_of_both = on + off * _bounded_exp(-largest)
            total = largest + sum_of_both.log()
            self.tilted = on / sum_of_both
        else:
            category = term.num_contracted - 1
            with torch.no_grad():
                logarithms = self.probabilities.log() + coefficient
                largest = logarithms.amax(category, keepdim=True)
            weighted = self.probabilities * _bounded_exp(coefficient - largest)
            sum_of_all = weighted.sum(category, keepdim=True)
            total = largest + sum_of_all.log()
            self.tilted = weighted / sum_of_all
            self.category = category
        log_mean = total.sum(dims) if dims else total
        self.log_mean = log_mean - (mean.sum(dims) if dims else mean)

    def _coefficient(self, term: Term) -> Tensor:
        """A term's coefficient laid out as the exponent's."""
        if not self.binary:
            last = term.axes[-1]
            term = contract(term, self.num_dims, lambda axis: axis is last and axis is not None)
        if not term.matches(self.term):
            dense = contract(term, self.num_dims, lambda axis: True)
            if not dense.matches(self.term):
                raise NoForm(
                    "a discrete latent is read at different places by a factor and exp(...)"
                )
            term = dense
        return term.dense_coefficient(self.num_dims)

    def _sum(self, tensor: Tensor) -> Tensor:
        dims = list(range(self.term.num_contracted))
        return tensor.sum(dims) if dims else tensor

    def shift(self, term: Term) -> Tensor:
        """E~ - E of the term."""
        return self._sum(self._coefficient(term) * (self.tilted - self.probabilities))

    def covariance(self, a: Term, b: Term) -> Tensor:
        """Cov~ of two terms."""
        left, right = self._coefficient(a), self._coefficient(b)
        if self.binary:
            return self._sum(left * right * self.tilted * (1 - self.tilted))
        mean = (left * self.tilted).sum(self.category, keepdim=True)
        other = (right * self.tilted).sum(self.category, keepdim=True)
        within = ((left - mean) * (right - other) * self.tilted).sum(self.category)
        dims = list(range(self.term.num_contracted - 1))
        return within.sum(dims) if dims else within


def _bounded_exp(exponent: Tensor) -> Tensor:
    """Finite also where the probability that it is multiplied with is 0, gradients included."""
    return exponent.clamp(max=math.log(torch.finfo(exponent.dtype).max) - 1).exp()


def read_at(term: Term, moment: Tensor, num_dims: int) -> Tensor:
    """A tensor of the source's shape where y's elements read it: ``[contracted axes.., *y]``, compact."""
    num_contracted = term.num_contracted
    index: list[Tensor] = []
    lead = 0
    for k, axis in enumerate(term.axes):
        size = term.source.shape[k]
        if axis is None:
            grid = torch.arange(size, device=moment.device)
            index.append(grid.view((-1,) + (1,) * (num_contracted - lead - 1 + num_dims)))
            lead += 1
        elif isinstance(axis, int):
            grid = torch.arange(size, device=moment.device)
            index.append(grid.view((-1,) + (1,) * (-axis - 1)))
        else:
            index.append(axis)
    if not index:
        return moment.reshape((1,) * num_dims)
    found = moment[tuple(index)]
    return found.reshape((1,) * (num_contracted + num_dims - found.dim()) + found.shape)
