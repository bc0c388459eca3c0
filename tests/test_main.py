"""The command line."""

import subprocess
import sys
import textwrap

import pytest

from pyro_silent.__main__ import main


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A module with a model, a guide and what they need."""
    source = """
        import pyro, pyro.distributions as dist, torch
        from pyro.infer import Trace_ELBO

        def model(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(2 * z, 0.5), obs=x)

        def guide(x):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.3))

        class Data:
            args = (torch.tensor(1.0),)

        def make_args():
            return Data.args

        elbos = {"only": Trace_ELBO()}
        """
    (tmp_path / "compared_program.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("compared_program", None)


PROGRAMS = ["compare", "compared_program:model", "compared_program:guide", "--num-samples", "5"]


def test_default_losses_and_files(program, capsys):
    csv, plot = program / "figures.csv", program / "picture.svg"
    files = ["--csv", str(csv), "--plot", str(plot)]
    assert main([*PROGRAMS, "--args", "compared_program:Data.args", *files]) == 0
    printed = capsys.readouterr().out
    assert "SilentELBO" in printed and "Trace_ELBO" in printed and "Use SilentELBO" in printed
    assert csv.read_text().startswith("name,group,") and plot.read_text().startswith("<?xml")


def test_losses_of_the_user_and_arguments_from_a_function(program, capsys):
    places = ["--elbos", "compared_program:elbos", "--args", "compared_program:make_args"]
    assert main([*PROGRAMS, *places, "--reference", "only"]) == 0
    assert "Reference: only, 5 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["compare", "compared_program", "b:c"],
            "model: got 'compared_program', expected MODULE:NAME",
        ),
        (
            ["compare", "compared_program:no", "b:c"],
            "model: got 'compared_program:no', which was not",
        ),
        (["compare", "no_such_module:a", "b:c"], "No module named 'no_such_module'"),
        ([*PROGRAMS, "--reference", "x"], r"reference: got 'x', expected one of the names"),
    ],
)
def test_errors_are_one_line(program, capsys, arguments, told):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert told in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "pyro_silent", "compare", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "--num-samples" in done.stdout
