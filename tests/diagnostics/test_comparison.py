"""The report of a comparison: text, HTML, CSV, picture, pickle."""

from __future__ import annotations

import csv
import dataclasses
import math
import pickle
import sys

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_silent import Comparison, SilentELBO, StraightThrough, StraightThroughELBO
from tests.diagnostics.comparison_programs import Bit, measure, no_clock
from tests.diagnostics.test_advice import EXACT, biased, failed, row
from tests.diagnostics.test_tables import Cells

HEADER = "Loss value spread noise bias biased RMSE cosine ms/step peak_MiB noise²_x_s".split()


@pytest.fixture(scope="module")
def measured():
    """Of a program; one loss raises."""
    pyro.clear_param_store()
    bit = Bit()

    def broken(model, guide):
        raise ValueError("<no> & nothing\nmore")

    elbos = {
        "trace": Trace_ELBO(),
        "straight through": StraightThroughELBO(StraightThrough()),
        "<b>silent</b>": SilentELBO(),
        "broken": broken,
    }
    with pytest.MonkeyPatch.context() as patch:
        no_clock(patch)
        return measure(bit.model, bit.guide, elbos, num_samples=200)


def by_hand(*rows: dict, groups: list | None = None, reference: dict = EXACT) -> Comparison:
    return Comparison(list(rows), groups or [], reference)


def grouped(name: str, group: str, **changes) -> dict:
    keys = "norm std std_se bias bias_se rmse cosine".split()
    figures = {f"grad_{key}": row(name)[f"grad_{key}"] for key in keys}
    return {"name": name, "group": group, **figures, "biased": False, **changes}


def test_the_table_has_a_line_for_each_loss(measured):
    lines = str(measured).splitlines()
    assert lines[0].replace("peak MiB", "peak_MiB").replace("² x s", "²_x_s").split() == HEADER
    assert [line.split("  ")[0] for line in lines[2:6]] == [row["name"] for row in measured.rows]
    assert lines[5].split() == ["broken", "failed", *["-"] * 9]
    assert max(map(len, lines[:6])) <= 120
    trace = measured.rows[0]
    noise, error = lines[2].partition(" ± ")[0].split()[-1], lines[2].split("±")[1].split()[0]
    assert float(noise) == pytest.approx(trace["grad_std"], rel=5e-3)
    assert float(error) == pytest.approx(trace["grad_std_se"], rel=5e-2)
    assert "  < " in lines[2] and "  yes  " in lines[3] and "  no  " in lines[4]


def test_the_report_says_what_it_says(measured):
    text = str(measured)
    assert "Reference: SilentELBO(), exact, gradient norm" in text
    assert "broken failed: ValueError: <no> & nothing\n" in text
    assert text.endswith(measured.advice)
    assert "Use <b>silent</b>: its gradient has no noise" in measured.advice
    groups = text.split("\n\n")[1].splitlines()
    assert [line.split("  ")[0] for line in groups[2::2]] == ["trace", "straight through"] + [
        "<b>silent</b>"
    ]
    assert repr(measured) == (
        "Comparison(trace, straight through, <b>silent</b>, broken; reference: SilentELBO())"
    )


def test_a_notebook_shows_the_same(measured):
    html = measured._repr_html_()
    page = Cells(html)
    assert [cells[0] for cells in page.cells[1:5]] == [row["name"] for row in measured.rows]
    assert "<b>" not in html and "<no>" not in html
    assert "broken failed: ValueError: <no> & nothing" in page.paragraphs
    assert page.paragraphs[-1] == measured.advice
    text = [line for line in str(measured).splitlines() if line.startswith("trace ")][0]
    assert page.cells[1] == [cell.strip() for cell in text.split("  ") if cell.strip()]


def test_csv_gives_back_every_figure(measured, tmp_path):
    measured.to_csv(tmp_path / "figures.csv")
    with open(tmp_path / "figures.csv", newline="", encoding="utf-8") as file:
        back = list(csv.DictReader(file))
    lines = [{"group": "all", **row} for row in measured.rows] + measured.groups
    assert len(back) == len(lines)
    for written, line in zip(back, lines):
        for key, value in line.items():
            if isinstance(value, float):
                read = float(written[key])
                assert read == value or (math.isnan(read) and math.isnan(value)), key
            elif isinstance(value, (str, int)):
                assert written[key] == str(value), key
            elif value is None:
                assert written[key] == "", key
    assert {written["group"] for written in back} == {"all", "guide", "model", "theta", "w"}


def test_pickle_gives_back_the_report(measured):
    back = pickle.loads(pickle.dumps(measured))
    assert str(back) == str(measured) and back.advice == measured.advice
    assert repr(back.rows) == repr(measured.rows) and repr(back.groups) == repr(measured.groups)


