"""CompiledSVI: Pyro's SVI with the whole training step as one graph."""

from __future__ import annotations

import functools
from typing import Any

import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.util import torch_item, zero_grads
from torch import Tensor

from pyro_silent.capture.backend import Run, check_backend
from pyro_silent.capture.captures import Captures, CaptureStatistics
from pyro_silent.capture.inputs import Stale
from pyro_silent.capture.program import Program, as_tensors, parameters_of, run_once
from pyro_silent.capture.schedule import schedule_slots
from pyro_silent.capture.slots import Slot
from pyro_silent.capture.training_step import TrainingStep


class CompiledSVI(SVI):
    r"""Pyro's ``SVI`` with the whole training step as one compiled graph: loss, gradient and update.

    .. math:: (\theta, s) \leftarrow \mathrm{update}(\theta, s, \nabla_\theta \mathcal L(\theta, x))

    is one pure function of tensors (parameters, the optimizer's state s, the arguments x), so it is
    traced, compiled and replayed; Pyro's handlers and random tensors are gone from it. Of each kind of
    arguments (shapes, dtypes, devices, plain values) the first step runs as under ``SVI`` and sets things
    up, the second is watched, the third is traced and runs as well, and the graph must arrive where that
    step arrived; then it takes over. Steps equal those of ``SVI`` up to rounding, random numbers
    included: it suits every loss of static structure, exact or sampled.

    The param store and modules keep the parameters: what is read after a step is current, what is
    written between steps is used. Tensors are read where they are kept in every step (param store,
    modules, closures, globals, attributes), and Python values are compared with what they were; a change
    means another graph. A tensor whose values decide the structure (a mask) is compared by its values.

    What cannot be captured runs as under ``SVI``, with a :class:`CaptureWarning` that gives the reason:
    structure that depends on a parameter, a latent or a random number (``if z > 0``, ``.item()``),
    hooks on parameters, programs that change Python state in each step or draw from Python's or numpy's
    generators, steps inside of Pyro's handlers, JitTrace_ELBO.

    When it is wrong: the programs' Python code does not run in captured steps, so prints and logs fall
    silent. A value in an object that cannot be looked into (an iterator, an extension type, a closure
    inside another library) is taken as it was; if it changed from one step to the next, the comparison
    finds it, if only later, nothing does. Pyro's validation runs in uncaptured steps alone; a captured
    one warns after the fact where its loss is NaN. Where a quadrature or series has to be chosen by
    values, the graph keeps the choice and checks it in each step; a step where it is not good enough is
    taken eagerly.

    :param model: as in ``SVI``.
    :param guide: as in ``SVI``.
    :param optim: Pyro's Adam, AdamW, ClippedAdam and SGD, with clipping and schedulers of learning rates,
        are part of the graph; others run beside a compiled loss and gradient.
    :param loss: any loss.
    :param str backend: ``"inductor"`` compiles (5 to 20 seconds a graph, kept on disk by torch for the
        next process); ``"eager"`` runs the graph's operators one by one. Where there is no compiler the
        latter is done with a warning.
    :param str uncapturable: ``"warn"``, or ``"raise"`` for a :class:`CaptureError` where a step cannot be
        captured.
    :param int max_graphs: how many graphs there may be; further kinds of steps run eagerly.
    :raises ConfigurationError: for an argument that makes no sense.

    Cost: a replay is the compiled operators and some 30 microseconds for looking at what may have
    changed; ``examples/benchmarks/captured_step.py`` compares. Memory: that of a step, and while a step
    is traced a copy of the parameters and of the optimizer's state.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_silent import CompiledSVI, SilentELBO
        >>> def model(x, y):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)
        >>> pyro.clear_param_store()
        >>> adam = pyro.optim.Adam({"lr": 0.02})
        >>> svi = CompiledSVI(model, AutoNormal(model), adam, SilentELBO(), backend="eager")
        >>> x = torch.linspace(-1, 1, 50)
        >>> for _ in range(300):
        ...     loss = svi.step(x, 0.7 * x)
        >>> svi.statistics.graphs, svi.statistics.replays
        (1, 297)
        >>> round(pyro.param("AutoNormal.locs.slope").item(), 2)
        0.7
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        optim: Any,
        loss: Any,
        loss_and_grads: Any = None,
        *,
        backend: str = "inductor",
        uncapturable: str = "warn",
        max_graphs: int = 16,
        **kwargs: Any,
    ) -> None:
        check_backend(backend)
        super().__init__(model, guide, optim, loss, loss_and_grads, **kwargs)
        self.visited: dict[str, Tensor] = {}
        read = self.__getattribute__
        roots = {f"the {name}": (read, name) for name in ("model", "guide", "loss_object")}

        def slots() -> list[Slot]:
            return schedule_slots(self.loss_object)

        def captures(program: Any, eagerly: Any) -> Captures:
            make = functools.partial(program, self)
            limits = (backend, uncapturable, max_graphs)
            return Captures(roots, slots, make, eagerly, lambda: self.visited, *limits)

        self._steps = captures(TrainingStep, self._step)
        self._evaluations = captures(_Evaluation, self._evaluate)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a gradient step; returns the loss before it as a float, as Pyro does."""
        return self._steps(args, kwargs)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss as a float, without a gradient; captured by itself."""
        return self._evaluations(args, kwargs)

    @property
    def loss_object(self) -> Any:
        """The loss that counts steps; a function of one's own where there is no such object."""
        return getattr(self.loss_and_grads, "__self__", self.loss)

    @property
    def statistics(self) -> CaptureStatistics:
        """How many steps were taken by graphs, and how many were not and why."""
        return self._steps.statistics

    def _step(self, args: tuple, kwargs: dict) -> Any:
        """A step of Pyro's own, which notes the parameters it visits."""
        with poutine.trace(param_only=True) as capture:
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        self.visited = parameters_of(capture.trace)
        parameters = set(self.visited.values())
        self.optim(parameters)
        zero_grads(parameters)
        if isinstance(loss, tuple):
            return type(loss)(map(torch_item, loss))
        return torch_item(loss)

    def _evaluate(self, args: tuple, kwargs: dict) -> Any:
        """An evaluation of Pyro's own."""
        with poutine.trace(param_only=True) as capture:
            loss = super().evaluate_loss(*args, **kwargs)
        self.visited = parameters_of(capture.trace)
        return loss


