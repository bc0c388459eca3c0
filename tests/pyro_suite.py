"""Run Pyro's own tests with ``Trace_ELBO`` replaced by ``SilentELBO(intractable="sample")``.

A pytest plugin. Pyro's tests live in a package called ``tests`` too, so this module is put on the
path by itself, in a checkout of Pyro of the installed version::

    cd PYRO_CHECKOUT
    PYTHONPATH=HERE/tests python -m pytest -p pyro_suite tests/infer/test_valid_models.py

or, which does the same, ``python HERE/tests/pyro_suite.py PYRO_CHECKOUT [pytest arguments]``. The
swap is made before any test module is imported. Nothing of Pyro's tests is kept here.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

DEFAULT_TESTS = ("tests/infer/test_valid_models.py",)


def swap() -> None:
    """Put a SilentELBO with Trace_ELBO's name and signature in its place."""
    import pyro.infer
    from pyro.infer import ELBO

    from pyro_silent import SampledSiteWarning, SilentELBO

    class Trace_ELBO(SilentELBO):
        """``Trace_ELBO`` as far as its users can tell; it samples without a warning."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            bound = ELBO.__init__.__code__.co_varnames[1 : 1 + len(args)]
            kwargs.update(zip(bound, args, strict=True))
            super().__init__(intractable="sample", **kwargs)

    def quietly(name: str) -> Any:
        method = getattr(SilentELBO, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SampledSiteWarning)
                return method(self, *args, **kwargs)

        return call

    for name in ("loss", "differentiable_loss", "loss_and_grads"):
        setattr(Trace_ELBO, name, quietly(name))
    pyro.infer.Trace_ELBO = Trace_ELBO
    pyro.infer.trace_elbo.Trace_ELBO = Trace_ELBO


def pytest_configure(config: Any) -> None:
    """Swap before collection imports the tests."""
    swap()


def pytest_report_header(config: Any) -> str:
    """Say so at the top of the report."""
    import pyro.infer

    return f"Trace_ELBO is {pyro.infer.Trace_ELBO.__mro__[1].__name__}(intractable='sample')"


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
