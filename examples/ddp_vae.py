"""A VAE on handwritten digits in several processes, with torch's DistributedDataParallel.

``elbo(model, guide)`` is a module, and the wrapper takes it as it is. The gradient of an exact loss has
no noise, so that of all processes together, each with its part of a minibatch, can be compared with that
of one process on the whole minibatch, and so can whole trainings.

Four claims are checked, and the program fails if one does not hold: the gradients are equal; the
trainings are equal; a training that stops half-way goes on in more or fewer processes as if it had not
stopped; and in an annealed training with random numbers of their own, from weight 1 to weight 0, all
processes end with the same steps and the same parameters, and a lower loss.

Prints the time per step by number of processes; writes ``ddp_vae.md`` and ``ddp_vae.json`` to ``--out``.
The recipe is explained in ``docs/several_processes.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from pyro.infer import ELBO, Trace_ELBO
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from data import NUM_PIXELS, load_digits
from pyro_silent import AnnealedELBO, Linear, SilentELBO, TwinDecoder

GRADIENT_TOLERANCE = 1e-10  # relative, in double precision: the same sums in another order
TRAINING_TOLERANCE = 1e-6  # relative: Adam's division magnifies rounding where a gradient is near 0


class Branch(nn.Module):
    """A decoder with a noise scale of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean ``[n, 784]`` and standard deviation of the pixels."""
        return self.network(code), self.log_scale.exp()


class Model(nn.Module):
    """A Gaussian code and a digit given the code; the decoder is linear for laws, deep for samples."""

    def __init__(self, code_size: int, num_hidden: int) -> None:
        super().__init__()
        self.code_size = code_size
        deep = nn.Sequential(
            nn.Linear(code_size, num_hidden), nn.ReLU(), nn.Linear(num_hidden, NUM_PIXELS)
        )
        self.decoder = TwinDecoder(Branch(nn.Linear(code_size, NUM_PIXELS)), Branch(deep))

    def forward(self, digits: Tensor, num_digits: int) -> None:
        """``num_digits`` is what the digits stand for, in all processes the same."""
        with pyro.plate("digits", num_digits, subsample_size=len(digits)):
            prior = dist.Normal(digits.new_zeros(len(digits), self.code_size), 1.0)
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(*self.decoder(z)).to_event(1), obs=digits)


class Guide(nn.Module):
    """A code given a digit."""

    def __init__(self, code_size: int, num_hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(NUM_PIXELS, num_hidden), nn.ReLU(), nn.Linear(num_hidden, 2 * code_size)
        )

    def forward(self, digits: Tensor, num_digits: int) -> None:
        """See :class:`Model`."""
        with pyro.plate("digits", num_digits, subsample_size=len(digits)):
            loc, log_scale = self.encoder(digits).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Process(NamedTuple):
    """One of those that train together, or the only one."""

    rank: int
    size: int
    args: argparse.Namespace
    train_set: Tensor
    test_set: Tensor

    def make(self, loss: ELBO) -> ELBOModule:
        """The loss of a model and guide with the same first parameters everywhere."""
        pyro.set_rng_seed(self.args.seed)
        sizes = self.args.code_size, self.args.num_hidden
        return loss(Model(*sizes), Guide(*sizes)).to(self.train_set.device)

    def wrap(self, module: ELBOModule) -> nn.Module:
        """Average gradients over the processes, if there are several."""
        return module if self.size == 1 else DistributedDataParallel(module)

    def loss(self, module: nn.Module, step: int) -> Tensor:
        """In nats per digit, of this process's part of the minibatch of a step."""
        rows = minibatch(len(self.train_set), step, self.args)[self.rank :: self.size]
        loss: Tensor = module(self.train_set[rows], len(self.train_set))
        return loss / len(self.train_set)

    def gradient(self) -> Tensor:
        """The exact loss's gradient at the first parameters, all in one vector."""
        module = self.make(SilentELBO())
        wrapped = self.wrap(module)  # it has to live until the backward pass
        self.loss(wrapped, 0).backward()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    def train(self, module: ELBOModule, begin: Path | None = None, keep: Path | None = None) -> Run:
        """Train to the last step.

        :param begin: a checkpoint to go on from.
        :param keep: where to leave one half-way.
        """
        saved = None if begin is None else torch.load(begin)
        if saved is not None:
            module.load_state_dict(saved["module"])  # in every process: the loss's steps are in it
        wrapped = self.wrap(module)
        optimizer = torch.optim.Adam(wrapped.parameters(), lr=self.args.learning_rate)
        if saved is not None:
            optimizer.load_state_dict(saved["optimizer"])
        losses, seconds = [], []
        title = f"{self.size} process{'es' if self.size > 1 else ''}, {type(module.elbo).__name__}"
        for step in tqdm(
            range(module.elbo.num_steps, self.args.steps), title, disable=self.rank > 0
        ):
            began = time.perf_counter()
            optimizer.zero_grad()
            loss = self.loss(wrapped, step)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - began)
            if keep is not None and self.rank == 0 and step + 1 == self.args.steps // 2:
                state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state, keep)
        return Run(flat(module), 1e3 * float(torch.tensor(seconds).median()), losses)

    def train_annealed(self) -> Run:
        """Train with random numbers of its own, from a silent loss to a sampled one."""
        fade = Linear(1.0, 0.0, num_steps=self.args.steps // 2)
        module = self.make(AnnealedELBO(SilentELBO(), Trace_ELBO(), fade))
        pyro.set_rng_seed(self.args.seed + 1 + self.rank)
        first = self.test_loss(module)
        run = self.train(module)
        return run._replace(
            steps=module.elbo.num_steps, test_losses=[first, self.test_loss(module)]
        )

    def test_loss(self, module: ELBOModule) -> float:
        """-ELBO with the deep decoder, in nats per test digit."""
        with torch.no_grad():
            loss = module.elbo.loss(module.model, module.guide, self.test_set, len(self.test_set))
        return float(loss) / len(self.test_set)


class Run(NamedTuple):
    """What is left of one training in one process."""

    parameters: Tensor
    ms_per_step: float
    losses: list[float]
    steps: int = 0
    test_losses: list[float] = []


class Share(NamedTuple):
    """All that one process has done."""

    gradient: Tensor
    run: Run
    resumed: Run | None
    annealed: Run


def flat(module: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()]).cpu()


