"""Moments of any plain torch program of few latents, by dense quadrature and enumeration.

Nothing here knows random tensors. Discrete latents take all their joint values. Gaussian latents are
``m + L e`` with independent standard noise ``e``; the noise is integrated on a tensor grid:
Gauss-Hermite along each scalar, or, along the first, panels of Gauss-Legendre points, which do not mind
poles nearby. A program with kinks (``abs``, ``relu``) names them: affine programs whose zeros are
where it is not smooth. The noise is rotated so that they all lie across the first scalar, and the
panels are cut there. The rule is then spectrally accurate for every program that is analytic between
its kinks.

Differentiable: the nodes are fixed in noise space, so autograd through an oracle is the oracle of the
gradient of any *continuous* program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import Distribution

from tests.oracles import Moments, base_distribution, is_discrete, joint_values

Program = Callable[..., Tensor]

REACH = 13.0  # standard deviations covered by the panels: exp(-REACH^2 / 2) is 2e-37
POINTS_PER_PANEL = 12
CHUNK = 1 << 16
# Gauss-Hermite points per scalar, by number of scalars.
POINTS = {0: 1, 1: 1, 2: 64, 3: 20, 4: 14, 5: 9, 6: 6}


def hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights for the expectation under N(0, 1), exact to degree ``2 count - 1``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.as_tensor(nodes), torch.as_tensor(weights / weights.sum())


def panels(cuts: Sequence[float], per_panel: int) -> tuple[Tensor, Tensor]:
    """The same by Gauss-Legendre points between integers and the cuts."""
    inside = [cut for cut in cuts if -REACH < cut < REACH]
    edges = np.unique(np.array([*np.arange(-REACH, REACH + 1.0), *inside]))
    x, w = np.polynomial.legendre.leggauss(per_panel)
    half = np.diff(edges)[:, None] / 2
    nodes = (edges[:-1, None] + half * (x + 1)).ravel()
    density = np.exp(-0.5 * nodes**2) / math.sqrt(2 * math.pi)
    return torch.as_tensor(nodes), torch.as_tensor((half * w).ravel() * density)


def location_and_root(distribution: Distribution) -> tuple[Tensor, Tensor]:
    """Mean [n] and a root L [n, n] of the covariance of a Gaussian, flattened in row-major order."""
    base = base_distribution(distribution)
    if isinstance(base, td.Normal):
        return base.loc.reshape(-1), torch.diag_embed(base.scale.reshape(-1))
    if not isinstance(base, (td.MultivariateNormal, td.LowRankMultivariateNormal)):
        raise TypeError(f"no oracle for {type(base).__name__}")
    size = base.loc.shape[-1]
    roots = torch.linalg.cholesky(base.covariance_matrix).reshape(-1, size, size)
    return base.loc.reshape(-1), torch.block_diag(*roots)


class Law:
    """The joint law of independent latents: all values of the discrete, noise of the others."""

    def __init__(self, distributions: Sequence[Distribution]) -> None:
        self.listed = [is_discrete(d) for d in distributions]
        discrete = [d for d, x in zip(distributions, self.listed, strict=True) if x]
        gaussian = [d for d, x in zip(distributions, self.listed, strict=True) if not x]
        self.values = list(joint_values(discrete))
        self.parts = [location_and_root(d) for d in gaussian]
        self.shapes = [d.batch_shape + d.event_shape for d in gaussian]
        self.num_scalars = sum(len(location) for location, _ in self.parts)

    def latents(self, values: Sequence[Tensor], noise: Tensor) -> list[Tensor]:
        """Latents in their order, from discrete values and one noise vector."""
        fixed, free = iter(values), []
        at = 0
        for (location, root), shape in zip(self.parts, self.shapes, strict=True):
            e = noise[at : at + len(location)]
            at += len(location)
            free.append((location + root @ e.to(root.dtype)).reshape(shape))
        rest = iter(free)
        return [next(fixed) if x else next(rest) for x in self.listed]

    def grid(
        self, values: Sequence[Tensor], kinks: Sequence[Program], points: int | None, refine: int
    ) -> tuple[Tensor, Tensor]:
        """Noise nodes [N, scalars] and their weights, given the discrete values."""
        n = self.num_scalars
        if n == 0:
            return torch.zeros(1, 0), torch.ones(1)
        frame, cuts = torch.eye(n), []
        if kinks:
            frame, cuts = self._across(values, kinks)
        count = (points or POINTS[n]) + refine
        per_panel = POINTS_PER_PANEL + refine
        first = panels(cuts, per_panel) if kinks or (n == 1 and points is None) else hermite(count)
        axes = [first] + [hermite(count)] * (n - 1)
        nodes = torch.cartesian_prod(*(x for x, _ in axes)).reshape(-1, n)
        weights = torch.cartesian_prod(*(w for _, w in axes)).reshape(-1, n).prod(-1)
        return nodes @ frame.T, weights

    def _across(
        self, values: Sequence[Tensor], kinks: Sequence[Program]
    ) -> tuple[Tensor, list[float]]:
        """An orthonormal frame whose first vector the kinks depend on alone, and where they lie."""
        n = self.num_scalars
        with torch.no_grad():

            def at(noise: Tensor) -> Tensor:
                latents = self.latents(values, noise)
                return torch.cat([kink(*latents).double().reshape(-1) for kink in kinks])

            offset = at(torch.zeros(n))
            slopes = torch.stack([at(e) - offset for e in torch.eye(n)], -1)
            probe = torch.linspace(-2.0, 1.0, n)
            if not torch.allclose(slopes @ probe + offset, at(probe), atol=1e-8):
                raise ValueError("a kink is not affine")
            crossing = slopes.norm(dim=-1) > 1e-12
            slopes, offset = slopes[crossing], offset[crossing]
            if not len(slopes):
                return torch.eye(n), []
            first = slopes[0] / slopes[0].norm()
            speed = slopes @ first
            if not torch.allclose(speed[:, None] * first, slopes, atol=1e-9):
                raise ValueError("kinks in more than one direction")
            frame, upper = torch.linalg.qr(torch.cat([first[:, None], torch.eye(n)], -1))
            frame[:, 0] *= upper[0, 0].sign()
            return frame, (-offset / speed).tolist()


def outcomes(
    program: Program,
    *distributions: Distribution,
    kinks: Sequence[Program] = (),
    points: int | None = None,
    refine: int = 0,
) -> tuple[Tensor, Tensor]:
    """Values [N, ...] of a program at every node and the weights [N] of the nodes."""
    law = Law(distributions)
    outputs, weights = [], []
    for values, probability in law.values:
        nodes, weight = law.grid(values, kinks, points, refine)

        def run(noise: Tensor, values: Sequence[Tensor] = values) -> Tensor:
            return program(*law.latents(values, noise)).double()

        if law.num_scalars:
            outputs += [torch.func.vmap(run)(part) for part in nodes.split(CHUNK)]
        else:
            outputs.append(run(nodes[0])[None])
        weights.append(weight * probability)
    return torch.cat(outputs), torch.cat(weights)


def moments(
    program: Program,
    *distributions: Distribution,
    kinks: Sequence[Program] = (),
    points: int | None = None,
    refine: int = 0,
) -> Moments:
    """Mean, variance and dense covariance of ``program(z_1, ..., z_n)`` for independent ``z_i``.

    Cost: one vectorised run over the product of all joint values and ``points`` per Gaussian scalar (a
    default by their number; ``points=3`` is exact for polynomials of degree up to 5 per scalar).

    :param kinks: affine programs whose zeros are where the program is not smooth; all of them may
        vary in one direction of the Gaussian noise only.
    :param refine: points more per axis; two runs tell how far the result can be trusted.
    """
    y, weight = outcomes(program, *distributions, kinks=kinks, points=points, refine=refine)
    shape = y.shape[1:]
    y = y.reshape(len(y), -1)
    mean = weight @ y
    centred = y - mean
    covariance = (centred * weight[:, None]).mT @ centred
    return Moments(mean.reshape(shape), covariance.diagonal().reshape(shape), covariance)
