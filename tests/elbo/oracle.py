"""The ELBO of any pair whose log densities are quadratic in Gaussian latents, by plain Pyro traces.

Every scalar Gaussian latent takes the values ``mean +- standard deviation`` with probability 1/2,
which integrates polynomials of degree up to three exactly; a discrete latent takes all its values.
Guide and model run once per joint value under Pyro's own handlers. Differentiable, exponential, and
knows nothing of random tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch import distributions as td


class _Choose(Messenger):
    """Gives each latent of a guide the value that is next among the choices; multiplies weights."""

    def __init__(self, choices: Sequence[int] | None) -> None:
        super().__init__()
        self.choices = None if choices is None else iter(choices)
        self.sizes: list[int] = []
        self.weight: Tensor | float = 1.0

    def _next(self, count: int, size: int) -> list[int]:
        self.sizes += [size] * count
        return [0 if self.choices is None else next(self.choices) for _ in range(count)]

    def _pyro_sample(self, msg: dict) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or type(fn).__name__ == "_Subsample":
            return
        base = fn
        while isinstance(base, td.Independent):
            base = base.base_dist
        if isinstance(base, (td.Normal, td.MultivariateNormal, td.LowRankMultivariateNormal)):
            picks = self._next(base.loc.numel(), 2)
            noise = (2.0 * torch.tensor(picks) - 1.0).to(base.loc.dtype).reshape(base.loc.shape)
            if isinstance(base, td.Normal):
                msg["value"] = base.loc + base.scale * noise
            else:
                root = base.scale_tril.expand(noise.shape + noise.shape[-1:])
                msg["value"] = base.loc + (root @ noise.unsqueeze(-1)).squeeze(-1)
            self.weight = self.weight * 0.5 ** len(picks)
        else:
            support = base.enumerate_support(expand=False)
            picks = self._next(base.batch_shape.numel(), len(support))
            msg["value"] = support[picks].reshape(base.batch_shape + base.event_shape)
            self.weight = self.weight * base.log_prob(msg["value"]).exp().prod()
        msg["done"] = True


def negative_elbo(model: Callable, guide: Callable, limit: int = 5000) -> Tensor:
    """-ELBO by summation over all joint values.

    :raises ValueError: if there are more than ``limit`` of them.
    """

    def run(choices: Sequence[int] | None) -> tuple[_Choose, poutine.Trace]:
        chooser = _Choose(choices)
        with chooser:
            trace = poutine.trace(guide).get_trace()
        return chooser, trace

    sizes = run(None)[0].sizes
    count = int(torch.tensor(sizes).prod()) if sizes else 1
    if count > limit:
        raise ValueError(f"{count} joint values")
    total: Tensor | float = 0.0
    for choices in itertools.product(*(range(size) for size in sizes)):
        chooser, guide_trace = run(choices)
        model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace()
        total = total - chooser.weight * (model_trace.log_prob_sum() - guide_trace.log_prob_sum())
    return total
