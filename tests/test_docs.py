"""The code in the documentation runs, and the tables it shows are those it prints."""

from __future__ import annotations

import linecache
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}
WITH_CODE = [name for name, text in PAGES.items() if "```python\n" in text]


def run_blocks(name: str) -> dict:
    """Execute the Python blocks of a page one after another, as one module."""
    text = PAGES[name]
    # other lines become empty, so that line numbers are those of the page
    code = re.sub(
        r"(?ms)\A.*?^```python\n|^```$.*?(?:^```python\n|\Z)",
        lambda match: "\n" * match[0].count("\n"),
        text,
    )
    path = str(DOCS / name)
    linecache.cache[path] = (len(code), None, code.splitlines(keepends=True), path)
    namespace: dict = {"__name__": "page"}
    exec(compile(code, path, "exec"), namespace)
    return namespace


def test_pages_with_code_were_found():
    assert "expectations.md" in WITH_CODE


@pytest.mark.parametrize("name", WITH_CODE)
def test_code_of_a_page_runs(name, capsys):
    run_blocks(name)


def test_the_table_of_the_page_is_the_one_that_is_printed(capsys):
    namespace = run_blocks("expectations.md")
    printed = namespace["explain"](
        namespace["ranked"], namespace["AutoNormal"](namespace["ranked"]), namespace["counts"]
    )
    shown = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in PAGES["expectations.md"].splitlines()
        if line.startswith("|")
    ]
    header = ["site", "kind", "term", "method", "sources"]
    first = shown.index(header) + 2
    rows = [
        [*(row[column] for column in header[:-1]), ", ".join(row["sources"])]
        for row in printed.rows
    ]
    # how many nodes it takes is no promise
    of_page, of_run = (
        re.sub(r"\(\d+\)", "(n)", str(r)) for r in (shown[first:][: len(rows)], rows)
    )
    assert of_page == of_run


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[name]):
        assert (DOCS / target).exists(), f"{name} links to {target}"
