"""The Gaussian VAE every benchmark trains, and its ELBO in closed form, written by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

LEARNING_RATE = 1e-3


class Sizes(NamedTuple):
    """The widths of a VAE."""

    data_dim: int = 784
    hidden_dim: int = 200
    latent_dim: int = 200


def linear_decoder(latent_dim: int, data_dim: int) -> nn.Module:
    """Return one affine map from the code to the data."""
    return nn.Linear(latent_dim, data_dim)


def deep_linear_decoder(latent_dim: int, data_dim: int) -> nn.Module:
    """Return three affine maps in a row: still linear in the code, but not one matrix."""
    hidden_dim = 2 * latent_dim
    return nn.Sequential(
        nn.Linear(latent_dim, hidden_dim),
        nn.Linear(hidden_dim, hidden_dim),
        nn.Linear(hidden_dim, data_dim),
    )


def conv_transpose_decoder(latent_dim: int, data_dim: int) -> nn.Module:
    """Return a decoder of transposed convolutions for square images, linear in the code."""
    side = _image_side(data_dim)
    return nn.Sequential(
        nn.Linear(latent_dim, 16 * (side // 4) ** 2),
        nn.Unflatten(1, (16, side // 4, side // 4)),
        nn.ConvTranspose2d(16, 8, kernel_size=4, stride=2, padding=1),
        nn.ConvTranspose2d(8, 1, kernel_size=4, stride=2, padding=1),
        nn.Flatten(),
    )


def _image_side(data_dim: int) -> int:
    side = math.isqrt(data_dim)
    if side * side != data_dim or side % 4:
        raise ValueError(f"data_dim is {data_dim}; expected the square of a multiple of 4")
    return side


DECODERS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": linear_decoder,
    "deep-linear": deep_linear_decoder,
    "conv-transpose": conv_transpose_decoder,
}


def conv_features(data_dim: int, hidden_dim: int) -> nn.Module:
    """Return two convolutions of a square image and an affine map to the hidden features."""
    side = _image_side(data_dim)
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 8, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (side // 4) ** 2, hidden_dim),
    )


class Encoder(nn.Module):
    """Return the location and log scale of the code: a hidden ReLU layer, two heads.

    :param convolutional: puts two convolutions before the hidden layer.
    """

    def __init__(self, sizes: Sizes, convolutional: bool = False) -> None:
        super().__init__()
        features = conv_features if convolutional else nn.Linear
        self.hidden = features(sizes.data_dim, sizes.hidden_dim)
        self.loc = nn.Linear(sizes.hidden_dim, sizes.latent_dim)
        self.log_scale = nn.Linear(sizes.hidden_dim, sizes.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data ``[batch, data_dim]`` to two tensors ``[batch, latent_dim]``."""
        hidden = torch.relu(self.hidden(x))
        return self.loc(hidden), self.log_scale(hidden)


class Decoder(nn.Module):
    """Hold the map from the code to the data's location, and the learned scale of the data."""

    def __init__(self, mean: nn.Module, scale_dim: int) -> None:
        super().__init__()
        self.mean = mean
        self.log_scale = nn.Parameter(torch.full((scale_dim,), -0.5))


