"""What the examples on real data share: two ways to fit, and how a silent loss is checked.

A *problem* is a model, its data and the sizes that Pyro needs for vectorized particles; a guide is
made afresh for every run, so that every run starts from the same parameters.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO
from torch import Tensor
from tqdm.auto import tqdm

from pyro_silent import SilentELBO

Guide = Callable[..., Any]

# Each number is compared through a t statistic of at least 50 chunk means: beyond 5 one time in
# 100,000 by chance, and in these examples the seed is fixed.
MAX_Z = 5.0


class Problem(NamedTuple):
    """A model with its data, as ``model(*data)``.

    :ivar sampler: the loss of Pyro whose mean is the reference; its particles are vectorized.
    """

    model: Callable[..., Any]
    data: tuple[Tensor, ...]
    max_plate_nesting: int = 1
    sampler: type[ELBO] = Trace_ELBO


class Agreement(NamedTuple):
    """One loss and its gradients held against the mean of many sampled ones.

    :ivar silent_loss: the deterministic loss.
    :ivar sampled_loss: the mean over the particles of the sampled loss.
    :ivar max_z: the largest difference in standard errors, over the loss and every gradient.
    :ivar num_compared: how many numbers that is the largest of.
    :ivar noise: standard deviation of the gradient from one particle, over all parameters together.
    """

    silent_loss: float
    sampled_loss: float
    max_z: float
    num_compared: int
    noise: float


@dataclass
class Fit:
    """A run of an optimizer: exact losses against seconds of processor time, its own not counted."""

    name: str
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The smallest loss seen."""
        return min(self.losses)

    def seconds_to(self, loss: float, hold: int = 1) -> float:
        """Seconds until so many losses in a row were at most this; infinite if they never were.

        Counted to the first of them.
        """
        for first in range(len(self.losses) - hold + 1):
            if max(self.losses[first : first + hold]) <= loss:
                return self.seconds[first]
        return math.inf


def example_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options all examples have."""
    parser = argparse.ArgumentParser(description=description.strip().split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--particles", type=int, default=100_000, help="to hold the loss against")
    parser.add_argument("--smoke-test", action="store_true", help="tiny, in seconds")
    return parser


def start(args: argparse.Namespace) -> None:
    """Set one thread, double precision and the seed; shrink a smoke test."""
    torch.set_num_threads(1)  # one thread times best at these sizes
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(args.seed)
    if args.smoke_test:
        args.particles = 1_000


def fresh_guide(
    make_guide: Callable[[], Guide], problem: Problem, seed: int = 0, jitter: float = 0.0
) -> Guide:
    """Empty the param store and fill it again with a new guide's initial parameters.

    :param jitter: standard deviation of what is added to every unconstrained parameter.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = make_guide()
    with torch.no_grad():
        guide(*problem.data)
        for _, leaf in pyro.get_param_store().named_parameters():
            leaf += jitter * torch.randn(leaf.shape)
    return guide


def loss_and_gradients(
    loss: ELBO, problem: Problem, guide: Guide, seed: int | None = None
) -> tuple[float, dict[str, Tensor]]:
    """Loss and the gradient with respect to each unconstrained parameter in the param store."""
    leaves = dict(pyro.get_param_store().named_parameters())
    for leaf in leaves.values():
        leaf.grad = None
    if seed is not None:
        pyro.set_rng_seed(seed)
    value = loss.loss_and_grads(problem.model, guide, *problem.data)
    gradients = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    for leaf in leaves.values():
        leaf.grad = None
    return value, gradients


def check_repeatable(problem: Problem, guide: Guide) -> None:
    """Two seeds give the same loss and the same gradients, bit for bit.

    :raises SystemExit: if they do not.
    """
    loss, gradients = loss_and_gradients(SilentELBO(), problem, guide, seed=1)
    again, gradients_again = loss_and_gradients(SilentELBO(), problem, guide, seed=2)
    if loss != again:
        raise SystemExit(f"the silent loss depends on the seed: {loss!r}, then {again!r}")
    for name, gradient in gradients.items():
        if not torch.equal(gradient, gradients_again[name]):
            raise SystemExit(f"the silent gradient of {name} depends on the seed")


