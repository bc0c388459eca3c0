"""Every test starts alike: seeded, an empty param store, validation on, one thread."""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pyro
import pytest
import torch

torch.set_num_threads(1)

# The same examples on every run and machine; no deadline, because a loaded machine is no defect.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _clean_state():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ),
    ]
)
def device(request) -> torch.device:
    """The CPU, and a GPU where there is one."""
    return torch.device(request.param)
