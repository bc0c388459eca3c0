"""What each of two processes does for tests/test_ddp.py: ``python -m tests.ddp_programs RANK FOLDER``."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel as DDP

from pyro_silent import (
    AnnealedELBO,
    CompiledELBOModule,
    GumbelRaoELBO,
    Linear,
    SilentELBO,
    TwinDecoder,
)
from pyro_silent.elbo import processes

WORLD = 2
ROWS, DATA, CODE, GROUPS = 8, 3, 2, 3
STEPS, HALF = 8, 3
FADE = Linear(1.0, 0.0, num_steps=2, hold=2)  # weights 1, 1, 1, 1/2, 0, ...


def data(num_rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_rows, DATA, generator=generator, dtype=torch.float64)


# Programs, as modules


class Guide(PyroModule):
    """An amortized Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(DATA, 2 * CODE)

    def forward(self, x: Tensor, size: int | None = None) -> None:
        loc, width = self.encoder(x).chunk(2, -1)
        with rows(x, size):
            pyro.sample("z", dist.Normal(loc, width.exp()).to_event(1))


class Twins(PyroModule):
    """Twin decoders, each with a learned noise."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = TwinDecoder(Branch(0.7), Branch(0.4))

    def forward(self, x: Tensor, size: int | None = None) -> None:
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(x.new_zeros(CODE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(*self.decoder(z)).to_event(1), obs=x)


class Branch(nn.Module):
    """A linear decoder, so that each of the twins has an exact loss."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(CODE, DATA)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(z), self.scale


class Regression(PyroModule):
    """Global coefficients, effects of groups and a noise; a local latent for each row."""

    def forward(self, x: Tensor, size: int | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(DATA - 1), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(x.new_zeros(()), 0.5))
        with pyro.plate("groups", GROUPS):
            effect = pyro.sample("effect", dist.Normal(0.0, 2.0))
        group = (x[:, 0] > 0).long() + (x[:, 0] > 1).long()
        with rows(x, size):
            loc = x[:, 1:] @ slope + effect[group]
            pyro.sample("y", dist.Normal(loc, noise), obs=x[:, 0])


class Methods(nn.Module):
    """Model and guide are methods of one module, which calls pyro.module; it has idle parameters too."""

    def __init__(self, loss: Any = None) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(DATA, CODE), nn.Linear(CODE, DATA)
        self.idle = nn.Linear(2, 2)
        self.elbo = (loss or SilentELBO())(self.model, self.guide)

    def model(self, x: Tensor, size: int) -> None:
        pyro.module("methods", self)
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(x.new_zeros(CODE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor, size: int) -> None:
        pyro.module("methods", self)
        with rows(x, size):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.3).to_event(1))

    def forward(self, x: Tensor, size: int) -> Tensor:
        loss: Tensor = self.elbo(x, size)
        return loss


def rows(x: Tensor, size: int | None) -> Any:
    """A plate of these rows, of ``size`` in all."""
    return pyro.plate("rows", len(x) if size is None else size, subsample_size=len(x))


def vae(loss: Any = None) -> Any:
    torch.manual_seed(0)
    return (loss or SilentELBO())(Twins(), Guide())


def regression(make: Callable = AutoNormal) -> Any:
    torch.manual_seed(0)
    model = Regression()
    module = SilentELBO()(model, make(model))
    module.eval()
    module(data(), ROWS)  # makes the guide's parameters, and counts no step
    return module.train()


def annealed(**kwargs: Any) -> AnnealedELBO:
    """A loss without random numbers, whose two parts train one decoder each."""
    return AnnealedELBO(SilentELBO(), SilentELBO(), FADE, **kwargs)


PROGRAMS = {
    "vae": vae,
    "annealed": lambda: vae(AnnealedELBO(SilentELBO(), SilentELBO(), 0.3)),
    "regression, AutoNormal": regression,
    "regression, AutoMultivariateNormal": lambda: regression(AutoMultivariateNormal),
}


# One process or several


def trained(module: Any, optimizer: Any, x: Tensor, start: int, stop: int) -> list[float]:
    """Train on these rows; the losses."""
    losses = []
    for _ in range(start, stop):
        optimizer.zero_grad()
        loss = module(x, ROWS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.05)


