"""Command line, tables, targets and JSON of the benchmarks."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyro
import torch


class Target(NamedTuple):
    """One claim of a benchmark: ``measured`` must not exceed ``limit``."""

    claim: str
    measured: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the claim held in this run; a measurement that is NaN does not pass."""
        return self.measured <= self.limit

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}  {self.figures}"

    @property
    def figures(self) -> str:
        """The claim with what was measured, without the verdict."""
        return f"{self.claim}: measured {self.measured:.4g}, target <= {self.limit:.4g}"


def benchmark_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--smoke-test", action="store_true", help="run for a few seconds, judge no target"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as aligned text; floats with four significant digits, numbers to the right."""
    cells = [
        [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = []
    for line in [list(header), ["-" * width for width in widths], *cells]:
        first, *others = (
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def finish(
    arguments: argparse.Namespace, figures: dict[str, object], targets: Sequence[Target]
) -> int:
    """Print the verdicts, write the JSON file, and return the exit code.

    A smoke test is too small and too short for the targets to mean anything: none is judged.
    """
    print()
    for target in targets:
        print(f"not judged  {target.figures}" if arguments.smoke_test else target)
    if arguments.out:
        settings = {key: str(value) for key, value in vars(arguments).items()}
        content = {
            "settings": settings,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "pyro": pyro.__version__,
            },
            "threads": torch.get_num_threads(),
            "figures": figures,
            "targets": [{**target._asdict(), "passed": target.passed} for target in targets],
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if arguments.smoke_test or all(target.passed for target in targets) else 1
