"""Break one piece of the capture each, and see that the comparison with eager steps notices."""

from __future__ import annotations

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_silent.capture import capture, inputs, optimizer, reads, surroundings
from tests.capture import test_refused_steps, test_stale_parameters, test_stale_surroundings
from tests.capture.scenes import guide, play, regression
from tests.capture.side_by_side import Training, assert_same


def test_guards_that_never_change(monkeypatch):
    monkeypatch.setattr(surroundings.Surroundings, "changed", lambda self: None)
    with pytest.raises(AssertionError, match="loss of step 5"):
        play(test_stale_surroundings.closure_float_rebound, graphs=None)


def test_tensors_that_are_not_looked_up(monkeypatch):
    first = inputs.Inputs.now
    kept: dict[int, list] = {}

    def now(self, arguments):
        return list(kept.setdefault(id(self), list(first(self, arguments))))

    monkeypatch.setattr(inputs.Inputs, "now", now)
    with pytest.raises(AssertionError, match="loss of step 5"):
        play(test_stale_surroundings.closure_tensor_rebound, graphs=None)


def test_learning_rates_that_are_not_brought_up_to_date(monkeypatch):
    monkeypatch.setattr(optimizer.Updates, "count", lambda self: None)
    with pytest.raises(AssertionError, match="loss of step 6"):
        test_stale_parameters.test_user(test_stale_parameters.sets_the_learning_rate)


def test_random_numbers_of_the_trace(monkeypatch):
    """Every run of the graph repeats the random numbers of the first."""
    original = capture.Capture.replay

    def replay(self, tensors):
        torch.manual_seed(0)
        return original(self, tensors)

    monkeypatch.setattr(capture.Capture, "replay", replay)
    with pytest.raises(AssertionError, match="loss of step 3"):
        assert_same(Training(lambda: (regression, guide), loss=Trace_ELBO), 8)


def test_looks_that_are_all_allowed(monkeypatch):
    """A branch on a parameter is baked in."""
    monkeypatch.setattr(reads.Reads, "look", lambda self, tensors, what: None)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_refused_steps.test_refused_steps_are_those_of_pyro("item of a parameter")


def test_comparison_that_is_left_out(monkeypatch):
    """A number of Python's random generator is baked in."""
    monkeypatch.setattr(capture.Capture, "_compare", lambda self, *args: capture.random_state())
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_refused_steps.test_refused_steps_are_those_of_pyro("an iterator")
