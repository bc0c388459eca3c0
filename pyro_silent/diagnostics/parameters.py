"""Which parameters a guide and a model have, and which of the two each belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from torch import Tensor, nn

from pyro_silent.diagnostics.gradient_sampler import Programs, params_of
from pyro_silent.nn import watched_twins


class Parameters(NamedTuple):
    """The parameters of a model and a guide.

    :ivar groups: "guide", "model" or both by the parameter's name; "baseline" for those of networks that
        a guide gives to ``TraceGraph_ELBO``, whose gradient is that of a regression of their own.
    :ivar have_twins: whether a :class:`TwinDecoder` was called.
    """

    groups: dict[str, set[str]]
    have_twins: bool


def find_parameters(programs: Programs, found: Callable[[Tensor], None]) -> Parameters:
    """Run guide and model once on samples, which creates their parameters, and tell them apart.

    "guide" are parameters that the guide's draws or log densities depend on; "model" those that the
    model's log densities depend on when draws are held fixed, and those that nothing depends on (the
    branch of a twin that does not run). A parameter may be both. Being registered says little: one
    module often holds encoder and decoder.

    :param found: called with every parameter.
    """
    model, guide, args, kwargs, _ = programs
    with poutine.trace(param_only=True) as capture, watched_twins() as twins:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        messenger = poutine.unwrap(guide)
        if isinstance(messenger, GuideMessenger):  # its trace is the model's as well
            _, guide_trace = messenger.get_traces()
        of_guide = _roots(guide_trace)
        held = guide_trace.copy()
        held.detach_()
        model_trace = poutine.trace(poutine.replay(model, trace=held)).get_trace(*args, **kwargs)
    parameters = params_of(capture)
    for parameter in parameters.values():
        found(parameter)
    reached_by_guide = _reached(of_guide, parameters)
    reached_by_model = _reached(_roots(model_trace), parameters)
    groups = {
        name: ({"guide"} if name in reached_by_guide else set())
        | ({"model"} if name in reached_by_model or name not in reached_by_guide else set())
        for name in parameters
    }
    of_baselines = {id(parameter) for parameter in _baseline_parameters(guide_trace)}
    groups |= {name: {"baseline"} for name, p in parameters.items() if id(p) in of_baselines}
    return Parameters(groups, bool(twins))


def _baseline_parameters(guide_trace: Trace) -> Iterator[Tensor]:
    """Of the networks in ``infer={"baseline": {"nn_baseline": ...}}``."""
    for site in guide_trace.nodes.values():
        if site["type"] == "sample":
            network = site["infer"].get("baseline", {}).get("nn_baseline")
            if isinstance(network, nn.Module):
                yield from network.parameters()


def _roots(trace: Trace) -> list[Tensor]:
    """Values and log densities of a trace that depend on something."""
    roots: list[Any] = []
    for site in trace.nodes.values():
        if site["type"] == "sample":
            # a density that fails here fails in the losses, which say so
            try:
                roots.append(site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"]))
            except Exception:
                continue
            if not site["is_observed"]:
                roots.append(site["value"])
    return [root for root in roots if isinstance(root, Tensor) and root.requires_grad]


def _reached(roots: list[Tensor], parameters: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that a trace depends on."""
    candidates = {name: p for name, p in parameters.items() if p.requires_grad}
    if not roots or not candidates:
        return set()
    gradients = torch.autograd.grad(
        [root.sum() for root in roots],
        list(candidates.values()),
        allow_unused=True,
        retain_graph=True,  # a guide that runs the model has one graph for both
    )
    return {name for name, gradient in zip(candidates, gradients) if gradient is not None}
