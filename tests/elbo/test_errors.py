"""What a user did wrong, said in the user's terms; and the state an error leaves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_silent import (
    ConfigurationError,
    IntractableError,
    LeakError,
    PyroSilentError,
    SampledSiteWarning,
    SilentELBO,
)
from tests.elbo.agreement import gaussian_guide, gaussian_model

P = pyro.param


# Arguments


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("intractable", "foo", '"raise".*"sample"'),
        ("intractable", True, '"raise".*"sample"'),
        ("quadrature_points", 0, "positive integer"),
        ("quadrature_points", 2.5, "positive integer"),
        ("quadrature_points", True, "positive integer"),
        ("num_particles", 0, "positive integer"),
        ("num_particles", -3, "positive integer"),
        ("num_particles", "2", "positive integer"),
        ("estimator", "x", "expected"),
    ],
)
def test_bad_arguments(argument, value, expected):
    """The message names the argument, what came, and what is expected."""
    with pytest.raises(ConfigurationError) as caught:
        SilentELBO(**{argument: value})
    message = str(caught.value)
    assert argument in message
    assert repr(value) in message
    assert re.search(f"expected.*{expected}|{expected}", message)
    assert isinstance(caught.value, ValueError)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="intractible"):
        SilentELBO(intractible="raise")


def test_arguments_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        SilentELBO("sample")


def test_the_hierarchy_of_errors():
    assert issubclass(IntractableError, (PyroSilentError, NotImplementedError))
    for error in (IntractableError, LeakError, ConfigurationError):
        assert issubclass(error, PyroSilentError)
    assert issubclass(SampledSiteWarning, UserWarning)


# Pyro's own checks


def _errors(elbo, model, guide) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        elbo.loss_and_grads(model, guide)
    return type(caught.value), str(caught.value).split("\nTrace Shapes")[0]


def _plate_pair(model_shape: tuple, guide_shape: tuple, obs_shape: tuple = (2,)):
    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros(model_shape), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=torch.zeros(obs_shape))

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(P("loc", torch.zeros(guide_shape)), 1.0))

    return model, guide


@pytest.mark.parametrize(
    "shapes",
    [((2,), (3,)), ((3,), (3,), (3,)), ((2,), (2, 2)), ((2, 2), (2, 2), (2, 2))],
    ids=["guide", "both", "undeclared_in_guide", "undeclared_in_both"],
)
def test_wrong_shapes_raise_what_trace_elbo_raises(shapes):
    model, guide = _plate_pair(*shapes)
    expected = _errors(Trace_ELBO(), model, guide)
    pyro.clear_param_store()
    actual = _errors(SilentELBO(), model, guide)
    assert actual == expected
    assert actual[0] in (ValueError, RuntimeError)


def test_undeclared_dependent_dims_of_an_observation():
    """A forgotten to_event: the check of log_prob shapes sees the expectation's shape."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * torch.ones(3), 0.5), obs=torch.zeros(3))

    def guide() -> None:
        pyro.sample("z", dist.Normal(P("loc", torch.zeros(())), 1.0))

    expected = _errors(Trace_ELBO(), model, guide)
    assert _errors(SilentELBO(), model, guide) == expected
    assert 'at site "x", invalid log_prob shape' in expected[1]


def test_wrong_sizes_inside_an_event():
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=torch.zeros(4))

    error, message = _errors(SilentELBO(), model, gaussian_guide)
    assert error in (ValueError, RuntimeError)
    assert "3" in message
    assert "4" in message


@pytest.mark.parametrize("extra", ["model", "guide"])
def test_mismatched_sites_warn_as_pyro_does(extra):
    def program(where: str) -> Callable[[], None]:
        def run() -> None:
            pyro.sample("z", dist.Normal(P("loc", torch.zeros(())), 1.0))
            if extra == where:
                pyro.sample("only_here", dist.Normal(0.0, 1.0))

        return run

    with pytest.warns(UserWarning, match="only_here"):
        SilentELBO(intractable="sample").loss(program("model"), program("guide"))


def test_negative_scale_in_the_model():
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = torch.tensor([1.0, -1.0, 1.0])
        pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=torch.zeros(3))

    error, message = _errors(SilentELBO(), model, gaussian_guide)
    assert error is ValueError
    assert "Expected parameter scale" in message
    assert "GreaterThan(lower_bound=0.0)" in message


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
def test_negative_scale_beside_a_sampled_location():
    """A plain parameter is checked whatever becomes of the others."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.tanh(), -1.0).to_event(1), obs=torch.zeros(3))

    error, message = _errors(SilentELBO(intractable="sample"), model, gaussian_guide)
    assert error is ValueError
    assert "Expected parameter scale" in message


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
@pytest.mark.filterwarnings("ignore::pyro_silent.expectation.quadrature.QuadratureWarning")
@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
def test_drawn_parameters_are_checked():
    """As with Trace_ELBO, a draw outside the parameter's range is an error, not a NaN."""

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(0.0, z.tanh()).to_event(1), obs=torch.zeros(3))

    def guide() -> None:
        pyro.sample("z", dist.Normal(-torch.ones(3), 0.01).to_event(1))

    error, message = _errors(SilentELBO(intractable="sample"), model, guide)
    assert error is _errors(Trace_ELBO(), model, guide)[0] is ValueError
    assert "Expected parameter scale" in message


def test_negative_scale_in_the_guide():
    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(3), -torch.ones(3)).to_event(1))

    error, message = _errors(SilentELBO(), gaussian_model(lambda z: z), guide)
    assert error is ValueError
    assert "Expected parameter scale" in message


@pytest.mark.parametrize("validate", [True, False])
def test_observation_outside_the_support(validate):
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        observed = torch.tensor([0.0, torch.nan, 0.0])
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=observed)

    with pyro.validation_enabled(validate):
        if validate:
            error, message = _errors(SilentELBO(), model, gaussian_guide)
            assert error is ValueError
            assert "within the support" in message
        else:
            with pytest.warns(UserWarning, match="NaN"):
                assert math.isnan(SilentELBO().loss(model, gaussian_guide))
