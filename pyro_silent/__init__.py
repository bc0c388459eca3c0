"""Pyro losses without sampling noise wherever mathematics allows it."""

from pyro_silent.elbo import SilentELBO
from pyro_silent.errors import (
    ConfigurationError,
    IntractableError,
    LeakError,
    PyroSilentError,
    SampledSiteWarning,
)
from pyro_silent.expectation import (
    expected_log_prob,
    random_parameters,
    register_expected_log_prob,
)
from pyro_silent.random_tensor import RandomTensor, covariance, mean, random_tensor, variance

__all__ = [
    "ConfigurationError",
    "IntractableError",
    "LeakError",
    "PyroSilentError",
    "RandomTensor",
    "SampledSiteWarning",
    "SilentELBO",
    "covariance",
    "expected_log_prob",
    "mean",
    "random_parameters",
    "random_tensor",
    "register_expected_log_prob",
    "variance",
]

__version__ = "0.1.0"
