"""Running means that TraceGraph_ELBO keeps in the param store, one set for each of two losses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro

_PREFIX = "__baseline_avg_downstream_cost_"  # Pyro's, followed by the name of a guide's site


@contextmanager
def own_baselines(owner: str) -> Iterator[None]:
    """Inside, the decaying-average baselines are those of one owner.

    Pyro keeps them by the name of a site alone, so two losses of one guide would share a running mean of
    costs that have nothing to do with each other. The owner's rest in the param store, under names that
    begin with the owner's, and so are saved with it.
    """
    _exchange(_PREFIX, f"others:{_PREFIX}")
    _exchange(f"{owner}:{_PREFIX}", _PREFIX)
    try:
        yield
    finally:
        _exchange(_PREFIX, f"{owner}:{_PREFIX}")
        _exchange(f"others:{_PREFIX}", _PREFIX)


def _exchange(old: str, new: str) -> None:
    """Rename the entries whose names begin with ``old``."""
    store = pyro.get_param_store()
    for name in [name for name in store if name.startswith(old)]:
        value = store[name].detach()
        del store[name]
        store[new + name[len(old) :]] = value