def test_figures_are_plain_values(measured):
    """Whoever writes them as JSON, or compares them, need not know numpy or torch."""
    for line in [*measured.rows, *measured.groups, measured.reference]:
        for key, value in line.items():
            assert type(value) in (str, float, int, bool, tuple, type(None)), (key, type(value))


def test_a_comparison_is_not_written_to(measured):
    with pytest.raises(dataclasses.FrozenInstanceError):
        measured.rows = []


def test_where_a_bias_is():
    rows = [
        biased("everywhere"),
        biased("in the guide", biased_in=("guide",)),
        biased("in both", biased_in=("guide", "model")),
        biased("in one", biased_in=("decoder.weight",)),
        row("nowhere"),
        row("unseen", grad_bias_se=math.nan),
    ]
    lines = str(by_hand(*rows)).splitlines()[2:8]
    verdicts = ["yes", "guide", "guide, model", "in part", "no", "?"]
    for line, verdict in zip(lines, verdicts):
        assert f"  {verdict}  " in line


def test_figures_that_are_not_known_are_dashes():
    unknown = dict.fromkeys(("grad_bias", "grad_bias_se", "grad_rmse", "grad_cosine"), math.nan)
    text = str(by_hand(row("a", peak_bytes=None, **unknown), row("b"), reference={}))
    line = text.splitlines()[2]
    assert line.split()[6:10] == ["-", "?", "-", "-"] and "nan" not in text
    assert "No reference" in text


def test_groups_are_shown_where_there_are_two():
    both = [grouped(name, group) for name in "ab" for group in ("guide", "model", "w")]
    shown = str(by_hand(row("a"), row("b"), groups=both)).split("\n\n")[1]
    assert [line.split()[:2] for line in shown.splitlines()[2:]] == [
        ["a", "guide"],
        ["a", "model"],
        ["b", "guide"],
        ["b", "model"],
    ]
    one = [group for group in both if group["group"] != "model"]
    assert "guide" not in str(by_hand(row("a"), row("b"), groups=one))


def test_values_have_the_digits_that_their_spread_allows():
    for mean, spread, text in [
        (12345.678, 0.01, "12345.678"),
        (12345.678, 100.0, "12346"),
        (1.0, 0.0, "1.00000"),
        (0.0, 1.0, "0.00000"),
        (-3.14159, 0.5, "-3.142"),
    ]:
        line = str(by_hand(row("a", loss_mean=mean, loss_std=spread), row("b"))).splitlines()[2]
        value = line.split()[1]
        assert abs(float(value) - float(text)) <= 0.5 * max(spread / 10, 1e-12), (value, text)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture(measured, tmp_path, ending):
    path = tmp_path / f"comparison.{ending}"
    measured.plot(path)
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    content = path.read_bytes()
    assert content.startswith(start) and len(content) > 5000
    if ending == "svg":
        text = content.decode()
        assert "trace" in text and "gradient noise" in text and "milliseconds" in text
        assert "broken" not in text


def test_pictures_of_few_figures(tmp_path):
    unknown = dict.fromkeys(("grad_bias", "grad_bias_se"), math.nan)
    for rows in (
        [failed("a")],
        [row("a", 0.0, **unknown)],
        [row("a", grad_std_se=math.nan, seconds_se=math.nan), biased("$b_", 0.0)],
        [row(f"loss {k}", 0.5**k) for k in range(12)],
    ):
        by_hand(*rows).plot(str(tmp_path / "few.png"))
        assert (tmp_path / "few.png").stat().st_size > 5000


def test_a_picture_chooses_no_backend(tmp_path, monkeypatch):
    """pyplot, with its backend and its open figures, is not even imported."""
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    by_hand(row("a"), row("b", 0.0)).plot(tmp_path / "a.png")
    assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_the_rest_works(measured, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        measured.plot(tmp_path / "a.png")
    assert str(measured)


def test_nearly_certain_bits_are_reported():
    """An unbiased loss whose draws were all equal has shown neither noise nor bias."""
    bit = Bit()
    bit.theta = 16.0

    def noisy(model, guide):
        return pyro.param("theta") * torch.randn(()) + SilentELBO().differentiable_loss(
            model, guide
        )

    elbos = {"trace": Trace_ELBO(), "noisy": noisy}
    comparison = measure(bit.model, bit.guide, elbos, num_samples=20)
    trace = comparison.rows[0]
    assert trace["grad_std"] == 0 and not trace["exact"]
    assert not trace["biased"] and math.isnan(trace["grad_bias_se"])
    assert "trace drew random numbers, but all 20 gradients were equal" in str(comparison)
    assert "Use trace: its gradient has no noise" not in comparison.advice
