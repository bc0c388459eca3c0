"""The optimizers of Pyro's param store as parts of a graph."""

from __future__ import annotations

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.optim import is_scheduler
from torch import Tensor
from torch.optim import Optimizer

from pyro_silent.capture.slots import Slot
from pyro_silent.capture.updates import Update, settings_of, update_of
from pyro_silent.errors import CaptureError


class Updates:
    """One optimizer for each parameter, as Pyro makes them, and the numbers they need in each step.

    :param parameters: by name.
    :ivar numbers: an input of the graph: learning rates and the like, as of this step.
    """

    def __init__(self, optim: PyroOptim, parameters: dict[str, Tensor]) -> None:
        self._optim = optim
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._optimizers = [optimizer_of(optim, p) for p in self._parameters]
        self._rules = [_rule(optimizer) for optimizer in self._optimizers]
        self._groups = [optimizer.param_groups[0] for optimizer in self._optimizers]
        self._settings = [settings_of(group) for group in self._groups]
        self._known = [list(group.values()) for group in self._groups]
        self._moved = False
        self._states = [o.state.get(p, {}) for o, p in zip(self._optimizers, self._parameters)]
        self._counts = [
            (rule.before, group, state)
            for rule, group, state in zip(self._rules, self._groups, self._states)
            if rule.before is not None
        ]
        for parameter, state in zip(self._parameters, self._states):
            step = state.get("step")
            if isinstance(step, Tensor) and step.device != parameter.device:
                state["step"] = step.to(parameter.device)  # torch's Adam keeps it on the CPU
        self._values = self._values_now()
        device = self._parameters[0].device if self._parameters else None
        self.numbers = torch.tensor(self._values, dtype=torch.float64, device=device)

    @staticmethod
    def possible(optim: PyroOptim, parameters: dict[str, Tensor]) -> bool:
        """Whether every parameter's optimizer has a rule and nothing beside it."""
        return type(optim).__call__ in _PLAIN and all(
            parameter in optim.optim_objs
            and not parameter.is_complex()
            and update_of(optimizer_of(optim, parameter)) is not None
            for parameter in parameters.values()
        )

    def count(self) -> None:
        """What the optimizers do with plain numbers before an update; then the numbers of this one."""
        self._before = [(dict(g), s.get("step")) for _, g, s in self._counts]
        for count, group, state in self._counts:
            count(group, state)
        if self._counts or self._moved:
            self._moved = False
            self._values = values = self._values_now()
            self.numbers.copy_(torch.tensor(values, dtype=torch.float64), non_blocking=True)

    def uncount(self) -> None:
        """Take the last count back: that update did not happen."""
        for (_, group, state), (old, step) in zip(self._counts, self._before):
            group.update(old)
            state["step"] = step

    def _values_now(self) -> list[float]:
        return [
            value
            for rule, group, state in zip(self._rules, self._groups, self._states)
            for value in rule.numbers(group, state)
        ]

    def apply(self, gradients: list[Tensor], doubt: Tensor | None = None) -> None:
        """Update every parameter by its gradient, unless in doubt; part of the graph."""
        written = [*self._parameters]
        written += [t for s in self._states for t in s.values() if isinstance(t, Tensor)]
        before = [tensor.clone() for tensor in written]  # unused, and dropped, without a doubt
        parts = zip(self._parameters, gradients, self._rules, self._groups, self._states)
        for (parameter, gradient, rule, group, state), factors in zip(parts, self._factors()):
            clipped = _clip(gradient, **self._optim._get_grad_clip_args(parameter))
            rule.apply(parameter, clipped, state, group, factors)
        if doubt is not None:
            for tensor, value in zip(written, before):
                tensor.copy_(torch.where(doubt, value, tensor))

    def _factors(self) -> list[list[Tensor]]:
        """For each parameter what its rule multiplies with, in its dtype.

        They pass through a sum with zeros, which a compiler does not take into its loops over the
        elements of parameters: a power in double precision for each of them costs more than the step.
        """
        found, start = [], 0
        for rule, group, state in zip(self._rules, self._groups, self._states):
            end = start + len(rule.numbers(group, state))
            found.append(rule.factors(self.numbers[start:end].unbind(), state, group))
            start = end
        result: list[list[Tensor]] = [[] for _ in found]
        for dtype in {parameter.dtype for parameter in self._parameters}:
            mine = [i for i, p in enumerate(self._parameters) if p.dtype == dtype]
            values = torch.stack([f for i in mine for f in found[i]]).to(dtype)
            values = torch.cat([values[None], values.new_zeros(15, len(values))]).sum(0)
            factors = iter(values.unbind())
            for i in mine:
                result[i] = [next(factors) for _ in found[i]]
        return result

    def constants(self) -> list:
        """What the graph takes for granted: rules, settings, clipping."""
        clips = [self._optim._get_grad_clip_args(p) for p in self._parameters]
        return [*map(id, self._rules), *map(settings_of, self._groups), *clips]

    def changed(self) -> bool:
        """Whether a setting that is a constant of the graph has another value now."""
        for i, (group, known) in enumerate(zip(self._groups, self._known)):
            now = list(group.values())
            if now != known:
                if settings_of(group) != self._settings[i]:
                    return True
                self._known[i] = now
                self._moved = True
        return False

    def slots(self) -> list[Slot]:
        """The places of the optimizers' objects and of the tensors of their states."""
        slots = [Slot(self.__getattribute__, "numbers", self.numbers, "the optimizers' numbers")]
        for name, parameter, optimizer, state in zip(
            self._names, self._parameters, self._optimizers, self._states
        ):
            label = f"the optimizer of {name!r}"
            objects = self._optim.optim_objs
            slots.append(Slot(objects.__getitem__, parameter, objects[parameter], label))
            slots.append(Slot(optimizer.__getattribute__, "state", optimizer.state, label))
            if parameter in optimizer.state:
                slots.append(Slot(optimizer.state.__getitem__, parameter, state, label))
            for key, value in state.items():
                if isinstance(value, Tensor):
                    slots.append(Slot(state.__getitem__, key, value, f"{key} of {name!r}"))
        return slots


_PLAIN = (PyroOptim.__call__, PyroLRScheduler.__call__)
"""Calls that do nothing but step each parameter's optimizer."""


def optimizer_of(optim: PyroOptim, parameter: Tensor) -> Optimizer:
    """The optimizer of one parameter, without its scheduler."""
    optimizer = optim.optim_objs[parameter]
    return optimizer.optimizer if is_scheduler(optimizer) else optimizer


def _rule(optimizer: Optimizer) -> Update:
    rule = update_of(optimizer)
    if rule is None:
        raise CaptureError(f"there is no rule for {optimizer!r} as part of a graph")
    return rule


def _clip(
    gradient: Tensor, clip_norm: float | None = None, clip_value: float | None = None
) -> Tensor:
    """Pyro's clipping of one parameter's gradient."""
    if clip_norm is not None:
        norm = torch.linalg.vector_norm(gradient)
        gradient = gradient * (clip_norm / (norm + 1e-6)).clamp(max=1.0)
    if clip_value is not None:
        gradient = gradient.clamp(-clip_value, clip_value)
    return gradient
