"""The plugin that runs Pyro's own tests on our losses: it swaps, and where asked, they pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyro.infer
import pytest

import pyro_silent
from tests import pyro_suite

PLUGIN = Path(__file__).parents[1] / "pyro_suite.py"
SAMPLE = """
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro_silent import SilentELBO
from tests.common import ZERO


def test_swapped():
    elbo = Trace_ELBO(3, 1)
    assert isinstance(elbo, SilentELBO)
    assert elbo.intractable == "sample"
    assert (elbo.num_particles, elbo.max_plate_nesting) == (3, 1)
    assert isinstance(JitTrace_ELBO(ignore_jit_warnings=True), SilentELBO)
    assert issubclass(TraceGraph_ELBO, SilentELBO)
    assert TraceGraph_ELBO is not Trace_ELBO  # tests tell losses apart by their class
    assert not issubclass(TraceEnum_ELBO, SilentELBO)


def test_quiet():
    def model():
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("x", dist.Normal(z.tanh().exp(), 1.0), obs=torch.tensor(0.0))

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    svi = SVI(model, guide, pyro.optim.Adam({}), loss=Trace_ELBO())
    assert svi.step() > 0
"""

OTHER = """
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro_silent import {loss}, SilentELBO
from tests.common import ZERO


def test_swapped():
    assert isinstance(Trace_ELBO(), {loss})
    assert Trace_ELBO(3, 1).num_particles == 3
    assert not isinstance(Trace_ELBO(), SilentELBO)
    assert not issubclass(TraceEnum_ELBO, {loss})


def test_runs():
    def model():
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(b, 1.0), obs=torch.tensor(ZERO))

    def guide():
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.0))))

    svi = SVI(model, guide, pyro.optim.Adam({{}}), loss=Trace_ELBO())
    assert svi.step() > 0
"""


def checkout_with(path: Path, test: str) -> Path:
    """A package of tests like Pyro's, with one file."""
    tests = path / "tests"
    tests.mkdir()
    (tests / "__init__.py").touch()
    (tests / "common.py").write_text("ZERO = 0.0\n")
    (tests / "test_sample.py").write_text(test)
    (path / "setup.cfg").write_text("[tool:pytest]\nfilterwarnings = error\n")
    return path


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
    checkout_with(tmp_path, SAMPLE)
    swap = ("--swap", "Trace_ELBO,TraceGraph_ELBO,JitTrace_ELBO")
    result = run(tmp_path, "-q", "-p", "no:cacheprovider", *swap, "tests")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed" in result.stdout


def test_another_loss_of_ours(tmp_path):
    """It asks for two particles where Pyro's test has one."""
    checkout_with(tmp_path, OTHER.format(loss="LeaveOneOutELBO"))
    result = run(tmp_path, "-q", "-p", "no:cacheprovider", "--loss", "LeaveOneOutELBO", "tests")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed" in result.stdout


def test_a_blend_keeps_pyros_own_loss_as_its_part():
    """Made before the swap, or it would contain itself."""
    elbo = pyro_suite.replacement("Trace_ELBO", "AnnealedELBO")(3, max_plate_nesting=2)
    assert isinstance(elbo, pyro_silent.AnnealedELBO)
    assert type(elbo.stochastic) is pyro.infer.Trace_ELBO
    assert elbo.silent.intractable == "sample"
    assert (elbo.num_particles, elbo.max_plate_nesting, elbo.weight) == (3, 2, 0.5)


def test_an_unknown_loss_is_refused():
    with pytest.raises(SystemExit, match="got 'Trace', expected some of Trace_ELBO, "):
        pyro_suite.swap(["Trace"])
    with pytest.raises(SystemExit, match="got 'Elbo', expected one of SilentELBO, "):
        pyro_suite.swap(["Trace_ELBO"], "Elbo")
    assert pyro.infer.Trace_ELBO.__module__ == "pyro.infer.trace_elbo"


# What is asked of Pyro's own files: all tests, but those that cannot hold (docs/pyro_suite.md).
MODELS = "(Trace_ELBO or not ELBO) and not test_enum_discrete_misuse_warning"
GRADIENTS = "not test_particle_gradient and not TraceEnum and not sequential and not Jit"
PATHWISE = "Trace_ELBO,TraceGraph_ELBO,TraceMeanField_ELBO"
OWN = [
    (
        "SilentELBO",
        "test_valid_models.py",
        "Trace_ELBO",
        "not test_enum_discrete_misuse_warning",
    ),
    (
        "SilentELBO",
        "test_gradient.py",
        "all",
        "not test_particle_gradient and not TraceEnum_ELBO-True and not sequential",
    ),
    ("SilentELBO", "test_autoguide.py", PATHWISE, ""),
    ("StraightThroughELBO", "test_valid_models.py", "Trace_ELBO", MODELS),
    ("StraightThroughELBO", "test_gradient.py", PATHWISE, GRADIENTS),
    ("GumbelRaoELBO", "test_valid_models.py", "Trace_ELBO", MODELS),
    ("RelaxedELBO", "test_valid_models.py", "Trace_ELBO", MODELS),
    ("LeaveOneOutELBO", "test_valid_models.py", "Trace_ELBO", MODELS),
    ("LeaveOneOutELBO", "test_gradient.py", PATHWISE, GRADIENTS),
    ("DisARMELBO", "test_valid_models.py", "Trace_ELBO", MODELS),
    ("DisARMELBO", "test_gradient.py", PATHWISE, GRADIENTS),
    (
        "AnnealedELBO",
        "test_valid_models.py",
        "Trace_ELBO",
        "not test_enum_discrete_misuse_warning",
    ),
    ("AnnealedELBO", "test_gradient.py", PATHWISE, GRADIENTS),
]


@pytest.mark.skipif("PYRO_CHECKOUT" not in os.environ, reason="PYRO_CHECKOUT names no checkout")
@pytest.mark.parametrize("loss, name, swap, selection", OWN)
def test_pyros_own_suite_passes(loss, name, swap, selection):
    """Some minutes; PYRO_CHECKOUT=DIR is a checkout of the installed version of Pyro."""
    arguments = ["-q", "-p", "no:cacheprovider", "--loss", loss, "--swap", swap, "-k", selection]
    checkout = Path(os.environ["PYRO_CHECKOUT"])
    result = run(checkout, *arguments, f"tests/infer/{name}")
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
