"""Random programs of linear rules against brute force: means, variances, covariances, gradients."""

from __future__ import annotations

from random import Random

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_silent import RandomTensor, covariance, mean, random_tensor, variance
from pyro_silent.random_tensor.covariance import covariance as covariance_of_forms
from pyro_silent.random_tensor.tensor import affine_of
from tests import oracles
from tests.random_tensor.agreement import assert_close, assert_program_agrees
from tests.random_tensor.programs import CATEGORICAL, NAMES, plain, programs


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(programs())
def test_moments_and_gradients(program):
    assert_program_agrees(program, program.sources())


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(programs(), st.data())
def test_covariance_of_two_values_of_one_run(program, data):
    """Covariance between any two floating values of a program, from either side."""
    sources = program.sources()
    dense = [i for i, (kind, _) in enumerate(program.kinds) if kind != CATEGORICAL]
    usable = dense + list(range(len(sources), len(sources) + len(program.steps)))
    first = data.draw(st.sampled_from(usable))
    last = len(sources) + len(program.steps) - 1

    def pair(*latents: Tensor) -> Tensor:
        values = program.values(*latents)
        return torch.cat([values[first].reshape(-1), values[last].reshape(-1)])

    expected = oracles.moments(pair, *(s.distribution() for s in sources))
    values = program.values(*(random_tensor(s.distribution()) for s in sources))
    a, b = values[first].reshape(-1), values[last].reshape(-1)
    assert isinstance(a, RandomTensor) and isinstance(b, RandomTensor)
    n = len(a)
    block = expected.covariance[:n, n:]
    assert_close(covariance(a[:, None], b[None, :]), block, 1e-9, "covariance")
    assert_close(covariance(b[:, None], a[None, :]), block.T, 1e-9, "covariance, swapped")
    assert_close(torch.cat([mean(a), mean(b)]), expected.mean, 1e-9, "mean")
    assert_close(torch.cat([variance(a), variance(b)]), expected.variance, 1e-9, "variance")


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(programs(), st.integers(0, 2**32 - 1))
def test_weighted_sum_of_covariances(program, seed):
    """What the closed forms ask for: ``sum(w Cov(a, b), dims)``, contracted before the batch."""
    random = Random(seed)
    sources = program.sources()
    dense = [i for i, (kind, _) in enumerate(program.kinds) if kind != CATEGORICAL]
    usable = dense + list(range(len(sources), len(sources) + len(program.steps)))
    first, second = usable[-1], random.choice(usable[-3:])

    def pair(*latents: Tensor) -> tuple[Tensor, Tensor]:
        values = program.values(*latents)
        a, b = values[first], values[second]
        return (a, b.sum()) if first != second else (a, a)

    def both(*latents: Tensor) -> Tensor:
        return torch.stack(torch.broadcast_tensors(*pair(*latents)))

    expected = oracles.moments(both, *(s.distribution() for s in sources))
    shape = expected.mean.shape[1:]
    n = expected.mean[0].numel()
    elementwise = expected.covariance[:n, n:].diagonal().reshape(shape)
    weight = plain([random.choice([1, size]) for size in shape[random.randint(0, len(shape)) :]], 1)
    dims = [d for d in range(-len(shape), 0) if random.random() < 0.6]
    wanted = weight * elementwise
    wanted = wanted.sum(dims) if dims else wanted
    a, b = pair(*(random_tensor(s.distribution()) for s in sources))
    found = covariance_of_forms(affine_of(a), affine_of(b), weight, dims)
    assert found.shape == wanted.shape
    assert_close(found, wanted, 1e-9, "weighted sum")


def test_every_kind_of_step_is_drawn():
    """The generator reaches each of its steps: without this a rule could go untested unseen."""
    seen: set[str] = set()

    @settings(max_examples=300, suppress_health_check=list(HealthCheck), database=None)
    @given(programs())
    def collect(program):
        seen.update(function.__qualname__.split(".")[-3] for _, function in program.steps)

    collect()
    missing = {*NAMES, "_lookup"} - {name for name in seen}
    assert not missing
