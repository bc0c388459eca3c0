"""Many runs of one network trained side by side: estimators, optimizer, training, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from listops_data import Batch
from listops_model import Choose, TreeLSTM, greedy, leftmost, sampled
from pyro_silent import StraightThroughELBO
from pyro_silent.estimators import Estimator
from pyro_silent.estimators.surrogate import Draw

CHUNK = 100  # sentences evaluated at once


@dataclass(frozen=True)
class Arm:
    """An estimator at a temperature.

    :ivar make: the estimator from the temperature; ``None`` where it has none.
    :ivar clip_norm: the largest norm of a gradient; ``None`` for any.
    """

    name: str
    make: Callable[[float], Estimator]
    temperature: float | None = None
    clip_norm: float | None = None
    parser: Choose = sampled

    def estimator(self) -> Estimator:
        """A new estimator."""
        return self.make(1.0 if self.temperature is None else self.temperature)


@dataclass(frozen=True)
class Result:
    """What the runs of an arm came to: a figure for each seed.

    :ivar best_validation: test accuracy of the parameters with the highest validation accuracy.
    :ivar final: test accuracy of the last parameters.
    :ivar largest_norm: of a gradient, before clipping.
    """

    name: str
    temperature: float | None
    clip_norm: float | None
    best_validation: list[float]
    final: list[float]
    largest_norm: list[float]

    def __str__(self) -> str:
        temperature = "" if self.temperature is None else f" at {self.temperature:g}"
        return self.name + temperature + ("" if self.clip_norm is None else ", clipped")


class Splits(NamedTuple):
    """Sentences to train on, to choose the parameters on, and to report on."""

    train: Batch
    validation: Batch
    test: Batch


@dataclass(frozen=True)
class Budget:
    """How long and how fast to train."""

    num_seeds: int
    num_steps: int
    batch_size: int
    evaluate_every: int
    learning_rate: float
    momentum: float
    num_hidden: int


# -- estimators and the optimizer ------------------------------------------------------------------


class SideBySide(Estimator):
    """Different estimators for different runs: the first dim of the logits is split among them.

    :param estimators: one for each block of ``size`` runs.
    """

    _keeps_noise = True
    _draws_in_backward = True

    def __init__(self, estimators: Sequence[Estimator], size: int) -> None:
        super().__init__()
        self.estimators, self.size = tuple(estimators), size

    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        kept = (draw.log_probs, draw.hard, draw.noisy)
        parts = zip(*(tensor.split(self.size) for tensor in (*kept, gradient)), strict=True)
        return torch.cat(
            [
                estimator._one_hot_gradient(
                    draw._replace(log_probs=log_probs, hard=hard, perturbed=perturbed),
                    block,
                    estimator.temperature_at(0),
                )
                for estimator, (log_probs, hard, perturbed, block) in zip(
                    self.estimators, parts, strict=True
                )
            ]
        )

    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        raise NotImplementedError("the merges are one-hot")


class Untrained(Estimator):
    """No gradient: the parser keeps its first parameters, and its trees say nothing."""

    def _one_hot_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        return torch.zeros_like(gradient)

    def _bernoulli_gradient(self, draw: Draw, gradient: Tensor, temperature: float) -> Tensor:
        return torch.zeros_like(gradient)


class SGDByRun(pyro.optim.PyroOptim):
    """Gradient descent with momentum whose gradients are clipped run by run, to norms ``[runs]``.

    :ivar largest_norms: of each run's gradients before they were clipped, ``[runs]``.
    """

    def __init__(self, clip_norms: Tensor, learning_rate: float, momentum: float) -> None:
        super().__init__(torch.optim.SGD, {"lr": learning_rate, "momentum": momentum})
        self.clip_norms = clip_norms
        self.largest_norms = torch.zeros_like(clip_norms)

    def __call__(self, params: Iterable[Tensor], *args: object, **kwargs: object) -> None:
        """Clip and take a step."""
        params = list(params)
        gradients = [p.grad for p in params if p.grad is not None]
        squares = [gradient.double().square().flatten(1).sum(1) for gradient in gradients]
        norms = torch.stack(squares).sum(0).sqrt()
        self.largest_norms = torch.maximum(self.largest_norms, norms.float())
        scale = (self.clip_norms / norms).clamp(max=1.0).float()
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
        super().__call__(params, *args, **kwargs)


# -- training --------------------------------------------------------------------------------------


def train(
    arms: Sequence[Arm], splits: Splits, budget: Budget, progress: Callable[[], object]
) -> list[Result]:
    """Train every arm from every seed, all side by side; the arms have one parser in common.

    A seed fixes the initial parameters and the order of the sentences, for every arm alike.
    """
    pyro.clear_param_store()
    num_arms, num_seeds = len(arms), budget.num_seeds
    tree_lstm = initial_network(num_arms, budget, arms[0].parser)
    estimator = SideBySide([arm.estimator() for arm in arms], num_seeds)
    limits = [math.inf if arm.clip_norm is None else arm.clip_norm for arm in arms]
    clip_norms = torch.tensor(limits).repeat_interleave(num_seeds)
    optim = SGDByRun(clip_norms, budget.learning_rate, budget.momentum)
    loss = StraightThroughELBO(estimator, max_plate_nesting=2)
    svi = SVI(tree_lstm.model, tree_lstm.guide, optim, loss=loss)

    evaluator = leftmost if arms[0].parser is leftmost else greedy
    best = {name: p.detach().clone() for name, p in tree_lstm.named_parameters()}
    best_accuracy = torch.full((num_arms * num_seeds,), -1.0)
    size = len(splits.train.lengths)
    orders = zip(*(shuffled(size, budget.batch_size, seed) for seed in range(num_seeds)))
    for step, rows in zip(range(1, budget.num_steps + 1), orders):
        svi.step(splits.train[torch.stack(rows).repeat(num_arms, 1)])
        if step % budget.evaluate_every == 0 or step == budget.num_steps:
            found = accuracy(tree_lstm, splits.validation, evaluator)
            better = found > best_accuracy
            best_accuracy[better] = found[better]
            for name, parameter in tree_lstm.named_parameters():
                best[name][better] = parameter.detach()[better]
        progress()
    final = accuracy(tree_lstm, splits.test, evaluator)
    tree_lstm.load_state_dict(best)
    best_validation = accuracy(tree_lstm, splits.test, evaluator)
    return [
        Result(arm.name, arm.temperature, arm.clip_norm, *figures)
        for arm, *figures in zip(
            arms,
            *(
                figures.view(num_arms, num_seeds).tolist()
                for figures in (best_validation, final, optim.largest_norms)
            ),
        )
    ]


def initial_network(num_arms: int, budget: Budget, parser: Choose) -> TreeLSTM:
    """A network of ``num_arms * num_seeds`` runs in which every arm starts from the same seeds."""
    network = TreeLSTM(num_arms * budget.num_seeds, budget.num_hidden, parser)
    for seed in range(budget.num_seeds):
        pyro.set_rng_seed(seed)
        single = TreeLSTM(1, budget.num_hidden)
        for parameter, value in zip(network.parameters(), single.parameters()):
            parameter.data[seed :: budget.num_seeds] = value.data
    return network


def shuffled(num_sentences: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of row numbers without end, in a new order each epoch; a rest is left out."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num_sentences, generator=generator)
        for first in range(0, num_sentences - batch_size + 1, batch_size):
            yield order[first : first + batch_size]


@torch.no_grad()
def accuracy(tree_lstm: TreeLSTM, batch: Batch, choose: Choose) -> Tensor:
    """The share of right answers of each run, ``[runs]``."""
    num_runs = len(tree_lstm.query)
    right = torch.zeros(num_runs)
    for rows in batch.lengths.argsort().split(CHUNK):  # sentences of one length, nearly
        chunk = Batch(*(tensor.expand(num_runs, *tensor.shape) for tensor in batch[rows]))
        answers = tree_lstm.classify(tree_lstm.encode(chunk, choose)).argmax(-1)
        right += (answers == chunk.values).float().sum(-1)
    return right / len(batch.lengths)
