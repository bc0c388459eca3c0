"""Time a training step under AnnealedELBO: what the exact gradient costs beside a deep decoder.

The twin is a VAE of grey pixels with a linear decoder for ``SilentELBO`` and a deep one, of 2 x 256 ReLU
or of transposed convolutions, for the stochastic loss: ``Trace_ELBO`` with a Gaussian code,
``GumbelRaoELBO`` and ``LeaveOneOutELBO`` with a binary one. The encoder is 784-256, and once it is
convolutional too. Every step is one of SVI with Pyro's Adam.

Claims: a blended step costs at most 1.6 times a step of the stochastic loss alone on the same twin (1.25
with the convolutions), and at most 0.75 times a step of each loss in turn; where the weight is 0, or 1
without the stochastic part, the part that is not run costs nothing. The floor is a step of the
stochastic loss and one of ``SilentELBO`` on a twin without an encoder: what sharing the encoder can save.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from harness.discrete_models import perceptron
from harness.measure import median_times, paired_ratio, step_memory, time_in_turn
from harness.models import minibatches, svi_step
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import AnnealedELBO, GumbelRaoELBO, LeaveOneOutELBO, SilentELBO, TwinDecoder

TEMPERATURE = 0.5
# Two timings of one step come out up to 3 % apart, and the choice of the parts takes some microseconds.
NOTHING = 1.05
BLENDED = "blended, a = 1/2"
STOCHASTIC = "stochastic loss"
SILENT = "SilentELBO"
NO_ENCODER = "SilentELBO, no encoder"
BOTH = "both in turn"
FLOOR = "floor"
AT_ZERO = "a = 0"
WARM_UP = "a = 1, warm-up"
MEBIBYTE = 2**20


class Sizes(NamedTuple):
    """The widths of a twin; the side of an image is a multiple of 4."""

    side: int = 28
    hidden_dim: int = 256
    gaussian_dim: int = 32
    binary_dim: int = 128

    @property
    def data_dim(self) -> int:
        """Pixels of an image."""
        return self.side**2


def mlp_encoder(sizes: Sizes, num_heads: int) -> nn.Module:
    """Return one hidden ReLU layer."""
    return perceptron(sizes.data_dim, sizes.hidden_dim, num_heads)


def conv_encoder(sizes: Sizes, num_heads: int) -> nn.Module:
    """Return two convolutions with ReLU under an affine map."""
    return nn.Sequential(
        nn.Unflatten(1, (1, sizes.side, sizes.side)),
        nn.Conv2d(1, 16, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (sizes.side // 4) ** 2, num_heads),
    )


def mlp_decoder(code_dim: int, sizes: Sizes) -> nn.Module:
    """Return two hidden ReLU layers."""
    return perceptron(code_dim, sizes.hidden_dim, sizes.hidden_dim, sizes.data_dim)


def conv_decoder(code_dim: int, sizes: Sizes) -> nn.Module:
    """Return two transposed convolutions over an affine map, ReLU in between."""
    quarter = sizes.side // 4
    return nn.Sequential(
        nn.Linear(code_dim, 32 * quarter**2),
        nn.ReLU(),
        nn.Unflatten(1, (32, quarter, quarter)),
        nn.ConvTranspose2d(32, 16, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, kernel_size=4, stride=2, padding=1),
        nn.Flatten(),
    )


class Networks(NamedTuple):
    """An encoder, a deep decoder, and how many stochastic steps a blended one may cost."""

    encoder: Callable[[Sizes, int], nn.Module]
    decoder: Callable[[int, Sizes], nn.Module]
    limit: float


NETWORKS = {
    "MLP": Networks(mlp_encoder, mlp_decoder, 1.6),
    "convolutional decoder": Networks(mlp_encoder, conv_decoder, 1.25),
    "convolutional encoder and decoder": Networks(conv_encoder, conv_decoder, 1.25),
}


class Pixels(nn.Module):
    """A decoder with a learned scale of its own, one for all pixels."""

    def __init__(self, mean: nn.Module) -> None:
        super().__init__()
        self.mean = mean
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale of the pixels."""
        return self.mean(code), self.log_scale.exp()


