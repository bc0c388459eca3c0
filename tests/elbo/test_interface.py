"""The ways users call a loss: SVI, ELBOModule, PyroModules; what it leaves behind."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.distribution import COERCIONS
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_silent import SilentELBO
from tests.elbo.agreement import assert_close, assert_exact, new_parameters
from tests.formulas import expected_normal, kl_normal

P = pyro.param
SIZE, WIDTH = 6, 3


class Regression(PyroModule):
    """Bayesian linear regression: a PyroSample weight, a learned noise."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](WIDTH, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 2.0).expand([1, WIDTH]).to_event(2))
        self.noise = PyroParam(torch.tensor(0.5), constraint=constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)
        return mean


class Posterior(PyroModule):
    """A mean-field guide with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.randn(1, WIDTH))
        self.scale = PyroParam(torch.rand(1, WIDTH) + 0.1, constraint=constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> None:
        pyro.sample("linear.weight", dist.Normal(self.loc, self.scale).to_event(2))


def new_regression():
    x, y = torch.randn(SIZE, WIDTH), torch.randn(SIZE)
    model, guide = Regression(), Posterior()

    def formula() -> Tensor:
        m, s = guide.loc[0], guide.scale[0]
        residual = y - x @ m - model.linear.bias
        spread = x**2 @ s**2
        kl = kl_normal(m, s, 0.0, 2.0).sum()
        return kl - expected_normal(residual, spread, model.noise).sum()

    return model, guide, formula, x, y


def test_pyro_modules():
    model, guide, formula, x, y = new_regression()
    assert_exact(model, guide, formula, x, y)


def test_elbo_module_with_local_parameters():
    """``elbo(model, guide)`` is an nn.Module that owns the parameters; torch can train it."""
    with pyro.settings.context(module_local_params=True):
        model, guide, formula, x, y = new_regression()
        module = SilentELBO()(model, guide)
        loss = module(x, y)
        named = dict(module.named_parameters())
        assert len(named) == 4
        assert_close(loss, formula(), 1e-9, "loss")
        loss.backward()
        truth = torch.autograd.grad(formula(), list(named.values()))
        for (name, parameter), expected in zip(named.items(), truth, strict=True):
            assert_close(parameter.grad, expected, 1e-8, f"gradient of {name}")
        optimizer = torch.optim.LBFGS(
            module.parameters(), max_iter=200, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = module(x, y)
            value.backward()
            return value

        optimizer.step(closure)
        gradients = torch.autograd.grad(formula(), list(named.values()))
        assert max(gradient.abs().max() for gradient in gradients) < 1e-4
    assert not pyro.get_param_store().keys()


def test_elbo_module_with_the_param_store():
    model, guide, formula, x, y = new_regression()
    loss = SilentELBO()(model, guide)(x, y)
    assert_close(loss, formula(), 1e-9, "loss")


def _toy():
    data = torch.randn(SIZE)
    new_parameters(loc=SIZE, log_scale=SIZE, w=())

    def model(data: Tensor, *, shift: float = 0.0) -> None:
        with pyro.plate("data", SIZE):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(P("w") * z + shift, 0.5), obs=data)

    def guide(data: Tensor, *, shift: float = 0.0) -> None:
        with pyro.plate("data", SIZE):
            pyro.sample("z", dist.Normal(P("loc"), P("log_scale").exp()))

    return model, guide, data


def test_svi_trains_the_same_way_at_every_seed():
    """Twenty Adam steps from one start: bit-equal parameters, and the loss goes down."""
    finals = []
    for seed in (1, 2):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide, data = _toy()
        pyro.set_rng_seed(seed)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=SilentELBO())
        losses = [svi.step(data) for _ in range(20)]
        assert losses[-1] < losses[0]
        assert svi.evaluate_loss(data) < losses[-1]
        finals.append((losses, {name: P(name).detach().clone() for name in ("loc", "w")}))
    assert finals[0][0] == finals[1][0]
    for name, value in finals[0][1].items():
        assert torch.equal(value, finals[1][1][name])


def test_keyword_arguments_reach_model_and_guide():
    model, guide, data = _toy()

    def formula() -> Tensor:
        m, s, w = P("loc"), P("log_scale").exp(), P("w")
        likelihood = expected_normal(data - w * m - 2.0, (w * s) ** 2, 0.5)
        return (kl_normal(m, s) - likelihood).sum()

    assert_exact(model, guide, formula, data, shift=2.0)


def test_gradients_accumulate_and_add_up():
    """Two calls add their gradients, as with Pyro's own losses."""
    model, guide, data = _toy()
    elbo = SilentELBO()
    elbo.loss_and_grads(model, guide, data)
    once = P("loc").grad.clone()
    elbo.loss_and_grads(model, guide, data)
    assert_close(P("loc").grad, 2 * once, 1e-12, "gradient")


