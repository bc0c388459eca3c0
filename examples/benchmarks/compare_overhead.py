"""Time ``compare`` beside the steps it measures, and hold its own figures of time and memory to others.

Programs: ten small parameters; the 784-200-200 VAE at batch 200; 10,000 regressions with 1e7 weights.

Claims: a sample of the VAE costs at most 1.5 times the bare steps it takes (one beside an exact
reference, three beside a noisy one: its own, the reference's, and one for the reference's mean);
``seconds_per_step`` and ``peak_bytes`` are those of steps of ``SVI`` that are timed and profiled here, by
other code: times relative to each other to 10 %, peaks to 2 %.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from harness.measure import median_times, paired_ratio, step_memory, time_in_turn
from harness.models import VAE, Sizes, gradient_step, minibatches
from harness.regressions import regressions
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import LeaveOneOutELBO, SilentELBO, compare

TRACE = "Trace_ELBO"
LOSSES = {
    TRACE: Trace_ELBO,
    "SilentELBO": SilentELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "LeaveOneOutELBO": LeaveOneOutELBO,
}
EXACT = "SilentELBO"
STEPS_OF_SAMPLE = {EXACT: 1, TRACE: 3}
JUDGED = "VAE"
LARGE = "1e7 weights"
MEBIBYTE = 2**20


class Setting(NamedTuple):
    """Programs and how often they run.

    :ivar more_samples: of the longer of two comparisons, whose difference tells what samples take.
    """

    model: Callable[..., None]
    guide: Callable[..., None]
    args: tuple[Tensor, ...]
    more_samples: int


def small_programs() -> tuple[Callable[[], None], Callable[[], None]]:
    """Return model and guide of five latents, with ten parameters of four numbers each."""

    def model() -> None:
        for index in range(5):
            latent = pyro.sample(f"z{index}", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample(f"x{index}", dist.Normal(latent, 0.5).to_event(1), obs=torch.ones(4))

    def guide() -> None:
        for index in range(5):
            loc = pyro.param(f"loc{index}", lambda: torch.zeros(4))
            log_scale = pyro.param(f"log_scale{index}", lambda: torch.zeros(4))
            pyro.sample(f"z{index}", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def settings(smoke_test: bool) -> dict[str, Setting]:
    """Return the programs; their parameters have names of their own."""
    sizes, batch_size, num_outcomes, more = Sizes(), 200, 10_000, (200, 50, 10)
    if smoke_test:
        sizes, batch_size, num_outcomes, more = Sizes(40, 20, 10), 20, 100, (4, 4, 4)
    vae = VAE("vae", sizes)
    x = next(minibatches(batch_size, sizes.data_dim))
    return {
        "small": Setting(*small_programs(), (), more[0]),
        JUDGED: Setting(vae.model, vae.guide, (x,), more[1]),
        LARGE: Setting(*regressions("many", num_outcomes, 1000), (), more[2]),
    }


def comparison(setting: Setting, names: list[str], reference: str, **options: Any) -> Callable:
    """Return a call of ``compare``."""
    model, guide, args, _ = setting
    losses = {name: LOSSES[name]() for name in names}
    return partial(compare, model, guide, losses, args, reference=LOSSES[reference](), **options)


def sample_times(setting: Setting, reference: str, rounds: int) -> dict[str, float]:
    """Return milliseconds of a sample and of the bare steps it takes, and their ratio.

    Two comparisons differ in the number of samples only, so that preparations and the timing of steps
    cancel out.
    """
    model, guide, args, more = setting
    few = 4
    step = gradient_step(model, guide, LOSSES[TRACE](), *args)
    compared = partial(comparison, setting, [TRACE], reference, measure_memory=False)
    times = time_in_turn(
        {
            "few": compared(num_samples=few),
            "many": compared(num_samples=few + more),
            "steps": lambda: [step() for _ in range(STEPS_OF_SAMPLE[reference] * more)],
        },
        rounds,
        warm_up_calls=1,
    )
    pairs = zip(times["many"], times["few"], strict=True)
    times["samples"] = [many - start for many, start in pairs]
    medians = {name: 1e3 * value / more for name, value in median_times(times).items()}
    ratio = paired_ratio(times, "samples", "steps")
    return {
        "sample": medians["samples"],
        "steps": medians["steps"],
        "ratio": ratio.median,
        "lower_quartile": ratio.lower_quartile,
        "upper_quartile": ratio.upper_quartile,
        "whole_call": 1e3 * median_times(times)["few"],
    }


def step_costs(setting: Setting, rounds: int) -> dict[str, dict[str, float]]:
    """Return, for each loss, time and peak of a step as ``compare`` and as the harness find them."""
    model, guide, args, _ = setting
    names = list(LOSSES)
    steps = {name: gradient_step(model, guide, LOSSES[name](), *args) for name in names}
    compared: dict[str, list[float]] = {name: [] for name in names}
    timed: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        for row in comparison(setting, names, EXACT, num_samples=3)().rows:
            if row["error"]:
                raise SystemExit(f"{row['name']} failed, so it was not timed: {row['error']}")
            compared[row["name"]].append(row["seconds_per_step"])
            peaks[row["name"]] = row["peak_bytes"]
        for name, values in time_in_turn(steps, rounds=10).items():
            timed[name] += values
    ours, others = median_times(compared), median_times(timed)
    return {
        name: {
            "compare_ms": 1e3 * ours[name],
            "harness_ms": 1e3 * others[name],
            "compare_relative": ours[name] / ours[TRACE],
            "harness_relative": others[name] / others[TRACE],
            "compare_peak": peaks[name],
            "harness_peak": step_memory(steps[name]).peak_bytes,
        }
        for name in names
    }


def apart(a: float, b: float) -> float:
    """Return how far the ratio of two figures is from 1, either way."""
    return max(a / b, b / a) - 1


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.smoke_test:
        arguments.rounds = 1
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)

    figures: dict[str, object] = {}
    targets: list[Target] = []
    rows: list[list[object]] = []
    cases = settings(arguments.smoke_test)
    if arguments.smoke_test:
        cases = {JUDGED: cases[JUDGED]}
    for name, setting in cases.items():
        for reference in STEPS_OF_SAMPLE:
            found = sample_times(setting, reference, arguments.rounds)
            figures[f"sample, {name}, {reference}"] = found
            quartiles = f"{found['lower_quartile']:.2f}-{found['upper_quartile']:.2f}"
            row = [found[key] for key in ("sample", "steps", "ratio")]
            rows.append([name, reference, *row, quartiles, found["whole_call"]])
            if name == JUDGED:
                claim = f"a sample / the steps it takes, {name}, reference {reference}"
                targets.append(Target(claim, found["ratio"], 1.5))
    print(f"\nms of a sample of {TRACE}, ms of a whole call with four samples")
    header = ["programs", "reference", "sample", "steps", "ratio", "quartiles", "4 samples"]
    print(table(header, rows))

    rows = []
    for name in [name for name in cases if name != LARGE]:
        costs = step_costs(cases[name], arguments.rounds)
        figures[f"steps, {name}"] = costs
        for loss, found in costs.items():
            times = [found["compare_relative"], found["harness_relative"]]
            peaks = [found["compare_peak"], found["harness_peak"]]
            rows.append([name, loss, found["compare_ms"], found["harness_ms"], *times])
            rows[-1] += [f"{peak / MEBIBYTE:.4f}" for peak in peaks]
            targets += [
                Target(f"times differ by, {name}, {loss} / {TRACE}", apart(*times), 0.1),
                Target(f"peaks differ by, {name}, {loss}", apart(*peaks), 0.02),
            ]
    print(f"\nms of a step, wall and processor time; relative to {TRACE}; MiB at the peak")
    header = ["programs", "loss", "compare", "here", "relative", "here", "peak", "here"]
    print(table(header, rows))
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
