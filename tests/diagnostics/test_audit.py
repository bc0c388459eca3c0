"""The audit: exact terms are bit-equal at two seeds, and it notices when they are not."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide

from pyro_silent import (
    ConfigurationError,
    PyroSilentError,
    SilentELBO,
    audit,
    explain,
    mean,
    register_expected_log_prob,
    variance,
)
from tests.diagnostics.programs import (
    ONE,
    every_method,
    every_method_guide,
    normal,
    positive,
    ranked,
    ranked_guide,
    unknown_law,
    unknown_law_guide,
)


def test_only_sampled_terms_differ():
    assert audit(every_method, every_method_guide) == {
        row["site"]: row["method"] != "sampled"
        for row in explain(every_method, every_method_guide).rows
    }
    assert audit(ranked, ranked_guide) == {"w": True, "ranks": False}
    assert audit(unknown_law, unknown_law_guide) == {
        "rate": True,
        "z": True,
        "count": False,
        "linear": True,
        "both": False,
    }


def test_autoguides_that_are_not_set_up():
    """Both seeds see one starting point, which a lazy set-up would draw anew."""
    assert audit(positive, autoguide.AutoNormal(positive)) == {
        "tau": True,
        "x": True,
        "tau_unconstrained": True,
    }


def test_minibatches_are_no_noise_of_the_terms():
    data = torch.randn(50)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 50, subsample_size=5) as index:
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])

    assert audit(model, lambda: normal("z", 0.5)) == {"z": True, "x": True}


def noisy_model() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=ONE)
    pyro.sample("y", dist.Normal(z + torch.randn(()), 1.0), obs=ONE)


def test_numbers_that_the_model_draws_are_noticed():
    with pytest.raises(
        PyroSilentError, match=r"bit-equal at two seeds, got different values at 'y'\."
    ):
        audit(noisy_model, lambda: normal("z", 0.5))


class Noisy(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value)


@register_expected_log_prob(Noisy)
def _(distribution, value):
    """Not an expectation: an estimate whose noise nobody would see in a loss."""
    error = value - distribution.loc
    return -0.5 * (mean(error) ** 2 + variance(error)) + 1e-12 * torch.randn(())


def test_a_rule_that_samples_is_noticed():
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", Noisy(z, 1.0), obs=ONE.double())

    guide = lambda: normal("z", torch.tensor(0.5).double())  # noqa: E731
    assert explain(model, guide).is_silent
    with pytest.raises(PyroSilentError, match="'x'"):
        audit(model, guide)


def test_other_losses_are_refused():
    with pytest.raises(ConfigurationError, match="elbo: got 3, expected a SilentELBO"):
        audit(positive, autoguide.AutoNormal(positive), elbo=3)
    assert audit(positive, autoguide.AutoDelta(positive), elbo=SilentELBO()) == {
        "tau": True,
        "x": True,
    }
