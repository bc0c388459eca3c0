"""Programs with discrete latents, summed over by brute force; knows nothing of our losses.

A program is written twice. ``model`` and ``guide`` are Pyro's; ``plain(draw)`` is one run of both in
plain torch: it asks ``draw`` for every latent and returns its -ELBO, with the divergences in closed
form that a loss may use. What ``draw`` does decides what the run means:

- :func:`exact_loss` sums ``plain`` over all joint values, each with its probability;
- :func:`surrogate_loss` does the same, but its gradient is the mean of a straight-through gradient:
  each value carries the Jacobian of ZGR, written out as a matrix, and the probabilities are constants;
- :func:`pyro_loss` does not look at ``plain`` at all: it runs model and guide under Pyro's own handlers
  at every joint value. That :func:`exact_loss` agrees with it guards ``plain``.

:class:`Sampled` draws a plain run from an estimator, for comparisons at one seed. Elsewhere Gaussian
latents run over the nodes of Gauss-Hermite quadrature, subsamples over all subsets.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from tests.formulas import gauss_hermite

NODES = 10
TREATED, SCORED, ENUMERATED = "treated", "scored", "enumerated"


class Draws(ABC):
    """Where a plain program gets its latents from. Every code is one-hot, or 0/1 for a Bernoulli."""

    @abstractmethod
    def bernoulli(self, logits: Tensor, how: str = TREATED) -> Tensor:
        """0 or 1 for each logit."""

    @abstractmethod
    def one_hot(self, logits: Tensor, how: str = TREATED) -> Tensor:
        """A one-hot code along the last dim."""

    @abstractmethod
    def normal(self, loc: Tensor, scale: Tensor | float) -> Tensor:
        """A reparameterized Gaussian."""

    @abstractmethod
    def subsample(self, size: int, count: int) -> Tensor:
        """``count`` of the first ``size`` integers."""


class Program(NamedTuple):
    """One program, written twice, with the shapes of its parameters in the param store."""

    name: str
    model: Callable[[], None]
    guide: Callable[[], None]
    plain: Callable[[Draws], Tensor]
    max_plate_nesting: int
    shapes: dict[str, Any]


Jacobian = Callable[[Tensor, Tensor], Tensor]


def zgr_jacobian(p: Tensor, hard: Tensor) -> Tensor:
    """(diag(p) - p p' + (D - p)(D - p)') / 2 for probabilities and a one-hot code [..., n]."""
    away = hard - p
    return 0.5 * (straight_through_jacobian(p, hard) + away[..., :, None] * away[..., None, :])


def straight_through_jacobian(p: Tensor, hard: Tensor) -> Tensor:
    """diag(p) - p p'."""
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def gumbel_rao_jacobian(temperature: float) -> Jacobian:
    """The mean of the straight-through Gumbel-softmax Jacobian given D, for two categories.

    Given D, the logistic noise of the first category is that of a uniform number in an interval.
    """

    def jacobian(p: Tensor, hard: Tensor) -> Tensor:
        p1, on = p[..., :1], hard[..., :1]
        middles = (torch.arange(4000) + 0.5) / 4000
        uniform = torch.where(on == 1, 1 - p1 + p1 * middles, (1 - p1) * middles)
        scaled = (torch.logit(p1) + torch.logit(uniform)) / temperature
        c = (torch.sigmoid(scaled) * torch.sigmoid(-scaled)).mean(-1) / temperature
        return c[..., None, None] * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])

    return jacobian


