"""Run Pyro's own tests with its ELBOs replaced by one of ours.

A pytest plugin. Pyro's tests live in a package called ``tests`` too, so this module is put on the
path by itself, in a checkout of Pyro of the installed version::

    cd PYRO_CHECKOUT
    PYTHONPATH=HERE/tests python -m pytest -p pyro_suite tests/infer/test_valid_models.py

or, which does the same, ``python HERE/tests/pyro_suite.py PYRO_CHECKOUT [pytest arguments]``. The
option ``--swap Trace_ELBO,TraceGraph_ELBO`` names the losses to replace (``all`` for every one in
``SWAPPED``); by default ``Trace_ELBO`` alone. ``--loss`` names what stands in their place, one of
``LOSSES``; by default ``SilentELBO(intractable="sample")``. The swap is made before any test module is
imported. Nothing of Pyro's tests is kept here.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

DEFAULT_TESTS = ("tests/infer/test_valid_models.py",)
# Loss -> the module of pyro.infer it is defined in.
SWAPPED = {
    "Trace_ELBO": "trace_elbo",
    "JitTrace_ELBO": "trace_elbo",
    "TraceGraph_ELBO": "tracegraph_elbo",
    "JitTraceGraph_ELBO": "tracegraph_elbo",
    "TraceMeanField_ELBO": "trace_mean_field_elbo",
    "JitTraceMeanField_ELBO": "trace_mean_field_elbo",
    "TraceEnum_ELBO": "traceenum_elbo",
    "JitTraceEnum_ELBO": "traceenum_elbo",
}


# Our loss -> the keywords it is made with, beside those a test gives to Pyro's; from our package and
# Pyro's own Trace_ELBO.
LOSSES: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "SilentELBO": lambda ours, trace: {"intractable": "sample"},
    "StraightThroughELBO": lambda ours, trace: {"estimator": ours.ZGR()},
    "GumbelRaoELBO": lambda ours, trace: {},
    "RelaxedELBO": lambda ours, trace: {},
    "LeaveOneOutELBO": lambda ours, trace: {},
    "DisARMELBO": lambda ours, trace: {},
    "AnnealedELBO": lambda ours, trace: {
        "silent": ours.SilentELBO(intractable="sample"),
        "stochastic": trace(),
        "schedule": 0.5,
    },
}


def replacement(name: str, loss: str) -> type:
    """Our loss under one of Pyro's names, with Pyro's signature; it approximates without a warning."""
    from pyro.infer import ELBO, Trace_ELBO

    import pyro_silent
    from pyro_silent import SampledSiteWarning
    from pyro_silent.expectation.quadrature import QuadratureWarning

    base = getattr(pyro_silent, loss)
    least = 2 if loss == "LeaveOneOutELBO" else 1

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = ELBO.__init__.__code__.co_varnames[1 : 1 + len(args)]
        kwargs.update(zip(bound, args, strict=True))
        kwargs.pop("ignore_jit_warnings", None)
        kwargs["num_particles"] = max(least, kwargs.get("num_particles", 1))
        base.__init__(self, **LOSSES[loss](pyro_silent, Trace_ELBO), **kwargs)

    def quietly(method: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SampledSiteWarning)
                warnings.simplefilter("ignore", QuadratureWarning)
                return method(self, *args, **kwargs)

        return call

    members: dict[str, Any] = {"__init__": __init__}
    for method in ("loss", "differentiable_loss", "loss_and_grads"):
        members[method] = quietly(getattr(base, method))
    return type(name, (base,), members)


def swap(names: list[str], loss: str = "SilentELBO") -> None:
    """Put our loss in the place of each of these."""
    import pyro.infer

    if loss not in LOSSES:
        raise SystemExit(f"--loss: got {loss!r}, expected one of {', '.join(LOSSES)}")
    for name in names:
        if name not in SWAPPED:
            raise SystemExit(f"--swap: got {name!r}, expected some of {', '.join(SWAPPED)}, or all")
    replacements = {name: replacement(name, loss) for name in names}
    for name, ours in replacements.items():
        setattr(pyro.infer, name, ours)
        setattr(importlib.import_module(f"pyro.infer.{SWAPPED[name]}"), name, ours)


def pytest_addoption(parser: Any) -> None:
    """``--swap`` and ``--loss``."""
    parser.addoption("--swap", default="Trace_ELBO", help="losses to replace, or all")
    parser.addoption("--loss", default="SilentELBO", help="what to put in their place")


def names_in(option: str) -> list[str]:
    """The losses that an option names."""
    return list(SWAPPED) if option == "all" else option.split(",")


def pytest_configure(config: Any) -> None:
    """Swap before collection imports the tests."""
    swap(names_in(config.getoption("--swap")), config.getoption("--loss"))


def pytest_report_header(config: Any) -> str:
    """Say so at the top of the report."""
    names = ", ".join(names_in(config.getoption("--swap")))
    return f"{config.getoption('--loss')} stands for {names}"


def main(arguments: list[str]) -> int:
    """``PYRO_CHECKOUT [pytest arguments]``: run the suite there."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 2
    import pytest

    checkout, *rest = arguments
    here = os.path.dirname(os.path.abspath(__file__))
    os.chdir(checkout)
    # As "python -m pytest" does; our own tests package must not hide Pyro's.
    sys.path[:] = [os.getcwd(), *(path for path in sys.path if os.path.abspath(path) != here)]
    return int(pytest.main(rest or list(DEFAULT_TESTS), plugins=[sys.modules[__name__]]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
