"""The law of a tensor, carried through ordinary torch code."""

from pyro_silent.random_tensor import rules  # noqa: F401
from pyro_silent.random_tensor.moments import covariance, mean, variance
from pyro_silent.random_tensor.tensor import RandomTensor, random_tensor

__all__ = ["RandomTensor", "covariance", "mean", "random_tensor", "variance"]
