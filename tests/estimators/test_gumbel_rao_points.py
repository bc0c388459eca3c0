"""The points GumbelRao averages over: each uniform, rows independent, never 0 or 1."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_silent.estimators.point_set import POINT_SETS, LatticePoints, generating_vector

over_point_sets = pytest.mark.parametrize("point_set", POINT_SETS.values(), ids=POINT_SETS)
DTYPES = [torch.float32, torch.float64]


def points(point_set, num_points, num_dims, num_rows, dtype=torch.float64, sizes=None, seed=0):
    torch.manual_seed(seed)
    like = torch.empty(0, dtype=dtype)
    stream = point_set(num_points, num_dims, num_rows, like)
    parts = [
        stream.fill(like.new_empty(size, num_dims, num_rows)) for size in sizes or [num_points]
    ]
    return torch.cat(parts)


@over_point_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_points", [1, 2, 5])
def test_every_point_is_uniform(point_set, dtype, num_points):
    # Kolmogorov-Smirnov at 1e-7 for each point and dimension: by chance 2e-6 per case at most
    found = points(point_set, num_points, 4, 20_000, dtype).double()
    assert found.min() > 0
    assert found.max() < 1
    for point in found.reshape(-1, 20_000):
        assert stats.kstest(point.numpy(), "uniform").pvalue > 1e-7


@over_point_sets
def test_rows_are_independent(point_set):
    # correlations of 2 x 100 pairs of columns, z < 5: by chance 1e-4
    found = points(point_set, 10, 1, 2 * 5000).squeeze(1)
    one, other = found[:, :5000].numpy(), found[:, 5000:].numpy()
    for transform in (lambda x: x, lambda x: np.cos(2 * np.pi * x)):
        both = np.corrcoef(transform(one), transform(other))[:10, 10:]
        assert np.abs(both).max() < 5 / 5000**0.5


@pytest.mark.parametrize("num_points", [1, 2, 7, 10, 100])
def test_a_lattice_is_even_in_every_dimension(num_points):
    # unfolded: the points of a dimension are K equal steps round a circle, whatever the shift
    found = points(LatticePoints, num_points, 6, 20)
    count_below = (found < 0.5).sum(0)
    assert (count_below - num_points / 2).abs().max() <= 1
    ordered = found.sort(
        0
    ).values  # folded, each of K intervals has one point, up to its neighbour's
    ideal = (torch.arange(num_points).double() + 0.5)[:, None, None] / num_points
    assert (ordered - ideal).abs().max() <= 1.0 / num_points


def test_two_lattice_points_are_antithetic():
    found = points(LatticePoints, 2, 5, 100)
    assert torch.allclose(found[0], 1 - found[1], atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [[1] * 10, [3, 3, 3, 1], [4, 4, 2], [9, 1]], ids=str)
def test_chunks_are_parts_of_the_same_lattice(dtype, sizes):
    whole = points(LatticePoints, 10, 4, 30, dtype)
    parts = points(LatticePoints, 10, 4, 30, dtype, sizes)
    # in which the steps are rounded to the grid as often as there are chunks
    assert (whole - parts).abs().max() < 20 * torch.finfo(dtype).eps * 4


@over_point_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("largest", [False, True])
def test_neither_0_nor_1_occurs(monkeypatch, point_set, dtype, largest):
    end = 1 - torch.finfo(dtype).eps / 2 if largest else 0.0
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda tensor, **kwargs: tensor.fill_(end))
    for num_points in (1, 2, 3, 10, 1000):
        found = points(point_set, num_points, 3, 2, dtype)
        assert found.min() > 0
        assert found.max() < 1
        logs = found.log2()
        assert logs.isfinite().all()
        assert (logs < 0).all()


@pytest.mark.parametrize("num_points", [1, 2, 3, 10, 97, 100, 1000, 100_000])
def test_generating_vectors_are_coprime_and_differ(num_points):
    vector = generating_vector(num_points, 200)
    assert len(vector) == 200
    assert all(math.gcd(z, num_points) == 1 for z in vector)
    assert all(0 < z <= max(num_points // 2, 1) for z in vector)
    if num_points >= 97:
        assert len(set(vector[:12])) == 12
    assert vector[:30] == generating_vector(num_points, 30)


@pytest.mark.parametrize("num_points, bound", [(10, 0.25), (100, 0.02), (1000, 0.002)])
def test_a_lattice_integrates_a_smooth_function_of_pairs(num_points, bound):
    # the variance of the mean, relative to that of independent points
    def function(u):
        return (u[:, 0] * u[:, 1] + u[:, 1] * u[:, 2] + u[:, 3].exp()).mean(0)

    variance = {
        name: function(points(point_set, num_points, 4, 1000)).var()
        for name, point_set in POINT_SETS.items()
    }
    assert variance["lattice"] < bound * variance["independent"]