def minibatch(num_digits: int, step: int, args: argparse.Namespace) -> Tensor:
    """Rows of the minibatch of a step, the same in every process: epochs of fresh permutations."""
    epoch, position = divmod(step * args.batch_size, num_digits)
    generator = torch.Generator().manual_seed(args.seed + epoch)
    return torch.randperm(num_digits, generator=generator)[position:][: args.batch_size]


def take_part(
    rank: int, size: int, folder: Path, args: argparse.Namespace, digits: tuple[Tensor, Tensor]
) -> None:
    """One of several processes: train, and leave the share for the one that asked."""
    set_up(args)
    device = torch.device("cuda", rank) if args.cuda else torch.device("cpu")
    if args.cuda:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if args.cuda else "gloo",
        init_method=f"file://{folder / f'rendezvous{size}'}",
        rank=rank,
        world_size=size,
    )
    process = Process(rank, size, args, *(each.to(device) for each in digits))
    share = work(process, folder, [folder / "1.pt"])
    torch.save(tuple(share), folder / f"share{size}-{rank}.pt")
    torch.distributed.destroy_process_group()


def work(process: Process, folder: Path, others: list[Path]) -> Share:
    """What each process does, alone or not; goes on from the last of the others' checkpoints."""
    keep = folder / f"{process.size}.pt"
    return Share(
        process.gradient(),
        process.train(process.make(SilentELBO()), keep=keep),
        process.train(process.make(SilentELBO()), begin=others[-1]) if others else None,
        process.train_annealed(),
    )


def relative(a: Tensor, b: Tensor) -> float:
    """The difference of two vectors, relative to the second."""
    return ((a.cpu() - b.cpu()).norm() / b.norm()).item()


def farthest(runs: list[Run], alone: Share) -> float:
    """How far the parameters of runs are from those of one process, at most."""
    return max(relative(run.parameters, alone.run.parameters) for run in runs)


