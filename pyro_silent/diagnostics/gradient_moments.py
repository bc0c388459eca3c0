r"""Noise, bias and direction of a gradient estimator, from samples none of which is kept.

Notation: :math:`g_i` are n samples of the gradient and :math:`r_i` of the reference's (the same every
time if that is exact); :math:`\bar g_{i-1}, \bar r_{i-1}` are the means of the samples before the i-th.
Every figure is a mean over samples of a scalar, so it comes with a standard error, and none needs more
memory than the two means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_silent.diagnostics.gradient_sampler import Gradient
from pyro_silent.diagnostics.running import Array, Running

_CHUNK = 2**16
_GROUPS = ("all", "guide", "model")


class GradientFigures(NamedTuple):
    """What was found about the gradient of one group of parameters; nan where it is not known.

    :ivar norm: of the expected gradient.
    :ivar std: root of the variance summed over parameters.
    :ivar std_se: its standard error.
    :ivar bias: against the reference.
    :ivar bias_se: its standard error.
    :ivar rmse: root of the mean squared distance from the reference's expectation.
    :ivar cosine: of the angle between a sample and the reference's expectation.
    :ivar reference_norm: norm of the reference's expectation.
    :ivar reference_se: root of the summed variance of the reference's mean.
    """

    norm: float
    std: float
    std_se: float
    bias: float
    bias_se: float
    rmse: float
    cosine: float
    reference_norm: float
    reference_se: float


class GradientMoments:
    r"""Moments of a gradient estimator beside a reference, by group of parameters.

    - *Noise*: :math:`\frac1{n-1} \sum_{i \ge 2} \frac{i-1}i \lVert g_i - \bar g_{i-1} \rVert^2`, which is
      the usual unbiased variance summed over parameters, written as a mean of n - 1 uncorrelated
      terms of the same expectation: their spread is its standard error.
    - *Bias*: :math:`\frac1{n-1} \sum_{i \ge 2} t_i` with :math:`t_i = \langle g_i - r_i, u_i \rangle` and
      :math:`u_i` the unit vector along :math:`\bar g_{i-1} - \bar r_{i-1}`: the difference seen along the
      direction that earlier samples found. Without bias each :math:`t_i` has mean zero whatever came
      before it, so the mean over its standard error is standard normal (a martingale), in any number
      of dimensions; a norm of differences would be positive by noise alone. With bias it tends to the
      norm of the bias, from below: on average :math:`\langle b, u_i \rangle \le \lVert b \rVert`.
    - *RMSE*: the root of the noise and an unbiased estimate of the squared norm of the bias,
      :math:`\frac1{n-1} \sum_{i \ge 2} \langle g_i - r_i, \bar g_{i-1} - \bar r_{i-1} \rangle`, cut off
      at zero.
    - *Cosine*: :math:`\langle E g, E r \rangle / \sqrt{E \lVert g \rVert^2 \, \lVert E r \rVert^2}`;
      for an unbiased estimator 1 / sqrt(1 + noise / signal).

    :param roles: parameter name to the groups it is in besides "all" and its own: "guide", "model".
    :param constant: whether the reference is the same every time: then it is held once.

    Cost: two gradients in memory beside the sample's own (three if the reference is drawn anew each time,
    for it is held while the sample is found), one pass over them per sample.
    """

    def __init__(self, roles: Mapping[str, set[str]], constant: bool = False) -> None:
        self._roles = roles
        self._constant = constant
        self._mean: Gradient = {}
        self._reference_mean: Gradient = {}
        self._each = Running()  # figures of one sample
        self._later = Running()  # figures of a sample and the ones before it
        self.epsilon = 0.0
        """Of the coarsest dtype among the gradients."""

    @property
    def on_cuda(self) -> bool:
        """Whether some gradient lies on a CUDA device."""
        return any(mean.is_cuda for mean in self._mean.values())

    def add(self, gradient: Gradient, reference: Gradient) -> None:
        """One sample of each; parameters that are missing have gradient zero."""
        earlier = self._each.count
        gradient = {name: _flat(value) for name, value in gradient.items()}
        if not self._constant:
            reference = {name: _flat(value) for name, value in reference.items()}
        for name, value in (gradient | reference).items():
            if name not in self._mean:
                self._mean[name] = torch.zeros_like(value)
                self.epsilon = max(self.epsilon, torch.finfo(value.dtype).eps)
                if not self._constant:
                    self._reference_mean[name] = torch.zeros_like(value)
        means = reference if self._constant else self._reference_mean
        by_parameter = [
            _inner_products(gradient.get(name), mean, reference.get(name), means.get(name))
            for name, mean in self._mean.items()
        ]
        self._note(self._by_group(by_parameter), earlier)
        for name, mean in self._mean.items():
            _update(mean, gradient.get(name), earlier)
            if not self._constant:
                _update(self._reference_mean[name], reference.get(name), earlier)

    def _by_group(self, by_parameter: list[Tensor]) -> Array:
        """Inner products of each group, shape [8, 8, groups], from those of each parameter."""
        if not by_parameter:
            return np.zeros((_ROWS, _ROWS, len(_GROUPS)))
        device = by_parameter[0].device  # one transfer for all
        products = torch.stack([p.to(device) for p in by_parameter], dim=-1).cpu().numpy()
        return np.concatenate([products @ self._membership().T, products], axis=-1)

    def _note(self, p: Array, earlier: int) -> None:
        """The figures of one sample from the inner products of each group."""
        each = [p[_G, _R], p[_G, _G]]
        self._each.add(np.stack(each, axis=1))
        if not earlier:
            return
        length = np.sqrt(p[_M_S, _M_S])
        along = np.divide(p[_G_R, _M_S], length, out=np.zeros_like(length), where=length != 0)
        share = earlier / (earlier + 1)
        later = {
            "noise": share * p[_G_M, _G_M],
            "bias": along,
            "square of bias": p[_G_R, _M_S],
            "square of norm": p[_G, _M],
            "noise of reference": share * p[_R_S, _R_S],
            "square of reference": p[_R, _S],
        }
        self._later.add(np.stack(list(later.values()), axis=1))

    def _membership(self) -> Array:
        """Which parameters (columns) are in which of the first groups (rows)."""
        return np.array(
            [
                [group == "all" or group in self._roles.get(name, {"model"}) for name in self._mean]
                for group in _GROUPS
            ],
            dtype=np.float64,
        )

    @property
    def groups(self) -> list[str]:
        """Groups with some parameter: "all" in any case, "guide", "model", and each by name."""
        populated = self._membership().any(axis=1).tolist()
        first = [group for group, some in zip(_GROUPS, populated) if some or group == "all"]
        return [*first, *self._mean]

    def figures(self, group: str = "all") -> GradientFigures:
        """What was found about one group."""
        index = [*_GROUPS, *self._mean].index(group)
        product, square = self._each.mean[index].tolist()
        later = self._later
        if not later.count:
            return GradientFigures(*[math.nan] * len(GradientFigures._fields))
        noise, bias, bias_square, norm, reference_noise, reference = later.mean[index].tolist()
        noise_se, bias_se, *_ = later.se[index].tolist()
        std, signal = _root(noise), square * max(reference, 0.0)
        return GradientFigures(
            norm=_root(norm),
            std=std,
            std_se=noise_se / (2 * std) if std else 0.0,
            bias=bias,
            bias_se=bias_se,
            rmse=_root(noise + max(bias_square, 0.0)),
            cosine=product / math.sqrt(signal) if signal else math.nan,
            reference_norm=_root(reference),
            reference_se=_root(reference_noise / self._each.count),
        )


# Rows whose inner products are taken: differences are formed before they are squared, since a small
# difference of large squares would drown in rounding.
_G_M, _G_R, _M_S, _R_S, _G, _M, _R, _S = range(8)
_ROWS = 8


def _inner_products(g: Tensor | None, m: Tensor, r: Tensor | None, s: Tensor | None) -> Tensor:
    """Inner products of g - m, g - r, m - s, r - s, g, m, r and s, float64, shape [8, 8].

    In chunks, so that temporaries stay small; the sum over chunks is in double precision.
    """
    total = torch.zeros(_ROWS, _ROWS, dtype=torch.float64, device=m.device)
    for start in range(0, m.numel(), _CHUNK):
        mean = m[start : start + _CHUNK]
        zero = torch.zeros_like(mean)
        sample, other, other_mean = (
            zero if x is None else x[start : start + _CHUNK] for x in (g, r, s)
        )
        rows = torch.stack(
            [
                sample - mean,
                sample - other,
                mean - other_mean,
                other - other_mean,
                sample,
                mean,
                other,
                other_mean,
            ]
        )
        total += (rows @ rows.T).double()
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


def flattened(gradient: Gradient) -> Gradient:
    """A gradient in the form that it is compared in."""
    return {name: _flat(value) for name, value in gradient.items()}


def _flat(gradient: Tensor) -> Tensor:
    """One dimension, real, in single precision or better."""
    gradient = gradient.detach()
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient)
    return gradient.reshape(-1).to(torch.promote_types(gradient.dtype, torch.float32))


def _root(square: float) -> float:
    """Of a square that was estimated and may be below zero."""
    return math.sqrt(max(square, 0.0)) if not math.isnan(square) else math.nan
