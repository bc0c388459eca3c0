"""Time and memory of a Gumbel-Rao sample with its backward pass, and the noise its draws leave.

Claims, at logits of shape ``[200, 60, 16]`` and one thread: with K = 100 draws it is at least 2.5 times
faster than the paper's formula in torch operations, which draws K conditional samples in the forward
pass and lets autograd go through all of them; its peak memory is flat from K = 1 to K = 1000; the exact
expectation for binary variables takes no longer than K = 16; and the default way to place the draws,
a shifted lattice with a control variate at low temperatures, leaves at most half as much variance
as independent draws that take the same time, and never more than as many.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import pyro
import torch
from torch import Tensor

from harness.measure import median_times, paired_ratio, step_memory, time_in_turn
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import GumbelRao, StraightThroughGumbelSoftmax
from pyro_silent.estimators.conditional_gumbels import one_hot_product

SHAPE = (200, 60, 16)
MEBIBYTE = 2**20
OURS = "GumbelRao"
RIVAL = "materialised"
ST_GS = "ST-GS"


def materialised_sample(logits: Tensor, temperature: float, num_gumbels: int) -> Tensor:
    """Return a hard sample with the paper's gradient, all its draws at once under autograd.

    ``exponential_`` would be slower than the logarithm of a uniform variable, here as in the package.
    """
    with torch.no_grad():
        log_probs = logits.log_softmax(-1)
        gumbels = -torch.rand_like(logits).clamp_min_(1e-38).log_().neg_().log_()
        index = (log_probs + gumbels).argmax(-1, keepdim=True)
        hard = torch.zeros_like(logits).scatter_(-1, index, 1.0)
        exponential = torch.rand(num_gumbels, *logits.shape).clamp_min_(1e-38).log_().neg_()
        winner = exponential.gather(-1, index.expand(num_gumbels, *index.shape))
        others = -torch.log(exponential / log_probs.exp() + winner)
        perturbed = torch.where(hard.bool(), -torch.log(winner), others)
    # the value is that of the draws, the gradient that of the logits: the noise is held fixed
    relaxed = torch.softmax((perturbed + (logits - logits.detach())) / temperature, -1).mean(0)
    return hard + relaxed - relaxed.detach()


def with_backward(sample: Callable[[Tensor], Tensor], logits: Tensor, slope: Tensor) -> None:
    """Draw a sample and go back through it."""
    torch.autograd.grad(sample(logits), logits, slope)


def time_against_materialised(
    logits: Tensor, slope: Tensor, num_gumbels: int, rounds: int
) -> tuple[list[list[object]], list[Target]]:
    """Return rows and targets: ours, the rival, and one straight-through sample."""
    rows: list[list[object]] = []
    targets = []
    for temperature in (0.1, 0.37, 0.5, 1.0):
        samples: dict[str, Callable[[Tensor], Tensor]] = {
            OURS: GumbelRao(temperature, num_gumbels).one_hot,
            "independent": GumbelRao(temperature, num_gumbels, points="independent").one_hot,
            RIVAL: partial(materialised_sample, temperature=temperature, num_gumbels=num_gumbels),
            ST_GS: StraightThroughGumbelSoftmax(temperature).one_hot,
        }
        calls = {name: partial(with_backward, s, logits, slope) for name, s in samples.items()}
        times = time_in_turn(calls, rounds, warm_up_calls=1)
        milliseconds = {name: 1e3 * value for name, value in median_times(times).items()}
        speedup = paired_ratio(times, RIVAL, OURS).median
        rows.append([str(temperature), *milliseconds.values(), speedup])
        targets.append(
            Target(
                f"{OURS} / {RIVAL}, K = {num_gumbels}, temperature {temperature}",
                paired_ratio(times, OURS, RIVAL).median,
                1 / 2.5,
            )
        )
    print(f"\nms of a sample and its backward pass, logits {list(logits.shape)}, K = {num_gumbels}")
    header = ["temperature", OURS, "... independent", RIVAL, ST_GS, "speed-up"]
    print(table(header, rows))
    return rows, targets


def memory_by_draws(
    logits: Tensor, slope: Tensor, counts: list[int]
) -> tuple[list[list[object]], list[Target]]:
    """Return rows and targets: peak bytes as K grows; the rival's is measured at the first two."""
    rows: list[list[object]] = []
    peaks = []
    for count in counts:
        ours = partial(with_backward, GumbelRao(0.5, count).one_hot, logits, slope)
        peaks.append(step_memory(ours, warm_up_calls=1).peak_bytes)
        rival = float("nan")
        if count <= 100:
            sample = partial(materialised_sample, temperature=0.5, num_gumbels=count)
            call = partial(with_backward, sample, logits, slope)
            rival = step_memory(call, warm_up_calls=1).peak_bytes / MEBIBYTE
        rows.append([str(count), peaks[-1] / MEBIBYTE, rival])
    print(f"\nMiB at the peak; logits take {logits.numel() * 4 / MEBIBYTE:.2f} MiB")
    print(table(["K", OURS, RIVAL], rows))
    spread = max(peaks) / min(peaks)
    return rows, [Target(f"largest / smallest peak, K = 1 .. {counts[-1]}", spread, 1.05)]


