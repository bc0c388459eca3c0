"""Jointly Gaussian (or merely second-order) scalars per element, and products of them in expectation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_silent.random_tensor.affine import Affine
from pyro_silent.random_tensor.covariance import covariance
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of

Covariance = Callable[[int, int], Tensor | None]


def widened(tensor: Tensor) -> Tensor:
    """In single precision what autocast made in half: functions are integrated with its digits."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class Moments:
    """Means and covariances of a few affine tensors, worked out when they are asked for.

    Covariances are looked up by tensor, so that two readings of one tensor share the work. None stands
    for a covariance that is zero because nothing is shared.
    """

    def __init__(self, atoms: Sequence[RandomTensor]) -> None:
        self.forms: dict[int, Affine] = {id(atom): affine_of(atom) for atom in atoms}
        self._order = {id(atom): place for place, atom in enumerate(atoms)}
        self._means = {key: widened(form.offset) for key, form in self.forms.items()}
        self._covariances: dict[tuple[int, int], Tensor | None] = {}

    def mean(self, atom: RandomTensor) -> Tensor:
        """E[a], as shifted so far."""
        return self._means[id(atom)]

    def covariance(self, a: RandomTensor, b: RandomTensor) -> Tensor | None:
        """Cov(a, b); a shift of the law leaves it as it is."""
        # by place, not by id: the same sums in the same order on every run
        key = (id(a), id(b)) if self._order[id(a)] <= self._order[id(b)] else (id(b), id(a))
        if key not in self._covariances:
            self._covariances[key] = self._work_out(self.forms[key[0]], self.forms[key[1]])
        return self._covariances[key]

    def variance(self, atom: RandomTensor) -> Tensor:
        """Var(a)."""
        found = self.covariance(atom, atom)
        return torch.zeros_like(self.mean(atom)) if found is None else found

    @staticmethod
    def _work_out(a: Affine, b: Affine) -> Tensor | None:
        if not share_a_source(a, b):
            return None
        return widened(covariance(a, b))

    def shift(self, atom: RandomTensor, amount: Tensor | None) -> None:
        """Move a mean."""
        if amount is not None:
            self._means[id(atom)] = self._means[id(atom)] + amount


def source_keys(form: Affine) -> set[int]:
    """Which latents a form depends on."""
    return {id(term.source.key) for term in form.terms}


def share_a_source(a: Affine, b: Affine) -> bool:
    """Whether two forms depend on a common latent."""
    return a is b or not source_keys(a).isdisjoint(source_keys(b))


def product_moment(means: Sequence[Tensor], covariance: Covariance) -> Tensor | float:
    """E[x_1 ... x_n] of jointly Gaussian scalars, by Stein's recursion (Isserlis' theorem with means).

    ``E[x_1 R] = E[x_1] E[R] + sum_j Cov(x_1, x_j) E[R without x_j]``. For n <= 2 it holds for any law.

    :param covariance: ``(i, j) -> Cov(x_i, x_j)``, None where it is zero.
    """

    def of(indices: tuple[int, ...]) -> Tensor | float:
        if not indices:
            return 1.0
        first, rest = indices[0], indices[1:]
        total: Tensor | float = means[first] * of(rest) if rest else means[first]
        for position, other in enumerate(rest):
            shared = covariance(first, other)
            if shared is not None:
                left = rest[:position] + rest[position + 1 :]
                total = total + (shared * of(left) if left else shared)
        return total

    return of(tuple(range(len(means))))
