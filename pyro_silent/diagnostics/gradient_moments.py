r"""Noise, bias and direction of a gradient estimator, from samples none of which is kept.

Notation: :math:`g_i` are n samples of the gradient, :math:`\bar g_{i-1}` is the mean of those before the
i-th, :math:`s` is a mean of the reference's gradient that was found beforehand, and :math:`r_i` are n
fresh samples of the reference (all equal to s if that is exact). Every figure is a mean over samples of a
scalar, so it comes with a standard error, and none needs more memory than the two means.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_silent.diagnostics.gradient_sampler import Gradient
from pyro_silent.diagnostics.running import Array, Running

_CHUNK = 2**14
_GROUPS = ("all", "guide", "model")


class GradientFigures(NamedTuple):
    """What was found about the gradient of one group of parameters; nan where it is not known.

    :ivar norm: of the expected gradient.
    :ivar std: root of the variance summed over parameters.
    :ivar std_se: its standard error.
    :ivar mean_se: root of the summed variance of the mean of all samples.
    :ivar bias: against the reference, seen along the direction that earlier samples found.
    :ivar bias_se: its standard error.
    :ivar bias_square: an unbiased estimate of the squared norm of the bias, which may be negative.
    :ivar rmse: root of the mean squared distance from the reference's expectation: of the noise and the
        squared bias, the latter cut off at zero.
    :ivar product: inner product of the expected gradient with the reference's.
    :ivar square: mean squared norm of a sample.
    """

    norm: float
    std: float
    std_se: float
    mean_se: float
    bias: float
    bias_se: float
    bias_square: float
    rmse: float
    product: float
    square: float


class GradientMoments:
    r"""Moments of a gradient estimator beside a reference, by group of parameters.

    - *Noise*: :math:`\frac1{n-1} \sum_{i \ge 2} \frac{i-1}i \lVert g_i - \bar g_{i-1} \rVert^2`, which is
      the usual unbiased variance summed over parameters, written as a mean of n - 1 terms of the same
      expectation that are nearly uncorrelated: their spread is its standard error (for skewed
      gradients and small n somewhat too small).
    - *Bias*: :math:`\frac1{n-1} \sum_{i \ge 2} t_i` with :math:`t_i = \langle g_i - r_i, u_i \rangle` and
      :math:`u_i` the unit vector along :math:`\bar g_{i-1} - s`: the difference seen along the
      direction that earlier samples found. Without bias each :math:`t_i` has mean zero whatever came
      before it, so the mean over its standard error is standard normal (a martingale), in any number
      of dimensions; a norm of differences would be positive by noise alone. With bias it tends to the
      norm of the bias from below: the direction is found only so well as noise / sqrt(n) is small.
    - *Squared bias*: :math:`\frac1{n-1} \sum_{i \ge 2} \langle g_i - r_i, \bar g_{i-1} - s \rangle`,
      whose expectation is the squared norm of the bias whatever the noise.

    :param roles: parameter name to the groups it is in besides "all" and its own: "guide", "model"; or
        "baseline", which is in no other.
    :param reference_mean: s, from :attr:`mean` of another; parameters that it lacks have zero.

    Cost: two gradients in memory beside the sample's own, s and the mean; one pass over them per sample.
    """

    def __init__(self, roles: Mapping[str, Collection[str]], reference_mean: Gradient) -> None:
        self._roles = roles
        self._reference_mean = reference_mean
        self.mean: Gradient = {}
        """Of the samples so far, flat, in single precision or better."""
        self._members = _members(roles, ())
        self._each = Running()  # figures of one sample
        self._later = Running()  # figures of a sample and the ones before it
        self._offset: Array | None = None
        self.epsilon = 0.0
        """Of the coarsest dtype among the gradients."""
        self.on_cuda = False
        """Whether some gradient lies on a CUDA device."""
        self._met(reference_mean)

    def add_reference(self, gradient: Gradient) -> None:
        """A fresh sample of the reference, for the sample that comes next.

        It is not kept: only the figure that it adds to is.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            self._offset = self._by_group(self._met(gradient))[_GS_MS]

    def add(self, gradient: Gradient) -> None:
        """One sample; parameters that are missing have gradient zero."""
        vectors = self._met(gradient)
        earlier = self._each.count
        with np.errstate(
            invalid="ignore", over="ignore"
        ):  # of infinite gradients the figures are nan
            self._note(self._by_group(vectors), earlier)
        for name, mean in self.mean.items():
            _update(mean, vectors.get(name), earlier)

    @property
    def are_equal(self) -> bool:
        """Whether all samples so far were the same."""
        return self._later.count == 0 or bool(self._later.mean[0, 0] == 0)

    def _met(self, gradient: Gradient) -> Gradient:
        """A gradient in the form that it is kept in; parameters that are new have a mean of zero."""
        vectors = flat(gradient)
        self.epsilon = max(
            [self.epsilon, *(torch.finfo(value.dtype).eps for value in gradient.values())]
        )
        for name, value in vectors.items():
            if name not in self.mean:
                self.mean[name] = torch.zeros_like(value)
                self.on_cuda |= value.is_cuda
                self._members = _members(self._roles, self.mean)
        return vectors

    def _by_group(self, sample: Gradient) -> Array:
        """Inner products of each group, shape [6, groups]."""
        by_parameter = [
            _inner_products(sample.get(name), mean, self._reference_mean.get(name))
            for name, mean in self.mean.items()
        ]
        if not by_parameter:
            return np.zeros((_PRODUCTS, len(_GROUPS)))
        device = by_parameter[0].device  # one transfer for all
        products = torch.stack([p.to(device) for p in by_parameter], dim=-1).cpu().numpy()
        of_groups = [products[..., members].sum(-1) for members in self._members]
        return np.concatenate([np.stack(of_groups, axis=-1), products], axis=-1)

    def _note(self, p: Array, earlier: int) -> None:
        """The figures of one sample from the inner products of each group."""
        self._each.add(np.stack([p[_G_S], p[_G_G]], axis=1))
        offset, self._offset = self._offset, None
        if not earlier:
            return
        along = p[_GS_MS] - (0.0 if offset is None else _padded(offset, p.shape[-1]))
        length = np.sqrt(p[_MS_MS])
        later = {
            "noise": earlier / (earlier + 1) * p[_GM_GM],
            "bias": np.divide(along, length, out=np.zeros_like(length), where=length != 0),
            "square of bias": along,
            "square of norm": p[_G_M],
        }
        self._later.add(np.stack(list(later.values()), axis=1))

    def figures(self) -> dict[str, GradientFigures]:
        """What was found, by group: "all" in any case, "guide" and "model" where they have parameters.

        And each parameter by its name; one that is called like a group is "parameter all", say.
        """
        names = [f"parameter {name}" if name in _GROUPS else name for name in self.mean]
        empty = [not members.any() for members in self._members]
        if not self._later.count:
            unknown = GradientFigures(*[math.nan] * len(GradientFigures._fields))
            found = [unknown] * (len(_GROUPS) + len(names))
        else:
            rows = np.concatenate(
                [self._each.mean, self._later.mean, self._later.se[:, :2]], axis=1
            ).tolist()
            found = [self._figures(*row) for row in rows]
        pairs = zip([*_GROUPS, *names], found, [False, *empty[1:], *[False] * len(names)])
        return {group: figures for group, figures, is_empty in pairs if not is_empty}

    def _figures(
        self,
        product: float,
        square: float,
        noise: float,
        bias: float,
        bias_square: float,
        norm: float,
        noise_se: float,
        bias_se: float,
    ) -> GradientFigures:
        std = _root(noise)
        return GradientFigures(
            norm=_root(norm),
            std=std,
            std_se=noise_se / (2 * std) if std else 0.0,
            mean_se=std / math.sqrt(self._each.count),
            bias=bias,
            bias_se=bias_se,
            bias_square=bias_square,
            rmse=_root(noise + max(bias_square, 0.0)),
            product=product,
            square=square,
        )


