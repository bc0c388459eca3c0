"""The code in the documentation runs, and the tables it shows are those it prints."""

from __future__ import annotations

import linecache
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}
WITH_CODE = [name for name, text in PAGES.items() if "```python\n" in text]


def run_blocks(path: Path) -> dict:
    """Execute the Python blocks of a page one after another, as one module."""
    # other lines become empty, so that line numbers are those of the page
    code = re.sub(
        r"(?ms)\A.*?^```python\n|^```$.*?(?:^```python\n|\Z)",
        lambda match: "\n" * match[0].count("\n"),
        path.read_text(),
    )
    linecache.cache[str(path)] = (len(code), None, code.splitlines(keepends=True), str(path))
    namespace: dict = {"__name__": "page"}
    exec(compile(code, str(path), "exec"), namespace)
    return namespace


def without_reasons(table: str) -> list[str]:
    """The lines of an explanation up to its last column; how many nodes it takes is no promise."""
    lines = table.splitlines()
    end = lines[0].index("Reason")
    short = [re.sub(r"\(\d+\)", "(n)", line[:end]).rstrip() for line in lines]
    return [re.sub(r"--+|  +", lambda match: match[0][:2], line) for line in short]


def test_pages_with_code_were_found():
    assert "expectations.md" in WITH_CODE


@pytest.mark.parametrize("name", WITH_CODE)
def test_code_of_a_page_runs(name, capsys):
    run_blocks(DOCS / name)


def test_the_readme_shows_the_plan_that_its_code_prints(capsys):
    namespace = run_blocks(ROOT / "README.md")
    (shown,) = re.findall(r"^```text\n(Site .*?)^```$", README, re.S | re.M)
    assert without_reasons(shown) == without_reasons(str(namespace["plan"]))
    assert namespace["plan"].rows[3]["location"].startswith(f"{ROOT / 'README.md'}:")


def test_the_table_of_the_page_is_the_one_that_is_printed(capsys):
    namespace = run_blocks(DOCS / "expectations.md")
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
    of_page, of_run = (
        re.sub(r"\(\d+\)", "(n)", str(r)) for r in (shown[first:][: len(rows)], rows)
    )
    assert of_page == of_run


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}" for name in PAGES)])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}"