def check_claims(size: int, alone: Share, shares: list[Share], back: Run) -> list[str]:
    """Sentences that say which claims hold for so many processes, with the figures.

    :param back: one process, gone on from the checkpoint of several.
    :raises SystemExit: if one does not.
    """
    runs = [share.run for share in shares]
    resumed = [share.resumed for share in shares if share.resumed is not None]
    figures = {
        "gradients differ from those of one process": (
            max(relative(share.gradient, alone.gradient) for share in shares),
            GRADIENT_TOLERANCE,
        ),
        "trainings differ from that of one process": (farthest(runs, alone), TRAINING_TOLERANCE),
        "trainings that one process began differ": (farthest(resumed, alone), TRAINING_TOLERANCE),
        "trainings that one process ends differ": (farthest([back], alone), TRAINING_TOLERANCE),
    }
    lines = []
    for claim, (difference, tolerance) in figures.items():
        lines.append(f"{size} processes: {claim} by {difference:.1e}, relative")
        if not difference <= tolerance:
            raise SystemExit(f"{lines[-1]}; expected at most {tolerance:g}")
    annealed = [share.annealed for share in shares]
    steps = {run.steps for run in annealed}
    if len(steps) > 1 or any(
        not torch.equal(run.parameters, annealed[0].parameters) for run in annealed
    ):
        raise SystemExit(f"{size} processes: annealed replicas differ; steps {sorted(steps)}")
    start, end = annealed[0].test_losses
    if not end < start:
        raise SystemExit(f"{size} processes: annealing led from {start:.1f} to {end:.1f} nats")
    lines.append(
        f"{size} processes: annealed replicas are bit-equal after {steps.pop()} steps; test loss "
        f"{start:.1f} to {end:.1f} nats per digit (one process: {alone.annealed.test_losses[1]:.1f})"
    )
    return lines


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Times by number of processes."""
    lines = [
        "| processes | digits in each | exact ms/step | x one process | annealed ms/step | x one |",
        "| --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        cells = [row["processes"], row["digits"]]
        for loss in ("exact", "annealed"):
            cells += [f"{row[loss]:.1f}", f"{row[loss] / rows[0][loss]:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def set_up(args: argparse.Namespace) -> None:
    """What each process begins with."""
    torch.set_num_threads(args.threads)
    torch.set_default_dtype(torch.float64)  # the claims are about equality


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2], help="besides one alone")
    parser.add_argument("--steps", type=int, default=200, help="training steps of each run")
    parser.add_argument("--batch-size", type=int, default=200, help="of all processes together")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--num-hidden", type=int, default=200)
    parser.add_argument("--code-size", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of a process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cuda", action="store_true", help="one GPU for each process")
    parser.add_argument("--data", help="folder with MNIST-style IDX files; default 5,000 digits")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--smoke-test", action="store_true", help="tiny, in seconds")
    args = parser.parse_args()
    if args.smoke_test:
        args.steps, args.batch_size, args.num_hidden, args.code_size = 8, 20, 16, 4
    uneven = [size for size in args.processes if size < 2 or args.batch_size % size]
    if uneven:
        parser.error(f"--processes {uneven[0]}: expected 2 or more that divide {args.batch_size}")
    return args


def main() -> None:
    """Train alone and together, print, and check the claims."""
    args = parse_args()
    set_up(args)
    train_set, test_set = (digits.double() for digits in load_digits(args.data))
    if args.smoke_test:
        train_set, test_set = train_set[:100], test_set[:50]
    # whole minibatches only: a smaller one would not divide among the processes
    train_set = train_set[: len(train_set) // args.batch_size * args.batch_size]
    print(f"{len(train_set)} training digits, {args.batch_size} a step, {args.steps} steps a run")

    lines, rows = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        device = torch.device("cuda", 0) if args.cuda else torch.device("cpu")
        single = Process(0, 1, args, train_set.to(device), test_set.to(device))
        alone = work(single, folder, [])
        everyone = {1: [alone]}
        for size in args.processes:
            torch.multiprocessing.spawn(
                take_part, (size, folder, args, (train_set, test_set)), nprocs=size
            )
            shares = []
            for rank in range(size):
                saved = torch.load(folder / f"share{size}-{rank}.pt", weights_only=False)
                shares.append(Share(*saved))
            everyone[size] = shares
            back = single.train(single.make(SilentELBO()), begin=folder / f"{size}.pt")
            lines += check_claims(size, alone, shares, back)
    for size, shares in everyone.items():
        rows.append(
            {
                "processes": size,
                "digits": args.batch_size // size,
                "exact": max(share.run.ms_per_step for share in shares),
                "annealed": max(share.annealed.ms_per_step for share in shares),
            }
        )

    args.out.mkdir(parents=True, exist_ok=True)
    table = markdown_table(rows)
    (args.out / "ddp_vae.md").write_text(table + "\n")
    settings = {key: str(value) for key, value in vars(args).items()}
    record = {"settings": settings, "rows": rows, "claims": lines}
    (args.out / "ddp_vae.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{table}\n")
    print("\n".join(lines))
    print(f"wrote ddp_vae.md and ddp_vae.json to {args.out}/")


if __name__ == "__main__":
    main()