class VAE(nn.Module):
    """A VAE with Gaussian code and data, as a Pyro user writes it.

    :param name: prefix of the parameters' names, so that contenders share no parameter.
    :param decoder: a key of :data:`DECODERS`.
    :param shared_scale: one learned scale for all data dimensions instead of one each.
    :param conv_encoder: whether the encoder begins with convolutions.
    """

    def __init__(
        self,
        name: str,
        sizes: Sizes,
        decoder: str = "linear",
        shared_scale: bool = False,
        conv_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.latent_dim = sizes.latent_dim
        self.encoder = Encoder(sizes, conv_encoder)
        mean = DECODERS[decoder](sizes.latent_dim, sizes.data_dim)
        self.decoder = Decoder(mean, 1 if shared_scale else sizes.data_dim)

    def model(self, x: Tensor) -> None:
        """Draw the code from N(0, I) and the data from N(decoder(code), scale)."""
        pyro.module(f"{self.name}.decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            prior_loc = x.new_zeros(x.shape[0], self.latent_dim)
            prior_scale = x.new_ones(x.shape[0], self.latent_dim)
            code = pyro.sample("code", dist.Normal(prior_loc, prior_scale).to_event(1))
            loc = self.decoder.mean(code)
            scale = self.decoder.log_scale.exp()
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw the code from the encoder's Gaussian."""
        pyro.module(f"{self.name}.encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x)
            pyro.sample("code", dist.Normal(loc, log_scale.exp()).to_event(1))

    def closed_form_loss(self, x: Tensor) -> Tensor:
        r"""Return -ELBO of a linear decoder, the variance contracted before the batch.

        With weights :math:`w_d = 1 / \sigma_d^2` the expected squared error is
        :math:`\sum_d w_d (x_d - \mu_d)^2 + \sum_k s_k^2 (W^{\top 2} w)_k`, so no tensor of
        variances of shape ``[batch, data_dim]`` is built.
        """
        if not isinstance(self.decoder.mean, nn.Linear):
            raise TypeError("the closed form is written out for the linear decoder alone")
        loc, log_scale = self.encoder(x)
        variance = (2 * log_scale).exp()
        kl = 0.5 * (loc.square().sum() + variance.sum() - loc.numel()) - log_scale.sum()
        data_log_scale = self.decoder.log_scale.expand(x.shape[1])
        weight = (-2 * data_log_scale).exp()
        error = ((x - self.decoder.mean(loc)).square() @ weight).sum()
        spread = variance.sum(0) @ (weight @ self.decoder.mean.weight.square())
        log_normalizer = data_log_scale.sum() * x.shape[0] + 0.5 * math.log(2 * math.pi) * x.numel()
        return kl + 0.5 * (error + spread) + log_normalizer


class Programs(Protocol):
    """A model and a guide of a minibatch."""

    def model(self, x: Tensor) -> None:
        """Draw code and data."""

    def guide(self, x: Tensor) -> None:
        """Draw the code given the data."""


def svi_step(vae: Programs, loss: object) -> Callable[[Tensor], float]:
    """Return a training step of Pyro's ``SVI`` under ``loss``, with Pyro's Adam."""
    optimizer = pyro.optim.Adam({"lr": LEARNING_RATE})
    return SVI(vae.model, vae.guide, optimizer, loss=loss).step


def gradient_step(
    model: Callable[..., None], guide: Callable[..., None], loss: object, *args: Tensor
) -> Callable[[], None]:
    """Return a step of Pyro's ``SVI`` without its optimizer: loss, gradients, which are then dropped."""
    svi = SVI(model, guide, pyro.optim.SGD({}), loss=loss)

    def step() -> None:
        with poutine.trace(param_only=True) as capture:
            svi.loss_and_grads(model, guide, *args)
        for site in capture.trace.nodes.values():
            site["value"].unconstrained().grad = None

    return step


def closed_form_svi_step(vae: VAE) -> Callable[[Tensor], float]:
    """Return a step of Pyro's ``SVI`` and Adam on the hand-written loss: what Pyro adds to it."""

    def loss(model: object, guide: object, x: Tensor) -> Tensor:
        pyro.module(f"{vae.name}.decoder", vae.decoder)
        pyro.module(f"{vae.name}.encoder", vae.encoder)
        return vae.closed_form_loss(x)

    return svi_step(vae, loss)


def closed_form_step(vae: VAE) -> Callable[[Tensor], float]:
    """Return a step of plain PyTorch on the hand-written loss, with ``torch.optim.Adam``."""
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE)

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        loss = vae.closed_form_loss(x)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def minibatches(batch_size: int, data_dim: int, count: int = 10) -> Iterator[Tensor]:
    """Cycle over ``count`` different minibatches of made-up data in [0, 1]."""
    data = torch.rand(count * batch_size, data_dim)
    return itertools.cycle(data.split(batch_size))
