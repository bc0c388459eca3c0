"""The VAE with a binary code and a linear decoder, trained by several losses from the same starts."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator

import pyro
from torch.utils.data import DataLoader, TensorDataset

from compare_elbos_claims import Claim
from compare_elbos_problems import BinaryVAE, binary_losses, digits_of
from pyro_silent import TrainingComparison, train_and_compare

LOSSES = (
    "SilentELBO",
    "GumbelRaoELBO, tau 0.5",
    "LeaveOneOutELBO",
    "TraceGraph_ELBO, baselines",
    "Trace_ELBO",
)
LEARNING_RATE = 1e-3
# Of Student's t with 4 degrees of freedom (five seeds) one in 1,000 is beyond, on both sides together.
STANDARD_ERRORS = 8.6
SILENT = "SilentELBO"


def train(args: argparse.Namespace) -> TrainingComparison:
    """Train by each loss and judge all by the exact -ELBO on held-out digits."""
    pyro.clear_param_store()
    pyro.set_rng_seed(args.seed)
    train_set, test_set = digits_of(args.data)
    vae = BinaryVAE(args.bits, train_set.mean(0), deep=False)
    losses = binary_losses(deep=False)
    batches: DataLoader = DataLoader(
        TensorDataset(train_set), batch_size=args.digits, shuffle=True, drop_last=True
    )

    def initialize() -> None:
        """A start of its own for each seed, as when the program begins."""
        fresh = BinaryVAE(args.bits, train_set.mean(0), deep=False)
        vae.load_state_dict(fresh.state_dict())

    return train_and_compare(
        vae.model,
        vae.guide,
        {name: losses[name] for name in LOSSES},
        pyro.optim.Adam({"lr": LEARNING_RATE}),
        batches,
        num_steps=args.train_steps,
        seeds=range(args.seeds),
        held_out=[test_set[: args.held_out]],
        evaluate_every=max(1, args.train_steps // 20),
        initialize=initialize,
        checkpoint=args.checkpoint,
    )


def training_claims(trained: TrainingComparison) -> Iterator[Claim]:
    """All losses were judged, from equal starts; none ends clearly below the exact one."""
    failed = [row["name"] for row in trained.rows if row["error"]]
    yield Claim(
        "every loss was trained" + (f", but not {', '.join(failed)}" if failed else ""), not failed
    )
    starts: dict[int, set[float]] = {}
    for point in trained.curves:
        if point["step"] == 0:
            starts.setdefault(point["seed"], set()).add(point["yardstick"])
    yield Claim(
        f"the losses of each of {len(starts)} seeds start from one value",
        all(len(values) == 1 for values in starts.values()),
    )
    finals = {
        name: [run["final"] for run in trained.runs if run["name"] == name] for name in LOSSES
    }
    for name in LOSSES[1:]:
        gaps = [other - silent for other, silent in zip(finals[name], finals[SILENT], strict=True)]
        gap = statistics.fmean(gaps)
        error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
        yield Claim(
            f"{name} does not end below {SILENT} beyond chance: {gap:.4g} ± {error:.2g} above it",
            gap >= -STANDARD_ERRORS * error,
        )
