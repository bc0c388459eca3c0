"""Deep VAEs whose encoder is guided by an exact gradient first: four arms for each estimator.

A linear decoder beside the deep one gives the encoder a gradient without sampling noise, by
``SilentELBO``, whose weight falls to 0 during training. In a program of one's own that is::

    decoder = TwinDecoder(analytic=nn.Linear(128, 784), expressive=deep_decoder)
    ...
    loss = AnnealedELBO(SilentELBO(), GumbelRaoELBO(0.5), Linear(1.0, 0.0, num_steps=1000))
    svi = SVI(model, guide, optim, loss=loss)

Some of the gain is rescue from posterior collapse and the easier decoder, not silence. So every
estimator is trained in four arms from the same parameters on the same minibatches: alone (plain),
alone with KL warm-up, guided by the same linear decoder on *samples* (control), and guided silently.
The result is the test ELBO of the deep decoder with hard samples, after equal steps, and after equal
processor time: the cheaper arms train on until they have used the time of the silent one.

The default example is of three estimators and takes about ten minutes; ``--all`` is of all the
regimes in ``REGIMES``, and takes two hours. An interrupted program goes on where it stopped: finished
runs are kept in ``annealed_vae.json``, from which ``annealed_vae.md`` and ``annealed_vae.png`` are
made, in ``--out``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pyro
import torch

from annealed_vae_arms import (
    ARMS,
    BLENDED,
    FURTHER_SCHEDULES,
    RATES,
    SCHEDULES_TRIED,
    SETTINGS,
    SETTINGS_OF,
    TEMPERATURE,
    TEMPERED,
    Settings,
)
from annealed_vae_model import Images, load_images
from annealed_vae_picture import draw
from annealed_vae_report import page, readme_table, table
from annealed_vae_runs import NOISE_REPEATS, Job, run_all
from annealed_vae_summary import AT_EQUAL_TIME, STANDARD_ERRORS, Races, gap, races
from finished_runs import Record, Results

__all__ = ["readme_table"]

STEPS = 1000
SEARCH_SEED = 1000
RATE_NATS = 5.0
NUM_EVALUATED = 1000
SCORE_FUNCTION = ("REINFORCE", "RLOO")


class Row(NamedTuple):
    """What the arms of a race have in common, but for the seed."""

    code: str
    estimator: str
    num_units: int
    data: str = "digits"
    decoder: str = "MLP"
    batch_size: int = 20
    steps: int = STEPS


GAUSSIAN = Row("Gaussian", "reparam", 32)
GUMBEL_RAO = Row("Bernoulli", "GR", 128)
LEAVE_ONE_OUT = Row("Bernoulli", "RLOO", 128)

REGIMES: dict[str, tuple[Row, ...]] = {
    "default": (GAUSSIAN, GUMBEL_RAO, LEAVE_ONE_OUT),
    "estimators": (
        *(GUMBEL_RAO._replace(estimator=name) for name in ("GS", "ST-GS", "REINFORCE")),
        Row("categorical", "GR-MC10", 32),
        Row("categorical", "RLOO", 32),
    ),
    "convolutional": tuple(row._replace(decoder="conv") for row in (GAUSSIAN, LEAVE_ONE_OUT)),
    "fashion": tuple(row._replace(data="Fashion-MNIST") for row in (GUMBEL_RAO, LEAVE_ONE_OUT)),
    "small gain": (GAUSSIAN._replace(decoder="tanh"),),
    "large batch": (LEAVE_ONE_OUT._replace(batch_size=200, steps=STEPS // 2),),
    "few units": (LEAVE_ONE_OUT._replace(num_units=16),),
    "long": tuple(row._replace(steps=4 * STEPS) for row in (GAUSSIAN, GUMBEL_RAO, LEAVE_ONE_OUT)),
}
SEARCHED = {row.estimator: row for row in REGIMES["default"]}


def job(row: Row, arm: str, seed: int, settings: Settings, images: Images, split: str) -> Job:
    """One run."""
    return Job(
        split=split,
        num_train=len(images.train),
        num_evaluated=min(NUM_EVALUATED, len(getattr(images, split))),
        seed=seed,
        arm=arm,
        temperature=TEMPERATURE if row.estimator in TEMPERED else 1.0,
        **row._asdict(),
        **settings._asdict(),
    )


def races_of(
    rows: Iterable[Row], seeds: Sequence[int], load: Callable[[str], Images]
) -> list[list[Job]]:
    """All races asked for, seed by seed, so that an interruption leaves every row its first seeds."""
    rows = list(rows)
    return [
        [
            job(row, arm, seed, settings_of(row, arm), load(row.data), "test")
            for arm in ("silent", *ARMS[:-1])
        ]
        for seed in seeds
        for row in rows
    ]


def settings_of(row: Row, arm: str) -> Settings:
    """What was chosen for an arm."""
    return SETTINGS[SETTINGS_OF.get(row.estimator, row.estimator)][arm]


def candidates(arm: str) -> list[Settings]:
    """Rates at one schedule, then schedules at one rate."""
    if arm == "plain":
        return [Settings(rate, "none", 0.0) for rate in RATES]
    length = 0.2 if arm == "KL warm-up" else 0.5
    found = [Settings(rate, "linear", length) for rate in RATES]
    found += [Settings(RATES[1], *tried) for tried in SCHEDULES_TRIED]
    return list(dict.fromkeys(found))


def search_jobs(names: Iterable[str], load: Callable[[str], Images]) -> list[list[Job]]:
    """One run for each candidate and each further schedule, judged on validation images."""
    further = [Settings(RATES[1], *tried) for tried in FURTHER_SCHEDULES]
    return [
        [job(row, arm, SEARCH_SEED, tried, load(row.data), "validation")]
        for row in (SEARCHED[name] for name in names)
        for arm in ARMS
        for tried in candidates(arm) + (further if arm in BLENDED else [])
    ]


def best_settings(records: Sequence[Record], arm: str) -> Settings:
    """Return the best rate with the best schedule, each found while the other was held.

    The middle rate unless another is ahead by ``RATE_NATS``, so that noise does not set arms apart.
    """
    found = {
        Settings(*(record[key] for key in Settings._fields)): record["elbo"]
        for record in records
        if record["arm"] == arm and record["elbo"] is not None
    }
    tried = [one for one in candidates(arm) if one in found]
    rates = [one for one in tried if one[1:] == tried[0][1:]]
    schedules = [one for one in tried if one.learning_rate == RATES[1]]
    rate = max(rates, key=lambda one: found[one] + RATE_NATS * (one.learning_rate == RATES[1]))
    return max(schedules, key=found.__getitem__)._replace(learning_rate=rate.learning_rate)


def claims(records: Sequence[Record]) -> list[tuple[str, bool]]:
    """Judge, at equal time: silent is ahead of KL warm-up and of the control, clearly.

    It has to be for the score-function estimator of the default rows and for one other at least.
    A sentence for each row, and whether what it says does not break the claim.
    """
    judged = [
        (cell.estimator in SCORE_FUNCTION, *_ahead(str(cell), arms))
        for cell, arms in races(records).items()
        if cell._asdict() in [row._asdict() for row in REGIMES["default"]]
    ]
    other_ahead = any(ahead for is_score, _, ahead in judged if not is_score)
    return [(line, ahead if is_score else other_ahead) for is_score, line, ahead in judged]


def _ahead(name: str, arms: Races) -> tuple[str, bool]:
    gaps = {rival: gap(arms, "silent", rival, AT_EQUAL_TIME) for rival in ARMS[1:3]}
    parts = [f"{one} nats from {rival}" for rival, one in gaps.items()]
    line = f"{name}: at equal time silent is {' and '.join(parts)} ({STANDARD_ERRORS:g} standard "
    line += f"errors needed, {gaps[ARMS[1]].num_pairs} seeds)"
    return line, all(one.verdict == "ahead" for one in gaps.values())


def command_line(*folders: str | None) -> str:
    """Return the command that was given, the folders of images left open."""
    given = [word for word in sys.argv[1:] if word != "--report"]
    words = ["FOLDER" if word in folders else word for word in given]
    return shlex.join(["python", "examples/annealed_vae.py", *words])


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--regime", nargs="+", choices=REGIMES, default=["default"])
    parser.add_argument("--all", action="store_true", help="all regimes")
    parser.add_argument("--seeds", type=int, default=3, help="races of each row")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of every run, in place of the rows' own")
    parser.add_argument("--search", nargs="*", choices=SEARCHED, help="try settings on validation")
    parser.add_argument("--report", action="store_true", help="run nothing, show what there is")
    parser.add_argument("--data", help="folder with MNIST's IDX files; default 5,000 digits")
    parser.add_argument("--fashion", help="folder with Fashion-MNIST's, for its regime")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--smoke-test", action="store_true", help="tiny, in seconds")
    args = parser.parse_args()
    if args.all:
        args.regime = list(REGIMES)
    if args.smoke_test:
        args.seeds, args.steps = 1, 2
        args.out = args.out / "smoke-test"  # real results are left alone
    return args


def rows_of(args: argparse.Namespace) -> list[Row]:
    """The rows of the regimes, on the images that were given."""
    rows = [row for name in args.regime for row in REGIMES[name]]
    if not (args.fashion or args.report):
        rows = [row for row in rows if row.data != "Fashion-MNIST"]
    if args.data:
        rows = [row._replace(data="MNIST") if row.data == "digits" else row for row in rows]
    if args.steps:
        rows = [row._replace(steps=args.steps) for row in rows]
    if args.smoke_test:
        rows = [row._replace(num_units=4, batch_size=4) for row in rows[::2]]
    if not rows:
        raise SystemExit("nothing to run: the fashion regime needs --fashion FOLDER")
    return rows


def main() -> None:
    """Search, race, print, draw, and check the claims."""
    args = parse_args()
    began = time.process_time()
    torch.set_num_threads(1)  # one times best
    torch.set_flush_denormal(True)  # gradients that underflow would slow the steps
    pyro.enable_validation(args.smoke_test)

    @cache
    def load(name: str) -> Images:
        images = load_images({"MNIST": args.data, "Fashion-MNIST": args.fashion}.get(name))
        return Images(*(part[:20] for part in images)) if args.smoke_test else images

    repeats = 2 if args.smoke_test else NOISE_REPEATS
    path = args.out / "annealed_vae.json"
    if args.smoke_test:
        path.unlink(missing_ok=True)
    results = Results(path)
    names = [] if args.search is None else args.search or list(SEARCHED)
    if names and not args.report:
        run_all(search_jobs(names, load), load, results)
    for name in names:
        found = results.find([job for jobs in search_jobs([name], load) for job in jobs])
        for arm in ARMS:
            print(f"{name}, {arm}: {best_settings(found, arm)}")
    if args.report:
        records = [record for record in results.records if record["split"] == "test"]
    else:
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        records = run_all(races_of(rows_of(args), seeds, load), load, results, repeats)
    if not records:
        raise SystemExit(f"no finished runs in {path}")
    judged = [] if args.smoke_test else claims(records)
    search = [record for record in results.records if record["split"] == "validation"]
    args.out.mkdir(parents=True, exist_ok=True)
    text = page(
        records, command_line(args.data, args.fashion), [line for line, _ in judged], search
    )
    (args.out / "annealed_vae.md").write_text(text)
    draw(records, args.out / "annealed_vae.png")
    print(f"\n{table(records)}\n")
    print("\n".join(line for line, _ in judged) or "no claims to judge")
    print(
        f"{time.process_time() - began:.0f} s of processor time; wrote json, md, png to {args.out}/"
    )
    for line, holds in judged:
        if not holds:
            raise SystemExit(f"claim failed: {line}")


if __name__ == "__main__":
    main()
