"""Grow batch, latent and data dimension of a VAE, rows of a regression, draws: time of a training step.

Claims: the time of a step of the VAE under ``SilentELBO`` grows no faster than under ``Trace_ELBO`` (the
slope of log time against log size is at most 0.1 higher), and at the largest size of each axis its peak
memory is at most 1.5 times that of ``Trace_ELBO``. The slope of the memory is printed and not
judged: both grow linearly at last, and the one with the smaller fixed part looks steeper. A captured
step of a regression grows no faster than its rows, and one under ``GumbelRaoELBO`` no faster than its
conditional draws.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import pyro
import torch
from pyro.infer import Trace_ELBO

from harness.contenders import CAPTURED, captured_svi, pyro_step
from harness.discrete_models import DiscreteSizes, DiscreteVAE, binary_minibatches
from harness.measure import log_log_slope, median_times, paired_ratio, step_memory, time_in_turn
from harness.models import VAE, Sizes, minibatches, svi_step
from harness.programs import lines
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import GumbelRaoELBO, SilentELBO

SILENT = "SilentELBO"
TRACE = "Trace_ELBO"
DRAWN = "GumbelRaoELBO"
LOSSES = {SILENT: SilentELBO, TRACE: Trace_ELBO}

# Each axis grows eightfold while the others stay at the middle of their range.
AXES = {
    "batch": [64, 128, 256, 512],
    "latent_dim": [64, 128, 256, 512],
    "data_dim": [196, 392, 784, 1568],
}
MIDDLE = {"batch": 128, "latent_dim": 128, "data_dim": 784}
ROWS = [1_000, 8_000, 64_000, 512_000]
DRAWS = [1, 8, 64, 512]
SLOPE_TOLERANCE = 0.1
LINEAR = 1.1
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


def grow_vae(arguments: argparse.Namespace) -> tuple[dict[str, object], list[Target]]:
    """Return figures and claims of the VAE, as each axis grows."""
    axes, middle = AXES, MIDDLE
    if arguments.smoke_test:
        axes = {axis: [size // 8 for size in sizes] for axis, sizes in AXES.items()}
        middle = {axis: size // 8 for axis, size in MIDDLE.items()}
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
    return figures, targets


def grow_rows(arguments: argparse.Namespace) -> tuple[dict[str, object], list[Target]]:
    """Return figures and claims of a regression, as its rows grow."""
    sizes = [size // 100 for size in ROWS[:2]] if arguments.smoke_test else ROWS
    points = []
    for size in sizes:
        pyro.clear_param_store()
        case = lines(size)
        args = next(case.batches())
        svi = captured_svi(case, arguments.seed, arguments.backend)
        calls = {name: pyro_step(case, name, arguments.seed) for name in LOSSES}
        calls[CAPTURED] = partial(svi.step, *args)
        times = time_in_turn(calls, arguments.rounds)
        points.append({name: 1e3 * value for name, value in median_times(times).items()})
    return curve("rows", sizes, points, CAPTURED)


def grow_draws(arguments: argparse.Namespace) -> tuple[dict[str, object], list[Target]]:
    """Return figures and claims of a VAE of 80 variables of 8 categories, as the draws grow."""
    sizes = DRAWS[:2] if arguments.smoke_test else DRAWS
    widths = DiscreteSizes(40, 20, num_latents=6) if arguments.smoke_test else DiscreteSizes()
    pyro.clear_param_store()
    calls = {}
    for size in sizes:
        vae = DiscreteVAE(f"draws {size}", widths)
        step = svi_step(vae, GumbelRaoELBO(0.5, size))
        batches = binary_minibatches(20, widths.data_dim)
        calls[str(size)] = lambda step=step, batches=batches: step(next(batches))
    times = median_times(time_in_turn(calls, arguments.rounds))
    points = [{DRAWN: 1e3 * times[str(size)]} for size in sizes]
    return curve("draws", sizes, points, DRAWN)


def curve(
    axis: str, sizes: list[int], points: list[dict[str, float]], judged: str
) -> tuple[dict[str, object], list[Target]]:
    """Print milliseconds against a size, and return them with the claim about the slope."""
    names = list(points[0])
    slopes = {name: log_log_slope(sizes, [point[name] for point in points]) for name in names}
    rows = [[str(size), *point.values()] for size, point in zip(sizes, points, strict=True)]
    rows.append(["slope", *(f"{slope:.3f}" for slope in slopes.values())])
    print(f"\nmilliseconds of a step against {axis}")
    print(table([axis, *names], rows))
    figures = {"sizes": sizes, "points": points, "slopes": slopes}
    claim = Target(f"slope of the time in {axis}, {judged}", slopes[judged], LINEAR)
    return {f"milliseconds against {axis}": figures}, [claim]


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--backend", default="inductor", help="of CompiledSVI")
    arguments = parser.parse_args()
    if arguments.smoke_test:
        arguments.rounds, arguments.backend = 2, "eager"
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)
    figures: dict[str, object] = {}
    targets: list[Target] = []
    for part in (grow_vae, grow_rows, grow_draws):
        part_figures, part_targets = part(arguments)
        figures |= part_figures
        targets += part_targets
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
