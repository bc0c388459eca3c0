"""Expected log densities of every distribution, value and gradient, against dense quadrature.

The truth of a row is the plain ``log_prob`` of its program at nodes of its latents, weighted: panels of
Gauss-Legendre points for one Gaussian latent, cut where the density has a kink, times Gauss-Hermite
points for a second; all values of a discrete one.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

import distributions_table
from distribution_rows import EXCLUDED, ROWS, Row
from distributions_table import expectation, laws
from pyro_silent import (
    IntractableError,
    expected_log_prob,
    mean,
    random_parameters,
    random_tensor,
    register_expected_log_prob,
)
from pyro_silent.expectation.cauchy import log1p_square
from pyro_silent.expectation.coercion import without_validation
from pyro_silent.expectation.quadrature import QuadratureWarning

DOCS = Path(__file__).parent.parent.parent / "docs" / "distributions.md"
REACH = 9.0  # standard deviations: beyond them lie 1e-19 of the probability
CLOSED, NUMERIC = 1e-9, 1e-6

SOLVED = [row for row in ROWS if not row.refused]
REFUSED = [row for row in ROWS if row.refused]


def name_of(row: Row) -> str:
    return f"{row.name}-{row.argument}-{row.through}".replace(" ", "")


def panel_nodes(cuts: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights ``[n, elements]`` for N(0, 1), with panels that end at each element's cut."""
    x, w = np.polynomial.legendre.leggauss(16)
    columns = []
    for cut in cuts.tolist():
        inside = [cut] if -REACH < cut < REACH else [0.5]
        edges = np.sort(np.array([*np.arange(-REACH, REACH + 0.5), *inside]))
        half = np.diff(edges)[:, None] / 2
        nodes = (edges[:-1, None] + half * (x + 1)).ravel()
        density = np.exp(-0.5 * nodes**2) / np.sqrt(2 * np.pi)
        columns.append((nodes, (half * w).ravel() * density))
    nodes, weights = (torch.tensor(np.stack(part, -1)) for part in zip(*columns))
    return nodes, weights