def measure_agreement(
    problem: Problem, guide: Guide, num_particles: int, chunk: int = 500, label: str = ""
) -> Agreement:
    """Hold ``SilentELBO`` against the mean of ``num_particles`` particles of a sampled loss."""
    silent_loss, silent = loss_and_gradients(SilentELBO(), problem, guide)
    # At least 50 chunks, for a standard error that is itself well known.
    chunk = max(1, min(chunk, num_particles // 50))
    sampler = problem.sampler(
        num_particles=chunk,
        vectorize_particles=True,
        max_plate_nesting=problem.max_plate_nesting,
    )
    rows = []
    for _ in tqdm(range(num_particles // chunk), desc=label, unit="chunk", leave=False):
        loss, gradients = loss_and_gradients(sampler, problem, guide)
        rows.append(torch.cat([torch.tensor([loss]), _flat(gradients)]))
    sampled = torch.stack(rows)
    mean, error = sampled.mean(0), sampled.std(0) / math.sqrt(len(sampled))
    difference = torch.cat([torch.tensor([silent_loss]), _flat(silent)]) - mean
    # What no particle moves (the closed part of a gradient) must agree to rounding.
    rounding = 1e-9 * (1.0 + mean.abs())
    z = (difference.abs() - rounding).clamp(min=0.0) / error.clamp(min=1e-300)
    noise = math.sqrt(chunk * sampled[:, 1:].var(0).sum().item())
    return Agreement(silent_loss, mean[0].item(), z.max().item(), len(z), noise)


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def check_guides(
    problem: Problem,
    guides: dict[str, Callable[[], Guide]],
    num_particles: int,
    seed: int = 0,
    smoke_test: bool = False,
) -> None:
    """For each guide: repeatable bit for bit, and equal to the sampler's mean. Print a table.

    A smoke test looks at the first guide alone.

    :raises SystemExit: if either fails for a guide.
    """
    rows = []
    sampler = problem.sampler.__name__
    for name, make_guide in list(guides.items())[: 1 if smoke_test else None]:
        guide = fresh_guide(make_guide, problem, seed, jitter=0.1)
        check_repeatable(problem, guide)
        found = measure_agreement(problem, guide, num_particles, label=name)
        rows.append(
            [
                name,
                f"{found.silent_loss:.4f}",
                f"{found.sampled_loss:.4f}",
                f"{found.max_z:.2f}",
                str(found.num_compared),
                f"{found.noise:.3g}",
                "0",
            ]
        )
        if not found.max_z < MAX_Z:
            raise SystemExit(
                f"{name}: SilentELBO is {found.max_z:.1f} standard errors from the mean of "
                f"{num_particles} particles of {sampler} in one of {found.num_compared} numbers"
            )
    header = ["guide", "SilentELBO", f"mean of {num_particles} {sampler}", "largest z", "of"]
    print_table([*header, f"gradient noise, {sampler}", "SilentELBO"], rows)


def fit_lbfgs(
    problem: Problem,
    make_guide: Callable[[], Guide],
    max_iter: int = 1000,
    jitter: float = 0.0,
    history_size: int = 100,
    tolerance: float = 1e-10,
) -> Fit:
    """Minimise ``SilentELBO`` as an ``ELBOModule`` with ``torch.optim.LBFGS``, line search and all.

    :param tolerance: it stops by itself when the loss changes by less than this part of its first
        value.
    """
    guide = fresh_guide(make_guide, problem, jitter=jitter)
    objective = SilentELBO()(problem.model, guide)
    start = SilentELBO().loss(problem.model, guide, *problem.data)
    fit = Fit("L-BFGS + SilentELBO")
    parameters = list(objective.parameters())
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=max_iter,
        max_eval=2 * max_iter,
        history_size=history_size,
        tolerance_grad=100 * tolerance * abs(start),
        tolerance_change=tolerance * abs(start),
        line_search_fn="strong_wolfe",
    )
    with tqdm(desc=fit.name, unit="evaluation", leave=False) as bar:
        began = time.process_time()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = objective(*problem.data)
            loss.backward()
            fit.seconds.append(time.process_time() - began)
            fit.losses.append(loss.item())
            bar.update()
            return loss

        optimizer.step(closure)
    return fit


def fit_adam(
    problem: Problem,
    make_guide: Callable[[], Guide],
    loss: ELBO,
    learning_rate: float,
    seconds: float,
    evaluate_every: int | None = None,
    target: float = -math.inf,
    hold: int = 1,
) -> Fit:
    """Train with Pyro's ``SVI`` and Adam for some seconds of processor time.

    The clock stands still while the exact loss is evaluated.

    :param evaluate_every: steps between exact losses; without it there is one, at the end.
    :param target: an exact loss to stop at, once so many in a row are at most this.
    """
    guide = fresh_guide(make_guide, problem)
    svi = SVI(problem.model, guide, pyro.optim.Adam({"lr": learning_rate}), loss=loss)
    fit = Fit(f"Adam({learning_rate:g}) + {type(loss).__name__}")
    spent = 0.0
    with tqdm(desc=fit.name, unit="step", leave=False) as bar:
        while spent < seconds and fit.seconds_to(target, hold) == math.inf:
            began, elapsed, steps = time.process_time(), 0.0, 0
            while spent + elapsed < seconds and steps != evaluate_every:
                svi.step(*problem.data)
                steps += 1
                elapsed = time.process_time() - began
            bar.update(steps)
            spent += elapsed
            fit.seconds.append(spent)
            fit.losses.append(SilentELBO().loss(problem.model, guide, *problem.data))
    return fit


def check_deterministic_objective(
    problem: Problem,
    make_guide: Callable[[], Guide],
    learning_rates: Sequence[float] = (0.1, 0.03, 0.01, 0.003),
    smoke_test: bool = False,
) -> None:
    """L-BFGS on ``SilentELBO`` reaches the optimum to 1e-6; Adam on ``Trace_ELBO`` ends above it.

    The optimum is the smallest loss of two runs of L-BFGS from different parameters. Adam is given
    the processor time the first of them took, with each learning rate. Every value is exact.

    :raises SystemExit: if the claim does not hold.
    """
    max_iter = 2 if smoke_test else 1000
    learning_rates = learning_rates[: 1 if smoke_test else None]
    fit = fit_lbfgs(problem, make_guide, max_iter)
    other = fit_lbfgs(problem, make_guide, max_iter, jitter=0.3)
    other.name += ", from elsewhere"
    optimum = min(fit.best, other.best)
    run = partial(fit_adam, problem, make_guide, seconds=fit.seconds[-1])
    adams = [run(loss=Trace_ELBO(), learning_rate=rate) for rate in learning_rates]
    rows = [
        [f.name, f"{f.seconds[-1]:.2f}", f"{f.losses[-1]:.6f}", f"{f.losses[-1] - optimum:.2g}"]
        for f in [fit, other, *adams]
    ]
    print_table(["fit", "seconds", "exact loss at the end", "above the optimum"], rows)
    if smoke_test:
        print("smoke test: too short to compare final losses")
        return
    gap = abs(fit.losses[-1] - other.losses[-1])
    if not gap <= 1e-6 * abs(optimum):
        raise SystemExit(f"two runs of L-BFGS end {gap:.3g} apart, above 1e-6 of {optimum:.6f}")
    for adam in adams:
        if not fit.losses[-1] < adam.losses[-1]:
            raise SystemExit(f"{adam.name} ends lower: {adam.losses[-1]} < {fit.losses[-1]}")
    evaluations = sum(t <= fit.seconds_to(optimum + 1e-6 * abs(optimum)) for t in fit.seconds)
    print(
        f"L-BFGS is within 1e-6 of the optimum after {evaluations} evaluations; the best Adam is "
        f"{min(f.losses[-1] for f in adams) - optimum:.3g} above it at equal processor time"
    )


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header; the first column flush left, figures flush right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    for row in cells:
        first, *others = zip(row, widths, strict=True)
        line = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        print("  ".join(line).rstrip())
