"""Time regressions under SilentELBO and Trace_ELBO: one step, and growth with the rows.

Claims: a step under ``SilentELBO`` costs at most 2.5 times a step under one-particle ``Trace_ELBO``
for Poisson regression with group effects (20,190 rows) and for logistic regression (569 rows), both
under AutoNormal; for a linear regression with a log-normal scale (1,000 rows) a step costs no more than
under ``Trace_ELBO``. The time grows no faster than the rows, and no tensor is larger than quadrature
nodes times rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from harness.examples import count_regression, data, fitting, logistic_regression
from harness.measure import log_log_slope, median_times, paired_ratio, step_memory, time_in_turn
from harness.programs import line, line_data
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import SilentELBO

SILENT = "SilentELBO"
TRACE = "Trace_ELBO"
LOSSES = {SILENT: SilentELBO, TRACE: Trace_ELBO}
NUM_NODES = 32
SLOPE_LIMIT = 1.1


def line_guide(covariate: Tensor, response: Tensor) -> None:
    """Two Gaussians and a log-normal."""
    for name, law in (
        ("coefficient", dist.Normal),
        ("bias", dist.Normal),
        ("scale", dist.LogNormal),
    ):
        loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
        spread = pyro.param(f"{name}_spread", torch.tensor(0.1), constraint=constraints.positive)
        pyro.sample(name, law(loc, spread))


def doctor_visits(num_rows: int, likelihood: str = "Poisson") -> fitting.Problem:
    """Count regression on that many rows: every so many, or the table over and over."""
    whole = data.load_doctor_visits()
    columns = (whole.covariates, whole.groups, whole.counts)
    rows = torch.arange(num_rows)
    if num_rows < len(whole.counts):
        rows = rows * (len(whole.counts) // num_rows)
    rows = rows % len(whole.counts)
    model, _ = count_regression.MODELS[likelihood]
    return fitting.Problem(model, tuple(column[rows] for column in columns))


def tumours() -> fitting.Problem:
    """Logistic regression."""
    whole = data.load_breast_cancer()
    return fitting.Problem(logistic_regression.model, (whole.covariates, whole.response))


def step(problem: fitting.Problem, make_guide: Callable, loss: object) -> Callable[[], float]:
    """Return a training step of Pyro's ``SVI`` under ``loss``, with Pyro's Adam."""
    svi = SVI(problem.model, make_guide(), pyro.optim.Adam({"lr": 1e-4}), loss=loss)
    return partial(svi.step, *problem.data)


def time_steps(
    problem: fitting.Problem, make_guide: Callable, rounds: int
) -> tuple[dict[str, float], float]:
    """Return the milliseconds of a step by loss, and the paired ratio of the two."""
    calls = {}
    for name, loss in LOSSES.items():
        pyro.clear_param_store()
        calls[name] = step(problem, make_guide, loss())
    times = time_in_turn(calls, rounds)
    medians = {name: 1e3 * value for name, value in median_times(times).items()}
    return medians, paired_ratio(times, SILENT, TRACE).median


def measure_steps(arguments: argparse.Namespace) -> tuple[dict[str, object], list[Target]]:
    """Single steps, in torch's and Pyro's default precision."""
    lines = fitting.Problem(line, line_data(1000))
    visits = doctor_visits(400 if arguments.smoke_test else 20190)
    cases = {
        "Poisson regression, AutoNormal": (visits, lambda: AutoNormal(visits.model), 2.5),
        "logistic regression, AutoNormal": (
            tumours(),
            logistic_regression.GUIDES["AutoNormal"],
            2.5,
        ),
        "line, log-normal scale by hand": (lines, lambda: line_guide, 1.0),
        "line, AutoNormal": (lines, lambda: AutoNormal(line), 1.0),
    }
    rows, targets, figures = [], [], {}
    for name, (problem, make_guide, limit) in cases.items():
        medians, ratio = time_steps(problem, make_guide, arguments.rounds)
        rows.append([name, medians[SILENT], medians[TRACE], f"{ratio:.3f}"])
        targets.append(Target(f"step of {name}, {SILENT} / {TRACE}", ratio, limit))
        figures[name] = {"milliseconds": medians, "ratio": ratio}
    print(table(["milliseconds of a step", SILENT, TRACE, "ratio"], rows))
    return {"steps": figures}, targets


def measure_growth(arguments: argparse.Namespace) -> tuple[dict[str, object], list[Target]]:
    """Time and largest tensor of a step as the rows grow."""
    sizes = [100, 200] if arguments.smoke_test else [20_000, 80_000, 320_000]
    rows, targets, figures = [], [], {}
    for likelihood in count_regression.MODELS:
        milliseconds, largest = [], []
        for size in sizes:
            problem = doctor_visits(size, likelihood)
            make_guide = partial(AutoNormal, problem.model)
            medians, ratio = time_steps(problem, make_guide, max(2, arguments.rounds // 5))
            pyro.clear_param_store()
            memory = step_memory(step(problem, make_guide, SilentELBO()))
            element = problem.data[0].element_size()
            milliseconds.append(medians[SILENT])
            largest.append(memory.largest_tensor_bytes / element / size)
            rows.append(
                [likelihood, str(size), medians[SILENT], medians[TRACE], ratio, largest[-1]]
            )
        slope = log_log_slope(sizes, milliseconds)
        targets.append(Target(f"slope of the time in rows, {likelihood}", slope, SLOPE_LIMIT))
        targets.append(
            Target(f"largest tensor, elements per row, {likelihood}", max(largest), NUM_NODES)
        )
        figures[likelihood] = {
            "sizes": sizes,
            "milliseconds": milliseconds,
            "elements per row": largest,
        }
    print(table(["step", "rows", SILENT, TRACE, "ratio", "largest tensor / row"], rows))
    return {"growth": figures}, targets


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    if arguments.smoke_test:
        arguments.rounds = 3
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)
    figures: dict[str, object] = {}
    targets: list[Target] = []
    for part in (measure_steps, measure_growth):
        part_figures, part_targets = part(arguments)
        figures |= part_figures
        targets += part_targets
        print()
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
