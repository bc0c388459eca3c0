"""Measure time in rounds in turn, peak memory of a step, and growth."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

MEASURED_STEP = "measured step"
CLEAR_REFS = Path("/proc/self/clear_refs")

# The profiler writes to stderr at every start and stop; only this level keeps it silent.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

Times = dict[str, list[float]]


class Ratio(NamedTuple):
    """The ratio of two contenders: median and quartiles over the rounds of one run."""

    median: float
    lower_quartile: float
    upper_quartile: float


class StepMemory(NamedTuple):
    """Bytes a step allocates on top of what was there before it, and its largest tensor."""

    peak_bytes: int
    largest_tensor_bytes: int


def one_core() -> None:
    """Keep this process to one thread and, where the system can, to one core.

    On one core a library with threads of its own, such as XLA's, spends no processor time on handing
    work to and fro, so that its processor time is the wall time of a machine that does nothing else.
    """
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def time_in_turn(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    calls_per_round: int = 1,
    warm_up_calls: int = 3,
    seconds_per_turn: float = 0.0,
) -> Times:
    """Return seconds of processor time per call, one figure per contender and round.

    A contender is called ``calls_per_round`` times in a row, and more often if its turn would be
    shorter than ``seconds_per_turn`` otherwise, so that a call of microseconds has a figure too.

    A round runs every contender once (A B C, then B C A, ...), so that a slow spell of a shared
    machine falls on all of them, and none is always the first. Processor time is wall time less
    the waits for other programs, as long as there is one thread and no device.
    """
    if torch.get_num_threads() != 1:
        raise RuntimeError("processor time is not the time of a step unless torch has one thread")
    for call in contenders.values():
        for _ in range(warm_up_calls):
            call()
    names = list(contenders)
    calls = {
        name: max(calls_per_round, _calls_in(seconds_per_turn, call))
        for name, call in contenders.items()
    }
    times: Times = {name: [] for name in names}
    for round_index in range(rounds):
        first = round_index % len(names)
        for name in names[first:] + names[:first]:
            call = contenders[name]
            start = time.process_time()
            for _ in range(calls[name]):
                call()
            times[name].append((time.process_time() - start) / calls[name])
    return times


def _calls_in(seconds: float, call: Callable[[], object]) -> int:
    """Return how many calls take about so long, the median of three calls considered."""
    if seconds <= 0:
        return 1
    took = []
    for _ in range(3):
        start = time.process_time()
        call()
        took.append(time.process_time() - start)
    return math.ceil(seconds / max(statistics.median(took), 1e-6))


def median_times(times: Times) -> dict[str, float]:
    """Return the median over the rounds, in seconds, of each contender."""
    return {name: statistics.median(values) for name, values in times.items()}


def paired_ratio(times: Times, name: str, reference: str) -> Ratio:
    """Return the ratio of two contenders, taken round by round."""
    ratios = [a / b for a, b in zip(times[name], times[reference], strict=True)]
    if len(ratios) < 2:
        return Ratio(ratios[0], ratios[0], ratios[0])
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return Ratio(median, lower, upper)


def step_memory(step: Callable[[], object], warm_up_calls: int = 3) -> StepMemory:
    """Return the peak and the largest allocation of one call, from the profiler's memory events.

    Every allocation and release of the CPU allocator is an event with its size; the peak is the
    largest partial sum. The warm-up leaves parameters, gradients and the optimizer's state in
    place, so they count for nothing here. Scratch memory of MKL and oneDNN is not seen.
    """
    for _ in range(warm_up_calls):
        step()
    # The profiler cannot size the release of a tensor it did not see allocated, and a step
    # replaces the gradients of the step before: so two steps are profiled and the second counts.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
        with record_function(MEASURED_STEP):
            step()
    if profiler.profiler is None or profiler.profiler.kineto_results is None:
        raise RuntimeError("torch.profiler kept no results; this build of torch lacks Kineto")
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    begin = next(event.start_ns() for event in events if event.name() == MEASURED_STEP)
    changes = [
        event.nbytes()
        for event in events
        if event.name() == "[memory]" and event.start_ns() >= begin
    ]
    return StepMemory(max(itertools.accumulate(changes)), max(changes))


def resident_bytes(field: str = "VmRSS") -> int:
    """Return ``VmRSS`` (now) or ``VmHWM`` (peak) of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])


def resident_peak(call: Callable[[], object]) -> int:
    """Return how far the process grows at most during a call, where ``CLEAR_REFS`` exists."""
    before = resident_bytes()
    CLEAR_REFS.write_text("5")  # proc(5): sets the peak back to the current size
    call()
    return resident_bytes("VmHWM") - before


def measure_in_subprocess(script: str, seed: int, case: Any) -> dict[str, Any]:
    """Return what a script prints for one case, as JSON, in a fresh process.

    So no case inherits another's heap. The script takes ``--seed`` and ``--case``, a text of JSON.
    """
    command = [sys.executable, script, "--seed", str(seed), "--case", json.dumps(case)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def log_log_slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the least-squares slope of log(value) against log(size)."""
    xs = [math.log(size) for size in sizes]
    return statistics.linear_regression(xs, [math.log(value) for value in values]).slope
