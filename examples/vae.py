"""A linear-decoder VAE on handwritten digits, trained several ways: only the loss is swapped.

The encoder is a small network, the decoder ``nn.Linear``, the code Gaussian, binary or one-hot. For
such a decoder the expected log likelihood has a closed form, and ``SilentELBO`` finds it in the
model as it is written. Every run starts from the same parameters and sees the same minibatches in
the same order; the runs differ in ``SVI(model, guide, optim, loss=...)`` alone. Every test value is
exact, whichever loss trained the parameters.

Two claims are checked, and the program fails if one does not hold: repeated silent gradients are
equal bit for bit, and the silent run's final test value is no worse than any other's.

Writes ``vae.md`` (the printed table), ``vae.json`` and ``vae.png`` to ``--out``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from tqdm.auto import tqdm

from data import NUM_PIXELS, load_digits
from pyro_silent import SilentELBO

BASELINE = "Trace_ELBO"
NUM_TEST_BLOCKS = 10  # blocks of test digits, for the standard error of a difference between runs
STANDARD_ERRORS = 3.0  # one-sided failure rate below 1 % if two runs were equally good (9 d.o.f.)


@dataclass(frozen=True)
class Code:
    """A kind of latent code: its prior, its posterior given the encoding, the losses that apply."""

    title: str
    shape: tuple[int, ...]
    encoded_per_unit: int
    prior: Callable[[torch.Tensor], dist.Distribution]
    posterior: Callable[[torch.Tensor], dist.Distribution]
    losses: tuple[type[ELBO], ...]

    @property
    def size(self) -> int:
        """Number of inputs of the decoder."""
        return math.prod(self.shape)


def _normal(encoded: torch.Tensor) -> dist.Distribution:
    loc, log_scale = encoded.chunk(2, dim=-1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


CODES = {
    "gaussian": Code(
        "Gaussian",
        shape=(50,),
        encoded_per_unit=2,
        prior=lambda zeros: dist.Normal(zeros, 1.0).to_event(1),
        posterior=_normal,
        losses=(SilentELBO, TraceMeanField_ELBO, Trace_ELBO),
    ),
    "bernoulli": Code(
        "Bernoulli",
        shape=(200,),
        encoded_per_unit=1,
        prior=lambda zeros: dist.Bernoulli(logits=zeros).to_event(1),
        posterior=lambda encoded: dist.Bernoulli(logits=encoded).to_event(1),
        losses=(SilentELBO, Trace_ELBO),
    ),
    "onehot": Code(
        "one-hot",
        shape=(20, 10),
        encoded_per_unit=1,
        prior=lambda zeros: dist.OneHotCategorical(logits=zeros).to_event(1),
        posterior=lambda encoded: dist.OneHotCategorical(logits=encoded).to_event(1),
        losses=(SilentELBO, Trace_ELBO),
    ),
}


class LinearDecoderVAE(nn.Module):
    """An encoder with one hidden layer, a linear decoder, one learned noise scale."""

    def __init__(self, code: Code, num_hidden: int = 200):
        super().__init__()
        self.code = code
        self.encoder = nn.Sequential(
            nn.Linear(NUM_PIXELS, num_hidden),
            nn.ReLU(),
            nn.Linear(num_hidden, code.size * code.encoded_per_unit),
        )
        self.decoder = nn.Linear(code.size, NUM_PIXELS)
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def model(self, digits: torch.Tensor) -> None:
        """A code from the prior, a digit given the code."""
        pyro.module("vae", self)
        with pyro.plate("digits", len(digits)):
            z = pyro.sample("z", self.prior(len(digits)))
            pixels = self.decoder(z.reshape(len(digits), self.code.size))
            pyro.sample("x", dist.Normal(pixels, self.log_scale.exp()).to_event(1), obs=digits)

    def guide(self, digits: torch.Tensor) -> None:
        """A code given a digit."""
        pyro.module("vae", self)
        with pyro.plate("digits", len(digits)):
            pyro.sample("z", self.posterior(digits))

    def prior(self, num_digits: int) -> dist.Distribution:
        """The distribution of the code before a digit is seen."""
        return self.code.prior(self.log_scale.new_zeros(num_digits, *self.code.shape))

    def posterior(self, digits: torch.Tensor) -> dist.Distribution:
        """The distribution of the code given a digit."""
        encoded = self.encoder(digits)
        return self.code.posterior(encoded.reshape(len(digits), *self.code.shape[:-1], -1))


@dataclass
class Run:
    """One parameter set in training with one loss, and what was measured on it."""

    code: str
    vae: LinearDecoderVAE
    svi: SVI
    params: dict | None = None  # this run's own param store
    curve: list[tuple[int, float]] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    test_blocks: list[float] = field(default_factory=list)
    gradient_noise: float = math.nan
    bit_equal: bool = False
    steps_to_baseline: float | None = None

    @property
    def loss(self) -> str:
        """Name of the loss."""
        return type(self.svi.loss.__self__).__name__

    @property
    def ms_per_step(self) -> float:
        """Median over the training steps."""
        return 1e3 * float(torch.tensor(self.step_seconds).median())

    def row(self) -> dict:
        """The figures of the table, as data."""
        steps, ms = self.steps_to_baseline, self.ms_per_step
        return {
            "code": self.code,
            "loss": self.loss,
            "test_loss": self.curve[-1][1],
            "gradient_noise": self.gradient_noise,
            "ms_per_step": ms,
            "steps_to_baseline": steps,
            "seconds_to_baseline": None if steps is None else steps * ms / 1e3,
            "train_seconds": sum(self.step_seconds),
        }


def exact_loss(vae: LinearDecoderVAE, digits: torch.Tensor) -> float:
    """-ELBO in nats per digit, without sampling, whichever loss trained the parameters."""
    return SilentELBO().loss(vae.model, vae.guide, digits) / len(digits)


def train(
    code: str, train_set: torch.Tensor, test_set: torch.Tensor, args: argparse.Namespace
) -> list[Run]:
    """Train one copy of the same initial parameters with each loss, the copies taking turns.

    In turns of ``args.eval_every`` steps, so that other load on the machine slows all losses alike.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(args.seed)
    initial = LinearDecoderVAE(CODES[code], args.num_hidden)
    order = data_order(len(train_set), args)
    runs = []
    for loss in CODES[code].losses:
        vae = copy.deepcopy(initial)
        optim = pyro.optim.Adam({"lr": args.learning_rate})
        runs.append(Run(code, vae, SVI(vae.model, vae.guide, optim, loss=loss())))
        runs[-1].curve.append((0, exact_loss(vae, test_set)))
        pyro.clear_param_store()

    with tqdm(total=len(runs) * args.steps, desc=f"{CODES[code].title:>9}", unit="step") as bar:
        for start in range(0, args.steps, args.eval_every):
            turn = order[start : start + args.eval_every]
            for run in runs:
                with pyro.get_param_store().scope(run.params) as run.params:
                    for rows in turn:
                        batch = train_set[rows]
                        begin = time.perf_counter()
                        run.svi.step(batch)
                        run.step_seconds.append(time.perf_counter() - begin)
                    run.curve.append((start + len(turn), exact_loss(run.vae, test_set)))
                bar.update(len(turn))
            bar.set_postfix({run.loss: f"{run.curve[-1][1]:.1f}" for run in runs})

    for run in runs:
        run.test_blocks = [exact_loss(run.vae, b) for b in test_set.chunk(NUM_TEST_BLOCKS)]
        # All losses at the same parameters (those of the silent run) and the same minibatch.
        measure_noise(run, runs[0].vae, train_set[order[0]], args.noise_samples)
    target = next(run for run in runs if run.loss == BASELINE).curve[-1][1]
    for run in runs:
        run.steps_to_baseline = first_reached(run.curve, target)
    return runs


