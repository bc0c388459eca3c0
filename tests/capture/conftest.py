"""Captured steps are held against eager ones in double precision."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _double_precision(_clean_state):
    torch.set_default_dtype(torch.float64)