class Sampled(Draws):
    """Every code from an estimator, in the order of the program."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def bernoulli(self, logits: Tensor, how: str = TREATED) -> Tensor:
        assert how == TREATED
        return self.estimator.bernoulli(logits)

    def one_hot(self, logits: Tensor, how: str = TREATED) -> Tensor:
        assert how == TREATED
        return self.estimator.one_hot(logits)

    def normal(self, loc: Tensor, scale: Tensor | float) -> Tensor:
        return torch.distributions.Normal(loc, scale).rsample()

    def subsample(self, size: int, count: int) -> Tensor:
        return torch.randperm(size)[:count]


class _Choices:
    """The picks of one joint value, in the order in which they are asked for."""

    def __init__(self, picks: Sequence[int] | None) -> None:
        self._picks = None if picks is None else iter(picks)
        self.sizes: list[int] = []

    def next(self, count: int, size: int) -> list[int]:
        self.sizes += [size] * count
        return [0 if self._picks is None else next(self._picks) for _ in range(count)]


class _Enumerated(Draws):
    """One joint value, with its probability in ``weight``.

    :param jacobian: None: the probabilities are differentiated and values carry no gradient; else
        it is the other way round, where a latent is treated at all.
    """

    def __init__(self, choices: _Choices, jacobian: Jacobian | None) -> None:
        self.choices, self.jacobian = choices, jacobian
        self.weight: Tensor = torch.ones(())

    def one_hot(self, logits: Tensor, how: str = TREATED) -> Tensor:
        size = logits.shape[-1]
        picks = self.choices.next(logits[..., 0].numel(), size)
        hard = torch.eye(size, dtype=logits.dtype)[picks].reshape(logits.shape)
        log_probs = torch.log_softmax(logits, -1)
        probability = (hard * log_probs.exp()).sum(-1).prod()
        if self.jacobian is None or how != TREATED:
            self.weight = self.weight * probability
            return hard
        self.weight = self.weight * probability.detach()
        matrix = self.jacobian(log_probs.exp().detach(), hard)
        return hard + (matrix @ _zero_with_gradient(logits).unsqueeze(-1)).squeeze(-1)

    def bernoulli(self, logits: Tensor, how: str = TREATED) -> Tensor:
        both = torch.stack([logits, torch.zeros_like(logits)], -1)
        return self.one_hot(both, how)[..., 0]

    def normal(self, loc: Tensor, scale: Tensor | float) -> Tensor:
        nodes, weights = gauss_hermite(NODES)
        picks = self.choices.next(loc.numel(), NODES)
        self.weight = self.weight * weights[picks].prod()
        return loc + scale * nodes[picks].reshape(loc.shape)

    def subsample(self, size: int, count: int) -> Tensor:
        subsets = list(itertools.combinations(range(size), count))
        self.weight = self.weight / len(subsets)
        return torch.tensor(subsets[self.choices.next(1, len(subsets))[0]])


def _zero_with_gradient(logits: Tensor) -> Tensor:
    """0 with derivative 1; a constant 0 where a logit is infinite."""
    finite = logits.masked_fill(logits.isinf(), 0.0)
    return finite - finite.detach()


def _summed(run: Callable[[_Choices], tuple[Tensor, Tensor]]) -> Tensor:
    """The sum of weight times loss over all joint values."""
    first = _Choices(None)
    run(first)
    total = torch.zeros(())
    for picks in itertools.product(*(range(size) for size in first.sizes)):
        weight, loss = run(_Choices(picks))
        if weight != 0:  # log q of an impossible value is -inf
            total = total + weight * loss
    return total


def _enumerate(program: Program, jacobian: Jacobian | None) -> Tensor:
    def run(choices: _Choices) -> tuple[Tensor, Tensor]:
        draws = _Enumerated(choices, jacobian)
        loss = program.plain(draws)
        return draws.weight, loss

    return _summed(run)


def exact_loss(program: Program) -> Tensor:
    """-ELBO; autograd gives its exact gradient."""
    return _enumerate(program, None)


def surrogate_loss(program: Program, jacobian: Jacobian = zgr_jacobian) -> Tensor:
    """-ELBO whose gradient is the mean of a straight-through gradient."""
    return _enumerate(program, jacobian)


class _Choose(Messenger):
    """Gives each latent of a guide its next value; multiplies probabilities."""

    def __init__(self, choices: _Choices) -> None:
        super().__init__()
        self.choices = choices
        self.weight: Tensor = torch.ones(())

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or isinstance(fn, dist.Delta):
            return
        if type(fn).__name__ == "_Subsample" and fn.subsample_size in (None, fn.size):
            return
        msg["value"], msg["done"] = self._value(fn), True

    def _value(self, fn: Any) -> Tensor:
        if type(fn).__name__ == "_Subsample":
            subsets = list(itertools.combinations(range(fn.size), fn.subsample_size))
            self.weight = self.weight / len(subsets)
            return torch.tensor(subsets[self.choices.next(1, len(subsets))[0]])
        while isinstance(fn, torch.distributions.Independent):
            fn = fn.base_dist
        shape = fn.batch_shape
        if isinstance(fn, torch.distributions.Normal):
            nodes, weights = gauss_hermite(NODES)
            picks = self.choices.next(shape.numel(), NODES)
            self.weight = self.weight * weights[picks].prod()
            return fn.loc + fn.scale * nodes[picks].reshape(shape)
        support = fn.enumerate_support(expand=True)
        picks = self.choices.next(shape.numel(), len(support))
        cells = support.reshape(len(support), shape.numel(), -1)
        value = cells[picks, torch.arange(shape.numel())].reshape(shape + fn.event_shape)
        self.weight = self.weight * fn.log_prob(value).exp().prod()
        return value


def pyro_loss(model: Callable, guide: Callable) -> Tensor:
    """-ELBO by runs of model and guide under Pyro's handlers, one for each joint value."""

    def run(choices: _Choices) -> tuple[Tensor, Tensor]:
        chooser = _Choose(choices)
        with chooser:
            trace = poutine.trace(guide).get_trace()
        if chooser.weight == 0:
            return chooser.weight, torch.zeros(())
        model_trace = poutine.trace(poutine.replay(model, trace)).get_trace()
        terms = model_trace.log_prob_sum() - trace.log_prob_sum()
        return chooser.weight, -torch.as_tensor(terms)

    return _summed(run)


def log_normal(residual: Tensor, scale: float) -> Tensor:
    """log N(residual; 0, scale), elementwise."""
    return -0.5 * (math.log(2 * math.pi) + 2 * math.log(scale) + (residual / scale) ** 2)


def kl_one_hot(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL between two categorical laws along the last dim; 0 log 0 is 0."""
    q, p = torch.log_softmax(logits, -1), torch.log_softmax(prior_logits, -1)
    possible = q > -math.inf
    difference = torch.where(possible, q, 0.0) - torch.where(possible, p, 0.0)
    return (q.exp() * difference).sum(-1)


def kl_bits(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL between two Bernoullis, elementwise."""
    return kl_one_hot(
        torch.stack([logits, torch.zeros_like(logits)], -1),
        torch.stack([prior_logits, torch.zeros_like(prior_logits)], -1),
    )
