"""Which calls may be linear in what is random."""

from __future__ import annotations

from pyro_silent.random_tensor.program import RULES, Call


def is_linear_call(call: Call) -> bool:
    """Whether the call's rule might be linear in what is random: E[f(x)] is then f(E[x])."""
    rule = RULES.get(call.function)
    if rule is None:
        return False
    return rule.__module__.rpartition(".")[2] in _LINEAR_MODULES


_LINEAR_MODULES = frozenset(
    ("arithmetic", "convolution", "fourier", "joining", "linear", "reordering", "structural",
     "indexing", "sums")
)  # fmt: skip
