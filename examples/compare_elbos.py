"""Losses side by side on real data: noise, bias, time and memory of their gradients, and training.

Three problems: a Poisson regression with group effects under an autoguide, and a VAE with a binary code
whose decoder is linear or deep. The bits are few, so all three have an exact loss, and every other is
held against it: at the first parameters and again after some steps with the exact loss, because noise
and bias change on the way. Then the VAE with the linear decoder is trained by five losses from the same
starts.

The program fails if one of its claims does not hold: exact losses have no noise and agree with each
other, no bias is found in unbiased losses, biased ones are recognised, Gumbel-Rao has less noise than
straight-through Gumbel-softmax, ten particles and half an exact gradient have the noise that theory
says, and the advice is to use the exact loss.

Writes ``compare_elbos.md``, the figures as ``.json`` and ``.csv``, and pictures to ``--out``.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import SVI

from compare_elbos_claims import Claim, claims
from compare_elbos_problems import Problem, problems
from compare_elbos_report import page, readme_table
from compare_elbos_training import train, training_claims
from pyro_silent import Comparison, TrainingComparison, compare

__all__ = ["readme_table"]

NAME = "compare_elbos"
FIRST = "first parameters"

Record = dict[str, Any]


class Measured(NamedTuple):
    """A comparison, where it was made, and what it must show."""

    problem: str
    title: str
    point: str
    comparison: Comparison
    claims: list[Claim]


def measure(name: str, problem: Problem, args: argparse.Namespace) -> list[Measured]:
    """Compare at the first parameters, and again after some steps with the exact loss."""
    found = []
    exact = problem.losses[problem.exact[0]]
    optim = pyro.optim.Adam({"lr": problem.learning_rate})
    svi = SVI(problem.model, problem.guide, optim, loss=exact)
    for steps in args.points:
        for step in range(steps):
            svi.step(*problem.batches(step))
        comparison = compare(
            problem.model,
            problem.guide,
            problem.losses,
            problem.batch,
            num_samples=args.num_samples,
            reference=problem.reference,
            seed=args.seed,
            measure_memory=not args.smoke_test,
            progress=True,
        )
        point = f"after {steps} steps" if steps else FIRST
        print(f"\n{problem.title}, {point}\n\n{comparison}\n", flush=True)
        judged = list(claims(problem, comparison, at_start=steps == 0))
        found.append(Measured(name, problem.title, point, comparison, judged))
    return found


def measure_all(args: argparse.Namespace) -> list[Measured]:
    """Every problem from parameters of its own."""
    found = []
    for name, make in problems(args).items():
        if name in args.problem:
            pyro.clear_param_store()
            pyro.set_rng_seed(args.seed)
            found += measure(name, make(), args)
    return found


def record_of(
    measured: Sequence[Measured], trained: TrainingComparison, args: argparse.Namespace
) -> Record:
    """What the page and the README are made from."""
    settings = {
        key: value for key, value in vars(args).items() if key not in ("out", "data", "checkpoint")
    }
    return {
        "command": command_line(args.data),
        "settings": settings,
        "comparisons": [
            {
                "problem": m.problem,
                "title": m.title,
                "point": m.point,
                "names": [row["name"] for row in m.comparison.rows],
                "picture": picture(m),
                "text": str(m.comparison),
            }
            for m in measured
        ],
        "in_parts": [line for m in measured for line in found_in_parts(m)],
        "training": {"text": str(trained), "num_losses": len(trained.rows)},
    }


def found_in_parts(m: Measured) -> list[str]:
    """Biases that are found in single parameters, of losses in which none is found as a whole."""
    figures = {(row["name"], row["group"]): row for row in m.comparison.groups}
    lines = []
    for row in m.comparison.rows:
        if row["biased"] and not set(row["biased_in"]) & {"all", "guide", "model"}:
            found = [figures[row["name"], parameter] for parameter in row["biased_in"]]
            parts = [
                f"`{part['group']}` by {part['grad_bias']:.3g} ± {part['grad_bias_se']:.2g}"
                for part in found
            ]
            lines.append(f"{row['name']}, {m.point} of the {m.problem} problem: {', '.join(parts)}")
    return lines


def picture(m: Measured) -> str:
    """The name of a comparison's picture."""
    return f"{NAME}_{m.problem}{'' if m.point == FIRST else '_later'}.png"