class TwinVAE(nn.Module):
    """A VAE of grey pixels with a linear and a deep decoder, as a user of ``AnnealedELBO`` writes it.

    :param name: prefix of the parameters' names, so that contenders share no parameter.
    """

    def __init__(self, name: str, sizes: Sizes, networks: Networks, binary: bool) -> None:
        super().__init__()
        self.name, self.binary = name, binary
        self.code_dim = sizes.binary_dim if binary else sizes.gaussian_dim
        self.num_heads = self.code_dim if binary else 2 * self.code_dim
        self.encoder = networks.encoder(sizes, self.num_heads)
        linear = nn.Linear(self.code_dim, sizes.data_dim)
        deep = networks.decoder(self.code_dim, sizes)
        self.decoder = TwinDecoder(analytic=Pixels(linear), expressive=Pixels(deep))

    def model(self, x: Tensor) -> None:
        """Draw the code from the prior and the pixels given the code."""
        pyro.module(f"{self.name}.decoder", self.decoder)
        zeros = x.new_zeros(len(x), self.code_dim)
        prior = dist.Bernoulli(logits=zeros) if self.binary else dist.Normal(zeros, zeros + 1)
        with pyro.plate("data", len(x)):
            code = pyro.sample("code", prior.to_event(1))
            pyro.sample("x", dist.Normal(*self.decoder(code)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw the code given the pixels."""
        pyro.module(f"{self.name}.encoder", self.encoder)
        self.draw_code(self.encoder(x))

    def draw_code(self, encoded: Tensor) -> None:
        """Draw the code given what the encoder says of it."""
        with pyro.plate("data", len(encoded)):
            if self.binary:
                law: dist.Distribution = dist.Bernoulli(logits=encoded)
            else:
                loc, log_scale = encoded.chunk(2, -1)
                law = dist.Normal(loc, log_scale.exp())
            pyro.sample("code", law.to_event(1))


class EncodedTwinVAE(TwinVAE):
    """The same with a code whose law is given, so that no step pays for an encoder."""

    def guide(self, x: Tensor) -> None:
        """Draw the code, whatever the pixels."""
        self.draw_code(x.new_zeros(len(x), self.num_heads).requires_grad_())


STOCHASTIC_LOSSES: dict[str, Callable[[], object]] = {
    "Gaussian code, Trace_ELBO": Trace_ELBO,
    "binary code, GumbelRaoELBO": partial(GumbelRaoELBO, TEMPERATURE, None),
    "binary code, LeaveOneOutELBO": LeaveOneOutELBO,
}


def contenders(
    sizes: Sizes, batch_size: int, networks: Networks, setting: str
) -> dict[str, Callable[[], float]]:
    """Return one call per contender; each trains its own twin, on a fresh minibatch every call."""
    pyro.clear_param_store()
    stochastic = STOCHASTIC_LOSSES[setting]
    losses = {
        BLENDED: AnnealedELBO(SilentELBO(), stochastic(), 0.5),
        STOCHASTIC: stochastic(),
        SILENT: SilentELBO(),
        NO_ENCODER: SilentELBO(),
        AT_ZERO: AnnealedELBO(SilentELBO(), stochastic(), 0.0),
        WARM_UP: AnnealedELBO(SilentELBO(), stochastic(), 1.0, silent_warm_up=True),
    }
    calls: dict[str, Callable[[], float]] = {}
    for name, loss in losses.items():
        twin = EncodedTwinVAE if name == NO_ENCODER else TwinVAE
        vae = twin(name, sizes, networks, binary=setting.startswith("binary"))
        step, batches = svi_step(vae, loss), minibatches(batch_size, sizes.data_dim)
        calls[name] = partial(lambda step, batches: step(next(batches)), step, batches)
    return calls


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    arguments = parser.parse_args()
    sizes = Sizes()
    if arguments.smoke_test:
        arguments.rounds, arguments.batch_sizes = 2, [3]
        arguments.networks = ["MLP", "convolutional encoder and decoder"]
        sizes = Sizes(side=8, hidden_dim=8, gaussian_dim=3, binary_dim=4)
    torch.set_num_threads(1)
    pyro.set_rng_seed(arguments.seed)

    figures: dict[str, object] = {}
    targets = []
    for network in arguments.networks:
        for batch_size in arguments.batch_sizes:
            for setting in STOCHASTIC_LOSSES:
                case = f"{network}, {setting}, batch {batch_size}"
                calls = contenders(sizes, batch_size, NETWORKS[network], setting)
                times = time_in_turn(calls, arguments.rounds)
                for total, part in ((BOTH, SILENT), (FLOOR, NO_ENCODER)):
                    pairs = zip(times[part], times[STOCHASTIC], strict=True)
                    times[total] = [sum(pair) for pair in pairs]
                medians = median_times(times)
                peaks = {name: step_memory(calls[name], 0).peak_bytes for name in calls}
                ratios = {name: paired_ratio(times, name, STOCHASTIC) for name in times}
                rows = [
                    [
                        name,
                        f"{1e3 * medians[name]:.2f}",
                        f"{ratio.median:.3f}",
                        f"{ratio.lower_quartile:.3f}-{ratio.upper_quartile:.3f}",
                        f"{peaks[name] / MEBIBYTE:.2f}" if name in peaks else "",
                    ]
                    for name, ratio in ratios.items()
                ]
                print(f"\n{case}")
                print(table(["step", "ms", f"/ {STOCHASTIC}", "quartiles", "peak MiB"], rows))
                figures[case] = {
                    "milliseconds": {name: 1e3 * value for name, value in medians.items()},
                    "ratio_to_stochastic": {name: r._asdict() for name, r in ratios.items()},
                    "peak_bytes": peaks,
                }
                targets += [
                    Target(f"{name} / {other}, {case}", paired_ratio(times, name, other)[0], limit)
                    for name, other, limit in (
                        (BLENDED, STOCHASTIC, NETWORKS[network].limit),
                        (BLENDED, BOTH, 0.75),
                        (AT_ZERO, STOCHASTIC, NOTHING),
                        (WARM_UP, SILENT, NOTHING),
                    )
                ]
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
