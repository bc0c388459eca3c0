"""Time a training step of a 784-200-200 VAE: SilentELBO, Pyro's losses and a hand-written loss.

Claims: a step under ``SilentELBO`` costs at most what a step under ``Trace_ELBO`` costs, and at
most 1.5 times a plain PyTorch step on the closed form, which it equals in value and gradient.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from harness.measure import median_times, paired_ratio, time_in_turn
from harness.models import VAE, Sizes, closed_form_step, closed_form_svi_step, minibatches, svi_step
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import SilentELBO

SILENT = "SilentELBO"
TRACE = "Trace_ELBO"
TRACE_AGAIN = "Trace_ELBO again"
MEAN_FIELD = "TraceMeanField_ELBO"
BY_HAND = "hand-written, PyTorch"
BY_HAND_SVI = "hand-written, SVI"


def relative_differences(vae: VAE, x: Tensor) -> tuple[float, float]:
    """Return how far SilentELBO's loss and gradient are from the closed form at one point."""

    def loss_and_gradient(loss: Tensor) -> tuple[Tensor, Tensor]:
        gradients = torch.autograd.grad(loss, list(vae.parameters()))
        return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    by_hand, by_hand_gradient = loss_and_gradient(vae.closed_form_loss(x))
    silent, silent_gradient = loss_and_gradient(
        SilentELBO().differentiable_loss(vae.model, vae.guide, x)
    )
    loss_difference = (silent - by_hand).abs() / by_hand.abs()
    gradient_difference = (silent_gradient - by_hand_gradient).norm() / by_hand_gradient.norm()
    return loss_difference.item(), gradient_difference.item()


def contenders(sizes: Sizes, batch_size: int, shared_scale: bool) -> dict[str, Callable[[], float]]:
    """Return one call per contender; each trains its own VAE, on a fresh minibatch every call."""
    pyro.clear_param_store()
    steps: dict[str, Callable[[VAE], Callable[[Tensor], float]]] = {
        SILENT: lambda vae: svi_step(vae, SilentELBO()),
        TRACE: lambda vae: svi_step(vae, Trace_ELBO()),
        MEAN_FIELD: lambda vae: svi_step(vae, TraceMeanField_ELBO()),
        BY_HAND: closed_form_step,
        BY_HAND_SVI: closed_form_svi_step,
        TRACE_AGAIN: lambda vae: svi_step(vae, Trace_ELBO()),
    }

    def fresh_step(name: str, make_step: Callable[[VAE], Callable[[Tensor], float]]) -> partial:
        step = make_step(VAE(name, sizes, shared_scale=shared_scale))
        batches = minibatches(batch_size, sizes.data_dim)
        return partial(lambda: step(next(batches)))

    return {name: fresh_step(name, make_step) for name, make_step in steps.items()}


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--steps-per-round", type=int, default=3)
    arguments = parser.parse_args()
    sizes = Sizes()
    if arguments.smoke_test:
        arguments.rounds, arguments.steps_per_round, arguments.batch_size = 3, 1, 20
        sizes = Sizes(data_dim=40, hidden_dim=20, latent_dim=10)
    torch.set_num_threads(1)

    figures: dict[str, object] = {}
    targets = []
    for shared_scale in (False, True):
        setting = "one learned scale" if shared_scale else "a learned scale per dimension"
        pyro.set_rng_seed(arguments.seed)
        vae = VAE("check", sizes, shared_scale=shared_scale)
        x = next(minibatches(arguments.batch_size, sizes.data_dim))
        loss_difference, gradient_difference = relative_differences(vae, x)
        # In float32, so the bounds are a few roundings of long sums; the tests go to 1e-9.
        equal = [
            Target(f"relative difference of the loss, {setting}", loss_difference, 1e-5),
            Target(f"relative difference of the gradient, {setting}", gradient_difference, 1e-4),
        ]
        if not all(target.passed for target in equal):
            # Without the same loss a comparison of times says nothing, whatever the size.
            print(*equal, sep="\n")
            return 1

        times = time_in_turn(
            contenders(sizes, arguments.batch_size, shared_scale),
            arguments.rounds,
            arguments.steps_per_round,
        )
        medians = median_times(times)
        to_trace = {name: paired_ratio(times, name, TRACE) for name in times}
        to_hand = {name: paired_ratio(times, name, BY_HAND) for name in times}
        rows = [
            [
                name,
                f"{1e3 * medians[name]:.3f}",
                f"{to_trace[name].median:.3f}",
                f"{to_trace[name].lower_quartile:.3f}-{to_trace[name].upper_quartile:.3f}",
                f"{to_hand[name].median:.3f}",
            ]
            for name in times
        ]
        print(f"\n{setting}, batch {arguments.batch_size}, {sizes}")
        print(table(["step", "ms", f"/ {TRACE}", "quartiles", "/ hand-written"], rows))
        figures[setting] = {
            "milliseconds": {name: 1e3 * value for name, value in medians.items()},
            "ratio_to_trace_elbo": {name: ratio._asdict() for name, ratio in to_trace.items()},
            "ratio_to_hand_written": {name: ratio._asdict() for name, ratio in to_hand.items()},
        }
        targets += [
            *equal,
            Target(f"{SILENT} / {TRACE}, {setting}", to_trace[SILENT].median, 1.0),
            Target(f"{SILENT} / {BY_HAND}, {setting}", to_hand[SILENT].median, 1.5),
        ]
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
