"""Every rule against torch on the hard values and against the multilinear extension by enumeration."""

from __future__ import annotations

import pytest
import torch

from tests.devices import seeded
from tests.discrete_sample.oracle import check, latent
from tests.discrete_sample.rows import ROWS


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row):
    torch.set_default_dtype(torch.float64)
    generator = seeded(3)
    latents = [latent(kind, shape, n, generator) for kind, shape, n in row.latents]
    operands = [
        torch.randn(shape, dtype=torch.double, generator=generator) for shape in row.operands
    ]
    check(row.program, latents, operands)
