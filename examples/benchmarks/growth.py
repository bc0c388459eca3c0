"""Grow batch, latent and data dimension of a VAE: time and peak memory of a training step.

Claims: the time of a step under ``SilentELBO`` grows no faster than under ``Trace_ELBO`` (the slope
of log time against log size is at most 0.1 higher), and at the largest size of each axis its peak
memory is at most 1.5 times that of ``Trace_ELBO``. The slope of the memory is printed and not
judged: both grow linearly at last, and the one with the smaller fixed part looks steeper.
"""

from __future__ import annotations

import sys

import pyro
import torch
from pyro.infer import Trace_ELBO

from harness.measure import log_log_slope, median_times, paired_ratio, step_memory, time_in_turn
from harness.models import VAE, Sizes, minibatches, svi_step
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import SilentELBO

SILENT = "SilentELBO"
TRACE = "Trace_ELBO"
LOSSES = {SILENT: SilentELBO, TRACE: Trace_ELBO}

# Each axis grows eightfold while the others stay at the middle of their range.
AXES = {
    "batch": [64, 128, 256, 512],
    "latent_dim": [64, 128, 256, 512],
    "data_dim": [196, 392, 784, 1568],
}
MIDDLE = {"batch": 128, "latent_dim": 128, "data_dim": 784}
SLOPE_TOLERANCE = 0.1
PEAK_RATIO = 1.5


def measure(batch: int, latent_dim: int, data_dim: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return time and peak memory of a step at one size, for each loss, and their ratios."""
    pyro.clear_param_store()
    calls = {}
    for name, loss in LOSSES.items():
        vae = VAE(name, Sizes(data_dim, latent_dim=latent_dim))
        batches = minibatches(batch, data_dim, count=4)
        step = svi_step(vae, loss())
        calls[name] = lambda step=step, batches=batches: step(next(batches))
    times = time_in_turn(calls, rounds)
    medians = median_times(times)
    peaks = {name: step_memory(call).peak_bytes for name, call in calls.items()}
    return {
        "milliseconds": {
            **{name: 1e3 * value for name, value in medians.items()},
            "ratio": paired_ratio(times, SILENT, TRACE).median,
        },
        "peak MiB": {
            **{name: value / 2**20 for name, value in peaks.items()},
            "ratio": peaks[SILENT] / peaks[TRACE],
        },
    }


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    axes, middle = AXES, MIDDLE
    if arguments.smoke_test:
        arguments.rounds = 2
        axes = {axis: [size // 8 for size in sizes] for axis, sizes in AXES.items()}
        middle = {axis: size // 8 for axis, size in MIDDLE.items()}
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)

    figures: dict[str, object] = {}
    targets = []
    for axis, sizes in axes.items():
        points = [measure(**{**middle, axis: size}, rounds=arguments.rounds) for size in sizes]
        others = ", ".join(f"{name} {size}" for name, size in middle.items() if name != axis)
        for quantity in ("milliseconds", "peak MiB"):
            measured = [point[quantity] for point in points]
            slopes = {
                name: log_log_slope(sizes, [point[name] for point in measured]) for name in LOSSES
            }
            print(f"\n{quantity} of a step against {axis} ({others})")
            rows = [
                [str(size), point[SILENT], point[TRACE], f"{point['ratio']:.3f}"]
                for size, point in zip(sizes, measured, strict=True)
            ]
            rows.append(["slope", f"{slopes[SILENT]:.3f}", f"{slopes[TRACE]:.3f}", ""])
            print(table([axis, SILENT, TRACE, "ratio"], rows))
            figures[f"{quantity} against {axis}"] = {
                "sizes": sizes,
                "points": measured,
                "slopes": slopes,
            }
            if quantity == "milliseconds":
                excess = slopes[SILENT] - slopes[TRACE]
                claim = f"slope of the time in {axis}, {SILENT} less {TRACE}"
                targets.append(Target(claim, excess, SLOPE_TOLERANCE))
            else:
                claim = f"peak memory at {axis} {sizes[-1]}, {SILENT} / {TRACE}"
                targets.append(Target(claim, measured[-1]["ratio"], PEAK_RATIO))
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
