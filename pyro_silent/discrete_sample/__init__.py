"""Hard discrete samples whose torch operations all carry the straight-through gradient."""

from pyro_silent.discrete_sample import (
    casts,  # noqa: F401  (each file registers its rules)
    dispatch,  # noqa: F401
    elementwise,  # noqa: F401
    indexing,  # noqa: F401
    joining,  # noqa: F401
    leaks,  # noqa: F401
    losses,  # noqa: F401
    metadata,  # noqa: F401
    reductions,  # noqa: F401
    structure,  # noqa: F401
)
from pyro_silent.discrete_sample.constructors import (
    bernoulli_sample,
    index_sample,
    one_hot_sample,
)
from pyro_silent.discrete_sample.sample import DiscreteSample, forgotten

__all__ = ["DiscreteSample", "bernoulli_sample", "forgotten", "index_sample", "one_hot_sample"]