def run(
    rank: int | None,
    module: Any,
    start: int = 0,
    stop: int = STEPS,
    checkpoint: Path | None = None,
    keep: Path | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Train from a checkpoint, if there is one; ``rank`` is None in one process alone."""
    x = data() if rank is None else data()[rank::WORLD]
    if checkpoint is not None:
        saved = torch.load(checkpoint)
        module.load_state_dict(saved["module"])
    wrapped = module if rank is None else DDP(module, **kwargs)
    optimizer = adam(wrapped)
    if checkpoint is not None:
        optimizer.load_state_dict(saved["optimizer"])
    losses = trained(wrapped, optimizer, x, start, stop)
    if keep is not None and not rank:
        state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, keep)
    return {"parameters": values(module), "losses": losses, "steps": module.elbo.num_steps}


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {
        name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()
    }


def backward(module: Any, *args: Any) -> dict[str, Tensor | None]:
    module.zero_grad()
    module(*args).backward()
    return gradients(module.module if isinstance(module, DDP) else module)


# The checks: each returns something to be looked at by a test

CHECKS: dict[str, Callable[[int, Path], Any]] = {}


def check(function: Callable[[int, Path], Any]) -> Callable[[int, Path], Any]:
    CHECKS[function.__name__] = function
    return function


@check
def gradient(rank: int, folder: Path) -> Any:
    """By program: of both processes together, of one on the joint batch."""
    results = {}
    for name, make in PROGRAMS.items():
        module = make()
        joint = backward(copy.deepcopy(module), data(), 40)
        results[name] = backward(DDP(module), data()[rank::WORLD], 40), joint
    return results


@check
def gradient_without_size(rank: int, folder: Path) -> Any:
    """Wrong: each process takes its rows for all there are."""
    module = regression()
    joint = backward(copy.deepcopy(module), data(), ROWS)
    return backward(DDP(module), data()[rank::WORLD]), joint


@check
def gradient_of_uneven_minibatches(rank: int, folder: Path) -> Any:
    """Rows are scaled by total x processes / rows of the joint batch; 5 + 3 rows of 40."""
    share = data()[:5] if rank == 0 else data()[5:]
    module = regression()
    joint = backward(copy.deepcopy(module), data(), 40)
    ddp = DDP(module)
    wrong = backward(ddp, share, 40)
    right = backward(ddp, share, 40 * WORLD * len(share) // ROWS)
    return right, joint, wrong


@check
def gradient_of_a_wrapper(rank: int, folder: Path) -> Any:
    torch.manual_seed(0)
    with pyro.settings.context(module_local_params=False):
        module = Methods()
        joint = backward(module, data(), 40)
        ddp = DDP(module)
        for _ in range(2):
            ours = backward(ddp, data()[rank::WORLD], 40)
    return ours, joint


@check
def ends(rank: int, folder: Path) -> Any:
    """By options of the wrapper: both ends of the annealing, with a warm-up and without."""
    options: dict[str, dict[str, bool]] = {
        "as it is": {},
        "views": {"gradient_as_bucket_view": True},
        "search": {"find_unused_parameters": True},
        "static": {"static_graph": True},
    }
    return {
        (name, warm_up): run(rank, vae(annealed(silent_warm_up=warm_up)), **kwargs)
        for name, kwargs in options.items()
        for warm_up in (False, True)
        if name != "static" or not warm_up
    }


@check
def static_warm_up(rank: int, folder: Path) -> Any:
    """Torch takes the branch that rests in the first step for one that always does."""
    return run(rank, vae(annealed(silent_warm_up=True)), static_graph=True)


@check
def resting_gradients(rank: int, folder: Path) -> Any:
    """Names of the parameters without a gradient after each step."""
    module = vae(annealed(silent_warm_up=True))
    ddp, names = DDP(module), []
    for _ in range(6):
        found = backward(ddp, data()[rank::WORLD], ROWS)
        names.append([name for name, gradient in found.items() if gradient is None])
    return names


@check
def accumulated(rank: int, folder: Path) -> Any:
    """Gradients of the last blended step and the first at weight 0, added up."""

    def added(module: Any, x: Tensor) -> dict[str, Tensor | None]:
        for step in range(5):
            if step < 4:
                module.zero_grad()
            with module.no_sync() if isinstance(module, DDP) and step == 3 else nullcontext():
                module(x, ROWS).backward()
        return gradients(module.module if isinstance(module, DDP) else module)

    module = vae(annealed())
    joint = added(copy.deepcopy(module), data())
    return added(DDP(module), data()[rank::WORLD]), joint


@check
def captured(rank: int, folder: Path) -> Any:
    """Graphs in the wrapper: of an autoguide, and through both ends of the annealing."""
    results = {}
    for name, module in (
        ("regression", regression()),
        ("annealed", vae(annealed())),
        ("warm-up", vae(annealed(silent_warm_up=True))),
    ):
        graphs = CompiledELBOModule(module, backend="eager")
        ddp = DDP(graphs)
        trained(ddp, adam(ddp), data()[rank::WORLD], 0, STEPS)
        found = {"parameters": values(module), "steps": module.elbo.num_steps}
        results[name] = {**found, "replays": graphs.statistics.replays}
    return results


@check
def ends_without_turns(rank: int, folder: Path) -> Any:
    """Planted: the wrapper's own behaviour."""
    with mock.patch.object(processes._EveryParameter, "apply", lambda loss, *_: loss):
        return run(rank, vae(annealed()))


@check
def ends_with_zeros(rank: int, folder: Path) -> Any:
    """Planted: zeros of the wrapper for a resting branch are left to the optimizer."""
    with mock.patch.object(processes, "_without_gradient", lambda resting: None):
        return run(rank, vae(annealed()))


@check
def resumed(rank: int, folder: Path) -> Any:
    """Two processes go on with what one has begun, and begin what one goes on with."""
    run(rank, vae(annealed()), 0, HALF, keep=folder / "two.pt")
    return run(rank, vae(annealed()), HALF, STEPS, folder / "one.pt")


@check
def stochastic(rank: int, folder: Path) -> Any:
    """Replicas and their counts of steps, where each process draws numbers of its own."""
    results = []
    for loss in (
        AnnealedELBO(SilentELBO(), Trace_ELBO(), FADE),
        GumbelRaoELBO(temperature=Linear(1.0, 0.5, num_steps=5)),
    ):
        module = vae(loss)
        torch.manual_seed(100 + rank)
        results.append(run(rank, module))
    return results


@check
def lazy(rank: int, folder: Path) -> Any:
    """An autoguide that makes its parameters in the first step of the wrapper."""

    class Scaled(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

        def forward(self, x: Tensor, size: int | None = None) -> None:
            with poutine.scale(scale=self.scale):
                super().forward(x, size)

    model = Scaled()
    return run(rank, SilentELBO()(model, AutoNormal(model)), 0, 1)


@check
def in_param_store(rank: int, folder: Path) -> Any:
    """A parameter that no module holds."""

    class Stored(Guide):
        def forward(self, x: Tensor, size: int | None = None) -> None:
            with poutine.scale(scale=pyro.param("stored", torch.tensor(1.0))):
                super().forward(x, size)

    pyro.clear_param_store()
    with pyro.settings.context(module_local_params=False):
        return run(rank, SilentELBO()(Twins(), Stored()), 0, 1)


@check
def older_parameter(rank: int, folder: Path) -> Any:
    """A second model whose names are in the param store already."""
    pyro.clear_param_store()
    with pyro.settings.context(module_local_params=False):
        vae()(data())
        return run(rank, vae(), 0, 1)


@check
def loaded_on_one(rank: int, folder: Path) -> Any:
    module = vae(annealed())
    if rank == 0:
        module.elbo.num_steps = 5
    return run(rank, module, 0, 1)


@check
def uneven(rank: int, folder: Path) -> Any:
    """Counts of steps where one process has two batches more than the other."""
    module = vae(annealed())
    ddp = DDP(module)
    optimizer = adam(ddp)
    with quiet(), Join([ddp, module], divide_by_initial_world_size=False):
        trained(ddp, optimizer, data()[rank::WORLD], 0, 3 + 2 * rank)
    uneven_steps = module.elbo.num_steps
    with quiet(), Join([ddp, module]):
        trained(ddp, optimizer, data()[rank::WORLD], 0, 2)
    return {"parameters": values(module), "steps": (uneven_steps, module.elbo.num_steps)}


@check
def uneven_wrapper(rank: int, folder: Path) -> Any:
    """The same, where the loss's module has no parameters."""
    pyro.clear_param_store()
    with pyro.settings.context(module_local_params=False):
        module = Methods(GumbelRaoELBO(temperature=Linear(1.0, 0.5, num_steps=5)))
        ddp = DDP(module)
        with quiet(), Join([ddp, module.elbo]):
            trained(ddp, adam(ddp), data()[rank::WORLD], 0, 2 + rank)
    return module.elbo.elbo.num_steps


@check
def uneven_without_the_loss(rank: int, folder: Path) -> Any:
    ddp = DDP(vae(annealed()))
    with quiet(), ddp.join():
        trained(ddp, adam(ddp), data()[rank::WORLD], 0, 3)


@check
def uneven_with_the_loss_first(rank: int, folder: Path) -> Any:
    module = vae(annealed())
    ddp = DDP(module)
    with quiet(), Join([module, ddp]):
        trained(ddp, adam(ddp), data()[rank::WORLD], 0, 3)


@check
def uneven_without_a_schedule(rank: int, folder: Path) -> Any:
    module = vae()
    ddp = DDP(module)
    with quiet(), ddp.join():
        trained(ddp, adam(ddp), data()[rank::WORLD], 0, 3 + rank)
    return values(module)


@check
def looked_at(rank: int, folder: Path) -> Any:
    """Counts of steps after evaluations, and after one step."""
    module = vae(annealed())
    ddp = DDP(module)
    with torch.no_grad():
        ddp(data(), ROWS)
    ddp.eval()
    ddp(data(), ROWS)
    before = module.elbo.num_steps
    ddp.train()
    backward(ddp, data()[rank::WORLD], ROWS)
    return before, module.elbo.num_steps, len(copy.deepcopy(module).state_dict())


@contextmanager
def quiet() -> Iterator[None]:
    """Torch's Join changes the filters of warnings."""
    with warnings.catch_warnings():
        yield


def main(rank: int, folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    pyro.settings.set(module_local_params=True)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=180),
    )
    results: dict[str, Any] = {}
    for name, function in CHECKS.items():
        torch.distributed.barrier()
        try:
            results[name] = function(rank, folder)
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    torch.save(results, folder / f"results{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
