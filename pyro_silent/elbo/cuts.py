"""Cuts: where the graph of a guide ends for the losses that use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_silent.elbo.leaves import graph_of
from pyro_silent.random_tensor.draw import map_parameters
from pyro_silent.random_tensor.program import plain_operands
from pyro_silent.random_tensor.tensor import RandomTensor


class Cuts:
    """Tensors of a guide as one loss sees them: leaves of its own, which collect its gradients.

    :ivar pairs: ``(the guide's tensor, the leaf that stands for it)``.
    """

    def __init__(self) -> None:
        self._leaves: dict[int, Tensor] = {}
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def watched(self, guide: Callable) -> Callable:
        """A guide that is not recorded; its parameters stand for themselves."""
        messenger = poutine.unwrap(guide)
        if isinstance(messenger, GuideMessenger):
            parameters = messenger.parameters() if isinstance(messenger, nn.Module) else ()
            self.pairs += [(leaf, leaf) for leaf in parameters]
            return guide
        return _Watch(self)(guide)

    def keep(self, fn: Any, value: Any) -> None:
        """Let the parameters that a site of the guide comes from stand for themselves."""

        def visit(tensor: Any) -> Any:
            if isinstance(tensor, RandomTensor):
                for plain in plain_operands(tensor):
                    visit(plain)
            elif tensor.requires_grad:
                self.pairs += [(leaf, leaf) for leaf in graph_of(tensor).leaves]
            return tensor

        # the value leads to parameters that a distribution does not show, of networks in its transforms
        map_parameters(visit, (fn, value), Tensor)

    def __call__(self, tensor: Tensor) -> Tensor:
        """The leaf that stands for a tensor; one without a gradient stands for itself."""
        if not tensor.requires_grad:
            return tensor
        leaf = self._leaves.get(id(tensor))
        if leaf is None:
            leaf = self._leaves[id(tensor)] = tensor.detach().requires_grad_()
            self.pairs.append((tensor, leaf))
        return leaf


class _Watch(Messenger):
    """Tells a guide's parameters from others while it runs."""

    def __init__(self, cuts: Cuts) -> None:
        super().__init__()
        self.cuts = cuts

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], Distribution) and not site_is_subsample(msg):
            self.cuts.keep(msg["fn"], msg["value"])
