"""Schedules: where they start, pass and stop."""

from __future__ import annotations

import copy
import math
import pickle
import sys

import matplotlib
import numpy as np
import pytest

from pyro_silent import ConfigurationError, Constant, Cosine, Exponential, Linear, StraightThrough
from pyro_silent import schedules as schedules_module

RAMPS = [Linear, Cosine, Exponential]
over_ramps = pytest.mark.parametrize("ramp", RAMPS)


@over_ramps
@pytest.mark.parametrize("start, stop", [(1.0, 0.1), (0.1, 1.0), (2, 2), (1e-300, 1e300)])
@pytest.mark.parametrize("hold", [0, 3])
def test_both_ends_are_exact(ramp, start, stop, hold):
    schedule = ramp(start, stop, 5, hold=hold)
    for step in range(hold + 1):
        assert schedule(step) == start
    for step in (hold + 5, hold + 6, 10**9):
        assert schedule(step) == stop
    inside = [schedule(step) for step in range(hold, hold + 6)]
    assert all(type(value) is float for value in inside)
    assert inside == sorted(inside, reverse=start > stop)
    assert all(min(start, stop) <= value <= max(start, stop) for value in inside)
    if start != stop:
        assert len(set(inside)) == 6


@over_ramps
def test_hold_moves_the_ramp(ramp):
    held, plain = ramp(1.0, 0.2, 10, hold=4), ramp(1.0, 0.2, 10)
    assert [held(step + 4) for step in range(12)] == [plain(step) for step in range(12)]


def test_values_inside():
    assert [Linear(1.0, 0.0, 4)(step) for step in (1, 2, 3)] == [0.75, 0.5, 0.25]
    half = math.sqrt(0.5)
    expected = [(1 + half) / 2, 0.5, (1 - half) / 2]
    assert [Cosine(1.0, 0.0, 4)(step) for step in (1, 2, 3)] == pytest.approx(expected, abs=1e-15)
    cooling = [Exponential(8.0, 0.5, 4)(step) for step in (1, 2, 3)]
    assert cooling == pytest.approx([4.0, 2.0, 1.0], rel=1e-15)


def test_a_ramp_of_one_step_is_a_switch():
    for ramp in RAMPS:
        schedule = ramp(1.0, 0.5, 1, hold=2)
        assert [schedule(step) for step in range(5)] == [1.0, 1.0, 1.0, 0.5, 0.5]


def test_constant():
    assert Constant(2)(0) == Constant(2)(10**9) == 2.0
    assert type(Constant(2)(0)) is float


@pytest.mark.parametrize(
    "schedule", [Constant(0.5), *(ramp(1.0, 0.5, 10, hold=2) for ramp in RAMPS)], ids=repr
)
def test_as_an_object(schedule):
    for clone in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert clone == schedule
        assert hash(clone) == hash(schedule)
        assert clone(5) == schedule(5)
    names = {type(schedule).__name__: type(schedule)}
    assert eval(repr(schedule), names) == schedule
    assert StraightThrough(schedule).temperature_at(20) == 0.5
    with pytest.raises(AttributeError):
        schedule.start = 3.0


def test_numbers_of_numpy_are_numbers():
    schedule = Linear(np.float32(1), np.float64(0), np.int64(4), hold=np.int32(1))
    assert schedule(np.int64(3)) == 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "1", True, 1j], ids=repr)
def test_ends_are_finite_numbers(bad):
    with pytest.raises(ConfigurationError, match="^w: got .*, expected a finite number"):
        Constant(bad)
    for ramp in RAMPS:
        with pytest.raises(ConfigurationError, match="^start: got .*, expected a finite number"):
            ramp(bad, 1.0, 10)
        with pytest.raises(ConfigurationError, match="^stop: got .*, expected a finite number"):
            ramp(1.0, bad, 10)


