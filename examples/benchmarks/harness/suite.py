"""Run every benchmark and write one report: ``benchmarks.md`` and ``benchmarks.json``.

The scripts of ``examples/benchmarks`` run in turn, and ``examples/ddp_vae.py`` for several processes.
The exit code is 1 if a script broke or missed a target. ``make bench`` calls this.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))

from harness.peers import versions  # noqa: E402

SCRIPTS = Path(__file__).resolve().parents[1]
# An example that is a growth curve too: over the number of processes. It keeps its figures itself.
PROCESSES = SCRIPTS.parent / "ddp_vae.py"
FIRST = ("captured_step", "time_to_optimum")  # what a reader looks for


def processor() -> str:
    """Return the name of the processor, as far as the system tells."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def run(script: Path, smoke_test: bool, out: Path) -> dict[str, Any]:
    """Run a script and return its output and figures."""
    command = [sys.executable, str(script), "--out", str(out)]
    began = time.monotonic()
    done = subprocess.run(
        command + ["--smoke-test"] * smoke_test,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    written = json.loads(out.read_text()) if out.is_file() else {"figures": {}, "targets": []}
    return {
        "script": script.name,
        "exit code": done.returncode,
        "seconds": time.monotonic() - began,
        "output": done.stdout,
        "figures": written["figures"],
        "targets": written["targets"],
    }


def verdict(result: dict[str, Any]) -> str:
    """Return one word or two about a script."""
    missed = sum(not target["passed"] for target in result["targets"])
    if result["exit code"] and not missed:
        return "broke"
    return f"{missed} missed" if missed else "all met"


def markdown(results: list[dict[str, Any]], environment: dict[str, str], smoke_test: bool) -> str:
    """Return the report: environment, targets of all scripts, then the tables of each."""
    lines = ["# Benchmarks", "", "Written by `make bench`; what each script measures is said in"]
    lines += ["[examples/benchmarks/README.md](../examples/benchmarks/README.md).", ""]
    if smoke_test:
        lines += [
            "A smoke test: sizes and times are too small for the targets, none is judged.",
            "",
        ]
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in environment.items()]
    lines += ["", "| script | seconds | targets | |", "| --- | --- | --- | --- |"]
    for result in results:
        judged = "not judged" if smoke_test and not result["exit code"] else verdict(result)
        count = len(result["targets"])
        lines.append(f"| `{result['script']}` | {result['seconds']:.0f} | {count} | {judged} |")
    for result in results:
        lines += ["", f"## {result['script']}", "", "```", result["output"].strip(), "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the scripts and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke-test", action="store_true", help="tiny, judges no target")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the report")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these scripts alone")
    arguments = parser.parse_args()
    scripts = [path for path in SCRIPTS.glob("*.py") if "__main__" in path.read_text()]
    scripts.sort(key=lambda path: (path.stem not in FIRST, path.stem))
    scripts.append(PROCESSES)
    if arguments.only:
        unknown = set(arguments.only) - {script.stem for script in scripts}
        if unknown:
            parser.error(f"--only: no script {', '.join(sorted(unknown))}")
        scripts = [script for script in scripts if script.stem in arguments.only]
    environment = {
        "python": platform.python_version(),
        **versions(),
        "processor": processor(),
        "threads": "1",
        "device": "cpu",
    }
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for script in tqdm(scripts, desc="scripts"):
            print(f"== {script.name}", flush=True)
            result = run(script, arguments.smoke_test, Path(folder) / f"{script.stem}.json")
            print(result["output"], flush=True)
            results.append(result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment, "smoke test": arguments.smoke_test, "scripts": results}
    (arguments.out / "benchmarks.json").write_text(json.dumps(content, indent=1) + "\n")
    report = markdown(results, environment, arguments.smoke_test)
    (arguments.out / "benchmarks.md").write_text(report)
    for result in results:
        for target in result["targets"]:
            if not (target["passed"] or arguments.smoke_test):
                measured = f"{target['measured']:.4g}, target <= {target['limit']:.4g}"
                print(f"MISSED  {result['script']}: {target['claim']}: {measured}")
    print(f"report in {arguments.out / 'benchmarks.md'}")
    return int(any(result["exit code"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