def _members(roles: Mapping[str, Collection[str]], names: Iterable[str]) -> list[NDArray[np.bool_]]:
    """Which parameters are in each of the groups that are not one parameter."""
    those = [roles.get(name, ()) for name in names]
    everyone = [["baseline" not in role for role in those]]
    others = [[group in role for role in those] for group in _GROUPS[1:]]
    return [np.array(row, dtype=bool) for row in everyone + others]


# The inner products of sample g, mean m and reference s that the figures are made of. Differences are
# formed before they are multiplied, since a small difference of large squares drowns in rounding.
_GS_MS, _GM_GM, _MS_MS, _G_G, _G_M, _G_S = range(6)
_PRODUCTS = 6


def _inner_products(g: Tensor | None, m: Tensor, s: Tensor | None) -> Tensor:
    """Inner products in double precision, shape [6]; in chunks, so that temporaries stay small."""
    total = torch.zeros(_PRODUCTS, dtype=torch.float64, device=m.device)
    for start in range(0, m.numel(), _CHUNK):
        mean = m[start : start + _CHUNK].double()
        sample, other = (
            torch.zeros_like(mean) if x is None else x[start : start + _CHUNK].double()
            for x in (g, s)
        )
        g_m, g_s, m_s = sample - mean, sample - other, mean - other
        pairs = (
            (g_s, m_s),
            (g_m, g_m),
            (m_s, m_s),
            (sample, sample),
            (sample, mean),
            (sample, other),
        )
        total += torch.stack([torch.dot(a, b) for a, b in pairs])
    return total


def _update(mean: Tensor, sample: Tensor | None, earlier: int) -> None:
    """The mean of one more sample, in place."""
    weight = 1 / (earlier + 1)
    if sample is None:
        mean.mul_(1 - weight)
    elif earlier == 0:
        mean.copy_(sample)
    else:
        mean.lerp_(sample, weight)


def _padded(figures: Array, length: int) -> Array:
    """With zeros for parameters that came up later."""
    return np.concatenate([figures, np.zeros(length - len(figures))])


def flat(gradient: Gradient) -> Gradient:
    """A gradient as vectors: real, in single precision or better."""
    return {name: _flat(value) for name, value in gradient.items()}


def _flat(gradient: Tensor) -> Tensor:
    gradient = gradient.detach()
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient.resolve_conj())
    return gradient.reshape(-1).to(torch.promote_types(gradient.dtype, torch.float32))


def _root(square: float) -> float:
    """Of a square that was estimated and may be below zero."""
    return math.sqrt(max(square, 0.0)) if not math.isnan(square) else math.nan