def test_no_grad():
    model, guide, data = _toy()
    expected = SilentELBO().loss(model, guide, data)
    with torch.no_grad():
        assert SilentELBO().loss(model, guide, data) == expected
        assert not SilentELBO().differentiable_loss(model, guide, data).requires_grad


def test_second_derivatives():
    """A deterministic loss has a Hessian: here that of a quadratic in the guide's means."""
    model, guide, data = _toy()
    loss = SilentELBO().differentiable_loss(model, guide, data)
    loc = P("loc")
    (gradient,) = torch.autograd.grad(loss, loc, create_graph=True)
    (row,) = torch.autograd.grad(gradient[0], loc)
    expected = torch.zeros(SIZE)
    expected[0] = 1 + P("w").item() ** 2 / 0.25
    assert_close(row, expected, 1e-8, "row of the Hessian")


def test_single_precision():
    torch.set_default_dtype(torch.float32)
    weights = torch.randn(3, 4)
    data = torch.randn(5, 4)
    loc = torch.randn(5, 3, requires_grad=True)

    def model() -> None:
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, 0.5).to_event(1), obs=data)

    def guide() -> None:
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))

    loss = SilentELBO().differentiable_loss(model, guide)
    assert loss.dtype == torch.float32
    spread = (0.3 * weights.double()).square().sum(0)
    expected = kl_normal(loc.double(), torch.tensor(0.3).double()).sum()
    expected = expected - expected_normal((data - loc @ weights).double(), spread, 0.5).sum()
    assert_close(loss, expected, 1e-5, "loss")


def test_nothing_is_left_behind():
    """Pyro's hook is uninstalled, the loss keeps no state that copies would share."""
    model, guide, data = _toy()
    before = list(COERCIONS)
    elbo = SilentELBO()
    first = elbo.loss(model, guide, data)
    assert before == COERCIONS
    assert copy.deepcopy(elbo).loss(model, guide, data) == first


def test_pyros_losses_work_inside_a_model_that_was_made_silent():
    """The same model and guide serve Pyro's losses before and after."""
    model, guide, data = _toy()
    pyro.set_rng_seed(3)
    before = Trace_ELBO().loss(model, guide, data)
    silent = SilentELBO().loss(model, guide, data)
    pyro.set_rng_seed(3)
    assert Trace_ELBO().loss(model, guide, data) == before
    many = Trace_ELBO(num_particles=4000, vectorize_particles=True).loss(model, guide, data)
    assert abs(many - silent) < 1.0


def test_value_agrees_with_trace_elbo_where_mean_field_does_not():
    """A Delta's log_density counts; Pyro's KL of a Delta drops it."""

    def model() -> None:
        pyro.sample("s", dist.LogNormal(0.0, 1.0))

    def guide() -> None:
        pyro.sample("s", dist.Delta(torch.tensor(2.0), log_density=torch.tensor(-1.5)))

    loss = SilentELBO().loss(model, guide)
    assert_close(loss, Trace_ELBO().loss(model, guide), 1e-12, "loss")
    assert abs(TraceMeanField_ELBO().loss(model, guide) - loss) > 1.0
