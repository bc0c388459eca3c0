"""The annealed VAE: codes, twin decoders, and model and guide as a Pyro user writes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from data import NUM_PIXELS, load_digits
from pyro_silent import TwinDecoder

VALIDATION_SHARE = 6  # the last sixth of the training images is for choosing settings
HIDDEN = 256


class Images(NamedTuple):
    """Grey images in [0, 1], each split ``[n, 784]``."""

    train: Tensor
    validation: Tensor
    test: Tensor


def load_images(data_dir: str | None) -> Images:
    """Return digits, or what the IDX files in the folder hold."""
    train, test = load_digits(data_dir)
    num_train = len(train) - len(train) // VALIDATION_SHARE
    return Images(train[:num_train], train[num_train:], test)


class Code(NamedTuple):
    """A latent code of independent units.

    :ivar num_units: how many.
    :ivar arity: values of a unit; 0 for real numbers.
    """

    num_units: int
    arity: int

    @property
    def size(self) -> int:
        """Inputs of a decoder."""
        return self.num_units * (self.arity if self.arity > 2 else 1)

    @property
    def encoded_size(self) -> int:
        """Outputs of the encoder."""
        return self.size if self.arity else 2 * self.size

    @property
    def centre(self) -> float:
        """Prior mean of each number of a code."""
        return 1 / self.arity if self.arity else 0.0

    def law(self, encoded: Tensor) -> dist.Distribution:
        """Return the code's distribution from ``[n, encoded_size]``; zeros give the prior."""
        if not self.arity:
            loc, log_scale = encoded.chunk(2, -1)
            return dist.Normal(loc, log_scale.exp()).to_event(1)
        if self.arity == 2:
            return dist.Bernoulli(logits=encoded).to_event(1)
        logits = encoded.reshape(len(encoded), self.num_units, self.arity)
        return dist.OneHotCategorical(logits=logits).to_event(1)


CODES: dict[str, Callable[[int], Code]] = {
    "Gaussian": lambda num_units: Code(num_units, 0),
    "Bernoulli": lambda num_units: Code(num_units, 2),
    "categorical": lambda num_units: Code(num_units, 8),
}


class Branch(nn.Module):
    """A decoder with a noise scale of its own: a scale shared by both would get the blend."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network = network
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean ``[n, 784]`` and standard deviation of the pixels."""
        return self.network(code), self.log_scale.exp()


def _mlp(size: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    hidden = (nn.Linear(size, HIDDEN), activation(), nn.Linear(HIDDEN, HIDDEN), activation())
    return nn.Sequential(*hidden, nn.Linear(HIDDEN, NUM_PIXELS))


class _Convolutional(nn.Sequential):
    """7 x 7 maps to 28 x 28 in two transposed convolutions, then a bias for each pixel."""

    def __init__(self, size: int) -> None:
        super().__init__(
            nn.Linear(size, 32 * 7 * 7),
            nn.ReLU(),
            nn.Unflatten(-1, (32, 7, 7)),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1, bias=False),
        )
        self.bias = nn.Parameter(torch.zeros(NUM_PIXELS))

    def forward(self, code: Tensor) -> Tensor:
        """Return pixels ``[..., 784]`` for codes ``[..., size]``."""
        maps = super().forward(code.flatten(0, -2))
        return maps.reshape(*code.shape[:-1], NUM_PIXELS) + self.bias


# The deep decoders: the length of a code in, 784 pixels out.
DECODERS: dict[str, Callable[[int], nn.Sequential]] = {
    "MLP": _mlp,
    "tanh": lambda size: _mlp(size, nn.Tanh),
    "conv": _Convolutional,
}


class DeepVAE(nn.Module):
    """An encoder with one hidden layer, and twin decoders: linear and deep.

    Both start at the mean image with the pixels' own deviation as scale, and their last weights
    are those of torch times ``gain``.
    """

    means: Tensor

    def __init__(self, code: Code, decoder: str, images: Tensor, gain: float = 1.0) -> None:
        super().__init__()
        self.code = code
        self.kl_weight = 1.0
        self.register_buffer("means", images.mean(0))
        scale = (images - self.means).std().item()
        self.encoder = nn.Sequential(
            nn.Linear(NUM_PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, code.encoded_size)
        )
        linear, deep = nn.Linear(code.size, NUM_PIXELS), DECODERS[decoder](code.size)
        with torch.no_grad():
            linear.bias.copy_(self.means)
            weights = [p for p in deep.parameters() if p.dim() > 1]
            for weight in (linear.weight, weights[-1]):
                weight.mul_(gain)
            biases = [p for p in deep.parameters() if p.shape == self.means.shape]
            biases[-1].copy_(self.means)
        self.decoder = TwinDecoder(analytic=Branch(linear, scale), expressive=Branch(deep, scale))

    def model(self, images: Tensor) -> None:
        """A code from the prior, an image given the code."""
        pyro.module("vae", self)
        with pyro.plate("images", len(images)):
            with poutine.scale(scale=self.kl_weight):
                prior = self.code.law(images.new_zeros(len(images), self.code.encoded_size))
                z = pyro.sample("z", prior)
            inputs = z - self.code.centre
            loc, scale = self.decoder(inputs if self.code.arity < 3 else inputs.flatten(-2))
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=images)

    def guide(self, images: Tensor) -> None:
        """A code given an image."""
        pyro.module("vae", self)
        with pyro.plate("images", len(images)), poutine.scale(scale=self.kl_weight):
            # the running mean is for REINFORCE; other losses do not read it
            infer = {"baseline": {"use_decaying_avg_baseline": True}}
            pyro.sample("z", self.posterior(images), infer=infer)

    def posterior(self, images: Tensor) -> dist.Distribution:
        """Return the distribution of the codes of images, ``[n]`` by the shape of a code."""
        return self.code.law(self.encoder(images - self.means))
