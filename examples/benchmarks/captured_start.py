"""Seconds until a captured step replays: in a first process, and in a second with the compiler's cache.

Each figure is a fresh process with a cache of the compiler that is empty at first. Its first steps run
eagerly, one of them is traced and compiled, the last replays. Claim: a second process is there in under
2 seconds, imports not counted. Imports are printed beside, as are the first steps of NumPyro's jitted
``SVI``, which compiles at its first, and of ``SVI`` with ``Trace_ELBO``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from typing import Any

BEGAN = time.perf_counter()

import torch  # noqa: E402
from tqdm.auto import tqdm  # noqa: E402

from harness.contenders import (  # noqa: E402
    CAPTURED,
    CAPTURED_AFTER,
    NUMPYRO,
    TRACE,
    captured_svi,
    numpyro_steps,
    pyro_step,
)
from harness.measure import measure_in_subprocess  # noqa: E402
from harness.peers import installed, not_installed  # noqa: E402
from harness.programs import LARGE, SMALL, cases  # noqa: E402
from harness.report import Target, benchmark_parser, finish, table  # noqa: E402

START_LIMIT = 2.0
CACHE = "TORCHINDUCTOR_CACHE_DIR"
FIRST, SECOND = "first process", "second process"


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of imports and of the first steps of one contender, in this process."""
    choice = json.loads(arguments.case)
    if choice["contender"] == CAPTURED:
        # What a first compilation imports on the way counts as an import.
        importlib.import_module("torch._inductor.compile_fx")
    imported = time.perf_counter() - BEGAN
    case = next(
        c for c in cases(arguments.smoke_test or choice["tiny"]) if c.name == choice["case"]
    )
    torch.set_num_threads(1)
    began = time.perf_counter()
    statistics: dict[str, float] = {}
    if choice["contender"] == CAPTURED:
        svi, batches = captured_svi(case, arguments.seed, choice["backend"]), case.batches()
        for _ in range(CAPTURED_AFTER):
            svi.step(*next(batches))
        found = svi.statistics
        statistics = {"trace": found.trace_seconds, "compile": found.compile_seconds}
    else:
        if choice["contender"] == NUMPYRO:
            call = numpyro_steps(case, arguments.seed)[NUMPYRO]
        else:
            call = pyro_step(case, choice["contender"], arguments.seed)
        for _ in range(CAPTURED_AFTER):
            call()
    return {"imports": imported, "start": time.perf_counter() - began, **statistics}


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--case", help="one process, as JSON; for the use of this script")
    parser.add_argument("--backend", default="inductor", help="of CompiledSVI")
    parser.add_argument("--cases", nargs="+", default=["regression", LARGE], help="what is trained")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(start(arguments)))
        return 0
    if arguments.smoke_test:
        arguments.cases, arguments.backend = [SMALL], "eager"
    contenders = [CAPTURED, TRACE]
    if installed("numpyro"):
        contenders.append(NUMPYRO)
    else:
        print(not_installed("numpyro"))
    if arguments.smoke_test:
        contenders = [CAPTURED]
    rows, targets = [], []
    figures: dict[str, object] = {}
    for name in tqdm(arguments.cases, desc="cases", leave=False):
        for contender in contenders:
            choice = {
                "case": name,
                "contender": contender,
                "backend": arguments.backend,
                "tiny": arguments.smoke_test,
            }
            with tempfile.TemporaryDirectory() as folder:
                os.environ[CACHE] = folder
                for process in (FIRST, SECOND)[: 1 if arguments.smoke_test else None]:
                    found = measure_in_subprocess(__file__, arguments.seed, choice)
                    figures[f"{name}, {contender}, {process}"] = found
                    trace, compiling = found.get("trace", "-"), found.get("compile", "-")
                    rows.append(
                        [
                            name,
                            contender,
                            process,
                            found["imports"],
                            found["start"],
                            trace,
                            compiling,
                        ]
                    )
                    if contender == CAPTURED and process == SECOND:
                        claim = f"seconds to {CAPTURED_AFTER} steps, {contender}, {name}, {process}"
                        targets.append(Target(claim, found["start"], START_LIMIT))
    header = ["seconds", "", "", "imports", f"{CAPTURED_AFTER} steps", "of them trace", "compile"]
    print(table(header, rows))
    return finish(arguments, figures, targets)


if __name__ == "__main__":
    sys.exit(main())