def time_of_exact_binary(
    logits: Tensor, slope: Tensor, rounds: int
) -> tuple[list[list[object]], list[Target]]:
    """Return rows and targets: the exact expectation beside K = 1, 16, 100."""
    rows: list[list[object]] = []
    targets = []
    for temperature in (0.37, 0.5, 1.0):
        calls = {
            str(count): partial(
                with_backward, GumbelRao(temperature, count).bernoulli, logits, slope
            )
            for count in (None, 1, 16, 100)
        }
        times = time_in_turn(calls, rounds)
        milliseconds = [1e3 * value for value in median_times(times).values()]
        rows.append([str(temperature), *milliseconds])
        ratio = paired_ratio(times, "None", "16").median
        targets.append(Target(f"exact binary / K = 16, temperature {temperature}", ratio, 1.0))
    print(f"\nms of {logits.numel()} Bernoulli variables and their backward pass")
    print(table(["temperature", "exact", "K = 1", "K = 16", "K = 100"], rows))
    return rows, targets


def compare_points(
    counts: list[int], replicates: int, rounds: int
) -> tuple[list[list[object]], list[Target]]:
    """Return rows and targets: what the draws add to the variance, and their time.

    The variance is that over the draws alone, given the sample, summed over the categories; a number
    of rows of 16 categories have random logits, samples and slopes.
    """
    different = 100
    log_probs = torch.randn(different, SHAPE[-1]).log_softmax(-1)
    index = torch.distributions.Categorical(logits=log_probs).sample()
    hard = torch.nn.functional.one_hot(index, SHAPE[-1]).to(log_probs.dtype)
    slope = torch.randn(log_probs.shape)
    log_probs, hard, slope = (t.repeat(replicates, 1) for t in (log_probs, hard, slope))
    rows: list[list[object]] = []
    noise_ratios, equal_cost = [], []
    for temperature in (0.1, 0.3, 0.5, 1.0):
        for count in counts:
            variance = {}
            for points in ("lattice", "independent"):
                product = one_hot_product(log_probs, hard, slope, temperature, count, points)
                groups = product.double().view(replicates, different, -1)
                variance[points] = groups.var(0).sum(-1).mean().item()
            calls = {
                points: partial(one_hot_product, log_probs, hard, slope, temperature, count, points)
                for points in variance
            }
            times = time_in_turn(calls, rounds, warm_up_calls=1)
            time_ratio = paired_ratio(times, "lattice", "independent").median
            noise_ratio = variance["lattice"] / variance["independent"]
            rows.append([str(temperature), count, *variance.values(), 1 / noise_ratio, time_ratio])
            noise_ratios.append(noise_ratio)
            equal_cost.append(noise_ratio * time_ratio)
    print("\nvariance that K draws leave, given the sample; how many independent draws one of the")
    print("lattice is worth; time of the lattice / time of as many independent draws")
    header = ["temperature", "K", "lattice", "independent", "worth", "time"]
    print(table(header, rows))
    return rows, [
        Target("variance, lattice / independent, largest", max(noise_ratios), 1.0),
        Target("variance x time, lattice / independent, largest", max(equal_cost), 0.5),
    ]


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--replicates", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)
    shape, num_gumbels, counts = SHAPE, 100, [1, 10, 100, 1000]
    if arguments.smoke_test:
        arguments.rounds, arguments.replicates = 2, 20
        shape, num_gumbels, counts = (4, 6, 16), 10, [1, 10]

    logits = torch.randn(shape, requires_grad=True)
    slope = torch.randn(shape)
    figures: dict[str, object] = {"shape": shape}
    targets = []
    for name, (rows, claims) in {
        "time": time_against_materialised(logits, slope, num_gumbels, arguments.rounds),
        "memory": memory_by_draws(logits, slope, counts),
        "binary": time_of_exact_binary(logits, slope, arguments.rounds),
        "points": compare_points(counts[1:], arguments.replicates, max(2, arguments.rounds // 3)),
    }.items():
        figures[name] = rows
        targets += claims
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