def command_line(data_dir: str | None) -> str:
    """The command that was given, the folder of the data left open."""
    words = ["MNIST_FOLDER" if word == data_dir else word for word in sys.argv[1:]]
    return shlex.join(["python", f"examples/{NAME}.py", *words])


def write_figures(measured: Sequence[Measured], path: Path) -> None:
    """All figures of all comparisons as one table, parameter by parameter as well."""
    lines: list[Record] = []
    for m in measured:
        overall = [{"group": "all", **row} for row in m.comparison.rows]
        empty = dict.fromkeys(overall[0])
        for row in [*overall, *({**empty, **group} for group in m.comparison.groups)]:
            lines.append({"problem": m.problem, "point": m.point, **row})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def parse_args() -> argparse.Namespace:
    """The command line."""
    names = ["regression", "linear", "deep"]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problem", nargs="*", choices=names, default=names)
    parser.add_argument("--num-samples", type=int, default=100, help="gradients of each loss")
    parser.add_argument("--steps", type=int, default=100, help="before the second comparison")
    parser.add_argument("--every", type=int, default=20, help="rows of the regression's data")
    parser.add_argument("--bits", type=int, default=6, help="of the binary code")
    parser.add_argument("--digits", type=int, default=20, help="in a minibatch")
    parser.add_argument("--train-steps", type=int, default=150, help="of each training run")
    parser.add_argument("--held-out", type=int, default=1000, help="digits to judge training by")
    parser.add_argument("--seeds", type=int, default=5, help="training runs of each loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="folder with MNIST-style IDX files; default 5,000 digits")
    parser.add_argument("--checkpoint", type=Path, help="where training resumes after a break")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--smoke-test", action="store_true", help="tiny, in seconds")
    args = parser.parse_args()
    args.points = [0, args.steps]
    if args.smoke_test:
        args.problem, args.points, args.num_samples = ["linear"], [0], 5
        args.bits, args.digits, args.held_out = 2, 5, 20
        args.train_steps, args.seeds = 2, 2
        args.out = args.out / "smoke-test"  # real results are left alone
    return args


def main() -> None:
    """Measure, train, print, draw, and check the claims."""
    args = parse_args()
    began = time.process_time()
    torch.set_num_threads(1)
    logging.getLogger("pyro").setLevel(logging.WARNING)  # it tells of each guessed plate nesting
    args.out.mkdir(parents=True, exist_ok=True)
    measured = measure_all(args)
    trained = train(args)
    print(f"\n{trained}\n")
    judged = [claim for m in measured for claim in m.claims] + list(training_claims(trained))
    record = record_of(measured, trained, args)
    record["claims"] = {
        **{f"{m.title}, {m.point}": [c.sentence for c in m.claims] for m in measured},
        "Training": [c.sentence for c in training_claims(trained)],
    }
    (args.out / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / f"{NAME}.md").write_text(page(record))
    write_figures(measured, args.out / f"{NAME}.csv")
    for m in measured:
        m.comparison.plot(args.out / picture(m))
    trained.plot(args.out / f"{NAME}_training.png")
    trained.to_csv(args.out / f"{NAME}_training.csv")
    for claim in judged:
        if not claim.holds:
            raise SystemExit(f"claim failed: {claim.sentence}")
    print(f"{len(judged)} claims hold")
    print(f"{time.process_time() - began:.0f} s of processor time; wrote {NAME}.* to {args.out}/")


if __name__ == "__main__":
    main()
