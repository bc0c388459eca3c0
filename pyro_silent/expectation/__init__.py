"""Expected log densities: a registry of closed forms, and what they are made of."""

from pyro_silent.expectation import (  # noqa: F401
    bounded,
    counts,
    discrete,
    gaussian,
    heavy_tailed,
    mixtures,
    positive,
    transformed,
    wrappers,
)
from pyro_silent.expectation.coercion import random_parameters
from pyro_silent.expectation.moments import covariance, mean, variance
from pyro_silent.expectation.registry import expected_log_prob, register_expected_log_prob
from pyro_silent.expectation.settings import quadrature_points

__all__ = [
    "covariance",
    "expected_log_prob",
    "mean",
    "quadrature_points",
    "random_parameters",
    "register_expected_log_prob",
    "variance",
]
