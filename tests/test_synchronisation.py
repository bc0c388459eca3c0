"""A step waits for its device once, when the loss is read.

Without a GPU the tensors of the CPU are declared to be far away: every look at a value would then stop
the program until the device has caught up, and is counted. Where there is a GPU, torch's own watch over
synchronisation is asked as well.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_silent import (
    AnnealedELBO,
    DisARMELBO,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    SilentELBO,
    looking,
)
from tests.devices import here
from tests.elbo.test_example_models import CASES, case

_LOOKS = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2",
    "unique_dim", "unique_consecutive",
}  # fmt: skip


class Looks(TorchDispatchMode):
    """Notes every operation that would wait for a device, with where it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in _LOOKS or _is_masked(name, args):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def _is_masked(name: str, args: tuple) -> bool:
    """Whether an index is a mask, whose entries must be counted; one number is written without."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    if name != "index" and args[2].numel() == 1:
        return False
    masks = (torch.bool, torch.uint8)
    return any(isinstance(index, Tensor) and index.dtype in masks for index in args[1])


class Copies(TorchFunctionMode):
    """Notes tensors made of numbers, which come from the CPU, and lists made of tensors.

    Only the package's own: torch's distributions make tensors of a program's numbers.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        place = sys._getframe(1)
        where = f"{func.__name__} in {place.f_code.co_filename}:{place.f_lineno}"
        if func is Tensor.tolist or func is Tensor.numpy:
            self.seen.append(where)
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            # without a device, or named on the CPU, it stays where it is
            stays = isinstance(kwargs.get("device"), str | None)
            if not stays and "/torch/" not in where:
                self.seen.append(where)
        return func(*args, **kwargs)


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_is_near", lambda device: False)


def looks_of(run: Callable[[], Any]) -> list[str]:
    """What was looked at after the first two runs."""
    with pyro.validation_enabled(False):
        run()
        run()  # with what was remembered, for the first time
        with Looks() as looks, Copies() as copies:
            run()
    return looks.seen + copies.seen


def steps_of(elbo: Any, model: Any, guide: Any, *args: Any) -> Callable[[], float]:
    return lambda: elbo.loss_and_grads(model, guide, *args)


@pytest.mark.parametrize("family", ["AutoNormal", "AutoMultivariateNormal"])
@pytest.mark.parametrize("name", CASES)
def test_a_step_of_an_example_reads_its_loss_alone(name, family, far_away):
    problem, guides, _ = case(name)
    guide = guides[family]()
    guide(*problem.data)
    looks = looks_of(steps_of(SilentELBO(), problem.model, guide, *problem.data))
    assert len(looks) == 1, looks


X, COUNTS = torch.linspace(-1, 1, 8), torch.tensor([0.0, 3, 0, 1, 2, 0, 5, 1])


def halves() -> None:
    z = pyro.sample("z", dist.HalfNormal(1.0))
    pyro.sample("x", dist.Normal(0.0, z).expand([8]).to_event(1), obs=X)


def counts(make: Callable[[Tensor], Any]) -> Callable[[], None]:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 8):
            pyro.sample("x", make(z), obs=COUNTS)

    return model


SITES: dict[str, Callable[[], None]] = {
    "half normal": halves,
    "negative binomial": counts(lambda z: dist.NegativeBinomial(3.0, logits=z)),
    "gamma poisson": counts(lambda z: dist.GammaPoisson(z.exp(), 2.0)),
    "zero inflated": counts(lambda z: dist.ZeroInflatedPoisson(z.exp(), gate=torch.tensor(0.3))),
    "student t": counts(lambda z: dist.StudentT(3.0, z, 1.0)),
    "cauchy": counts(lambda z: dist.Cauchy(z, z.exp())),
    "laplace": counts(lambda z: dist.Laplace(z, 1.0)),
    "gumbel": counts(lambda z: dist.Gumbel(z, 1.0)),
    "quadrature": counts(lambda z: dist.Normal(torch.tanh(z).square() * 2, 1.0)),
    "pareto": counts(lambda z: dist.Pareto(torch.tensor(0.1), z.exp())),
}


@pytest.mark.filterwarnings("ignore::pyro_silent.QuadratureWarning")
@pytest.mark.parametrize("name", SITES)
def test_a_step_of_each_kind_of_decision_reads_its_loss_alone(name, far_away):
    torch.set_default_dtype(torch.float64)
    model = SITES[name]
    guide = AutoDiagonalNormal(model) if name == "half normal" else AutoNormal(model)
    with pyro.validation_enabled(False):  # a Pareto has no density at 0
        guide()
    looks = looks_of(steps_of(SilentELBO(), model, guide))
    assert len(looks) == 1, looks


def vae(code: str) -> tuple[Any, Any]:
    decoder, encoder = nn.Linear(4, 6), nn.Linear(6, 4)
    laws = {
        "normal": lambda x: dist.Normal(x, 0.3).to_event(1),
        "bernoulli": lambda x: dist.Bernoulli(logits=x).to_event(1),
        "one hot": lambda x: dist.OneHotCategorical(logits=x),
    }

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("n", len(x)):
            z = pyro.sample("z", laws[code](x.new_zeros(len(x), 4)))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("n", len(x)):
            pyro.sample("z", laws[code](encoder(x)))

    return model, guide


