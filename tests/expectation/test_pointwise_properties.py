"""Random pointwise programs against dense quadrature: the right number or a refusal."""

from __future__ import annotations

import warnings
from collections import Counter

import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from pyro_silent import IntractableError, RandomTensor, mean, random_tensor, variance
from pyro_silent.expectation.quadrature import QuadratureWarning
from tests.expectation import dense
from tests.expectation.pointwise_programs import NAMES, Program, programs
from tests.expectation.test_pointwise import gradients

TOLERANCE = 1e-7  # relative, to the largest entry
FAR = 1e8  # expectations beyond hang on tails that the nodes do not reach


def oracle(program: Program, refine: int = 0) -> Tensor | None:
    """Mean and variance stacked; None where the oracle cannot integrate the program."""
    laws = [s.distribution() for s in program.sources()]
    try:
        with torch.no_grad():
            moments = dense.moments(program, *laws, kinks=program.kinks(), refine=refine)
    except ValueError:
        return None
    return torch.stack([moments.mean, moments.variance])


def error(found: Tensor, truth: Tensor) -> float:
    """Largest error relative to the largest entry or 1."""
    size = max(1.0, truth.abs().max().item())
    return ((found - truth).abs().max() / size).item()


def check(program: Program, moment, row: int) -> str:
    """Compare one moment with the oracle, and its gradient; what came of it."""
    sources = program.sources()
    y = program(*(random_tensor(s.distribution()) for s in sources))
    if not isinstance(y, RandomTensor):
        return "constant"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = moment(y)
        except IntractableError:
            return "refused"
    if caught:
        # Said to be inexact: a kink inside a smooth function.
        assert all(issubclass(w.category, QuadratureWarning) for w in caught), caught[0].message
        return "warned"
    truth = oracle(program)
    if truth is None:
        return "no oracle"
    if not truth[row].isfinite().all() or truth[row].abs().max() > FAR:
        return "no oracle"
    assert found.shape == truth[row].shape
    if error(found, truth[row]) > TOLERANCE:
        # The oracle says how far it can be trusted itself.
        finer = oracle(program, refine=5)
        assert finer is not None
        assert error(found, truth[row]) < 20 * error(finer[row], truth[row]), (found, truth[row])
        return "coarse oracle"
    return "right"


def count(moment, row: int, num_examples: int) -> Counter:
    """Outcomes over random programs."""
    outcomes: Counter = Counter()

    @settings(max_examples=num_examples, suppress_health_check=list(HealthCheck), database=None)
    @given(programs())
    def run(program):
        outcomes[check(program, moment, row)] += 1

    run()
    return outcomes


def test_means_are_right_or_refused():
    """Most are right: a library that refuses everything is never wrong."""
    outcomes = count(mean, 0, 250)
    assert outcomes["right"] > 0.6 * outcomes.total(), outcomes


def test_variances_are_right_or_refused():
    outcomes = count(variance, 1, 120)
    assert outcomes["right"] > 0.3 * outcomes.total(), outcomes


def test_gradients_are_right():
    """Of the mean, through the parameters of the sources."""
    outcomes: Counter = Counter()

    @settings(max_examples=120, suppress_health_check=list(HealthCheck), database=None)
    @given(programs())
    def run(program):
        sources = program.sources()
        leaves = [p for s in sources for p in s.parameters]
        laws = [s.distribution() for s in sources]
        y = program(*(random_tensor(law) for law in laws))
        if not isinstance(y, RandomTensor):
            return
        try:
            found = gradients(mean(y), leaves)
        except IntractableError:
            return

        def truth(refine: int) -> list[Tensor]:
            law = [s.distribution() for s in sources]
            expected = dense.moments(program, *law, kinks=program.kinks(), refine=refine)
            return gradients(expected.mean, leaves)

        try:
            wanted = truth(0)
        except ValueError:
            return
        for i, (got, want) in enumerate(zip(found, wanted, strict=True)):
            if not want.isfinite().all() or want.abs().max() > FAR:
                outcomes["far"] += 1
            elif error(got, want) > 10 * TOLERANCE:
                finer = error(truth(5)[i], want)
                assert error(got, want) < 20 * finer, (i, got, want)
            else:
                outcomes["right"] += 1

    run()
    assert outcomes["right"] > 100


def test_every_kind_of_step_is_drawn():
    """The generator reaches each of its steps: without this a rule could go untested unseen."""
    seen: Counter = Counter()

    @settings(max_examples=200, suppress_health_check=list(HealthCheck), database=None)
    @given(programs())
    def collect(program):
        for step in program.steps:
            seen[step.function.__qualname__.split(".")[1]] += 1

    collect()
    assert not set(NAMES) - set(seen), seen
