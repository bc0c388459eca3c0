"""ListOps: trees as latent variables, and which gradient estimators stand a low temperature.

A Tree-LSTM merges an expression such as ``[MAX 2 9 [MIN 4 7 ] 0 ]`` pair by pair; which pair is next
is a latent one-hot choice, trained with straight-through gradients. The experiment of Paulus,
Maddison and Krause (ICLR 2021) at a reduced length: under unclipped gradient descent, straight-through
Gumbel-softmax (ST-GS) breaks down at temperature 0.01, Gumbel-Rao (GR) hardly notices.

That is all it shows. It does not show better trees: random trees and left-branching ones are trained
as controls, and ST-GS with clipped gradients too; the tables have them all. The claims are checked,
and the program fails if one does not hold.

Writes ``listops.md`` (the printed tables), ``listops.json`` and ``listops.png`` to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from listops_data import generate, to_batch
from listops_model import leftmost
from listops_picture import draw
from listops_report import (
    LEFT,
    RANDOM,
    TEMPERATURES,
    caveats,
    check_claims,
    report,
)
from listops_report import (
    readme_table as readme_table,
)
from listops_training import Arm, Budget, Result, Splits, Untrained, train
from pyro_silent.estimators import ZGR, Estimator, GumbelRao, StraightThroughGumbelSoftmax

ESTIMATORS: dict[str, Callable[[float], Estimator]] = {
    "ST-GS": StraightThroughGumbelSoftmax,
    "GR-MC10": partial(GumbelRao, num_gumbels=10),
    "GR-MC100": partial(GumbelRao, num_gumbels=100),
    "GR-MC1000": partial(GumbelRao, num_gumbels=1000),
}
NOT_CLIPPED = "GR-MC1000"  # too slow to run once more


# -- the runs --------------------------------------------------------------------------------------


def plan(clip_norm: float) -> list[list[Arm]]:
    """The arms in groups of runs that are trained side by side, the slowest group first."""
    grid = {
        name: [Arm(name, make, temperature) for temperature in TEMPERATURES]
        for name, make in ESTIMATORS.items()
    }
    zgr = Arm("ZGR", lambda temperature: ZGR())
    at_low = [arms[0] for name, arms in grid.items() if name != NOT_CLIPPED]
    clipped = [replace(arm, clip_norm=clip_norm) for arm in (*at_low, zgr)]
    random_trees = Arm(RANDOM, lambda temperature: Untrained())
    left_branching = Arm(LEFT, lambda temperature: Untrained(), parser=leftmost)
    return [
        [*grid["GR-MC1000"], *grid["GR-MC100"]],
        [*grid["ST-GS"], *grid["GR-MC10"], zgr, random_trees, *clipped],
        [left_branching],
    ]


def load_splits(args: argparse.Namespace) -> Splits:
    """Unique expressions; the full protocol keeps the short ones of a set of the published size."""
    if args.full:
        kept = [e for e in generate(seed=args.seed) if len(e.tokens) <= args.max_length]
        num_test = num_validation = len(kept) // 10
    else:
        num_test, num_validation = args.num_test, args.num_validation
        kept = generate(args.num_train + num_validation + num_test, args.seed, args.max_length)
    held_out = num_test + num_validation
    parts = kept[held_out:], kept[num_test:held_out], kept[:num_test]
    return Splits(*(to_batch(part) for part in parts))


def run_group(position: int, args: argparse.Namespace) -> tuple[list[Result], float]:
    """Train one group of arms with a progress bar; its results, and seconds of processor time."""
    torch.set_num_threads(1)
    began = time.process_time()
    arms, splits = plan(args.clip_norm)[position], load_splits(args)
    per_epoch = len(splits.train.lengths) // args.batch_size
    budget = Budget(
        num_seeds=args.seeds,
        num_steps=args.epochs * per_epoch if args.epochs else args.steps,
        batch_size=args.batch_size,
        evaluate_every=args.evaluate_every or per_epoch,
        learning_rate=args.learning_rate,
        momentum=args.momentum,
        num_hidden=args.num_hidden,
    )
    title = " and ".join(dict.fromkeys((arms[0].name, arms[-1].name)))
    with tqdm(total=budget.num_steps, desc=title, unit="step", position=position) as bar:
        results = train(arms, splits, budget, bar.update)
    return results, time.process_time() - began


def run_all(args: argparse.Namespace) -> tuple[list[Result], float]:
    """Train all groups, several at once."""
    groups = range(len(plan(args.clip_norm)))
    if args.processes == 1:
        finished = [run_group(position, args) for position in groups]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.processes, context) as pool:
            finished = list(pool.map(run_group, groups, [args] * len(groups)))
    print("\n" * len(groups), file=sys.stderr)  # leave the bars
    results = [result for group, _ in finished for result in group]
    return results, sum(seconds for _, seconds in finished)


# -- the command -----------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """The command line; some options have other defaults in the full protocol and the smoke test."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--max-length", type=int, default=10, help="the paper's: 10, 25, 50")
    parser.add_argument(
        "--full", action="store_true", help="the published data set, 20 epochs of it"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=0, help="instead of --steps")
    parser.add_argument(
        "--batch-size", type=int, help="default: the longest length, as in the paper"
    )
    parser.add_argument("--num-train", type=int, default=10_000)
    parser.add_argument("--num-validation", type=int, default=1_000)
    parser.add_argument("--num-test", type=int, default=2_000)
    parser.add_argument("--evaluate-every", type=int, default=250, help="0: once an epoch")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--clip-norm", type=float, default=0.25, help="of the clipped column")
    parser.add_argument("--num-hidden", type=int, default=32)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the data; runs have seeds 0, 1, ..."
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--smoke-test", action="store_true", help="seconds; nothing is claimed")
    args = parser.parse_args()
    args.batch_size = args.batch_size or args.max_length
    if args.full:
        args.epochs, args.evaluate_every = args.epochs or 20, 0
    if args.smoke_test:
        args.seeds, args.steps, args.epochs, args.evaluate_every, args.processes = 2, 2, 0, 1, 1
        args.num_train, args.num_validation, args.num_test, args.num_hidden = 40, 10, 10, 4
    return args


def main() -> None:
    """Train, check, write and print."""
    args = parse_arguments()
    began = time.perf_counter()
    results, processor_seconds = run_all(args)
    record = {
        "command": shlex.join(["python", "examples/listops.py", *sys.argv[1:]]),
        "settings": {**vars(args), "out": None},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": time.perf_counter() - began,
        "processor_seconds": processor_seconds,
        "rows": [asdict(result) for result in results],
        "caveats": caveats(results),
        "claims": [],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    draw(results, args.max_length, args.out / "listops.png")
    write(record, args.out)  # before the claims, which may fail
    record["claims"] = ["smoke test: nothing is claimed"]
    if not args.smoke_test:
        record["claims"] = check_claims(results)
    write(record, args.out)
    print(report(record))
    print(f"wrote listops.md, listops.json and listops.png to {args.out}/")


def write(record: dict, out: Path) -> None:
    """Write the figures and the report."""
    (out / "listops.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "listops.md").write_text(report(record))


if __name__ == "__main__":
    main()
