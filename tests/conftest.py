"""Every test starts alike: seeded, an empty param store, validation on, one thread, one device.

The device is a GPU where there is one, and ``--device cpu`` asks for the CPU. It is torch's default
device from the start, so that tensors of modules and parametrizations are on it as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from pyro_silent.discrete_sample import DiscreteSample
from pyro_silent.random_tensor.tensor import RandomTensor

torch.set_num_threads(1)

# The same examples on every run and machine; no deadline, because a loaded machine is no defect.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.addoption("--device", default=default, help="where all tests run (default: %(default)s)")


def pytest_configure(config: pytest.Config) -> None:
    device = torch.device(config.getoption("--device"))
    if device.type != "cpu":
        torch.set_default_device(device)
        Tensor.numpy = _numpy
        Tensor.__array__ = _array
        for law in (RandomTensor, DiscreteSample):
            law.__array__ = _TO_ARRAY  # they refuse, and say where


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Examples in docstrings print tensors, and with them a device: they run on the CPU."""
    if torch.device(config.getoption("--device")).type != "cpu":
        for item in items:
            if isinstance(item, pytest.DoctestItem):
                item.runtest = partial(_on_the_cpu, item.runtest)


def _on_the_cpu(run: Callable[[], None]) -> None:
    with torch.device("cpu"):
        run()


def pytest_report_header(config: pytest.Config) -> str:
    device = torch.device(config.getoption("--device"))
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"device: {device}{name}"


_TO_NUMPY, _TO_ARRAY = Tensor.numpy, Tensor.__array__


def _numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> np.ndarray:
    """A test may hand a tensor to NumPy, wherever it is; the package must not."""
    return _TO_NUMPY(_on_cpu(tensor), *args, **kwargs)


def _array(tensor: Tensor, *args: Any, **kwargs: Any) -> np.ndarray:
    return _TO_ARRAY(_on_cpu(tensor), *args, **kwargs)


def _on_cpu(tensor: Tensor) -> Tensor:
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return tensor if caller.startswith("pyro_silent") else tensor.cpu()


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where this test runs."""
    return torch.device(request.config.getoption("--device"))