def hermite_nodes(count: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(nodes), torch.tensor(weights / weights.sum())


def leaves_and_laws(row: Row) -> tuple[list[Tensor], list[Distribution]]:
    """The row's laws, on fresh leaves whose gradients are compared."""
    leaves: list[Tensor] = []
    fresh: list[Distribution] = []
    for law in laws(row):
        if isinstance(law, dist.Normal):
            pair = [part.clone().requires_grad_() for part in (law.loc, law.scale)]
            leaves += pair
            fresh.append(dist.Normal(*pair))
        else:
            leaf = law.logits.detach().clone().requires_grad_()
            leaves.append(leaf)
            fresh.append(type(law)(logits=leaf))
    return leaves, fresh


def joint_nodes(row: Row, fresh: list[Distribution]) -> tuple[list[Tensor], Tensor]:
    """Values of all latents ``[n, 3]`` and their weights ``[n, 3]``, every element on its own."""
    axes = []
    for law in fresh:
        if not isinstance(law, dist.Normal):
            support = law.enumerate_support(expand=True)
            axes.append((support, law.log_prob(support).exp()))
        elif not axes:
            kink = None if row.kink is None else row.kink()
            cuts = torch.full((3,), 0.5) if kink is None else (kink - law.loc) / law.scale
            nodes, weights = panel_nodes(cuts.detach())
            axes.append((law.loc + law.scale * nodes, weights))
        else:
            nodes, weights = (part[:, None] for part in hermite_nodes(64))
            axes.append((law.loc + law.scale * nodes, weights.expand(-1, 3)))
    picks = torch.cartesian_prod(*(torch.arange(len(values)) for values, _ in axes))
    picks = picks.reshape(-1, len(axes))
    values = [axis[0][pick] for axis, pick in zip(axes, picks.T)]
    weights = torch.stack([axis[1][pick] for axis, pick in zip(axes, picks.T)]).prod(0)
    return values, weights


def grid_nodes(fresh: list[Distribution], count: int) -> tuple[Tensor, Tensor]:
    """Joint values ``[n, 3]`` of all elements and their weights, exact to degree ``2 count - 1``."""
    (law,) = fresh
    nodes, weights = hermite_nodes(count)
    picks = torch.cartesian_prod(*[torch.arange(len(nodes))] * 3)
    return law.loc + law.scale * nodes[picks], weights[picks].prod(-1)


def reference(row: Row, fresh: list[Distribution]) -> Tensor:
    """E[log p] by nodes."""
    with without_validation():
        if row.joint:
            values, weights = grid_nodes(fresh, 12 if "exp" in row.through else 3)
            log_prob = torch.stack([_score(row, [value]) for value in values])
            return torch.tensordot(weights, log_prob, 1)
        values, weights = joint_nodes(row, fresh)
        return (weights * _score(row, values)).sum(0)


def _score(row: Row, values: list[Tensor]) -> Tensor:
    if row.log_prob is not None:
        return row.log_prob(*values)
    distribution, value = row.program(*values)
    return distribution.log_prob(value)


@pytest.fixture(autouse=True)
def _no_overflow_warnings():
    with np.errstate(all="raise"):
        yield


@pytest.mark.parametrize("row", SOLVED, ids=name_of)
def test_value_and_gradient(row):
    leaves, fresh = leaves_and_laws(row)
    latents = [random_tensor(law, "zy"[i]) for i, law in enumerate(fresh)]
    found, methods = expectation(row, latents)
    tolerance = CLOSED if not methods or methods == ["enumerated"] else NUMERIC
    tolerance = max(tolerance, row.tolerance)
    truth = reference(row, fresh)
    assert found.shape == truth.shape
    torch.testing.assert_close(found, truth, rtol=tolerance, atol=tolerance)
    slope = torch.linspace(0.5, 1.5, max(found.numel(), 1)).reshape(found.shape)
    if not truth.requires_grad:
        assert not found.requires_grad
        return
    gradients = torch.autograd.grad(
        (slope * found).sum(), leaves, materialize_grads=True, retain_graph=True
    )
    expected = torch.autograd.grad((slope * truth).sum(), leaves, materialize_grads=True)
    for gradient, truth in zip(gradients, expected):
        torch.testing.assert_close(gradient, truth, rtol=10 * tolerance, atol=10 * tolerance)


# In Pyro itself LKJ and SoftAsymmetricLaplace have no expand, MaskedMixture no mask(), and that of an
# ExpandedDistribution changes it in place; a Unit or a Delta has no values to repeat.
UNWRAPPED = (
    "LKJ", "SoftAsymmetricLaplace", "MaskedMixture", "ExpandedDistribution", "Unit", "Delta"
)  # fmt: skip
WRAPPED = [row for row in SOLVED if not row.joint and row.name not in UNWRAPPED]


@pytest.mark.parametrize("row", WRAPPED, ids=name_of)
def test_sums_repeats_and_masks(row):
    """to_event adds elements up, expand repeats them, mask drops some; values may broadcast."""
    latents = [random_tensor(law, "zy"[i]) for i, law in enumerate(laws(row))]
    single, _ = expectation(row, latents)
    with random_parameters():
        distribution, value = row.program(*latents)
        if distribution.batch_shape != (3,):
            distribution = distribution.expand(torch.Size([3]))
        summed = expected_log_prob(distribution.to_event(1), value)
        repeated = expected_log_prob(distribution.expand(torch.Size([2, 3])).to_event(1), value)
        masked = expected_log_prob(
            distribution.mask(torch.tensor([True, False, True])).to_event(1), value
        )
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(summed, single.sum(), **close)
    torch.testing.assert_close(repeated, single.sum().expand(2), **close)
    torch.testing.assert_close(masked, single[0] + single[2], **close)


@pytest.mark.parametrize("row", REFUSED, ids=name_of)
def test_refusal_names_distribution_and_argument(row):
    latents = [random_tensor(law, "zy"[i]) for i, law in enumerate(laws(row))]
    with pytest.raises(IntractableError) as caught:
        expectation(row, latents)
    message = str(caught.value)
    assert row.name in message
    assert row.argument in message
    assert set(caught.value.latents) <= {"z", "y"} and caught.value.latents


def test_the_committed_table_is_what_the_script_makes():
    """But for the number of quadrature nodes, which hangs on the last digits of an error estimate."""

    def without_counts(page: str) -> str:
        return re.sub(r"quadrature\(\d+\)", "quadrature(n)", page)

    assert without_counts(DOCS.read_text()) == without_counts(distributions_table.table())


def test_every_public_distribution_is_in_the_table_or_left_out():
    covered = {row.name for row in ROWS}
    public = distributions_table.public_distributions()
    assert public == covered | set(EXCLUDED)
    assert not covered & set(EXCLUDED)
    assert all(reason for reason in EXCLUDED.values())


def test_nothing_is_refused_but_what_the_table_says():
    """A row that could be solved but is marked as refused would hide a gain, and the reverse a loss."""
    for row in ROWS:
        assert (distributions_table.method_of(row) == "sampled") is row.refused, name_of(row)


@pytest.mark.parametrize("std", [1e-6, 0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("loc", [0.0, 0.3, 3.0, 1e3])
def test_log1p_of_a_square(loc, std):
    """E log(1 + x^2) to 1e-9 for every mean and std, against panels around the poles at +-i."""
    edges = np.unique(np.clip([-13.0, *((s - loc) / std for s in POLES), 13.0], -13.0, 13.0))
    edges = np.unique(np.concatenate([edges, np.linspace(-13, 13, 27)]))
    x, w = np.polynomial.legendre.leggauss(40)
    half = np.diff(edges)[:, None] / 2
    nodes = edges[:-1, None] + half * (x + 1)
    density = np.exp(-0.5 * nodes**2) / np.sqrt(2 * np.pi)
    truth = float((half * w * density * np.log1p((loc + std * nodes) ** 2)).sum())
    for extra in (1.0, 1e4):  # the rule is chosen for the widest element of all
        m, s = torch.tensor([loc, extra]), torch.tensor([std, extra])
        assert abs(float(log1p_square(m, s)[0]) / truth - 1) < 1e-9


POLES = [sign * 4.0**k for sign in (-1, 1) for k in range(-3, 7)]


class Cosine(dist.Normal):
    """A density of scalars whose formula random tensors cannot run."""

    def log_prob(self, value: Tensor) -> Tensor:
        result = torch.zeros(torch.broadcast_shapes(value.shape, self.loc.shape))
        result[...] = torch.cos((value - self.loc) / self.scale)
        if bool((result > 2).any()):
            raise ValueError("unreachable")
        return result


def test_a_formula_that_needs_values_is_given_nodes():
    leaf = torch.tensor([0.5, 1.0], requires_grad=True)
    z = random_tensor(dist.Normal(leaf, 0.3))
    with random_parameters():
        law = Cosine(z, 2.0)
    found = expected_log_prob(law.expand([2]), torch.ones(2))
    truth = torch.cos((1 - leaf) / 2) * np.exp(-0.5 * 0.15**2)
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)
    found = expected_log_prob(law.expand([4, 2]).to_event(1), torch.ones(2))
    torch.testing.assert_close(found, truth.sum().expand(4), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(found[0], leaf)
    (expected,) = torch.autograd.grad(truth.sum(), leaf)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8)
    index = random_tensor(dist.Bernoulli(torch.tensor([0.2, 0.7])))
    with random_parameters():
        found = expected_log_prob(Cosine(index, 2.0), torch.ones(2))
    p = torch.tensor([0.2, 0.7])
    torch.testing.assert_close(found, p + (1 - p) * np.cos(0.5))


def test_a_users_rule_stands_beside_them():
    class Vector(dist.TorchDistribution):
        """A density of vectors whose formula random tensors cannot run; it declares no constraints."""

        def __init__(self, loc: Tensor) -> None:
            self.loc = loc
            super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

        def log_prob(self, value: Tensor) -> Tensor:
            return torch.tensor(np.cos((value - self.loc).detach().numpy()).sum(-1))

    mean_of_z = torch.tensor([0.5, 1.0])
    z = random_tensor(dist.Normal(mean_of_z, 0.3))
    with random_parameters():
        law = Vector(z)
    with pytest.raises(IntractableError, match="Vector with random loc"):
        expected_log_prob(law, torch.ones(2))

    @register_expected_log_prob(Vector)
    def rule(distribution: Distribution, value: Tensor) -> Tensor:
        return mean(torch.cos(value - distribution.loc)).sum(-1)

    found = expected_log_prob(law, torch.ones(2))
    truth = (torch.cos(1 - mean_of_z) * np.exp(-0.5 * 0.3**2)).sum()
    torch.testing.assert_close(found, truth)


SCALES = [1e-6, 1.0, 1e3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("scale", SCALES)
def test_finite_or_refused_whatever_the_posterior_scale(scale, dtype):
    """No NaN in silence: a number (perhaps infinite, where the mean is), or an error."""
    torch.set_default_dtype(dtype)
    for row in SOLVED:
        if row.name in ("StableWithLogProb", "SoftAsymmetricLaplace") or "normal" not in row.latent:
            continue
        wide = [
            dist.Normal(law.loc, torch.full_like(law.loc, scale)) if hasattr(law, "loc") else law
            for law in laws(row)
        ]
        latents = [random_tensor(law, "zy"[i]) for i, law in enumerate(wide)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", QuadratureWarning)  # says itself how far it is off
                found, _ = expectation(row, latents)
        except IntractableError:
            continue
        assert not found.isnan().any(), (name_of(row), found)
        assert found.dtype == dtype, name_of(row)
