"""The law of a tensor, carried through ordinary torch code."""

from pyro_silent.random_tensor import readings, rules  # noqa: F401
from pyro_silent.random_tensor.latent import random_tensor
from pyro_silent.random_tensor.tensor import RandomTensor

__all__ = ["RandomTensor", "random_tensor"]
