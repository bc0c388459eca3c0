"""The VAE of ``ddp_vae.py`` trained by Lightning, in one process and in several.

Lightning brings its own loop, wrapper, samplers and checkpoints; ``elbo(model, guide)`` is a module like
any other, and its steps are in Lightning's checkpoints. Nothing is set for the parameters that rest at
either end of an annealing.

The loss is annealed: silent alone for half of the steps, then less and less of it, none in the last
quarter. Three claims are checked, and the program fails if one does not hold: while there are no random
numbers, several processes train as one does on the joint minibatches; one goes on from their checkpoint
as if it had been alone; and to the end, with random numbers of their own, they count the same steps and
lower the loss.

Needs the package lightning (``pip install "pyro_silent[examples,lightning]"``); without it, it says so
and ends.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from data import load_digits
from ddp_vae import Guide, Model, flat, relative
from pyro_silent import AnnealedELBO, Linear, SilentELBO

try:
    import lightning.pytorch as lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
except ImportError:
    print('skipped: lightning is not installed; pip install "pyro_silent[lightning]"')
    sys.exit()

# Lightning's own remarks, silenced here because spawned processes import this module as well.
for _message in (
    ".*does not have many workers",
    ".*LeafSpec.* is deprecated",
    "The dirpath has changed",
):
    warnings.filterwarnings("ignore", _message)
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

TOLERANCE = 1e-6  # relative: Adam's division magnifies rounding where a gradient is near 0


class Training(lightning.LightningModule):
    """How a loss of a model and a guide is trained."""

    def __init__(self, loss: ELBO, digits: Tensor, args: argparse.Namespace) -> None:
        super().__init__()
        pyro.set_rng_seed(args.seed)
        sizes = args.code_size, args.num_hidden
        self.elbo = loss(Model(*sizes), Guide(*sizes))
        self.digits, self.args = digits, args

    def train_dataloader(self) -> DataLoader:
        """Each process's part of each minibatch.

        The sampler deals out one permutation an epoch, so all parts together are the minibatch of one
        process. Lightning's own sampler would permute for several processes alone.
        """
        num_processes, rank = self.trainer.world_size, self.trainer.global_rank
        data: Any = self.digits
        sampler: DistributedSampler = DistributedSampler(
            data, num_processes, rank, seed=self.args.seed, drop_last=True
        )
        return DataLoader(data, self.args.batch_size // num_processes, sampler=sampler)

    def on_train_start(self) -> None:
        """Each process draws random numbers of its own."""
        pyro.set_rng_seed(self.args.seed + 1 + self.global_rank)

    def training_step(self, digits: Tensor, index: int) -> Tensor:
        """Return the loss in nats per digit, of this process's part of a minibatch."""
        loss: Tensor = self.elbo(digits, len(self.digits))
        return loss / len(self.digits)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of the parameters of model and guide."""
        return torch.optim.Adam(self.parameters(), lr=self.args.learning_rate)

    @property
    def num_steps(self) -> int:
        """Steps that the loss has counted."""
        count: int = self.elbo.elbo.num_steps
        return count

    def test_loss(self, digits: Tensor) -> float:
        """-ELBO with the deep decoder, in nats per test digit."""
        with torch.no_grad():
            loss = self.elbo.elbo.loss(self.elbo.model, self.elbo.guide, digits, len(digits))
        return float(loss) / len(digits)


def fit(
    training: Training, processes: int, epochs: int, folder: Path, begin: Path | None = None
) -> None:
    """Train up to so many epochs.

    :param folder: where the processes leave ``epoch=0.ckpt`` and so on.
    :param begin: a checkpoint to go on from.
    """
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=processes,
        strategy="auto" if processes == 1 else "ddp_spawn",
        logger=False,
        callbacks=ModelCheckpoint(folder, "{epoch}", save_top_k=-1),
        enable_model_summary=False,
        enable_progress_bar=not training.args.smoke_test,
        use_distributed_sampler=False,
    )
    trainer.fit(training, ckpt_path=begin, weights_only=True)


def check(claim: str, holds: bool) -> None:
    """Say that a claim holds.

    :raises SystemExit: if it does not.
    """
    if not holds:
        raise SystemExit(f"{claim}: that is wrong")
    print(claim)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=200, help="of all processes together")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--num-hidden", type=int, default=200)
    parser.add_argument("--code-size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="folder with MNIST-style IDX files; default 5,000 digits")
    parser.add_argument("--smoke-test", action="store_true", help="tiny, in seconds")
    args = parser.parse_args()
    if args.smoke_test:
        args.epochs, args.batch_size, args.num_hidden, args.code_size = 4, 20, 16, 4
    if args.epochs < 4 or args.epochs % 4:
        parser.error(f"--epochs {args.epochs}: expected a multiple of 4")
    if args.processes < 2 or args.batch_size % args.processes:
        parser.error(f"--processes: expected 2 or more that divide {args.batch_size}")
    return args


def main() -> None:
    """Train in one process and in several, and check the claims."""
    args = parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # the claims are about equality
    train_set, test_set = (digits.double() for digits in load_digits(args.data))
    if args.smoke_test:
        train_set, test_set = train_set[:40], test_set[:40]
    train_set = train_set[: len(train_set) // args.batch_size * args.batch_size]
    num_steps = args.epochs * len(train_set) // args.batch_size

    fade = Linear(1.0, 0.0, num_steps=num_steps // 4, hold=num_steps // 2)

    def annealed() -> Training:
        loss = AnnealedELBO(SilentELBO(), Trace_ELBO(), fade, silent_warm_up=True)
        return Training(loss, train_set, args)

    one, several, resumed, halfway = (annealed() for _ in range(4))
    first = several.test_loss(test_set)
    with tempfile.TemporaryDirectory() as name:
        folder, half, quarter = Path(name), args.epochs // 2, args.epochs // 4
        fit(one, 1, half, folder / "one")
        fit(several, args.processes, args.epochs, folder / "several")
        begin = folder / "several" / f"epoch={quarter - 1}.ckpt"
        fit(resumed, 1, half, folder / "resumed", begin)
        saved = torch.load(folder / "several" / f"epoch={half - 1}.ckpt", weights_only=True)
        halfway.load_state_dict(saved["state_dict"])

    for training, who in (
        (halfway, f"{args.processes} processes"),
        (resumed, f"one process after {args.processes}"),
    ):
        off = relative(flat(training), flat(one))
        check(
            f"{who}: parameters differ from those of one process all along by {off:.1e}, relative, "
            f"after {training.num_steps} of {one.num_steps} silent steps",
            off <= TOLERANCE and training.num_steps == one.num_steps,
        )
    last = several.test_loss(test_set)
    check(
        f"{args.processes} processes: test loss {first:.1f} to {last:.1f} nats per digit after "
        f"{several.num_steps} of {num_steps} steps",
        last < first and several.num_steps == num_steps,
    )


if __name__ == "__main__":
    main()
