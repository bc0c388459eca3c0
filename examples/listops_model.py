"""A Gumbel Tree-LSTM (Choi et al. 2018, arXiv 1707.02786) in Pyro: a sentence is merged to one node.

Adjacent nodes are merged, pair by pair, until one is left. Which pair is merged next is a latent
one-hot choice, ``merge_1``, ``merge_2``, ...; a classifier reads the value off the last node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import one_hot

from listops_data import VOCABULARY, Batch

NUM_VALUES = 10
LEAF_DEVIATION = 0.2

Choose = Callable[[Tensor, int], Tensor]  # logits [..., pairs] and the number of the merge: one-hot


def sampled(logits: Tensor, merge: int) -> Tensor:
    """A pair drawn at a sample site."""
    return pyro.sample(f"merge_{merge}", dist.OneHotCategorical(logits=logits))


def greedy(logits: Tensor, merge: int) -> Tensor:
    """The most probable pair."""
    return one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)


def leftmost(logits: Tensor, merge: int) -> Tensor:
    """The first pair, which makes left-branching trees."""
    return one_hot(torch.zeros_like(logits[..., 0]).long(), logits.shape[-1]).to(logits.dtype)


class TreeLSTM(nn.Module):
    """Several runs of one network side by side: every parameter has a leading dim for the run.

    **Model and guide share the parser.** The sentence x is given; the tree T is drawn from the parser
    q(T | x); the objective is E[log p(value | x, T)], with no prior that pulls at T. In terms of an
    ELBO, the model's ``merge_t`` has the same distribution as the guide's: the same parameters at the
    same earlier merges. So log p(T | x) - log q(T | x) is zero for every T, and so is its gradient.
    The sites are masked, which spares computing that zero (and -inf - -inf where there is no pair).

    The model replays the guide's merges, so that its nodes are the guide's: what is asked for a second
    time, of the same tensors, is not computed twice.

    :param parser: how a pair is chosen in training.
    """

    def __init__(self, num_runs: int, num_hidden: int = 32, parser: Choose = sampled) -> None:
        super().__init__()
        self.num_hidden, self.parser = num_hidden, parser
        self._known: dict[Hashable, Any] | None = None

        def normal(*shape: int, deviation: float) -> nn.Parameter:
            return nn.Parameter(deviation * torch.randn(num_runs, *shape))

        def uniform(fan_in: int, fan_out: int) -> nn.Parameter:
            weight = torch.rand(num_runs, fan_in, fan_out)
            return nn.Parameter((2 * weight - 1) / math.sqrt(fan_in))

        def zeros(size: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(num_runs, 1, size))

        self.leaves = normal(len(VOCABULARY), 2 * num_hidden, deviation=LEAF_DEVIATION)
        self.cell_weight, self.cell_bias = (
            uniform(2 * num_hidden, 5 * num_hidden),
            zeros(5 * num_hidden),
        )
        self.query = normal(num_hidden, 1, deviation=1.0)
        self.hidden_weight, self.hidden_bias = (
            uniform(num_hidden, 2 * num_hidden),
            zeros(2 * num_hidden),
        )
        self.value_weight, self.value_bias = uniform(2 * num_hidden, NUM_VALUES), zeros(NUM_VALUES)

    # -- the program -------------------------------------------------------------------------------

    def model(self, batch: Batch) -> None:
        """Merges from the parser, the value given the last node; the mean over the sentences."""
        pyro.module("tree_lstm", self)
        runs, sentences = self._plates(batch)
        with runs, sentences:
            with poutine.mask(mask=False):
                root = self.encode(batch, self.parser)
            with poutine.scale(scale=1 / sentences.size):
                pyro.sample("value", dist.Categorical(logits=self.classify(root)), obs=batch.values)
        self._known = None

    def guide(self, batch: Batch) -> None:
        """Merges from the same parser."""
        pyro.module("tree_lstm", self)
        self._known = {}
        runs, sentences = self._plates(batch)
        with runs, sentences, poutine.mask(mask=False):
            self.encode(batch, self.parser)

    def _plates(self, batch: Batch) -> tuple[Any, Any]:
        num_runs, size = batch.values.shape
        return pyro.plate("runs", num_runs, dim=-2), pyro.plate("sentences", size, dim=-1)

    # -- the network -------------------------------------------------------------------------------

    def encode(self, batch: Batch, choose: Choose) -> Tensor:
        """The last node, ``[runs, batch, hidden]``. What is merged last is no choice."""
        nodes = self._once(self._leaves, batch.tokens)
        for merge in range(1, batch.tokens.shape[-1]):
            merged, logits = self._once(self._candidates, nodes, batch.lengths, merge)
            choice = choose(logits, merge) if logits.shape[-1] > 1 else torch.ones_like(logits)
            nodes = self._once(self._merge, nodes, merged, choice, batch.lengths, merge)
        return nodes[..., 0, : self.num_hidden]

    def classify(self, root: Tensor) -> Tensor:
        """Logits of the value, ``[runs, batch, 10]``."""
        hidden = torch.baddbmm(self.hidden_bias, root, self.hidden_weight).relu()
        return torch.baddbmm(self.value_bias, hidden, self.value_weight)

    def _leaves(self, tokens: Tensor) -> Tensor:
        """A node, hidden state and cell, for each token."""
        width = self.leaves.shape[-1]
        index = tokens.flatten(1).unsqueeze(-1).expand(-1, -1, width)
        return self.leaves.gather(1, index).view(*tokens.shape, width)

    def _candidates(self, nodes: Tensor, lengths: Tensor, merge: int) -> tuple[Tensor, Tensor]:
        """Each pair of neighbours as one node, and the logits of merging it.

        -inf where a sentence has no such pair; one that is finished keeps its first, which is not used.
        """
        num_runs, size, num_nodes, _ = nodes.shape
        hidden, cell = nodes.chunk(2, dim=-1)
        pairs = torch.cat([hidden[..., :-1, :], hidden[..., 1:, :]], dim=-1).flatten(1, 2)
        gates = torch.baddbmm(self.cell_bias, pairs, self.cell_weight)
        gates = gates.view(num_runs, size, num_nodes - 1, -1)
        i, forget_left, forget_right, update, o = gates.chunk(5, dim=-1)
        cell = (
            cell[..., :-1, :] * (forget_left + 1).sigmoid()
            + cell[..., 1:, :] * (forget_right + 1).sigmoid()
            + update.tanh() * i.sigmoid()
        )
        hidden = o.sigmoid() * cell.tanh()
        scores = (hidden.flatten(1, 2) @ self.query).view(num_runs, size, -1)
        num_pairs = (lengths - merge).clamp(min=1).unsqueeze(-1)
        invalid = torch.arange(num_nodes - 1) >= num_pairs
        logits = (scores / math.sqrt(self.num_hidden)).masked_fill(invalid, -math.inf)
        return torch.cat([hidden, cell], dim=-1), logits

    def _merge(
        self, nodes: Tensor, merged: Tensor, choice: Tensor, lengths: Tensor, merge: int
    ) -> Tensor:
        """The chosen pair becomes one node; a sentence that is one node already stays as it is."""
        here = choice.unsqueeze(-1)
        reached = here.cumsum(-2)
        left, right = nodes[..., :-1, :], nodes[..., 1:, :]
        after = (1 - reached) * left + here * merged + (reached - here) * right
        return torch.where((lengths > merge)[..., None, None], after, left)

    def _once(self, function: Callable[..., Any], *arguments: Hashable) -> Any:
        """Between the guide's start and the model's end, a second call returns the first's result."""
        if self._known is None:
            return function(*arguments)
        key = (function, *arguments)  # tensors are equal as keys if they are the same object
        if key not in self._known:
            self._known[key] = function(*arguments)
        return self._known[key]
