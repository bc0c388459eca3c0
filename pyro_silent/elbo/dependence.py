"""Which binary sites of a guide depend on samples that were drawn before them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_silent.discrete_sample import bernoulli_sample
from pyro_silent.elbo.treatment import innermost


class AntitheticDraw(NamedTuple):
    """One draw of a binary site: ``value = logits + noise > 0``.

    :ivar is_root: whether the logits are a function of the parameters and the data alone.
    """

    logits: Tensor
    noise: Tensor
    value: Tensor
    is_root: bool


class DependenceTracker(Messenger):
    """Put inside the guide's trace, it lets the guide see binary samples that leave a mark.

    The guide computes with leaves of the autograd graph, so the graph of a later site's logits leads
    to the samples they depend on; operations without a derivative are made to lead there as well, and
    Python control flow on such a value raises :class:`LeakError`. The model sees plain samples. Without
    gradients there is no graph and nothing counts as dependent; only gradients could be wrong then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        """Forget the samples of the run before."""
        self._leaves: list[Tensor] = []
        self._untracked = False
        self._tracked: set[str] = set()

    def depends(self, logits: Tensor) -> bool:
        """Whether logits depend, or may depend, on a sample of this run."""
        if self._untracked:
            return True
        return bool(self._leaves) and _reaches(logits, self._leaves)

    def track(self, name: str) -> None:
        """Let the guide see a marked sample of a site."""
        self._tracked.add(name)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg) or isinstance(innermost(msg["fn"]), Delta):
            return
        if msg["name"] not in self._tracked:
            self._untracked = True
            return
        leaf = msg["value"].detach().requires_grad_(torch.is_grad_enabled())
        self._leaves.append(leaf)
        msg["value"] = bernoulli_sample(leaf, msg["name"])


def _reaches(tensor: Tensor, leaves: list[Tensor]) -> bool:
    """Whether the graph of a tensor leads to one of some leaves."""
    wanted = {id(leaf) for leaf in leaves}
    stack, seen = [tensor.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted:
            return True
        stack += [parent for parent, _ in node.next_functions]
    return False
