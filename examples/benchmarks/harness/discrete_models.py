"""The discrete VAE and a training step of it under each contender's way of doing things."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, gumbel_softmax

from harness.models import LEARNING_RATE
from pyro_silent.estimators import Estimator

PIXELS_ON = 0.13  # as in MNIST


class DiscreteSizes(NamedTuple):
    """The widths of a VAE whose code is ``num_latents`` variables of ``arity`` categories.

    Two categories make a code of 0/1 variables.
    """

    data_dim: int = 784
    hidden_dim: int = 200
    num_latents: int = 80
    arity: int = 8

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape of the logits of one observation."""
        return (self.num_latents,) if self.arity == 2 else (self.num_latents, self.arity)


def perceptron(*widths: int) -> nn.Sequential:
    """Return affine maps with ReLU in between."""
    layers: list[nn.Module] = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    activated = [part for layer in layers for part in (layer, nn.ReLU())]
    return nn.Sequential(*activated[:-1])


class DiscreteVAE(nn.Module):
    """A VAE with a discrete code and binary data, as a Pyro user writes it.

    :param name: prefix of the parameters' names, so that contenders share no parameter.
    :param relaxed_temperature: makes the guide draw from Pyro's own straight-through
        Gumbel-softmax, which is how Pyro's users get that estimator.
    """

    def __init__(
        self, name: str, sizes: DiscreteSizes, relaxed_temperature: float | None = None
    ) -> None:
        super().__init__()
        self.name, self.sizes = name, sizes
        self.relaxed_temperature = relaxed_temperature
        code_dim, hidden = math.prod(sizes.code_shape), sizes.hidden_dim
        self.encoder = perceptron(sizes.data_dim, hidden, hidden, code_dim)
        self.decoder = perceptron(code_dim, hidden, hidden, sizes.data_dim)

    def law(self, logits: Tensor) -> dist.Distribution:
        """Return the mass function of the code."""
        family = dist.Bernoulli if self.sizes.arity == 2 else dist.OneHotCategorical
        return family(logits=logits).to_event(1)

    def logits(self, x: Tensor) -> Tensor:
        """Map data ``[batch, data_dim]`` to the logits of its code."""
        return self.encoder(x).reshape(*x.shape[:-1], *self.sizes.code_shape)

    def decode(self, code: Tensor) -> Tensor:
        """Map codes to the logits of the data."""
        return self.decoder(code if self.sizes.arity == 2 else code.flatten(-2))

    def model(self, x: Tensor) -> None:
        """Draw the code uniformly and the data given the code."""
        pyro.module(f"{self.name}.decoder", self.decoder)
        with pyro.plate("data", len(x)):
            code = pyro.sample("code", self.law(x.new_zeros(len(x), *self.sizes.code_shape)))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(code)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw the code given the data."""
        pyro.module(f"{self.name}.encoder", self.encoder)
        with pyro.plate("data", len(x)):
            logits = self.logits(x)
            if self.relaxed_temperature is None:
                pyro.sample("code", self.law(logits))
                return
            # Not validated, for in single precision its samples fail its own check of the simplex.
            relaxed = dist.RelaxedOneHotCategoricalStraightThrough(
                logits.new_tensor(self.relaxed_temperature), logits=logits, validate_args=False
            )
            pyro.sample("code", relaxed.to_event(1))


def by_hand_step(vae: DiscreteVAE, sample: Callable[[Tensor], Tensor]) -> Callable[[Tensor], float]:
    """Return a step of plain PyTorch: analytic KL, one line of sampling, ``torch.optim.Adam``.

    :param sample: from logits to a code that carries a gradient.
    """
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE)
    arity = vae.sizes.arity

    def kl(logits: Tensor) -> Tensor:
        if arity == 2:
            entropy = nn.functional.softplus(logits) - logits * logits.sigmoid()
        else:
            log_probs = logits.log_softmax(-1)
            entropy = -log_probs.exp() * log_probs
        return logits.shape[0] * vae.sizes.num_latents * math.log(arity) - entropy.sum()

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        logits = vae.logits(x)
        pixels = vae.decode(sample(logits))
        loss = binary_cross_entropy_with_logits(pixels, x, reduction="sum") + kl(logits)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def estimator_sample(estimator: Estimator, sizes: DiscreteSizes) -> Callable[[Tensor], Tensor]:
    """Return the call that samples a code with an estimator of ours."""
    return estimator.bernoulli if sizes.arity == 2 else estimator.one_hot


def torch_sample(temperature: float) -> Callable[[Tensor], Tensor]:
    """Return torch's own straight-through Gumbel-softmax."""
    return lambda logits: gumbel_softmax(logits, temperature, hard=True)


def not_validated(step: Callable[[Tensor], float]) -> Callable[[Tensor], float]:
    """Return the step with the checks of torch's and Pyro's distributions off."""

    def unchecked(x: Tensor) -> float:
        with pyro.validation_enabled(False):
            return step(x)

    return unchecked


def storchastic_step(vae: DiscreteVAE, temperature: float) -> Callable[[Tensor], float]:
    """Return a step as users of ``storchastic`` write it, with its straight-through estimator.

    Its import turns torch's validation off for good, and its tensors fail with it on: here it is off in
    this step alone.
    """
    with pyro.validation_enabled(True):  # restores what was set before
        storch: Any = importlib.import_module("storch")
    method_module: Any = importlib.import_module("storch.method")
    method = method_module.GumbelSoftmax(
        "code", straight_through=True, initial_temperature=temperature, annealing_rate=0.0
    )
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE)
    one_hot = torch.distributions.OneHotCategorical

    encode = storch.deterministic(vae.logits)
    decode = storch.deterministic(vae.decode)

    @storch.deterministic
    def negative_log_likelihood(pixels: Tensor, x: Tensor) -> Tensor:
        target = x.expand_as(pixels)
        return binary_cross_entropy_with_logits(pixels, target, reduction="none").sum(-1)

    @storch.deterministic
    def kl(logits: Tensor) -> Tensor:
        law, prior = one_hot(logits=logits), one_hot(logits=torch.zeros_like(logits))
        return torch.distributions.kl_divergence(law, prior).sum(-1)

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        storch.reset()
        x = storch.denote_independent(x, 0, "data")
        logits = encode(x)
        storch.add_cost(kl(logits), "kl")
        code = method(one_hot(logits=logits))
        storch.add_cost(negative_log_likelihood(decode(code), x), "x")
        loss: float = storch.backward().item()
        optimizer.step()
        return loss

    return not_validated(step)


def binary_minibatches(batch_size: int, data_dim: int, count: int = 10) -> Iterator[Tensor]:
    """Cycle over ``count`` different minibatches of made-up 0/1 data."""
    data = (torch.rand(count * batch_size, data_dim) < PIXELS_ON).float()
    return itertools.cycle(data.split(batch_size))
