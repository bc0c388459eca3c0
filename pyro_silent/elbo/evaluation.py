"""One evaluation of two losses on one run of the guide."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO, TraceGraph_ELBO
from torch import Tensor

from pyro_silent.elbo.blend import Gradients, gradients_of
from pyro_silent.elbo.cuts import Cuts
from pyro_silent.elbo.leaves import next_node_number
from pyro_silent.elbo.recorded_guide import RecordedGuide
from pyro_silent.elbo.subsamples import SharedSubsamples


class Evaluation(NamedTuple):
    """One run of the guide, ready for the parts.

    :ivar both: whether both parts run in a step.
    :ivar recorded: None where the guide runs anew for each part.
    :ivar state: the random state before the guide ran.
    """

    weight: float
    both: bool
    model: Any
    guide: Any
    recorded: RecordedGuide | None
    args: tuple
    kwargs: dict
    state: Any

    def guide_for_part(self) -> tuple[Any, Cuts]:
        """A guide for one part, and the leaves in which it collects that part's gradients."""
        cuts = Cuts()
        if self.recorded is not None:
            return self.recorded.replica(cuts), cuts
        return (cuts.watched(self.guide) if self.both else self.guide), cuts

    def subsamples(self) -> AbstractContextManager:
        """Inside, both parts see the same minibatches."""
        return SharedSubsamples() if self.both else nullcontext()


def value_and_gradients(part: ELBO, evaluation: Evaluation) -> tuple[Tensor, Gradients]:
    """One part's loss without its graph, and the gradients that the graph led to."""
    first = next_node_number()
    guide, cuts = evaluation.guide_for_part()
    loss = differentiable_loss(part, evaluation, guide)
    return loss.detach(), gradients_of(loss, cuts, first)


def differentiable_loss(part: ELBO, evaluation: Evaluation, guide: Any) -> Tensor:
    """One part's loss as a tensor with its graph."""
    model, args, kwargs = evaluation.model, evaluation.args, evaluation.kwargs
    loss: Any
    if isinstance(part, TraceGraph_ELBO):  # it has this in place of differentiable_loss
        elbo, surrogate = part._loss_and_surrogate_loss(model, guide, args, kwargs)
        loss = surrogate + (-elbo - surrogate).detach()
    else:
        loss = part.differentiable_loss(model, guide, *args, **kwargs)
    return loss if isinstance(loss, Tensor) else torch.tensor(float(loss))
