"""Expected log densities: a registry of closed forms, and what they are made of."""

from pyro_silent.expectation import discrete, gaussian, wrappers  # noqa: F401
from pyro_silent.expectation.coercion import random_parameters
from pyro_silent.expectation.registry import expected_log_prob, register_expected_log_prob

__all__ = ["expected_log_prob", "random_parameters", "register_expected_log_prob"]
