"""Finished runs of a program of many runs: a file of results that survives interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Results:
    """Finished runs, kept in a JSON file that is rewritten whenever some are added.

    A job is a named tuple of all that a run's result depends on; a record holds its fields and what
    came of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = json.loads(path.read_text())["runs"] if path.exists() else []

    def find(self, jobs: Sequence[Any]) -> list[Record]:
        """Return the records of those of the jobs that are finished, in the order of the jobs."""
        if not jobs:
            return []
        job_type = type(jobs[0])
        finished = {job_type(*(r[key] for key in job_type._fields)): r for r in self.records}
        return [finished[job] for job in jobs if job in finished]

    def add(self, *records: Record) -> None:
        """Keep some records; an interruption leaves the old file or the new one."""
        self.records += records
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        lines = ",\n".join(json.dumps(record) for record in self.records)
        draft.write_text(f'{{"runs": [\n{lines}\n]}}\n')
        draft.replace(self.path)
