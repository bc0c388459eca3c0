"""Figures as text, tables as text and HTML, rows as a CSV file."""

from __future__ import annotations

import csv
import math
from html.parser import HTMLParser

import pytest

from pyro_silent.diagnostics.tables import html_table, number, text_table, write_csv

NUMBERS = [
    (0.0, 3, "0.00"),
    (0, 3, "0.00"),
    (1.0, 3, "1.00"),
    (-1.5, 3, "-1.50"),
    (12.345, 3, "12.3"),
    (123.45, 3, "123"),
    (12345.6, 3, "12346"),
    (123456.0, 3, "1.23e+05"),
    (123456.0, 6, "123456"),
    (1234567.0, 6, "1.23457e+06"),
    (0.0012345, 3, "0.00123"),
    (0.00012345, 3, "1.23e-04"),
    (-0.00012345, 2, "-1.2e-04"),
    (1234.5678, 6, "1234.57"),
    (math.nan, 3, "nan"),
    (math.inf, 3, "inf"),
    (None, 3, "-"),
]


@pytest.mark.parametrize("value, digits, text", NUMBERS)
def test_numbers(value, digits, text):
    assert number(value, digits) == text


@pytest.mark.parametrize("exponent", range(-9, 12))
def test_a_number_keeps_its_digits(exponent):
    for value in (1.23456, 9.99999, -4.5):
        exact = value * 10.0**exponent
        assert abs(float(number(exact, 4)) / exact - 1) <= 0.5e-3


def test_a_text_table_is_aligned():
    table = text_table(("Loss", "value"), [["a", "1.00"], ["longer name", "-12.5"]])
    assert table.splitlines() == [
        "Loss         value",
        "-----------  -----",
        "a             1.00",
        "longer name  -12.5",
    ]


def test_a_text_table_without_rows_has_its_header():
    assert text_table(("Loss", "value"), []).splitlines() == ["Loss  value", "----  -----"]


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError):
        text_table(("Loss", "value"), [["a"]])


def test_a_name_of_two_lines_stays_on_one():
    lines = text_table(("Loss", "value"), [["two\nlines", "1"]]).splitlines()
    assert lines[2] == "two lines      1"


class Cells(HTMLParser):
    """Cells of an HTML table; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.paragraphs: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
        elif tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data
        elif self.open[-1] == "p":
            self.paragraphs[-1] += data
        else:
            raise AssertionError(f"text {data!r} in {self.open}")


def test_an_html_table_has_the_same_cells():
    header, rows = ("Loss", "<value>"), [["a & b", "1.00"], ["<script>", '"quoted"']]
    text = html_table(header, rows)
    assert Cells(text).cells == [list(header), *rows]
    assert "<script>" not in text


def test_a_csv_file_gives_back_what_it_got(tmp_path):
    rows = [
        {"name": "with, comma", "value": 1 / 3, "error": None},
        {"name": "two\nlines", "value": math.nan, "error": 'a "quote"'},
        {"name": "größer", "value": 1e-300, "error": ""},
    ]
    write_csv(tmp_path / "rows.csv", rows)
    text = (tmp_path / "rows.csv").read_bytes()
    assert text.startswith(b"name,value,error\n") and b"\r" not in text
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as file:
        back = list(csv.DictReader(file))
    assert [row["name"] for row in back] == [row["name"] for row in rows]
    assert float(back[0]["value"]) == 1 / 3 and math.isnan(float(back[1]["value"]))
    assert float(back[2]["value"]) == 1e-300
    assert [row["error"] for row in back] == ["", 'a "quote"', ""]


def test_a_row_with_another_key_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="fields"):
        write_csv(tmp_path / "rows.csv", [{"a": 1}, {"a": 1, "b": 2}])
