"""Sources for the tests: a distribution as a function of unconstrained leaf parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

GAUSSIAN = ("normal", "mvn_covariance", "mvn_precision", "mvn_tril", "low_rank")
BINARY = ("bernoulli_probs", "bernoulli_logits")
KINDS = (*GAUSSIAN, *BINARY, "one_hot")


@dataclass
class Source:
    """Leaves that require gradients and the distribution built on them."""

    parameters: list[Tensor]
    build: Callable[..., dist.Distribution]

    def distribution(self) -> dist.Distribution:
        """Build the distribution anew, so that each gradient has its own graph."""
        return self.build(*self.parameters)


def _lower(raw: Tensor) -> Tensor:
    return raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())


def _symmetric(raw: Tensor) -> Tensor:
    return raw @ raw.mT + 0.5 * torch.eye(raw.shape[-1], dtype=raw.dtype)


def source(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0
) -> Source:
    """Source whose value has this shape; the last dim is the event where the family has one."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*size: int) -> Tensor:
        raw = 0.6 * torch.randn(size, generator=generator, dtype=torch.float64)
        return raw.to(dtype).requires_grad_()

    event = min(len(shape), 1)
    # torch's checks of matrices and simplices fail on a batch of none.
    check = None if 0 not in shape else False
    loc = leaf(*shape)
    if kind == "normal":
        return Source([loc, leaf(*shape)], lambda m, s: dist.Normal(m, s.exp()).to_event(event))
    if kind == "normal_plate":
        return Source([loc, leaf(*shape)], lambda m, s: dist.Normal(m, s.exp()))
    if kind == "normal_expanded":
        tail = shape[1:]
        return Source(
            [leaf(*tail), leaf(*tail)],
            lambda m, s: dist.Normal(m, s.exp()).to_event(len(tail)).expand(shape[:1]),
        )
    if kind == "mvn_expanded":
        tail = shape[-1:]
        return Source(
            [leaf(*tail), leaf(*tail, *tail)],
            lambda m, r: dist.MultivariateNormal(
                m, scale_tril=_lower(r), validate_args=check
            ).expand(shape[:-1]),
        )
    if kind == "mvn_covariance":
        return Source(
            [loc, leaf(*shape, shape[-1])],
            lambda m, r: dist.MultivariateNormal(
                m, covariance_matrix=_symmetric(r), validate_args=check
            ),
        )
    if kind == "mvn_precision":
        return Source(
            [loc, leaf(*shape, shape[-1])],
            lambda m, r: dist.MultivariateNormal(
                m, precision_matrix=_symmetric(r), validate_args=check
            ),
        )
    if kind == "mvn_tril":
        return Source(
            [loc, leaf(*shape, shape[-1])],
            lambda m, r: dist.MultivariateNormal(m, scale_tril=_lower(r), validate_args=check),
        )
    if kind == "low_rank":
        return Source(
            [loc, leaf(*shape, 2), leaf(*shape)],
            lambda m, f, d: dist.LowRankMultivariateNormal(m, f, d.exp(), validate_args=check),
        )
    if kind == "bernoulli_probs":
        return Source([loc], lambda r: dist.Bernoulli(probs=r.sigmoid()).to_event(event))
    if kind == "bernoulli_logits":
        return Source([loc], lambda r: dist.Bernoulli(logits=r).to_event(event))
    if kind == "bernoulli_plate":
        return Source([loc], lambda r: dist.Bernoulli(logits=r))
    if kind == "one_hot":
        return Source([loc], lambda r: dist.OneHotCategorical(logits=r, validate_args=check))
    if kind == "one_hot_probs":
        return Source(
            [loc], lambda r: dist.OneHotCategorical(probs=r.softmax(-1), validate_args=check)
        )
    if kind.startswith("categorical"):
        cardinality = int(kind.removeprefix("categorical"))
        return Source(
            [leaf(*shape, cardinality)], lambda r: dist.Categorical(logits=r, validate_args=check)
        )
    raise ValueError(f"no source named {kind}")