# torch.multinomial looks at its probabilities: LeaveOneOutELBO on a one-hot code is not here
LOSSES = [
    (SilentELBO, "normal"), (SilentELBO, "bernoulli"), (SilentELBO, "one hot"),
    (GumbelRaoELBO, "bernoulli"), (GumbelRaoELBO, "one hot"),
    (LeaveOneOutELBO, "normal"), (LeaveOneOutELBO, "bernoulli"), (DisARMELBO, "bernoulli"),
]  # fmt: skip


def annealed(**kwargs: Any) -> AnnealedELBO:
    parts = (SilentELBO(**kwargs), LeaveOneOutELBO(**kwargs))
    return AnnealedELBO(*parts, 0.5, **kwargs)


LOSSES += [(annealed, "normal"), (annealed, "bernoulli")]


@pytest.mark.parametrize(("loss", "code"), LOSSES, ids=lambda v: getattr(v, "__name__", v))
def test_a_step_of_each_loss_reads_its_loss_alone(loss, code, far_away):
    model, guide = vae(code)
    x = torch.randn(5, 6)
    looks = looks_of(steps_of(loss(max_plate_nesting=1), model, guide, x))
    # a seed for the noise of the backward pass comes from the CPU's generator, whatever the device
    seeds = 1 if loss is GumbelRaoELBO else 0
    assert len(looks) == 1 + seeds, looks


def test_equal_scales_are_not_compared(monkeypatch):
    """Both terms are taken as they are, which is as exact as the closed divergence."""
    torch.set_default_dtype(torch.float64)
    model, guide = vae("normal")
    x, elbo = torch.randn(5, 6), SilentELBO()

    def scaled(program: Any) -> Any:
        return lambda x: poutine.scale(program, scale=torch.full((), 0.25))(x)

    run = steps_of(elbo, scaled(model), scaled(guide), x)
    if here().type == "cpu":
        assert "equal" in looks_of(run)
    expected = run()
    monkeypatch.setattr(looking, "_is_near", lambda device: False)
    assert len(looks_of(run)) == 1
    with pyro.validation_enabled(False):
        assert run() == pytest.approx(expected, rel=1e-12)


def test_a_loop_of_ones_own_reads_nothing(far_away):
    model, guide = vae("normal")
    module = SilentELBO()(model, guide)
    x = torch.randn(5, 6)
    assert looks_of(lambda: module(x).backward()) == []


def test_the_count_counts():
    """Pyro's validation looks, and so do losses then: at least once for each site."""
    model, guide = vae("normal")
    x = torch.randn(5, 6)
    with Looks() as looks:
        SilentELBO().loss_and_grads(model, guide, x)
    assert len(looks.seen) > 4
    with Looks() as looks, Copies() as copies:
        mask = x > 0
        assert bool(mask.any()) and len(x[mask])
        torch.tensor(1.0, device=x.device)
        x[mask] = 0.0
        assert x.sum().item() < 0
        x.tolist()
    assert looks.seen == ["_local_scalar_dense", "index", "_local_scalar_dense"]
    assert [seen.partition(" ")[0] for seen in copies.seen] == ["tensor", "tolist"]


def test_what_was_remembered_is_looked_at_again_when_it_does_not_hold_any_more(far_away):
    """A guide that gets wider needs more nodes: one step is off, the next is not."""
    torch.set_default_dtype(torch.float64)
    log_scale = pyro.param("log_scale", torch.tensor(-2.0))

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(3 * torch.tanh(2 * z).square(), 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.1, pyro.param("log_scale").exp()))

    elbo = SilentELBO(quadrature_points=8)
    with pyro.validation_enabled(False):
        for _ in range(2):
            elbo.loss_and_grads(model, guide)
        with torch.no_grad():
            log_scale += 2.5
        first, second, third = (elbo.loss_and_grads(model, guide) for _ in range(3))
        exact = SilentELBO(quadrature_points=8).loss_and_grads(model, guide)
    assert abs(first - exact) > 1e-6
    assert second == third == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("validate", [True, False])
def test_on_the_cpu_a_loss_does_not_depend_on_the_steps_before(validate):
    """There the nodes follow the guide at once."""
    if here().type != "cpu" and not validate:
        pytest.skip("elsewhere answers are remembered")
    torch.set_default_dtype(torch.float64)
    model = SITES["quadrature"]
    log_scale = pyro.param("log_scale", torch.tensor(-2.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.1, pyro.param("log_scale").exp()))

    used = SilentELBO(quadrature_points=8)
    with pyro.validation_enabled(validate):
        for value in (-2.0, 0.5, -1.0):
            with torch.no_grad():
                log_scale.fill_(value)
            assert used.loss(model, guide) == SilentELBO(quadrature_points=8).loss(model, guide)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_torch_sees_no_synchronisation_on_a_gpu(name):
    """The program's own numbers, such as priors', are brought to the device by torch's distributions."""
    problem, guides, _ = case(name)
    guide = guides["AutoNormal"]()
    guide(*problem.data)
    module = SilentELBO()(problem.model, guide)
    with pyro.validation_enabled(False):
        for _ in range(2):
            module(*problem.data).backward()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                module(*problem.data).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    ours = [w for w in caught if "pyro_silent" in w.filename and "synchroniz" in str(w.message)]
    assert not ours, [f"{w.filename}:{w.lineno}" for w in ours]
