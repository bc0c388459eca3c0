"""Gradient estimators of discrete variables: hard samples with a surrogate backward pass."""

from pyro_silent.estimators.estimator import Estimator
from pyro_silent.estimators.straight_through import StraightThrough

__all__ = ["Estimator", "StraightThrough"]
