"""Several processes: what a step of a loss does inside of torch's DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from pyro_silent.elbo.leaves import graph_of
from pyro_silent.errors import ConfigurationError
from pyro_silent.nn import TwinDecoder
from pyro_silent.schedules import Constant

_steps: list[dict[str, Any] | None] = []
"""The step that is being taken, if any: parameters that it has visited, by name, if it is a first one. A
module inside of another that takes a step leaves the work to it."""

_checked: MutableMapping[nn.Module, Any] = WeakKeyDictionary()
"""By module of a loss, the wrapper that it took its first step in."""


def in_processes(module: Any, step: Callable[[], Any]) -> Any:
    """The loss of a step; in a wrapper so that the wrapper's own backward pass succeeds.

    Torch's wrapper waits for a gradient of each of its parameters. Here each gets its turn, with or
    without a gradient, and the resting branch of a :class:`TwinDecoder` has none afterwards either, as in
    one process. The first step looks at the set-up of all processes, which communicates.

    :param module: the :class:`StatefulELBOModule` whose loss it is.
    :raises ConfigurationError: for a set-up in which processes would silently train different things.
    """
    ddp = DistributedDataParallel._get_active_ddp_module()
    if ddp is None or _steps or not (module.training and torch.is_grad_enabled()):
        return step()
    is_first = wrapper_of(module) is not ddp
    _steps.append({} if is_first else None)
    try:
        return _step(ddp, module, step)
    finally:
        _steps.pop()


def noted(step: Callable[[], Any]) -> Any:
    """The loss of a step, whose parameters are noted if it is a first one."""
    visited = _steps[-1] if _steps else None
    if visited is None:
        return step()
    with poutine.trace(param_only=True) as seen:
        loss = step()
    for name, site in seen.trace.nodes.items():
        if site["type"] == "param":
            # in a module it may be torch's own, which has no such attribute
            unconstrained = getattr(site["value"], "unconstrained", None)
            visited[name] = unconstrained() if unconstrained else site["value"]
    return loss


def wrapper_of(module: Any) -> DistributedDataParallel | None:
    """The wrapper that a module took its last step in."""
    wrapper: DistributedDataParallel | None = _checked[module]() if module in _checked else None
    return wrapper


def _step(ddp: DistributedDataParallel, module: Any, step: Callable[[], Any]) -> Any:
    _check_join(ddp, module)
    parameters = [p for p in ddp.module.parameters() if p.requires_grad]
    visited = _steps[-1]
    if visited is not None:
        _check_alike(ddp, module)
    loss = step()
    if visited is not None:
        _check_known({**visited, **dict(ddp.module.named_parameters())}, set(parameters))
    _checked[module] = ref(ddp)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return loss
    resting = _resting(ddp, loss)
    if visited is not None and resting and ddp.static_graph and hasattr(module.elbo, "schedule"):
        raise ConfigurationError(
            "static_graph: got True, and the first step leaves a branch of a TwinDecoder at rest; "
            "DistributedDataParallel would never average the gradients of that branch. Leave it out."
        )
    return _EveryParameter.apply(loss, resting, *parameters)


def _resting(ddp: DistributedDataParallel, loss: Tensor) -> list[nn.Parameter]:
    """Parameters of twin decoders that a loss does not reach."""
    twins = [module for module in ddp.module.modules() if isinstance(module, TwinDecoder)]
    reached = set(graph_of(loss).leaves) if twins else set()
    parameters = {p: None for twin in twins for p in twin.parameters() if p.requires_grad}
    return [parameter for parameter in parameters if parameter not in reached]


class Steps:
    """What a :class:`torch.distributed.algorithms.Join` does for the steps of a loss.

    A process whose data end early counts no more steps; in the end all are at the largest count.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def main_hook(self) -> None:
        """Nothing: the wrapper's own hook stands in for the missing gradients."""

    def post_hook(self, is_last_joiner: bool) -> None:
        """Agree on the largest count."""
        count = torch.tensor(self.module.elbo.num_steps, device=self.module.join_device)
        torch.distributed.all_reduce(
            count, torch.distributed.ReduceOp.MAX, group=self.module.join_process_group
        )
        self.module.elbo.num_steps = int(count)


