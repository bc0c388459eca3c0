"""The plugin that runs Pyro's own tests on SilentELBO: it swaps, and where asked, they pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_silent

PLUGIN = Path(__file__).parents[1] / "pyro_suite.py"
SAMPLE = """
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro_silent import SilentELBO
from tests.common import ZERO


def test_swapped():
    elbo = Trace_ELBO(3, 1)
    assert isinstance(elbo, SilentELBO)
    assert elbo.intractable == "sample"
    assert (elbo.num_particles, elbo.max_plate_nesting) == (3, 1)


def test_quiet():
    def model():
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("x", dist.Normal(z.tanh().exp(), 1.0), obs=torch.tensor(0.0))

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    svi = SVI(model, guide, pyro.optim.Adam({}), loss=Trace_ELBO())
    assert svi.step() > 0
"""


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The plugin as a script, in a process of its own: the swap must not leak into this one."""
    path = str(Path(pyro_silent.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(PLUGIN), str(checkout), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_the_plugin_swaps_the_loss_in_another_tests_package(tmp_path):
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "__init__.py").touch()
    (tests / "common.py").write_text("ZERO = 0.0\n")
    (tests / "test_sample.py").write_text(SAMPLE)
    (tmp_path / "setup.cfg").write_text("[tool:pytest]\nfilterwarnings = error\n")
    result = run(tmp_path, "-q", "-p", "no:cacheprovider", "tests")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed" in result.stdout


@pytest.mark.skipif("PYRO_CHECKOUT" not in os.environ, reason="PYRO_CHECKOUT names no checkout")
def test_pyros_own_suite_passes():
    """About a minute; PYRO_CHECKOUT=DIR is a checkout of the installed version of Pyro."""
    checkout = Path(os.environ["PYRO_CHECKOUT"])
    result = run(checkout, "-q", "-p", "no:cacheprovider", "tests/infer/test_valid_models.py")
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