def data_order(num_digits: int, args: argparse.Namespace) -> torch.Tensor:
    """Rows of every minibatch, ``[steps, batch_size]``: epochs of fresh permutations."""
    generator = torch.Generator().manual_seed(args.seed)
    needed = args.steps * args.batch_size
    epochs = [
        torch.randperm(num_digits, generator=generator) for _ in range(-(-needed // num_digits))
    ]
    return torch.cat(epochs)[:needed].reshape(args.steps, args.batch_size)


def measure_noise(run: Run, vae: LinearDecoderVAE, batch: torch.Tensor, num_samples: int) -> None:
    """Root of the gradient's variance summed over all parameters, in nats per digit.

    The same gradient is asked for ``num_samples`` times, with the random state running on.
    """
    loss = type(run.svi.loss.__self__)()
    gradients = []
    for _ in range(num_samples):
        vae.zero_grad()
        loss.loss_and_grads(vae.model, vae.guide, batch)
        gradients.append(_flat_gradient(vae) / len(batch))
    vae.zero_grad()
    run.bit_equal = all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    # From the first gradient, so that equal gradients have variance zero and not rounding.
    deviations = torch.stack(gradients).double() - gradients[0].double()
    run.gradient_noise = deviations.var(0).sum().sqrt().item()


def _flat_gradient(vae: LinearDecoderVAE) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in vae.parameters() if p.grad is not None])