class _EveryParameter(torch.autograd.Function):
    """A loss whose backward pass comes by every parameter, with no gradient for it from here."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, resting: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.resting, ctx.num_parameters = resting, len(parameters)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        if ctx.resting:
            _at_end(lambda: _without_gradient(ctx.resting))
        return outer, None, *[None] * ctx.num_parameters


def _without_gradient(resting: Sequence[Tensor]) -> None:
    """Undo the zeros that the wrapper fills in at its end, which comes after this.

    An optimizer with momentum would follow them. A gradient from elsewhere, as when gradients are
    accumulated, is there already and stays.
    """
    parameters = [parameter for parameter in resting if parameter.grad is None]

    def clear() -> None:
        for parameter in parameters:
            parameter.grad = None

    _at_end(clear)


def _at_end(callback: Callable[[], None]) -> None:
    """Call at the end of this backward pass, after what is to be called there already."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)


# Set-ups that fail, and those that would not and should


def _check_known(visited: Mapping[str, Any], known: set[nn.Parameter]) -> None:
    for name, parameter in visited.items():
        if isinstance(parameter, Tensor) and parameter.requires_grad and parameter not in known:
            raise ConfigurationError(
                f"parameter {name!r}: got one that DistributedDataParallel does not know: each process "
                "would train its own; expected the parameters of the wrapped module. Call the loss once "
                "before it is wrapped, since autoguides make their parameters in the first call; hold "
                "parameters in modules (nn.Parameter, PyroParam), not in pyro.param; and write "
                "pyro.settings.set(module_local_params=True), or an older parameter of that name is used."
            )


def _check_alike(ddp: DistributedDataParallel, module: Any) -> None:
    """Compare the counts of steps.

    :raises ConfigurationError: unless they are equal.
    """
    group = ddp.process_group
    num_processes = torch.distributed.get_world_size(group)
    if ddp._join_config.enable:  # a process may have no data, and not be here
        return
    mine = torch.tensor(module.elbo.num_steps, device=ddp.device)
    gathered = [torch.empty_like(mine) for _ in range(num_processes)]
    torch.distributed.all_gather(gathered, mine, group=group)
    steps = [int(each) for each in gathered]
    if len(set(steps)) > 1:
        raise ConfigurationError(
            f"num_steps: got {steps} on the {num_processes} processes, expected one count, since weights "
            "and temperatures follow it. Load the state_dict on every process: DistributedDataParallel "
            "hands on parameters and buffers alone."
        )


def _check_join(ddp: DistributedDataParallel, module: Any) -> None:
    """Refuse uneven inputs where nobody keeps the counts of steps together."""
    config = getattr(module, "_join_config", ddp._join_config)
    is_joined = config is not ddp._join_config and config.enable
    if is_joined and config.is_first_joinable:
        raise ConfigurationError(
            "joinables: got the loss before its wrapper; write Join([ddp, elbo]), where ddp is the "
            "DistributedDataParallel and elbo the loss's module in it."
        )
    if ddp._join_config.enable and not is_joined and _follows_schedule(module.elbo):
        raise ConfigurationError(
            "join: got a DistributedDataParallel with uneven inputs and a loss with a schedule, whose "
            "steps would come apart. Write, with torch.distributed.algorithms.Join, "
            "Join([ddp, elbo]), where elbo is the loss's module; or drop the last batches."
        )


def _follows_schedule(loss: Any) -> bool:
    """Whether the number of steps matters to a loss."""
    estimator = getattr(loss, "estimator", None)
    for schedule in (getattr(loss, "schedule", None), getattr(estimator, "temperature", None)):
        if callable(schedule) and not isinstance(schedule, Constant):
            return True
    parts = (getattr(loss, name, None) for name in ("silent", "stochastic"))
    return any(_follows_schedule(part) for part in parts if part is not None)
