"""Time a training step of a 784-200-200 VAE with a discrete code, at batch 20 and 200.

The code is 80 variables of 8 categories, or 240 binary ones; a step is one of SVI with Adam, temperature
1/2. Claims: a step under ``GumbelRaoELBO`` with 100 conditional draws costs at most 1.5 times one under
``StraightThroughELBO`` with straight-through Gumbel-softmax (ST-GS); the latter is no slower than ST-GS
in Pyro, whose guide draws from ``RelaxedOneHotCategoricalStraightThrough``, and than ST-GS in
``storchastic``, both there in a loop of plain torch with its Adam and without validation; the exact
expectation for binary variables costs no more than 100 draws.

Steps written by hand in plain PyTorch, on the same estimators and on ``torch.nn.functional``, are the
floor. ``storchastic`` is measured where it is installed (``pip install storchastic``).
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
    storchastic_installed,
    storchastic_step,
    torch_sample,
)
from harness.measure import median_times, paired_ratio, time_in_turn
from harness.models import LEARNING_RATE, svi_step
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import (
    GumbelRao,
    GumbelRaoELBO,
    RelaxedELBO,
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
        if storchastic_installed():
            steps[STORCHASTIC] = storchastic_step(DiscreteVAE(STORCHASTIC, sizes), TEMPERATURE)
            vae = DiscreteVAE(TORCH_LOOP, sizes)
            steps[TORCH_LOOP] = not_validated(torch_loop_step(vae, StraightThroughELBO(plain)))
    return steps


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    codes = {8: DiscreteSizes(), 2: DiscreteSizes(num_latents=240, arity=2)}
    if arguments.smoke_test:
        arguments.rounds, arguments.batch_sizes = 2, [5]
        codes = {n: DiscreteSizes(40, 20, num_latents=6, arity=n) for n in codes}
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)
    if not storchastic_installed():
        print(f"{STORCHASTIC}: not installed, not measured")

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
            if sizes.arity == 2:
                compared = [(EXACT, GUMBEL_RAO.format(100), NO_SLOWER)]
            else:
                compared = [(GUMBEL_RAO.format(100), ST_GS, 1.5), (ST_GS, PYRO, NO_SLOWER)]
                compared += [(TORCH_LOOP, STORCHASTIC, NO_SLOWER)] if STORCHASTIC in times else []
            targets += [
                Target(
                    f"{name} / {other}, {setting}", paired_ratio(times, name, other).median, limit
                )
                for name, other, limit in compared
            ]
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
