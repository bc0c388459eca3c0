"""Losses that take class indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pyro_silent.discrete_sample.dispatch import refused
from pyro_silent.discrete_sample.sample import DiscreteSample
from pyro_silent.discrete_sample.table import INTEGRAL_RULES, rule

_PLAIN = {
    "weight": None,
    "size_average": None,
    "ignore_index": -100,
    "reduce": None,
    "label_smoothing": 0.0,
}


@rule("nll_loss", "cross_entropy", table=INTEGRAL_RULES)
def class_loss(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``-log p[z]`` for classes along dim 1, without class weights or smoothing."""
    names = ["input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction"]
    bound = dict(zip([*names, "label_smoothing"], args)) | kwargs
    reduction = bound.pop("reduction", "mean")
    scores: Tensor = bound.pop("input")
    target = bound.pop("target")
    if type(scores) is DiscreteSample or any(_PLAIN[key] != arg for key, arg in bound.items()):
        raise refused(func, args, kwargs)
    dim = 1 if scores.dim() > 1 else 0
    if func is F.cross_entropy:
        scores = scores.log_softmax(dim)
    loss = -scores.gather(dim, target.unsqueeze(dim)).squeeze(dim)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.mean()
