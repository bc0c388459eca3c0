"""CompiledELBOModule: a loss and its gradient as one graph, for training loops of one's own."""

from __future__ import annotations

import functools
from typing import Any

import torch
from pyro import poutine
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn

from pyro_silent.capture.backend import Run, check_backend
from pyro_silent.capture.captures import Captures, CaptureStatistics
from pyro_silent.capture.program import Program, parameters_of, run_once
from pyro_silent.capture.schedule import count_step, schedule_slots
from pyro_silent.elbo.processes import in_processes
from pyro_silent.elbo.stateful_module import StatefulELBOModule
from pyro_silent.errors import CaptureError, ConfigurationError


class CompiledELBOModule(nn.Module):
    """What ``elbo(model, guide)`` returns, with loss and gradient as one compiled graph.

    For training loops of one's own, any optimizer of torch (``LBFGS`` too), and
    ``DistributedDataParallel``: a call gives the loss as a tensor, and its ``backward`` hands out
    gradients that the graph has found with it. They are first derivatives only. The conditions are those
    of :class:`CompiledSVI`; without gradients, or in ``eval()``, there is a graph of its own.

    :param ELBOModule module: such as ``SilentELBO()(model, guide)``; kept as :attr:`module`.
    :param str backend: see :class:`CompiledSVI`.
    :param str uncapturable: see :class:`CompiledSVI`.
    :param int max_graphs: see :class:`CompiledSVI`.
    :raises ConfigurationError: for an argument that makes no sense.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_silent import CompiledELBOModule, SilentELBO
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> guide = AutoNormal(model)
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> elbo = CompiledELBOModule(SilentELBO()(model, guide), backend="eager")
        >>> _ = elbo(x)  # makes the parameters
        >>> optimizer = torch.optim.LBFGS(guide.parameters(), line_search_fn="strong_wolfe")
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = elbo(x)
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(3):
        ...     _ = optimizer.step(closure)
        >>> round(guide.median()["mean"].item(), 3)
        1.5
    """

    def __init__(
        self,
        module: ELBOModule,
        *,
        backend: str = "inductor",
        uncapturable: str = "warn",
        max_graphs: int = 16,
    ) -> None:
        if not isinstance(module, ELBOModule):
            raise ConfigurationError(
                f"module: got {type(module).__name__}, expected what elbo(model, guide) returns, such as "
                "SilentELBO()(model, guide)."
            )
        check_backend(backend)
        super().__init__()
        self.module = module
        self.visited: dict[str, Tensor] = {}
        self._calls = Captures(
            {"the module": (self._modules.__getitem__, "module")},
            lambda: schedule_slots(module.elbo),
            functools.partial(_Gradient, self),
            self._call,
            lambda: self.visited,
            backend,
            uncapturable,
            max_graphs,
        )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a tensor; its ``backward`` hands out gradients that the graph has found."""
        loss: Tensor = in_processes(self.module, functools.partial(self._calls, args, kwargs))
        return loss

    @property
    def statistics(self) -> CaptureStatistics:
        """How many calls were answered by graphs, and how many were not and why."""
        return self._calls.statistics

    def _call(self, args: tuple, kwargs: dict) -> Any:
        with poutine.trace(param_only=True) as capture:
            loss = self.module(*args, **kwargs)
        self.visited = {**dict(self.module.named_parameters()), **parameters_of(capture.trace)}
        return loss


class _Gradient(Program):
    """The loss, and its gradient in all parameters if gradients are on."""

    def __init__(self, compiled: CompiledELBOModule, parameters: dict[str, Tensor]) -> None:
        super().__init__(parameters)
        self._compiled = compiled
        self._training = compiled.module.training and torch.is_grad_enabled()
        self._reached: list[int] = []
        self.loss = compiled.module.elbo

    def visited(self) -> dict[str, Tensor]:
        """The parameters of the last eager call."""
        return self._compiled.visited

    def _trained(self) -> list[Tensor]:
        """Each parameter once, if it takes a gradient."""
        parameters = {id(p): p for p in self.parameters.values() if p.requires_grad}
        return list(parameters.values()) if torch.is_grad_enabled() else []

    def operators(self, args: tuple, kwargs: dict) -> list[Tensor]:
        """The loss and the gradients."""
        loss = run_once(lambda: self._compiled.module(*args, **kwargs), self.parameters)
        loss = torch.as_tensor(loss)
        trained = self._trained()
        gradients = _gradients(loss, trained)
        self._reached = [i for i, gradient in enumerate(gradients) if gradient is not None]
        return [loss.detach(), *(g for g in gradients if g is not None), *self.asides()]

    def expected(self, result: Any) -> list[Tensor]:
        """Loss and gradients of an eager call, whose graph the user still needs."""
        result = torch.as_tensor(result)
        gradients = _gradients(result, self._trained())
        return [result.detach(), *(g for g in gradients if g is not None)]

    def replay(self, run: Run, inputs: list[Tensor]) -> Any:
        """The loss as a tensor with the gradients behind it."""
        trained = self._trained()
        parameters = [trained[i] for i in self._reached]
        with torch.no_grad():
            loss, *gradients = self.trusted(run(inputs))
        if self._training and isinstance(self._compiled.module, StatefulELBOModule):
            count_step(self.loss)
        return _Found.apply(loss, gradients, *parameters) if parameters else loss


def _gradients(loss: Tensor, parameters: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not parameters or not loss.requires_grad:
        return ()
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


class _Found(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        # parameters as well: torch sees whether they were written to before the backward pass
        ctx.save_for_backward(*gradients, *parameters)
        ctx.number = len(gradients)
        return loss.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise CaptureError(
                "a captured loss has first derivatives only, and create_graph=True asks for more; use "
                "the module that was captured."
            )
        return None, None, *(gradient * g for g in ctx.saved_tensors[: ctx.number])
