"""Time a training step, optimizer included: captured, eager, by hand, under Pyro's losses, in NumPyro.

Eight schools, a regression, logistic regression, a Poisson hierarchy (AutoNormal) and three VAEs, in
single precision on one core. Claims: a step of ``CompiledSVI`` is at least 30 times as fast as one of
``SVI`` with ``Trace_ELBO`` on eight schools and both regressions and 2.3 times on the 784-200-200 VAE;
it is no slower than a jitted update of NumPyro's ``SVI`` under ``TraceMeanField_ELBO``, and on the VAE
takes at most 0.65 of a step written by hand. All contenders have the same loss: checked first.
"""

from __future__ import annotations

import math
import statistics
import sys

import pyro
import torch
from tqdm.auto import tqdm

from harness.contenders import (
    BY_HAND,
    CAPTURED,
    NUMPYRO,
    NUMPYRO_LOOP,
    PYRO_LOSSES,
    SILENT,
    STEPS_IN_LOOP,
    TRACE,
    by_hand,
    captured_step,
    contenders,
    fresh_programs,
    numpyro_training,
)
from harness.measure import Ratio, Times, median_times, one_core, paired_ratio, time_in_turn
from harness.peers import installed, not_installed
from harness.programs import LARGE, Case, cases
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import SilentELBO

NAMES = (*PYRO_LOSSES, BY_HAND, CAPTURED, NUMPYRO, NUMPYRO_LOOP)
# By case: at least so many times as fast as Trace_ELBO.
SPEED_UP = {"eight schools": 30.0, "regression": 30.0, "logistic regression": 30.0, LARGE: 2.3}
BY_HAND_LIMIT = 0.65
EAGER_LIMIT = 1.0
NUM_DRAWS = 400
LOSS_TOLERANCE = 1e-5  # in single precision
# A z-score beyond 5 comes once in a million cases by chance.
MAX_Z = 5.0


def equal_loss(name: str, case: Case, difference: float) -> Target:
    """Return the claim that a contender has the loss of the others, to rounding."""
    claim = f"relative difference of the loss, {name}, {case.name}"
    return Target(claim, difference, LOSS_TOLERANCE)


def check_losses(case: Case, seed: int) -> list[Target]:
    """Compare the rivals' losses with that of ``SilentELBO`` at the parameters all start from."""
    pyro.clear_param_store()
    args = next(case.batches())
    model, guide = fresh_programs(case, "check", seed)
    with torch.no_grad():
        exact = SilentELBO().loss(model, guide, *args)
    targets = []

    try:
        loss_by_hand, _ = by_hand(case, seed)
        difference = abs(loss_by_hand(*args).item() - exact) / abs(exact)
        targets.append(equal_loss(BY_HAND, case, difference))
    except LookupError:
        pass
    if installed("numpyro"):
        draws = numpyro_training(case, seed).losses(args, NUM_DRAWS)
        error = statistics.stdev(draws) / math.sqrt(NUM_DRAWS)
        z = abs(statistics.mean(draws) - exact) / error
        targets.append(Target(f"z-score of the mean loss, {NUMPYRO}, {case.name}", z, MAX_Z))
    return targets


def time_targets(case: Case, times: Times) -> list[Target]:
    """Return the claims about the steps of a case."""

    def ratio(name: str, other: str) -> Ratio:
        return paired_ratio(times, name, other)

    targets = []
    if case.name in SPEED_UP:
        claim = f"{CAPTURED} / {TRACE}, {case.name}"
        targets.append(Target(claim, ratio(CAPTURED, TRACE).median, 1 / SPEED_UP[case.name]))
    if NUMPYRO in times:
        claim = f"{CAPTURED} / {NUMPYRO}, {case.name}"
        targets.append(Target(claim, ratio(CAPTURED, NUMPYRO).median, 1.0))
    if case.name == LARGE:
        claim = f"{CAPTURED} / {BY_HAND}, {case.name}"
        targets.append(Target(claim, ratio(CAPTURED, BY_HAND).median, BY_HAND_LIMIT))
        claim = f"{SILENT} / {TRACE}, {case.name}"
        targets.append(Target(claim, ratio(SILENT, TRACE).median, EAGER_LIMIT))
    return targets


def readme_table(record: dict) -> str:
    """Return the table of the README from what the benchmark wrote with ``--out``."""
    names = [SILENT, BY_HAND, NUMPYRO, CAPTURED]
    lines = [
        f"| a step, Adam included | {TRACE}, ms | {' | '.join(f'{n} / it' for n in names)} |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for case, figures in record["figures"]["steps"].items():
        ratios = [figures["ratio_to_trace_elbo"].get(name) for name in names]
        cells = ["-" if r is None else f"{r['median']:.3f}" for r in ratios]
        milliseconds = figures["milliseconds"][TRACE]
        lines.append(f"| {case} | {milliseconds:.2f} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    command = "python examples/benchmarks/captured_step.py --out docs/captured_step.json"
    return "\n".join([*lines, "", f"One core, {versions}. `{command}`"])


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="these cases alone")
    parser.add_argument("--backend", default="inductor", help="of CompiledSVI")
    arguments = parser.parse_args()
    if arguments.smoke_test:
        arguments.rounds, arguments.backend = 2, "eager"
        arguments.cases = arguments.cases or ["regression"]
    one_core()
    if not installed("numpyro"):
        print(not_installed("numpyro"))
    chosen = [c for c in cases(arguments.smoke_test) if c.name in (arguments.cases or [c.name])]

    rows, figures, equal, faster = [], {}, [], []
    for case in tqdm(chosen, desc="cases", leave=False):
        differences = check_losses(case, arguments.seed)
        pyro.clear_param_store()
        captured, difference = captured_step(case, arguments.seed, arguments.backend)
        differences.append(equal_loss(CAPTURED, case, difference))
        if not all(target.passed for target in differences):
            # Without the same loss a comparison of times says nothing, whatever the size.
            print(*differences, sep="\n")
            return 1
        equal += differences
        calls = {**contenders(case, arguments.seed), CAPTURED: captured}
        turn = 0.0 if arguments.smoke_test else 5e-3
        times = time_in_turn(calls, arguments.rounds, seconds_per_turn=turn)
        if NUMPYRO_LOOP in times:
            times[NUMPYRO_LOOP] = [took / STEPS_IN_LOOP for took in times[NUMPYRO_LOOP]]
        medians = {name: 1e3 * value for name, value in median_times(times).items()}
        rows.append([case.name, *(medians.get(name, "-") for name in NAMES)])
        figures[case.name] = {
            "milliseconds": medians,
            "ratio_to_trace_elbo": {n: paired_ratio(times, n, TRACE)._asdict() for n in times},
        }
        faster += time_targets(case, times)
    print(table(["milliseconds of a step", *NAMES], rows))
    print(f"{NUMPYRO_LOOP}: {STEPS_IN_LOOP} steps on one batch a call, for information")
    return finish(arguments, {"steps": figures}, [*equal, *faster])


if __name__ == "__main__":
    sys.exit(main())
