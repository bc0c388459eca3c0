"""The checks that the examples make of themselves catch what they are there to catch."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import fitting
from fitting import Fit, Problem
from pyro_silent import SilentELBO


def model(x: torch.Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: torch.Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.8), constraint=dist.constraints.positive)
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), scale))


GUIDES = {"by hand": lambda: guide}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def problem() -> Problem:
    return Problem(model, (torch.tensor([0.5, -1.0, 2.0]),))


class Shifted(SilentELBO):
    """Deterministic and wrong: the likelihood's gradient is right, the loss is off."""

    def loss_and_grads(self, *args, **kwargs):
        return super().loss_and_grads(*args, **kwargs) + 0.05


def test_a_right_loss_passes_and_is_printed(problem, capsys):
    fitting.check_guides(problem, GUIDES, 5000)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("by hand")]
    assert row.split()[-1] == "0"  # its gradient noise
    assert 0 < float(row.split()[4]) < fitting.MAX_Z
    assert row.split()[5] == "3"  # a loss and two gradients were compared


def test_a_loss_that_depends_on_the_seed_is_caught(problem, monkeypatch):
    monkeypatch.setattr(fitting, "SilentELBO", Trace_ELBO)
    with pytest.raises(SystemExit, match="the silent loss depends on the seed"):
        fitting.check_guides(problem, GUIDES, 100)


def test_a_gradient_that_depends_on_the_seed_is_caught(problem, monkeypatch):
    class Noisy(SilentELBO):
        def loss_and_grads(self, *args, **kwargs):
            loss = super().loss_and_grads(*args, **kwargs)
            pyro.get_param_store()._params["loc"].grad.add_(1e-12 * torch.randn(()))
            return loss

    monkeypatch.setattr(fitting, "SilentELBO", Noisy)
    with pytest.raises(SystemExit, match="the silent gradient of loc depends on the seed"):
        fitting.check_guides(problem, GUIDES, 100)


def test_a_wrong_loss_is_caught(problem, monkeypatch):
    monkeypatch.setattr(fitting, "SilentELBO", Shifted)
    with pytest.raises(SystemExit, match=r"by hand: .* standard errors from the mean of 100000"):
        fitting.check_guides(problem, GUIDES, 100_000)


def test_a_wrong_gradient_is_caught(problem, monkeypatch):
    class Scaled(SilentELBO):
        def loss_and_grads(self, *args, **kwargs):
            loss = super().loss_and_grads(*args, **kwargs)
            pyro.get_param_store()._params["scale"].grad.mul_(1.05)
            return loss

    monkeypatch.setattr(fitting, "SilentELBO", Scaled)
    with pytest.raises(SystemExit, match="standard errors from the mean"):
        fitting.check_guides(problem, GUIDES, 100_000)


def test_both_fits_find_the_posterior(problem):
    exact = -dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(problem.data[0])
    lbfgs = fitting.fit_lbfgs(problem, lambda: AutoNormal(model))
    assert lbfgs.losses[-1] == pytest.approx(exact.item(), rel=1e-9)
    adam = fitting.fit_adam(
        problem, lambda: AutoNormal(model), SilentELBO(), 0.1, 20.0, 10, exact.item() + 1e-2, 3
    )
    assert exact.item() < adam.losses[-1] < exact.item() + 1e-2
    assert adam.seconds_to(exact.item() + 1e-2, 3) < 20.0


def test_seconds_to_a_loss():
    fit = Fit("", seconds=[1.0, 2.0, 3.0, 4.0, 5.0], losses=[9.0, 4.0, 6.0, 3.0, 2.0])
    assert fit.best == 2.0
    assert fit.seconds_to(5.0) == 2.0
    assert fit.seconds_to(5.0, hold=2) == 4.0
    assert fit.seconds_to(1.0) == math.inf
    assert fit.seconds_to(5.0, hold=3) == math.inf


def test_a_rival_that_ends_lower_is_reported(problem, monkeypatch):
    def cut_short(problem, make_guide, max_iter=1000, jitter=0.0):
        return Fit("L-BFGS", seconds=[0.05], losses=[100.0])

    monkeypatch.setattr(fitting, "fit_lbfgs", cut_short)
    with pytest.raises(SystemExit, match="Adam.* ends lower"):
        fitting.check_deterministic_objective(problem, lambda: AutoNormal(model), (0.1,))


def test_two_runs_that_end_apart_are_reported(problem, monkeypatch):
    ends = iter([5.0, 5.1])

    def stuck(problem, make_guide, max_iter=1000, jitter=0.0):
        return Fit("L-BFGS", seconds=[0.01], losses=[next(ends)])

    monkeypatch.setattr(fitting, "fit_lbfgs", stuck)
    with pytest.raises(SystemExit, match="two runs of L-BFGS end 0.1 apart"):
        fitting.check_deterministic_objective(problem, lambda: AutoNormal(model), (0.1,))
