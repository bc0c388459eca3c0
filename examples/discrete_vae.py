"""VAEs with discrete codes on binary digits: one model and guide, eleven gradient estimators.

Codes of the same information, 240 binary, 120 four-ary, 80 eight-ary or 60 sixteen-ary variables,
are trained with minibatches of 20 and of 200. The runs of a cell differ in the loss, with its
learning rate and temperature, alone: same model and guide, initial parameters and minibatches. The result
is the importance-sampled bound on the negative log likelihood of test digits, computed with the
guide's own discrete samples whichever loss trained the parameters, beside the one published with
Gumbel-Rao (Paulus, Maddison and Krause 2021). Theirs are runs of 50,000 steps with a random search
for each number, so the shapes are to be compared and not the numbers.

An interrupted program goes on where it stopped: finished runs are kept in ``discrete_vae.json``,
from which ``discrete_vae.md`` and ``discrete_vae.png`` are made, all in ``--out``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
from torch.nn.functional import binary_cross_entropy

from discrete_vae_estimators import CONTENDERS, SETTINGS, Settings, candidates
from discrete_vae_model import CODES, Digits, base_rates, load_binary_digits
from discrete_vae_picture import draw
from discrete_vae_report import page, readme_table, summarize, table
from discrete_vae_runs import Job, run_all
from finished_runs import Record, Results

__all__ = ["readme_table"]

STEPS = {20: 500, 200: 200}  # by batch size
FULL_STEPS = 50_000
SEARCH_ARITY = 8
SEARCH_SEED = 1000

STANDARD_ERRORS = 3.0


class Claim(NamedTuple):
    """The bound of one estimator is higher than that of another, clearly or at least not lower.

    Clearly: by so many standard errors. Not lower: not lower by so many. Over the runs with one
    batch size, or with all.
    """

    higher: str
    lower: str
    clearly: bool = True
    batch_size: int | None = None


# Measured first, at the default steps; not judged at others.
CLAIMS = (
    *(Claim("REINFORCE", name) for name in ("RLOO", "ST", "ST-GS", "GR-MC10", "ZGR", "ReinMax")),
    Claim("RLOO", "ST"),
    Claim("ST-GS", "GR-MC10", batch_size=20),
    Claim("ST-GS", "GR-MC10", batch_size=200, clearly=False),
    Claim("ST-GS", "GR-MC100", batch_size=20),
    Claim("ST-GS", "GR-MC100", batch_size=200, clearly=False),
    Claim("ZGR", "GR-MC10", batch_size=20),
)


def search_jobs(args: argparse.Namespace, digits: Digits) -> list[Job]:
    """One run for each candidate setting, bounded on validation digits."""
    return [
        job._replace(
            split="validation",
            num_evaluated=min(job.num_evaluated, len(digits.validation)),
            learning_rate=settings.learning_rate,
            temperature=settings.temperature,
        )
        for job in jobs_of(args, digits, {}, [SEARCH_ARITY], [SEARCH_SEED])
        if CONTENDERS[job.estimator].settings_of is None
        for settings in candidates(job.estimator, job.batch_size)
    ]


def best_settings(records: Sequence[Record]) -> dict[tuple[int, str], Settings]:
    """Return, by batch size and estimator, the candidate with the lowest bound."""
    best: dict[tuple[int, str], Record] = {}
    for record in records:
        key = (record["batch_size"], record["estimator"])
        if (
            record["bound"] is not None
            and record["bound"] < best.get(key, {"bound": math.inf})["bound"]
        ):
            best[key] = record
    return {key: Settings(r["learning_rate"], r["temperature"]) for key, r in best.items()}


def jobs_of(
    args: argparse.Namespace,
    digits: Digits,
    found: dict[tuple[int, str], Settings],
    arities: Sequence[int],
    seeds: Sequence[int],
) -> list[Job]:
    """All runs asked for, seed by seed, so that an interruption leaves every cell its first seeds."""
    jobs = []
    for seed, batch_size, arity, name in itertools.product(
        seeds, args.batch_size, arities, args.estimator
    ):
        contender = CONTENDERS[name]
        if arity not in contender.arities:
            continue
        chosen_as = contender.settings_of or name
        chosen = {**SETTINGS, **found}[batch_size, chosen_as]
        jobs.append(
            Job(
                split="test",
                arity=arity,
                batch_size=batch_size,
                estimator=name,
                seed=seed,
                **chosen._asdict(),
                steps=args.steps or STEPS[batch_size],
                num_hidden=args.num_hidden,
                num_train=len(digits.train),
                num_evaluated=min(args.test_digits, len(digits.test)),
                num_samples=args.samples,
            )
        )
    return jobs


class Gap(NamedTuple):
    """How much higher the bound of one estimator is: mean over pairs of runs, standard error."""

    mean: float
    error: float
    num_pairs: int


def gap(records: Sequence[Record], worse: str, better: str) -> Gap:
    """Compare two estimators run by run: the runs of a pair differ in nothing else.

    The standard error is over all pairs, whatever their arity and batch size, so it holds the
    spread of the gap between cells too.
    """
    bounds: dict[str, dict[tuple[int, ...], float]] = {worse: {}, better: {}}
    for record in records:
        if record["estimator"] in bounds and record["bound"] is not None:
            place = tuple(record[key] for key in ("arity", "batch_size", "seed"))
            bounds[record["estimator"]][place] = record["bound"]
    gaps = [bounds[worse][p] - bounds[better][p] for p in bounds[worse] if p in bounds[better]]
    if len(gaps) < 2:
        return Gap(math.nan, math.nan, len(gaps))
    return Gap(statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps)), len(gaps))


def judge(claim: Claim, records: Sequence[Record]) -> tuple[str, bool]:
    """Return a sentence with the figures, and whether the claim holds.

    It does not where there are fewer than two pairs of runs.
    """
    sizes = (claim.batch_size,) if claim.batch_size else tuple(STEPS)
    found = gap([r for r in records if r["batch_size"] in sizes], claim.higher, claim.lower)
    side = "above" if found.mean >= 0 else "below"
    place = f" at batch size {claim.batch_size}" if claim.batch_size else ""
    line = (
        f"{claim.higher} ends {abs(found.mean):.2f} nats {side} {claim.lower}{place} "
        f"(standard error {found.error:.2f}, {found.num_pairs} pairs of runs)"
    )
    least = STANDARD_ERRORS * found.error * (1 if claim.clearly else -1)
    return line, found.mean >= least


def judge_all(records: Sequence[Record]) -> list[tuple[str, bool]]:
    """Judge the claims of which all estimators and batch sizes were run."""
    run = {(record["batch_size"], record["estimator"]) for record in records}
    return [
        judge(claim, records)
        for claim in CLAIMS
        if {
            (size, name)
            for size in ([claim.batch_size] if claim.batch_size else STEPS)
            for name in (claim.higher, claim.lower)
        }
        <= run
    ]


def command_line(data_dir: str | None) -> str:
    """Return the command that was given, the folder of the data left open."""
    given = [word for word in sys.argv[1:] if word != "--report"]
    words = ["MNIST_FOLDER" if word == data_dir else word for word in given]
    return shlex.join(["python", "examples/discrete_vae.py", *words])


def bound_without_code(digits: Digits, num_evaluated: int) -> float:
    """-log p(x) of test digits where each pixel is on at its base rate, whatever the others."""
    evaluated = digits.test[:num_evaluated]
    rates = base_rates(digits.train).expand_as(evaluated)
    return binary_cross_entropy(rates, evaluated, reduction="sum").item() / num_evaluated


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arity", type=int, nargs="+", choices=CODES, default=list(CODES))
    parser.add_argument("--batch-size", type=int, nargs="+", choices=STEPS, default=list(STEPS))
    names = list(CONTENDERS)
    parser.add_argument("--estimator", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each cell")
    parser.add_argument("--steps", type=int, help=f"of each run; default by batch size: {STEPS}")
    parser.add_argument("--num-hidden", type=int, default=100, help="units of a hidden layer")
    parser.add_argument("--test-digits", type=int, default=250, help="the first so many")
    parser.add_argument("--samples", type=int, default=100, help="importance samples per digit")
    parser.add_argument("--search", action="store_true", help="choose rates and temperatures anew")
    parser.add_argument("--report", action="store_true", help="run nothing, show what there is")
    parser.add_argument("--full", action="store_true", help="the published protocol's length")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; one times best")
    parser.add_argument("--data", help="folder with MNIST-style IDX files; default 5,000 digits")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--smoke-test", action="store_true", help="tiny, in seconds")
    args = parser.parse_args()
    if args.full:
        args.steps, args.samples, args.test_digits = FULL_STEPS, 5000, 10_000
    if args.smoke_test:
        args.steps, args.seeds, args.batch_size, args.num_hidden = 2, 1, [20], 8
        args.test_digits, args.samples = 5, 4
        args.out = args.out / "smoke-test"  # real results are left alone
    return args


def main() -> None:
    """Search, train, bound, print, draw, and check the claims."""
    args = parse_args()
    began = time.process_time()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # gradients that underflow would slow the steps
    pyro.enable_validation(args.smoke_test)
    digits = load_binary_digits(args.data)
    if args.full and len(digits.train) < 50_000:
        raise SystemExit(f"--full needs --data with all of MNIST; got {len(digits.train)} digits")
    path = args.out / "discrete_vae.json"
    if args.smoke_test:
        path.unlink(missing_ok=True)
    results = Results(path)
    found = {}
    if args.search:
        found = best_settings(run_all(search_jobs(args, digits), digits, results))
        for (batch_size, name), settings in sorted(found.items()):
            print(f"batch {batch_size}, {name}: {settings}")
    jobs = jobs_of(args, digits, found, args.arity, range(args.seeds))
    records = results.find(jobs) if args.report else run_all(jobs, digits, results)
    if not records:
        raise SystemExit(f"no finished runs of this budget in {path}")
    claims = [] if args.smoke_test else judge_all(records)
    no_code = bound_without_code(digits, records[0]["num_evaluated"])
    search = [record for record in results.records if record["split"] == "validation"]
    text = page(records, no_code, command_line(args.data), [line for line, _ in claims], search)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "discrete_vae.md").write_text(text)
    cells = summarize(records)
    draw(cells, args.out / "discrete_vae.png")
    print(f"\n{table(cells)}\n")
    print("\n".join(line for line, _ in claims) or "no claims to judge")
    print(
        f"{time.process_time() - began:.0f} s of processor time; wrote json, md, png to {args.out}/"
    )
    for line, holds in claims:
        if not holds and args.steps is None:
            raise SystemExit(f"claim failed: {line}")


if __name__ == "__main__":
    main()
