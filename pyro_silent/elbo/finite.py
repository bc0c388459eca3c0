"""Overflow: an expectation that leaves the floating-point range is refused, not handed on."""

from __future__ import annotations

import math
from typing import Any

from pyro.infer.util import is_validation_enabled
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import Distribution, Transform

from pyro_silent.errors import IntractableError
from pyro_silent.random_tensor.program import is_cache, latents_of, random_tensors
from pyro_silent.random_tensor.tensor import RandomTensor


def check_finite(site: dict) -> None:
    """Refuse an exact term that is not finite although everything it was made from is.

    Under Pyro's validation only: one look at the site's sum. A NaN that came in is warned of.

    :raises IntractableError: naming the value and the dtype that may be too narrow.
    """
    if not is_validation_enabled():
        return
    total = site["log_prob_sum"].item()
    if math.isfinite(total):
        return
    arguments = [site[key] for key in ("fn", "value", "scale", "mask")]
    if not _all_finite(arguments):
        warn_if_nan(total, f"log_prob_sum at site '{site['name']}'")
        return
    random = [site["value"]] if isinstance(site["value"], RandomTensor) else []
    random += random_tensors(site["fn"])
    name, dtype = type(site["fn"]).__name__, site["log_prob"].dtype
    raise IntractableError(
        f"the expected log density of {name} is {total} although its inputs are finite: a moment "
        f"leaves the range of {dtype}, or the guide reaches where the density is zero. Use float64, "
        "smaller scales in the guide, or another prior.",
        operation=f"{name}.log_prob",
        latents=tuple(dict.fromkeys(latent for t in random for latent in latents_of(t))),
    )


def _all_finite(arguments: Any) -> bool:
    """Whether every plain tensor from which the arguments were computed is finite."""
    stack, seen = [arguments], set()
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, RandomTensor):
            if item._call is not None:
                stack += [item._call.args, item._call.kwargs]
            if item._source is not None:
                source = item._source
                stack += [source.mean, source.diagonal, source.factor]
        elif isinstance(item, Tensor):
            if item.is_floating_point() and not item.isfinite().all():
                return False
        elif isinstance(item, (Distribution, Transform)):
            stack += [value for key, value in vars(item).items() if not is_cache(key)]
        elif isinstance(item, (list, tuple)):
            stack += item
        elif isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, float) and not math.isfinite(item):
            return False
    return True
