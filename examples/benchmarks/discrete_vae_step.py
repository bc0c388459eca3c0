"""Time a training step of a 784-200-200 VAE with a discrete code, at batch 20 and 200.

The code is 80 variables of 8 categories, or 240 binary ones; a step is one of SVI with Adam, temperature
1/2. Claims: a step under ``GumbelRaoELBO`` with 100 conditional draws costs at most 1.5 times one under
``StraightThroughELBO`` with straight-through Gumbel-softmax (ST-GS); the latter is no slower than ST-GS
in Pyro, whose guide draws from ``RelaxedOneHotCategoricalStraightThrough``, and than ST-GS in
``storchastic``, both there in a loop of plain torch with its Adam and without validation; ReinMax is no
slower than that of the package ``reinmax``, both by hand; the exact expectation for binary variables
costs no more than 100 draws. ``relaxit`` is there for information: its step takes a sample of the KL
divergence where ours takes all of it.

Steps written by hand in plain PyTorch, on the same estimators and on ``torch.nn.functional``, are the
floor. The peers are measured where they are installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor

from harness.discrete_models import (
    DiscreteSizes,
    DiscreteVAE,
    binary_minibatches,
    by_hand_step,
    estimator_sample,
    not_validated,
    storchastic_step,
    torch_sample,
)
from harness.discrete_peers import (
    RelaxitVAE,
    reinmax_sample,
    relaxit_binary_sample,
    relaxit_step,
)
from harness.measure import median_times, paired_ratio, time_in_turn
from harness.models import LEARNING_RATE, svi_step
from harness.peers import installed, not_installed
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import (
    GumbelRao,
    GumbelRaoELBO,
    ReinMax,
    RelaxedELBO,
    StraightThrough,
    StraightThroughELBO,
    StraightThroughGumbelSoftmax,
)

TEMPERATURE = 0.5
# No slower, to the error of a run: two timings of one step come out up to 3 % apart.
NO_SLOWER = 1.03
ST_GS = "ST-GS"
TORCH_LOOP = "ST-GS, as storchastic's loop"
GUMBEL_RAO = "GumbelRaoELBO, K = {}"
EXACT = GUMBEL_RAO.format("exact")
RELAXED = "RelaxedELBO"
PYRO = "ST-GS, Pyro's own"
STORCHASTIC = "ST-GS, storchastic"
UNCHECKED = "ST-GS, not validated"
RELAXIT = "ST-GS, relaxit"
RELAXIT_BY_HAND = "by hand, straight-through, relaxit"
STRAIGHT_THROUGH_BY_HAND = "by hand, straight-through"
REINMAX = "by hand, reinmax"
REINMAX_BY_HAND = "by hand, ReinMax"
PEERS = ("storchastic", "relaxit", "reinmax")
TORCH_BY_HAND = "by hand, F.gumbel_softmax"
BY_HAND = "by hand, {}"

Step = Callable[[Tensor], float]


def torch_loop_step(vae: DiscreteVAE, loss: ELBO) -> Step:
    """Return a step in a loop of plain torch, with its Adam, as ``storchastic`` is used.

    Pyro's Adam is an optimizer for every parameter, which costs a small step a tenth of its time.
    """
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE)

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        value = loss.differentiable_loss(vae.model, vae.guide, x)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def contenders(sizes: DiscreteSizes) -> dict[str, Step]:
    """Return a training step per contender, each of a VAE of its own."""
    rao: dict[str, int | None] = {"exact": None} if sizes.arity == 2 else {}
    rao |= {"10": 10, "100": 100, "1000": 1000}
    plain = StraightThroughGumbelSoftmax(TEMPERATURE)
    steps = {ST_GS: svi_step(DiscreteVAE(ST_GS, sizes), StraightThroughELBO(plain))}
    for k, num_gumbels in rao.items():
        name = GUMBEL_RAO.format(k)
        loss = GumbelRaoELBO(TEMPERATURE, num_gumbels)
        steps[name] = svi_step(DiscreteVAE(name, sizes), loss)
    steps[RELAXED] = svi_step(DiscreteVAE(RELAXED, sizes), RelaxedELBO(TEMPERATURE))
    estimators = {ST_GS: plain, **{f"K = {k}": GumbelRao(TEMPERATURE, n) for k, n in rao.items()}}
    for k, estimator in estimators.items():
        name = BY_HAND.format(k)
        steps[name] = by_hand_step(DiscreteVAE(name, sizes), estimator_sample(estimator, sizes))
    if sizes.arity > 2:
        steps[PYRO] = svi_step(DiscreteVAE(PYRO, sizes, TEMPERATURE), Trace_ELBO())
        steps[TORCH_BY_HAND] = by_hand_step(
            DiscreteVAE(TORCH_BY_HAND, sizes), torch_sample(TEMPERATURE)
        )
    return steps | peers(sizes, plain)


def peers(sizes: DiscreteSizes, plain: StraightThroughGumbelSoftmax) -> dict[str, Step]:
    """Return the steps of the peers that are installed, each with the one of ours that matches it."""
    steps: dict[str, Step] = {}

    def by_hand(name: str, sample: Callable[[Tensor], Tensor]) -> None:
        steps[name] = by_hand_step(DiscreteVAE(name, sizes), sample)

    if sizes.arity == 2:
        if installed("relaxit"):
            by_hand(RELAXIT_BY_HAND, relaxit_binary_sample())
            by_hand(STRAIGHT_THROUGH_BY_HAND, StraightThrough().bernoulli)
        return steps
    loss = StraightThroughELBO(plain)
    if installed("storchastic"):
        steps[STORCHASTIC] = storchastic_step(DiscreteVAE(STORCHASTIC, sizes), TEMPERATURE)
        vae = DiscreteVAE(TORCH_LOOP, sizes)
        steps[TORCH_LOOP] = not_validated(torch_loop_step(vae, loss))
    if installed("relaxit"):
        steps[RELAXIT] = relaxit_step(RelaxitVAE(RELAXIT, sizes, TEMPERATURE))
        steps[UNCHECKED] = not_validated(svi_step(DiscreteVAE(UNCHECKED, sizes), loss))
    if installed("reinmax"):
        by_hand(REINMAX, reinmax_sample(1.0))
        by_hand(REINMAX_BY_HAND, ReinMax(1.0).one_hot)
    return steps


def compared(sizes: DiscreteSizes) -> list[tuple[str, str, float]]:
    """Return pairs of steps with the most that their ratio may be."""
    if sizes.arity == 2:
        return [(EXACT, GUMBEL_RAO.format(100), NO_SLOWER)]
    return [
        (GUMBEL_RAO.format(100), ST_GS, 1.5),
        (ST_GS, PYRO, NO_SLOWER),
        (TORCH_LOOP, STORCHASTIC, NO_SLOWER),
        (REINMAX_BY_HAND, REINMAX, NO_SLOWER),
    ]


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    codes = {8: DiscreteSizes(), 2: DiscreteSizes(num_latents=240, arity=2)}
    if arguments.smoke_test:
        arguments.rounds, arguments.batch_sizes = 2, [5]
        codes = {n: DiscreteSizes(40, 20, num_latents=6, arity=n) for n in codes}
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)
    for peer in PEERS:
        if not installed(peer):
            print(not_installed(peer))

    figures: dict[str, object] = {}
    targets = []
    for sizes in codes.values():
        for batch_size in arguments.batch_sizes:
            pyro.clear_param_store()
            calls = {}
            for name, step in contenders(sizes).items():
                batches = binary_minibatches(batch_size, sizes.data_dim)
                calls[name] = partial(lambda step, batches: step(next(batches)), step, batches)
            times = time_in_turn(calls, arguments.rounds)
            medians = median_times(times)
            setting = f"{sizes.num_latents} x {sizes.arity}, batch {batch_size}"
            ratios = {name: paired_ratio(times, name, ST_GS) for name in times}
            rows = [
                [
                    name,
                    f"{1e3 * medians[name]:.2f}",
                    f"{ratio.median:.3f}",
                    f"{ratio.lower_quartile:.3f}-{ratio.upper_quartile:.3f}",
                ]
                for name, ratio in ratios.items()
            ]
            print(f"\ncode {setting}")
            print(table(["step", "ms", f"/ {ST_GS}", "quartiles"], rows))
            figures[setting] = {
                "milliseconds": {name: 1e3 * value for name, value in medians.items()},
                "ratio_to_st_gs": {name: ratio._asdict() for name, ratio in ratios.items()},
            }
            targets += [
                Target(
                    f"{name} / {other}, {setting}", paired_ratio(times, name, other).median, limit
                )
                for name, other, limit in compared(sizes)
                if other in times
            ]
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
