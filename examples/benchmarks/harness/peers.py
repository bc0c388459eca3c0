"""Which peers are installed, and in which versions: they are optional (``pip install -e ".[peers]"``)."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version

# By distribution: the modules that must be there for it to work.
PEERS = {
    "numpyro": ("numpyro", "jax"),
    "storchastic": ("storch", "entmax"),
    "relaxit": ("relaxit",),
    "reinmax": ("reinmax",),
    "funsor": ("funsor",),
}
VERSIONED = ("torch", "pyro-ppl", "numpy", "scipy", "numpyro", "jax", *PEERS)


def installed(peer: str) -> bool:
    """Whether a peer and what it needs can be found."""
    return all(importlib.util.find_spec(name) is not None for name in PEERS[peer])


def not_installed(peer: str) -> str:
    """Return the line that stands in for the figures of a missing peer."""
    return f"{peer}: not installed, not measured"


def versions() -> dict[str, str]:
    """Return the version of every package that a figure depends on."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
