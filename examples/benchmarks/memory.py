"""Measure the peak memory of a training step of a VAE, SilentELBO against Trace_ELBO.

Claims, for the linear decoder at batch 200: the peak is at most 1.5 times that of
``Trace_ELBO``, in bytes of tensors and in pages of the process, and no tensor is as large as
``[batch, latent, data]``. Deep linear and transposed-convolution decoders are reported beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pyro
import torch
from pyro.infer import Trace_ELBO

from harness.measure import CLEAR_REFS, measure_in_subprocess, resident_peak, step_memory
from harness.models import DECODERS, VAE, Sizes, minibatches, svi_step
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import SilentELBO

SILENT = "SilentELBO"
TRACE = "Trace_ELBO"
LOSSES = {SILENT: SilentELBO, TRACE: Trace_ELBO}
MEBIBYTE = 2**20


def measure(loss: str, decoder: str, batch: int, latent_dim: int, data_dim: int) -> dict[str, int]:
    """Return the memory of training steps in this process, which has measured nothing before.

    The resident peak counts what the first steps add to a process that holds the model and has
    run the same code at a tiny size: activations and temporaries, and the gradients and Adam's
    state, which are the same for every loss. It is left out where ``/proc`` does not offer it.
    """

    def training_step(name: str, batch: int, latent_dim: int, data_dim: int) -> Callable[[], float]:
        batches = minibatches(batch, data_dim, count=2)
        vae = VAE(name, Sizes(data_dim, latent_dim=latent_dim), decoder)
        step = svi_step(vae, LOSSES[loss]())
        return lambda: step(next(batches))

    tiny = training_step("tiny", batch=4, latent_dim=4, data_dim=64)
    for _ in range(3):
        tiny()
    step = training_step("vae", batch, latent_dim, data_dim)
    figures = {}
    if CLEAR_REFS.exists():
        figures["resident_bytes"] = resident_peak(lambda: [step() for _ in range(3)])
    return {**step_memory(step)._asdict(), **figures}


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--case", help="measure this one case (JSON) here, and print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)
    if arguments.case:
        print(json.dumps(measure(**json.loads(arguments.case))))
        return 0

    sizes = {"batch": arguments.batch_size, "latent_dim": 200, "data_dim": 784}
    decoders = list(DECODERS)
    if arguments.smoke_test:
        sizes = {"batch": 20, "latent_dim": 8, "data_dim": 64}
        decoders = ["linear"]
    dense_bytes = 4 * sizes["batch"] * sizes["latent_dim"] * sizes["data_dim"]

    figures: dict[str, object] = {"[batch, latent, data] bytes": dense_bytes}
    targets = []
    rows: list[list[object]] = []
    for decoder in decoders:
        memory = {
            loss: measure_in_subprocess(
                __file__, arguments.seed, {"loss": loss, "decoder": decoder, **sizes}
            )
            for loss in LOSSES
        }
        figures[decoder] = memory
        for quantity in memory[SILENT]:
            silent, trace = memory[SILENT][quantity], memory[TRACE][quantity]
            ratio = silent / trace if trace else float("nan")
            rows.append(
                [
                    decoder,
                    quantity.removesuffix("_bytes").replace("_", " "),
                    f"{silent / MEBIBYTE:.2f}",
                    f"{trace / MEBIBYTE:.2f}",
                    f"{ratio:.3f}",
                ]
            )
            if decoder == "linear" and quantity != "largest_tensor_bytes":
                targets.append(Target(f"{rows[-1][1]}, {SILENT} / {TRACE}", ratio, 1.5))
        if decoder == "linear":
            largest = memory[SILENT]["largest_tensor_bytes"]
            targets.append(
                Target(
                    "largest tensor in units of [batch, latent, data]", largest / dense_bytes, 0.5
                )
            )

    print(f"\nMiB of a training step, {sizes}, one [batch, latent, data] tensor: ", end="")
    print(f"{dense_bytes / MEBIBYTE:.1f} MiB")
    print(table(["decoder", "memory", SILENT, TRACE, "ratio"], rows))
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
