"""``python -m pyro_silent compare MODULE:model MODULE:guide``: a comparison in the shell."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from pyro.infer import Trace_ELBO

from pyro_silent.diagnostics import compare
from pyro_silent.elbo import SilentELBO
from pyro_silent.errors import ConfigurationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        elbos = (
            {"SilentELBO": SilentELBO(), "Trace_ELBO": Trace_ELBO()}
            if options.elbos is None
            else _found(options.elbos, "--elbos")
        )
        args = () if options.args is None else _found(options.args, "--args")
        comparison = compare(
            _found(options.model, "model"),
            _found(options.guide, "guide"),
            elbos,
            args=args() if callable(args) else args,
            num_samples=options.num_samples,
            reference=options.reference,
            seed=options.seed,
            progress=sys.stderr.isatty(),
        )
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    print(comparison)
    if options.csv:
        comparison.to_csv(options.csv)
    if options.plot:
        comparison.plot(options.plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyro_silent",
        description="Measure losses of a model and a guide side by side.",
    )
    command = parser.add_subparsers(required=True, metavar="compare").add_parser(
        "compare", help="gradient noise, bias, time and memory of losses"
    )
    command.add_argument("model", help="MODULE:NAME of the model")
    command.add_argument("guide", help="MODULE:NAME of the guide")
    command.add_argument(
        "--elbos", help="MODULE:NAME of a dict of losses (SilentELBO() and Trace_ELBO())"
    )
    command.add_argument(
        "--args", help="MODULE:NAME of the tuple of arguments, or of a function that makes it"
    )
    command.add_argument(
        "--num-samples", type=int, default=100, help="gradients of each loss (100)"
    )
    command.add_argument("--reference", help="name of the loss that bias is measured against")
    command.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")
    command.add_argument("--csv", help="file for all figures")
    command.add_argument("--plot", help="file for the picture")
    return parser


def _found(place: str, argument: str) -> Any:
    """The object at ``module:name``, where a name may have dots.

    :raises ConfigurationError: if there is none.
    """
    module_name, colon, path = place.partition(":")
    if not colon or not module_name or not path:
        raise ConfigurationError(
            f"{argument}: got {place!r}, expected MODULE:NAME, for example my_package.my_module:model."
        )
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"{argument}: got {place!r}, which was not found: {error}."
        ) from error
    return found


if __name__ == "__main__":
    sys.exit(main())
