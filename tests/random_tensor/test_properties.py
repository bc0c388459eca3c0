"""Random programs of linear rules against brute force: means, variances, covariances, gradients."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_silent import RandomTensor, covariance, mean, random_tensor, variance
from tests import oracles
from tests.random_tensor.agreement import assert_close, assert_program_agrees
from tests.random_tensor.programs import CATEGORICAL, NAMES, programs


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
