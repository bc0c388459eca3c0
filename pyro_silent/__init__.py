"""Pyro losses without sampling noise wherever mathematics allows it."""

from pyro_silent.errors import (
    ConfigurationError,
    IntractableError,
    LeakError,
    PyroSilentError,
    SampledSiteWarning,
)
from pyro_silent.random_tensor import RandomTensor, covariance, mean, random_tensor, variance

__all__ = [
    "ConfigurationError",
    "IntractableError",
    "LeakError",
    "PyroSilentError",
    "RandomTensor",
    "SampledSiteWarning",
    "covariance",
    "mean",
    "random_tensor",
    "variance",
]

__version__ = "0.1.0"
