"""The discrete VAE: its codes, its data, its networks, and model and guide as a Pyro user writes them."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from data import binarize, load_digits

VALIDATION_SHARE = 6  # the last sixth of the training digits is for choosing settings


class Code(NamedTuple):
    """A latent code of independent discrete variables with a uniform prior."""

    arity: int
    num_variables: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the logits and of a value."""
        return (self.num_variables,) if self.arity == 2 else (self.num_variables, self.arity)

    def law(self, logits: Tensor) -> dist.Distribution:
        """Return Bernoulli for two values, one-hot for more."""
        law = dist.Bernoulli if self.arity == 2 else dist.OneHotCategorical
        return law(logits=logits).to_event(1)


CODES = {arity: Code(arity, size) for arity, size in {2: 240, 4: 120, 8: 80, 16: 60}.items()}


class Digits(NamedTuple):
    """Binary digits, each split ``[n, 784]``."""

    train: Tensor
    validation: Tensor
    test: Tensor


def load_binary_digits(data_dir: str | None) -> Digits:
    """Return digits whose pixels were drawn once, with their grey values as probabilities."""
    train, test = (binarize(grey, seed) for seed, grey in enumerate(load_digits(data_dir)))
    num_train = len(train) - len(train) // VALIDATION_SHARE
    return Digits(train[:num_train], train[num_train:], test)


def base_rates(digits: Tensor) -> Tensor:
    """Return how often each pixel is on, kept off 0 and 1 by one digit of each kind."""
    return (digits.sum(0) + 1) / (len(digits) + 2)


class DiscreteVAE(nn.Module):
    """Two hidden layers each way; the decoder starts from the base rates of the pixels."""

    rates: Tensor

    def __init__(self, code: Code, rates: Tensor, num_hidden: int) -> None:
        super().__init__()
        self.code = code
        self.register_buffer("rates", rates)
        code_size = math.prod(code.shape)
        self.encoder = _network(len(rates), num_hidden, code_size)
        self.decoder = _network(code_size, num_hidden, len(rates), bias=rates.logit())

    def model(self, digits: Tensor) -> None:
        """A code from the prior, a digit given the code."""
        pyro.module("vae", self)
        with pyro.plate("digits", len(digits)):
            z = pyro.sample("z", self.code.law(digits.new_zeros(len(digits), *self.code.shape)))
            inputs = z - 1 / self.code.arity  # centred under the prior
            pixels = self.decoder(inputs if self.code.arity == 2 else inputs.flatten(-2))
            pyro.sample("x", dist.Bernoulli(logits=pixels).to_event(1), obs=digits)

    def guide(self, digits: Tensor) -> None:
        """A code given a digit."""
        pyro.module("vae", self)
        with pyro.plate("digits", len(digits)):
            logits = self.encoder(digits - self.rates).reshape(len(digits), *self.code.shape)
            # the running mean is for REINFORCE; other losses do not read it
            infer = {"baseline": {"use_decaying_avg_baseline": True}}
            pyro.sample("z", self.code.law(logits), infer=infer)


def _network(
    num_in: int, num_hidden: int, num_out: int, bias: Tensor | None = None
) -> nn.Sequential:
    sizes = (num_in, num_hidden, num_hidden, num_out)
    linears = [nn.Linear(*pair) for pair in zip(sizes, sizes[1:], strict=False)]
    for linear in linears:
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
    if bias is not None:
        with torch.no_grad():
            linears[-1].bias.copy_(bias)
    return nn.Sequential(linears[0], nn.Tanh(), linears[1], nn.Tanh(), linears[2])