@over_ramps
@pytest.mark.parametrize("bad", [-1, 0.5, 2.0, None, "3", True], ids=repr)
def test_steps_are_counted(ramp, bad):
    with pytest.raises(ConfigurationError, match="^num_steps: got .*, expected an integer >= 1"):
        ramp(1.0, 0.5, bad)
    with pytest.raises(ConfigurationError, match="^num_steps: got 0, expected an integer >= 1"):
        ramp(1.0, 0.5, 0)
    with pytest.raises(ConfigurationError, match="^hold: got .*, expected an integer >= 0"):
        ramp(1.0, 0.5, 10, hold=bad)


@pytest.mark.parametrize("start, stop, argument", [(1.0, 0.0, "stop"), (-1.0, 1.0, "start")])
def test_a_constant_ratio_needs_positive_ends(start, stop, argument):
    with pytest.raises(ConfigurationError, match=f"^{argument}: got .*a number > 0.*write Linear"):
        Exponential(start, stop, 10)


@pytest.mark.parametrize("schedule", [Constant(0.5), *(ramp(1.0, 0.5, 10) for ramp in RAMPS)])
@pytest.mark.parametrize("bad", [-1, 0.5, 2.0, math.nan, None, "3", True], ids=repr)
def test_a_step_is_counted_from_0(schedule, bad):
    with pytest.raises(ConfigurationError, match="^step: got .*, expected an integer >= 0"):
        schedule(bad)


@pytest.mark.parametrize(
    "schedule, text",
    [
        (Constant(2), "2 at every step"),
        (Linear(1, 0, 10), "from 1 in a straight line to 0 at step 10"),
        (Cosine(1.0, 0.2, 9, hold=5), "1 up to step 5, then along half a cosine wave to 0.2 at step 14"),
        (Exponential(1.0, 0.5, 8), "from 1 at a constant ratio per step to 0.5 at step 8"),
        (Linear(1.0, 0.0, 1, hold=7), "1 up to step 7, 0 from step 8 on"),
    ],
    ids=repr,
)  # fmt: skip
def test_the_text_says_what_happens(schedule, text):
    assert str(schedule) == text


@pytest.fixture
def drawn(monkeypatch):
    """What a plot would draw: [(steps, numbers)]."""
    calls = []
    monkeypatch.setattr(
        schedules_module, "draw_lines", lambda path, lines, **_: calls.extend(lines.values())
    )
    return calls


@over_ramps
def test_a_plot_shows_every_change(ramp, drawn):
    schedule = ramp(1.0, 0.5, 1, hold=123_457)
    schedule.plot("unused.png")
    ((steps, numbers),) = drawn
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] > 123_458
    assert {123_457, 123_458} < set(steps) and len(steps) < 1000
    assert numbers == [1.0 if step <= 123_457 else 0.5 for step in steps]


def test_a_plot_ends_where_it_is_told_to(drawn):
    Linear(1.0, 0.0, 10).plot("unused.png", num_steps=4)
    Constant(0.5).plot("unused.png", num_steps=2)
    Constant(0.5).plot("unused.png")
    assert drawn[0] == ([0, 1, 2, 3, 4], [1.0, 0.9, 0.8, 0.7, 0.6])
    assert drawn[1] == ([0, 1, 2], [0.5] * 3)
    assert set(drawn[2][1]) == {0.5} and drawn[2][0][-1] > 1
    for bad in (0, -1, 2.5, True):
        with pytest.raises(
            ConfigurationError, match="^num_steps: got .*, expected an integer >= 1"
        ):
            Constant(0.5).plot("unused.png", num_steps=bad)


def test_a_plot_leaves_matplotlib_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # to import it would fail
    before = dict(matplotlib.rcParams)
    Linear(1.0, 0.0, 10, hold=3).plot(tmp_path / "a.png")
    Linear(1.0, 0.0, 10, hold=3).plot(str(tmp_path / "a.svg"), 20)
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "a.svg").read_text()


def test_without_matplotlib_a_plot_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plot needs matplotlib.*write pip install matplotlib"):
        Linear(1.0, 0.0, 10).plot(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
