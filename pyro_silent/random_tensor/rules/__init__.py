"""The rule tables. Importing this package fills them."""

# Last: it wraps rules that exist, and takes out what must be refused.
from pyro_silent.random_tensor.rules import (  # noqa: F401
    arithmetic,
    convolution,
    direct,  # noqa: F401, E402, I001
    indexing,
    linear,
    pointwise,
    reordering,
    structural,
    sums,
)
