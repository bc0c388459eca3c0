"""Take 20,000 captured steps, and kill a training run in the middle of steps.

A small VAE on a fresh minibatch every step. Claims: the resident memory after the first tenth of the
steps grows by less than 8 MiB, nothing is traced again, no loss is NaN or infinite. And of a run that
writes a checkpoint at every step and is killed (SIGKILL) at random moments no more than the step under
way is lost: each restart finds the checkpoint of the last step that was reported, or of the one after,
and the parameters at the end are those of a run that was never killed, to rounding in double precision
(a restart takes its first steps eagerly, which rounds in another order than a graph).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from harness.contenders import CAPTURED_AFTER
from harness.measure import one_core, resident_bytes
from harness.models import LEARNING_RATE, VAE, Sizes
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import CompiledSVI, SilentELBO

SIZES = Sizes(64, 32, 8)
BATCH_SIZE = 50
GROWTH_LIMIT = 8.0
ROUNDING = 1e-10
MEBIBYTE = 2**20


class Training:
    """A captured training whose state fits in one file.

    :param backend: of ``CompiledSVI``.
    """

    def __init__(self, seed: int, backend: str) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        self.seed, self.count = seed, 0
        self.vae = VAE("vae", SIZES)
        self.optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})
        self.svi = CompiledSVI(
            self.vae.model, self.vae.guide, self.optimizer, SilentELBO(), backend=backend
        )

    def batch(self) -> Tensor:
        """Return the minibatch of the step to come: a function of its number alone."""
        generator = torch.Generator().manual_seed(self.seed + self.count)
        return torch.rand(BATCH_SIZE, SIZES.data_dim, generator=generator)

    def step(self) -> float:
        """Take a step."""
        loss = self.svi.step(self.batch())
        self.count += 1
        return loss

    def save(self, path: Path) -> None:
        """Write everything a step depends on: all of it or nothing, for a file is renamed at once."""
        state = {
            "count": self.count,
            "vae": self.vae.state_dict(),
            "optimizer": self.optimizer.get_state(),
        }
        partly = path.with_suffix(".partly")
        torch.save(state, partly)
        os.replace(partly, path)

    def load(self, path: Path) -> None:
        """Take up where a file was written."""
        state = torch.load(path)
        self.count = state["count"]
        self.vae.load_state_dict(state["vae"])
        self.optimizer.set_state(state["optimizer"])


def soak(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    """Take the steps and watch memory, traces and losses."""
    training = Training(arguments.seed, arguments.backend)
    for _ in range(CAPTURED_AFTER):
        training.step()
    start = training.svi.statistics
    every = arguments.steps // 10
    resident, finite = [], 0
    began = time.process_time()
    for count in tqdm(range(1, arguments.steps + 1), desc="soak", leave=False):
        finite += math.isfinite(training.step())
        if count % every == 0:
            resident.append(resident_bytes() / MEBIBYTE)
    milliseconds = 1e3 * (time.process_time() - began) / arguments.steps
    found = training.svi.statistics
    growth = max(resident) - resident[0]
    print(table(["steps", "resident MiB"], [[(i + 1) * every, m] for i, m in enumerate(resident)]))
    replays = found.replays - start.replays
    print(f"{replays} of {arguments.steps} steps replayed, {milliseconds:.3f} ms each")
    figures = {"resident MiB": resident, "milliseconds": milliseconds}
    return figures, [
        Target(
            "growth of the resident memory after a tenth of the steps, MiB", growth, GROWTH_LIMIT
        ),
        Target("graphs traced after the first", found.graphs - start.graphs, 0),
        Target("steps that were not replayed", arguments.steps - replays, 0),
        Target("losses that were not finite", arguments.steps - finite, 0),
    ]


def work(arguments: argparse.Namespace) -> None:
    """Train to the end with a checkpoint a step, from the last one where there is one."""
    case = json.loads(arguments.case)
    torch.set_default_dtype(torch.float64)
    checkpoint = Path(case["checkpoint"])
    training = Training(arguments.seed, case["backend"])
    if checkpoint.exists():
        training.load(checkpoint)
    print(json.dumps(training.count), flush=True)
    while training.count < case["steps"]:
        training.step()
        training.save(checkpoint)
        print(json.dumps(training.count), flush=True)


def run_killed(command: list[str], patience: int) -> list[int]:
    """Run a worker, kill it at a random moment after so many lines, and return what it reported.

    It is left alone if it comes to its end before.
    """
    counts = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise RuntimeError("a worker without a pipe")
        for line in process.stdout:
            counts.append(json.loads(line))
            if len(counts) == patience:
                time.sleep(random.uniform(0.0, 0.01))
                process.kill()
    if process.returncode and len(counts) < patience:
        raise RuntimeError(f"a worker ended with exit code {process.returncode}")
    return counts


def kill_and_resume(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    """Kill a worker some times, let it end, and compare it with a run that was never killed."""
    random.seed(arguments.seed)
    torch.set_default_dtype(torch.float64)
    steps = 5 * (arguments.kills + 1)
    straight = Training(arguments.seed, arguments.backend)
    while straight.count < steps:
        straight.step()
    lost, reported = [], 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "training.pt"
        case = {"checkpoint": str(checkpoint), "steps": steps, "backend": arguments.backend}
        command = [sys.executable, __file__, "--seed", str(arguments.seed)]
        command += ["--case", json.dumps(case)]
        for attempt in tqdm(range(arguments.kills + 1), desc="workers", leave=False):
            counts = run_killed(command, 5 if attempt < arguments.kills else steps + 2)
            # A step may have been written and not reported, but not the other way round.
            lost.append(reported - counts[0])
            reported = counts[-1]
        killed = torch.load(checkpoint)
    torch.set_default_dtype(torch.float32)
    weights = straight.vae.state_dict()
    difference = max(
        (weights[name] - value).abs().max().item() for name, value in killed["vae"].items()
    )
    print(f"killed {arguments.kills} times on the way to step {killed['count']} of {steps}")
    return {"lost": lost}, [
        Target("finished steps lost by a kill", max(lost), 0),
        Target("steps not taken in the end", steps - killed["count"], 0),
        Target("largest difference from a run that was never killed", difference, ROUNDING),
    ]


def main() -> int:
    """Run the soak and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--backend", default="inductor", help="of CompiledSVI")
    parser.add_argument("--case", help="a worker, as JSON; for the use of this script")
    arguments = parser.parse_args()
    one_core()
    if arguments.case:
        work(arguments)
        return 0
    if arguments.smoke_test:
        arguments.steps, arguments.kills, arguments.backend = 20, 1, "eager"
    figures: dict[str, object] = {}
    targets: list[Target] = []
    for part in (soak, kill_and_resume):
        part_figures, part_targets = part(arguments)
        figures |= part_figures
        targets += part_targets
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
