"""The rule tables. Importing this package fills them."""

from pyro_silent.random_tensor.rules import (
    arithmetic,
    convolution,
    direct,
    fourier,
    indexing,
    joining,
    linear,
    pointwise,
    reordering,
    structural,
    sums,
)

__all__ = [
    "arithmetic",
    "convolution",
    "fourier",
    "indexing",
    "joining",
    "linear",
    "pointwise",
    "reordering",
    "structural",
    "sums",
]

# Last: it wraps rules that exist, and takes out what must be refused.
direct.register()
