"""Where the tests run: torch's default device."""

from __future__ import annotations

import torch


def here() -> torch.device:
    """The device that tensors are made on."""
    return torch.empty(()).device


def seeded(seed: int) -> torch.Generator:
    """A generator for tensors on that device."""
    return torch.Generator(here()).manual_seed(seed)