def first_reached(curve: list[tuple[int, float]], target: float) -> float | None:
    """Step at which a curve, straight between its points, first comes down to the target."""
    for (step, value), (next_step, next_value) in zip(curve, curve[1:], strict=False):
        if next_value <= target:
            return step + (next_step - step) * (value - target) / (value - next_value)
    return None


def check_claims(runs: list[Run], compare_final: bool) -> list[str]:
    """Sentences that say which claims hold, with the figures.

    :raises SystemExit: if one does not.
    """
    silent, *others = runs
    if not silent.bit_equal or silent.gradient_noise != 0.0:
        raise SystemExit(
            f"{silent.code}: repeated silent gradients differ, noise {silent.gradient_noise:.3g}"
        )
    lines = [f"{silent.code}: repeated silent gradients are bit-equal"]
    for other in others if compare_final else []:
        gain = torch.tensor(other.test_blocks) - torch.tensor(silent.test_blocks)
        error = (gain.std() / math.sqrt(len(gain))).item()
        side = "below" if gain.mean() >= 0 else "above"
        claim = (
            f"{silent.code}: silent ends {gain.mean().abs():.2f} nats per digit {side} {other.loss}"
        )
        claim += f" (standard error {error:.2f} over {len(gain)} blocks of test digits)"
        if gain.mean() < -STANDARD_ERRORS * error:
            raise SystemExit(f"{claim}: worse by more than {STANDARD_ERRORS:g} standard errors")
        lines.append(claim)
    return lines


def markdown_table(rows: list[dict]) -> str:
    """The one table, aligned for a terminal and valid Markdown."""
    header = [
        *("code", "loss", "test -ELBO (nats/digit)", "gradient noise", "ms/step"),
        *(f"steps to {BASELINE}'s end", "seconds to it"),
    ]
    cells = [header]
    for row in rows:
        steps, seconds = row["steps_to_baseline"], row["seconds_to_baseline"]
        cells.append(
            [
                CODES[row["code"]].title,
                row["loss"],
                f"{row['test_loss']:.1f}",
                "0" if row["gradient_noise"] == 0 else f"{row['gradient_noise']:.3g}",
                f"{row['ms_per_step']:.2f}",
                "not reached" if steps is None else f"{steps:.0f}",
                "-" if seconds is None else f"{seconds:.1f}",
            ]
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    text = 2  # columns of text, flush left; the rest are figures, flush right
    lines = [
        [
            cell.ljust(w) if i < text else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    rule = ["-" * w if i < text else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--code", choices=[*CODES, "all"], default="all")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each run")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--num-hidden", type=int, default=200, help="hidden units of the encoder")
    parser.add_argument("--eval-every", type=int, default=50, help="steps between test values")
    parser.add_argument("--noise-samples", type=int, default=40, help="gradients to measure noise")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; one times best")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="folder with MNIST-style IDX files; default 5,000 digits")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--smoke-test", action="store_true", help="tiny, in seconds")
    args = parser.parse_args()
    if args.smoke_test:
        args.steps, args.batch_size, args.eval_every = 6, 20, 3
        args.num_hidden, args.noise_samples = 16, 3
    return args


def main() -> None:
    """Train, measure, print, draw, and check the claims."""
    args = parse_args()
    began = time.perf_counter()
    torch.set_num_threads(args.threads)
    train_set, test_set = load_digits(args.data)
    if args.smoke_test:
        train_set, test_set = train_set[:200], test_set[:100]
    codes = list(CODES) if args.code == "all" else [args.code]
    print(f"{len(train_set)} training and {len(test_set)} test digits, {args.steps} steps per run")
    runs_of_code = [train(code, train_set, test_set, args) for code in codes]
    rows = [run.row() for runs in runs_of_code for run in runs]

    from vae_picture import draw

    args.out.mkdir(parents=True, exist_ok=True)
    table = markdown_table(rows)
    (args.out / "vae.md").write_text(table + "\n")
    curves = [{"code": r.code, "loss": r.loss, "curve": r.curve} for rs in runs_of_code for r in rs]
    settings = {key: str(value) for key, value in vars(args).items()}
    record = {"settings": settings, "rows": rows, "curves": curves}
    (args.out / "vae.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(runs_of_code, test_set, BASELINE, args.out / "vae.png")

    print(f"\n{table}\n")
    for runs in runs_of_code:
        for line in check_claims(runs, compare_final=not args.smoke_test):
            print(line)
    if args.smoke_test:
        print("smoke test: too short to compare final values")
    print(f"{time.perf_counter() - began:.0f} s; wrote vae.md, vae.json and vae.png to {args.out}/")


if __name__ == "__main__":
    main()
