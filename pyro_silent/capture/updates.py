"""What an optimizer does to one parameter, as operators on plain tensors: a table by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor
from torch.optim import Optimizer

Numbers = Sequence[Tensor]
Apply = Callable[[Tensor, Tensor, dict, dict, Numbers], None]


class Update(NamedTuple):
    r"""An optimizer's rule for one parameter.

    :ivar numbers: the plain numbers that the graph needs, as they are in this step.
    :ivar factors: what the update multiplies with, found from these in double precision, in the graph.
    :ivar apply: the update in the graph: ``apply(parameter, gradient, state, group, factors)`` writes to
        the parameter and to the tensors of its state. Every other setting of the group is a constant.
    :ivar before: what the optimizer does with plain numbers before each update, outside of the graph.
    """

    numbers: Callable[[dict, dict], tuple[float, ...]]
    factors: Callable[[Numbers, dict, dict], list[Tensor]]
    apply: Apply
    before: Callable[[dict, dict], None] | None = None


def update_of(optimizer: Optimizer) -> Update | None:
    """The rule of an optimizer's class, if it has one for these settings; not of subclasses."""
    rule = _RULES.get(type(optimizer))
    if rule is None or len(optimizer.param_groups) != 1:
        return None
    group = optimizer.param_groups[0]
    if len(group["params"]) != 1 or any(isinstance(value, Tensor) for value in group.values()):
        return None
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return None if any(hooks) else rule


def settings_of(group: dict) -> dict:
    """The settings of a parameter group that are constants of a graph."""
    constants = {key: value for key, value in group.items() if key not in _NUMBERS}
    return {**constants, "has momentum": bool(group.get("momentum"))}


_NUMBERS = ("params", "lr", "betas", "momentum", "initial_lr")
"""What schedulers move, which the graph reads anew in each step, and what no update reads."""


def _adams_numbers(group: dict, state: dict) -> tuple[float, ...]:
    return (group["lr"], *group["betas"])


def _clipped_adams_numbers(group: dict, state: dict) -> tuple[float, ...]:
    return (group["lr"], *group["betas"], float(state["step"]))


def _decay(group: dict, state: dict) -> None:
    group["lr"] *= group["lrd"]
    state["step"] += 1


def _sgds_numbers(group: dict, state: dict) -> tuple[float, ...]:
    return group["lr"], group["momentum"]


def _adams_factors(numbers: Numbers, state: dict, group: dict) -> list[Tensor]:
    rate, beta1, beta2 = numbers
    step = (state["step"] + 1).to(rate.dtype)
    size, root = rate / (1 - beta1**step), (1 - beta2**step).sqrt()
    return [1 - beta1, beta2, 1 - beta2, size, root, 1 - rate * group["weight_decay"]]


def _adam(parameter: Tensor, gradient: Tensor, state: dict, group: dict, factors: Numbers) -> None:
    new, old_square, new_square, size, root, decay = factors
    if group["maximize"]:
        gradient = -gradient
    if group["weight_decay"]:
        if group.get("decoupled_weight_decay"):
            parameter.mul_(decay)
        else:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
    state["step"].add_(1)
    first, second = state["exp_avg"], state["exp_avg_sq"]
    first.lerp_(gradient, new)
    second.mul_(old_square).add_(new_square * gradient * gradient)
    if group["amsgrad"]:
        largest = state["max_exp_avg_sq"]
        largest.copy_(torch.maximum(largest, second))
        second = largest
    parameter.sub_(size * (first / (second.sqrt() / root + group["eps"])))


def _clipped_adams_factors(numbers: Numbers, state: dict, group: dict) -> list[Tensor]:
    rate, beta1, beta2, step = numbers
    size = rate * (1 - beta2**step).sqrt() / (1 - beta1**step)
    return [beta1, 1 - beta1, beta2, 1 - beta2, size]


def _clipped_adam(
    parameter: Tensor, gradient: Tensor, state: dict, group: dict, factors: Numbers
) -> None:
    old, new, old_square, new_square, size = factors
    gradient = gradient.clamp(-group["clip_norm"], group["clip_norm"])
    if group["weight_decay"] != 0:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
    first, second = state["exp_avg"], state["exp_avg_sq"]
    first.mul_(old).add_(new * gradient)
    deviation = gradient - first if group["centered_variance"] else gradient
    second.mul_(old_square).add_(new_square * deviation * deviation)
    parameter.sub_(size * (first / (second.sqrt() + group["eps"])))


def _sgds_factors(numbers: Numbers, state: dict, group: dict) -> list[Tensor]:
    return [*numbers]


def _sgd(parameter: Tensor, gradient: Tensor, state: dict, group: dict, factors: Numbers) -> None:
    rate, momentum = factors
    if group["maximize"]:
        gradient = -gradient
    if group["weight_decay"] != 0:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
    if group["momentum"] != 0:
        buffer = state["momentum_buffer"]
        buffer.mul_(momentum).add_(gradient, alpha=1 - group["dampening"])
        gradient = gradient + momentum * buffer if group["nesterov"] else buffer
    parameter.sub_(rate * gradient)


_RULES: dict[Any, Update] = {
    torch.optim.Adam: Update(_adams_numbers, _adams_factors, _adam),
    torch.optim.AdamW: Update(_adams_numbers, _adams_factors, _adam),
    torch.optim.SGD: Update(_sgds_numbers, _sgds_factors, _sgd),
    ClippedAdam: Update(_clipped_adams_numbers, _clipped_adams_factors, _clipped_adam, _decay),
}
