"""Time one rule of a random tensor on a small tensor, beside the same operation of plain torch.

Claim: carrying the law of an ``[8, 4]`` tensor through one operation costs less than 15 us more
than the plain operation, for a fresh random tensor and for one behind a linear layer. A rule
computes the mean at once and leaves the coefficients of the random part until a second moment is
asked for; the last column is the rule with them, each time anew, and has no target.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

import pyro_silent
from harness.measure import median_times, time_in_turn
from harness.report import Target, benchmark_parser, finish, table

SHAPE = (8, 4)
LIMIT_MICROSECONDS = 15.0


def operations(requires_grad: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the operations by name, with plain operands that are parameters if asked for."""
    batch, dim = SHAPE
    row = torch.randn(dim, requires_grad=requires_grad)
    weight = torch.randn(5, dim, requires_grad=requires_grad)
    bias = torch.randn(5, requires_grad=requires_grad)
    matrix = torch.randn(dim, 5, requires_grad=requires_grad)
    index = torch.randint(batch, (10,))
    return {
        "z * 2": lambda z: z * 2,
        "z + 1": lambda z: z + 1,
        "z + w": lambda z: z + row,
        "-z": lambda z: -z,
        "F.linear(z, W, b)": lambda z: F.linear(z, weight, bias),
        "z @ W": lambda z: z @ matrix,
        "z.reshape, splitting": lambda z: z.reshape(batch, 2, dim // 2),
        "z.reshape, mixing": lambda z: z.reshape(dim, batch),
        "z.unsqueeze": lambda z: z.unsqueeze(0),
        "z[..., 0]": lambda z: z[..., 0],
        "z[idx]": lambda z: z[index],
        "z.sum(-1)": lambda z: z.sum(-1),
        "torch.cat([z, z])": lambda z: torch.cat([z, z]),
    }


def with_terms(operation: Callable[[Tensor], Tensor], random: Tensor) -> object:
    """Apply a rule and compute the coefficients, which otherwise wait for a second moment."""
    result = operation(random)
    if not isinstance(result, pyro_silent.RandomTensor) or result._form is None:
        raise TypeError(f"expected an affine random tensor, got {result!r}")
    return result._form.terms


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls-per-round", type=int, default=200)
    parser.add_argument(
        "--no-grad", action="store_true", help="operands that are not parameters (default: are)"
    )
    arguments = parser.parse_args()
    if arguments.smoke_test:
        arguments.rounds, arguments.calls_per_round = 3, 5
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)

    requires_grad = not arguments.no_grad
    loc = torch.randn(SHAPE, requires_grad=requires_grad)
    scale = torch.rand(SHAPE).add(0.5).requires_grad_(requires_grad)
    layer = torch.nn.Linear(SHAPE[1], SHAPE[1]).requires_grad_(requires_grad)
    source = dist.Normal(loc, scale).to_event(1)
    operands = {
        "fresh": (pyro_silent.random_tensor(source), source.rsample()),
        "after a linear layer": (
            layer(pyro_silent.random_tensor(source)),
            layer(source.rsample()),
        ),
    }

    figures: dict[str, object] = {}
    targets = []
    rows: list[list[object]] = []
    for kind, (random, plain) in operands.items():
        for name, operation in operations(requires_grad).items():
            calls: dict[str, Callable[[], object]] = {
                "random": partial(operation, random),
                "plain": partial(operation, plain),
                "with terms": partial(with_terms, operation, random),
            }
            times = time_in_turn(calls, arguments.rounds, arguments.calls_per_round)
            microseconds = {key: 1e6 * value for key, value in median_times(times).items()}
            differences = [a - b for a, b in zip(times["random"], times["plain"], strict=True)]
            overhead = 1e6 * statistics.median(differences)
            figures[f"{name}, {kind}"] = {**microseconds, "overhead": overhead}
            rows.append(
                [
                    name,
                    kind,
                    f"{microseconds['plain']:.1f}",
                    f"{microseconds['random']:.1f}",
                    f"{overhead:.1f}",
                    f"{microseconds['with terms']:.1f}",
                ]
            )
            targets.append(Target(f"us of overhead, {name}, {kind}", overhead, LIMIT_MICROSECONDS))
    print(f"\nmicroseconds on a tensor of shape {list(SHAPE)}, requires_grad={requires_grad}")
    print(table(["operation", "z", "plain", "random", "overhead", "with terms"], rows))
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
