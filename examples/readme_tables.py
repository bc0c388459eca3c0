"""Fill the README's marked tables from the results that the examples left in ``docs/``.

    python examples/readme_tables.py

Each table stands between ``<!-- NAME.json: begin -->`` and ``<!-- NAME.json: end -->`` and is made
from ``docs/NAME.json`` by the example of that name. The test suite checks that the README is up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import annealed_vae_report
import compare_elbos_report
import discrete_vae_report
import gumbel_rao_toy
import listops_report

sys.path.insert(0, str(Path(__file__).resolve().parent / "benchmarks"))
import captured_step  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TABLES: dict[str, Callable[[dict], str]] = {
    "gumbel_rao_toy": gumbel_rao_toy.readme_table,
    "listops": listops_report.readme_table,
    "discrete_vae": discrete_vae_report.readme_table,
    "annealed_vae": annealed_vae_report.readme_table,
    "compare_elbos": compare_elbos_report.readme_table,
    "captured_step": captured_step.readme_table,
}


def filled(readme: str) -> str:
    """Return the text of the README with every table made anew.

    :raises SystemExit: if a table's marks are missing.
    """
    for name, table in TABLES.items():
        record = json.loads((ROOT / "docs" / f"{name}.json").read_text())
        begin, end = f"<!-- {name}.json: begin -->", f"<!-- {name}.json: end -->"
        block = f"{begin}\n\n{table(record).strip()}\n\n{end}"
        readme, count = re.subn(f"{begin}.*?{end}", lambda _: block, readme, flags=re.S)  # noqa: B023
        if count != 1:
            raise SystemExit(
                f"README.md has {count} tables between {begin} and {end}, expected one"
            )
    return readme


def main() -> None:
    """Write the README, or only say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke-test", action="store_true", help="check, write nothing")
    args = parser.parse_args()
    path = ROOT / "README.md"
    text = filled(path.read_text())
    if args.smoke_test:
        if text != path.read_text():
            raise SystemExit("README.md is out of date: run python examples/readme_tables.py")
        print(f"{len(TABLES)} tables are up to date")
        return
    path.write_text(text)
    print(f"wrote {len(TABLES)} tables to {path}")


if __name__ == "__main__":
    main()
