"""Measure what memory ``compare`` needs beside the steps it measures, in units of one gradient.

The model is 10,000 regressions on 1,000 features with a latent offset each: 1e7 weights, whose gradient
is 40 MB in single precision, and a step that builds nothing else of that size. Memory is the highest
peak, in pages of the process and in tensors, less that of bare steps of the same losses.

Claims: it is two gradients and 8 MiB (products are formed in double precision, in pieces), whatever the
number of samples and of losses, beside an exact reference and beside one that is drawn anew each time.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from harness.measure import CLEAR_REFS, measure_in_subprocess, resident_peak, step_memory
from harness.models import gradient_step
from harness.regressions import regressions
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import LeaveOneOutELBO, SilentELBO, compare

LOSSES = {
    "Trace_ELBO": Trace_ELBO,
    "SilentELBO": SilentELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "LeaveOneOutELBO": LeaveOneOutELBO,
}
EXACT = "SilentELBO"
NOISY = "Trace_ELBO"
GRADIENTS = 2
PROFILED_SAMPLES = 3
MEBIBYTE = 2**20
# For pieces in double precision, random states, and pages of the heap that stay.
SLACK = 8 * MEBIBYTE


class Case(NamedTuple):
    """What one process measures.

    :ivar losses: keys of :data:`LOSSES`.
    :ivar reference: one of them.
    :ivar profiled: count tensors as well, by the profiler, for which three samples are events enough.
    """

    losses: tuple[str, ...]
    reference: str
    num_samples: int
    num_outcomes: int
    num_features: int
    profiled: bool

    @property
    def gradient_bytes(self) -> int:
        """Of the weights alone."""
        return 4 * self.num_outcomes * self.num_features


def bare_steps(model: Callable, guide: Callable, names: tuple[str, ...]) -> Callable[[], None]:
    """Return a call that evaluates each loss and its gradient once."""
    steps = [gradient_step(model, guide, LOSSES[name]()) for name in names]

    def call() -> None:
        for step in steps:
            step()

    return call


def comparison(model: Callable, guide: Callable, case: Case) -> Callable[[], None]:
    """Return a call of ``compare``."""

    def call() -> None:
        found = compare(
            model,
            guide,
            {name: LOSSES[name]() for name in case.losses},
            num_samples=case.num_samples,
            reference=LOSSES[case.reference](),
            measure_memory=False,
        )
        errors = [row["error"] for row in found.rows if row["error"]]
        if errors:
            raise SystemExit(f"a loss failed, so its memory was not seen: {errors}")

    return call


def measure(case: Case) -> dict[str, float]:
    """Return memory of bare steps and of ``compare``, in bytes, and seconds, in this process.

    The code has run before at a tiny size, and blocks as large as a gradient go back to the system as
    soon as they are released, so that pages tell the tensors in use.
    """
    tiny = case._replace(num_samples=4, num_outcomes=8, num_features=8)
    names = (*case.losses, case.reference)
    warm = regressions("tiny", 8, 8)
    bare_steps(*warm, names)()
    comparison(*warm, tiny)()

    pair = regressions("many", case.num_outcomes, case.num_features)
    steps, compared = bare_steps(*pair, names), comparison(*pair, case)
    steps()
    figures: dict[str, float] = {}
    if CLEAR_REFS.exists():
        figures["steps_resident"] = resident_peak(steps)
    start = time.perf_counter()
    if CLEAR_REFS.exists():
        figures["compare_resident"] = resident_peak(compared)
    else:
        compared()
    figures["seconds"] = time.perf_counter() - start
    if case.profiled:
        figures["steps_tensors"] = step_memory(steps, 1).peak_bytes
        short = comparison(*pair, case._replace(num_samples=PROFILED_SAMPLES))
        figures["compare_tensors"] = step_memory(short, 0).peak_bytes
    return figures


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--num-samples", type=int, nargs=2, default=[10, 1000])
    parser.add_argument("--case", help="measure this one case (JSON) here, and print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)
    if arguments.case:
        losses, *rest = json.loads(arguments.case)
        print(json.dumps(measure(Case(tuple(losses), *rest))))
        return 0

    sizes = {"num_outcomes": 10_000, "num_features": 1000}
    few, many = arguments.num_samples
    if arguments.smoke_test:
        few, many = 3, 6
        sizes = {"num_outcomes": 100, "num_features": 1000}
    one, several = ("Trace_ELBO",), tuple(LOSSES)
    cases = [
        Case(one, EXACT, few, **sizes, profiled=True),
        Case(one, EXACT, many, **sizes, profiled=False),
        Case(several, EXACT, few, **sizes, profiled=True),
        Case(one, NOISY, few, **sizes, profiled=True),
        # one sample takes three steps there: a tenth of them shows as well that nothing grows
        Case(one, NOISY, max(many // 10, few), **sizes, profiled=False),
        Case(several, NOISY, few, **sizes, profiled=True),
    ]
    if arguments.smoke_test:
        cases = [cases[0]]
    # tiny, a case is not worth the seconds that another process takes to import
    run = (
        measure
        if arguments.smoke_test
        else partial(measure_in_subprocess, __file__, arguments.seed)
    )
    figures: dict[str, object] = {}
    targets: list[Target] = []
    rows: list[list[object]] = []
    resident: dict[Case, float] = {}
    for case in cases:
        found = run(case)
        title = f"{len(case.losses)} loss(es), reference {case.reference}"
        figures[f"{title}, n = {case.num_samples}"] = found
        print(f"{title}, n = {case.num_samples}: {found['seconds']:.1f} s", flush=True)
        for quantity in ("tensors", "resident"):
            if f"compare_{quantity}" not in found:
                continue
            count = PROFILED_SAMPLES if quantity == "tensors" else case.num_samples
            steps, compared = found[f"steps_{quantity}"], found[f"compare_{quantity}"]
            beyond = (compared - steps) / case.gradient_bytes
            rows.append(
                [
                    len(case.losses),
                    case.reference,
                    count,
                    quantity,
                    f"{steps / MEBIBYTE:.1f}",
                    f"{compared / MEBIBYTE:.1f}",
                    f"{beyond:.3f}",
                    f"{found['seconds']:.1f}",
                ]
            )
            limit = GRADIENTS + SLACK / case.gradient_bytes
            claim = f"gradients beyond the steps' ({quantity}), {title}, n = {count}"
            targets.append(Target(claim, beyond, limit))
            if quantity == "resident":
                resident[case] = beyond
    for small, large in itertools.combinations(resident, 2):
        if (small.losses, small.reference) == (large.losses, large.reference):
            claim = f"growth from {small.num_samples} to {large.num_samples} samples, in gradients"
            growth = resident[large] - resident[small]
            limit = SLACK / large.gradient_bytes
            targets.append(Target(f"{claim}, reference {large.reference}", growth, limit))

    gradient = cases[0].gradient_bytes / MEBIBYTE
    print(f"\nMiB at the peak; one gradient of {sizes} is {gradient:.1f} MiB")
    header = [
        "losses",
        "reference",
        "n",
        "memory",
        "steps",
        "compare",
        "gradients beyond",
        "seconds",
    ]
    print(table(header, rows))
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