class _Evaluation(Program):
    """The loss without gradients."""

    def __init__(self, svi: CompiledSVI, parameters: dict[str, Tensor]) -> None:
        super().__init__(parameters)
        self._svi = svi
        self.loss = svi.loss_object

    def constants(self) -> tuple:
        """Names and the loss."""
        return *super().constants(), self._svi.loss

    def check(self) -> None:
        """The loss is the same one."""
        if self.constants() != self._constants:
            raise Stale("the loss of the SVI object")

    def visited(self) -> dict[str, Tensor]:
        """The parameters of the last eager evaluation."""
        return self._svi.visited

    def operators(self, args: tuple, kwargs: dict) -> list[Tensor]:
        """The losses."""
        svi = self._svi
        with torch.no_grad():
            loss = run_once(
                lambda: svi.loss(svi.model, svi.guide, *args, **kwargs), self.parameters
            )
        self._kind = type(loss) if isinstance(loss, tuple) else None
        return as_tensors(loss) + self.asides()

    def expected(self, result: Any) -> list[Tensor]:
        """The losses."""
        return as_tensors(result)

    def replay(self, run: Run, inputs: list[Tensor]) -> Any:
        """The loss as a float."""
        with torch.no_grad():
            outputs = self.trusted(run(inputs))
        losses = [output.item() for output in outputs]
        return losses[0] if self._kind is None else self._kind(losses)
