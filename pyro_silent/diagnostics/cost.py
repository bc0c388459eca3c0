"""What a step costs: time, in rounds in turn, and peak memory."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pyro_silent.diagnostics.gradient_sampler import GradientSampler

_ROUNDS = 15
_ROUND_SECONDS = 0.01
_MOST_CALLS = 50
_MEASURED_STEP = "pyro_silent: measured step"


class Cost(NamedTuple):
    """Of one evaluation of a loss and its gradient.

    :ivar seconds: wall time, median over the rounds.
    :ivar seconds_se: its standard error; nan for one round.
    """

    seconds: float
    seconds_se: float


def time_in_turn(
    samplers: Mapping[str, GradientSampler], failed: Callable[[str, Exception], None]
) -> dict[str, Cost]:
    """Time losses in rounds, each loss in each round, so that a slow spell falls on all of them.

    A round begins with another loss each time and lasts 0.01 s, or a step, of each loss.

    :param failed: told of a loss that raised; it has no cost.
    """
    names = list(samplers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    calls = dict.fromkeys(names, 0)
    for turn in range(-1, _ROUNDS):  # the first round only finds how many calls fill the next ones
        first = max(turn, 0) % max(len(names), 1)
        for name in names[first:] + names[:first]:
            if name not in calls:
                continue
            try:
                elapsed = _seconds_per_call(samplers[name], calls[name] or 1)
            except Exception as error:
                failed(name, error)
                del calls[name]
                continue
            if turn < 0:
                calls[name] = min(max(round(_ROUND_SECONDS / elapsed), 1), _MOST_CALLS)
            else:
                seconds[name].append(elapsed)
    return {name: _cost(seconds[name]) for name in calls}


def _seconds_per_call(sampler: GradientSampler, calls: int) -> float:
    _wait_for_devices()
    start = time.perf_counter()
    sampler.repeat(calls)
    _wait_for_devices()
    return (time.perf_counter() - start) / calls


def _cost(seconds: list[float]) -> Cost:
    # the median of normal variables has 1.25 times the standard error of their mean
    se = 1.25 * statistics.stdev(seconds) / len(seconds) ** 0.5
    return Cost(statistics.median(seconds), se)


def _wait_for_devices() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes(sampler: GradientSampler, on_cuda: bool) -> int | None:
    """Memory that one step takes on top of what was there before it; None where it cannot be seen.

    On the CPU from the events of torch's profiler: each allocation and release has its size, and the
    peak is the largest partial sum; scratch memory of MKL and oneDNN is not seen. On CUDA devices
    from torch's own counters, whose peaks start anew.
    """
    return _peak_on_cuda(sampler) if on_cuda else _peak_on_cpu(sampler)


def _peak_on_cuda(sampler: GradientSampler) -> int:
    devices = range(torch.cuda.device_count())
    torch.cuda.synchronize()
    before = [torch.cuda.memory_allocated(device) for device in devices]
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    sampler.repeat(1)
    torch.cuda.synchronize()
    peaks = [torch.cuda.max_memory_allocated(device) for device in devices]
    return sum(peak - start for peak, start in zip(peaks, before, strict=True))


def _peak_on_cpu(sampler: GradientSampler) -> int | None:
    if torch.autograd._profiler_enabled():  # one at a time: a second would end the user's
        return None
    # The profiler cannot size the release of a tensor it did not see allocated: garbage is collected
    # beforehand, and of two steps the second is measured, which releases only what the first left.
    gc.collect()
    try:
        with _quiet_profiler():
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                sampler.repeat(1)
                with record_function(_MEASURED_STEP):
                    sampler.repeat(1)
        results = profiler.profiler.kineto_results
    except (RuntimeError, AttributeError):  # this build of torch has none
        return None
    events = sorted(results.events(), key=lambda event: event.start_ns())
    begin = next(event.start_ns() for event in events if event.name() == _MEASURED_STEP)
    changes = [
        event.nbytes()
        for event in events
        if event.name() == "[memory]" and event.start_ns() >= begin
    ]
    return max(itertools.accumulate(changes), default=0)


@contextlib.contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Inside, the profiler does not write to stderr that it starts and stops."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "99")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
