"""Pyro losses without sampling noise wherever mathematics allows it."""

from pyro_silent.diagnostics import Explanation, audit, explain
from pyro_silent.elbo import SilentELBO
from pyro_silent.errors import (
    ConfigurationError,
    IntractableError,
    LeakError,
    PyroSilentError,
    QuadratureWarning,
    SampledSiteWarning,
)
from pyro_silent.estimators import Estimator, StraightThrough
from pyro_silent.expectation import (
    covariance,
    expected_log_prob,
    mean,
    random_parameters,
    register_expected_log_prob,
    variance,
)
from pyro_silent.random_tensor import RandomTensor, random_tensor

__all__ = [
    "ConfigurationError",
    "Estimator",
    "Explanation",
    "IntractableError",
    "LeakError",
    "PyroSilentError",
    "QuadratureWarning",
    "RandomTensor",
    "SampledSiteWarning",
    "SilentELBO",
    "StraightThrough",
    "audit",
    "covariance",
    "explain",
    "expected_log_prob",
    "mean",
    "random_parameters",
    "random_tensor",
    "register_expected_log_prob",
    "variance",
]

__version__ = "0.1.0"
