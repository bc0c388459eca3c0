"""An interrupted comparison goes on and ends as if it had not been interrupted, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints
from torch.utils.data import DataLoader

from pyro_silent import (
    AnnealedELBO,
    ConfigurationError,
    GumbelRaoELBO,
    Linear,
    SilentELBO,
    TrainingComparison,
    train_and_compare,
)
from tests.diagnostics.training_programs import TwinVAE, X, adam, guide, model, shuffled, untimed


class Breaking:
    """Data that fail once, when so many batches were given."""

    def __init__(self, data: Any, error: type[BaseException] = OSError) -> None:
        self.data, self.error, self.left = data, error, -1

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self):
        for batch in self.data:
            self.left -= 1
            if self.left == 0:
                raise self.error("interrupted")
            yield batch


def interrupted(compare: Callable, data: Any, path: Any, batches: int) -> TrainingComparison:
    """The result in two attempts, of which the first breaks off."""
    breaking = Breaking(data)
    breaking.left = batches
    with pytest.raises(OSError, match="interrupted"):
        compare(breaking, path)
    assert torch.load(path, weights_only=True)["current"]["record"]["steps"] > 0
    return compare(breaking, path)


def twins(data: Any, path: Any) -> TrainingComparison:
    """Annealed twins with batch norm and dropout, by Adam."""
    pyro.set_rng_seed(11)
    vae = TwinVAE()
    return train_and_compare(
        vae.model,
        vae.guide,
        {
            "annealed": AnnealedELBO(SilentELBO(), Trace_ELBO(), Linear(1.0, 0.0, num_steps=5)),
            "trace": Trace_ELBO(),
        },
        adam(),
        data,
        num_steps=10,
        held_out=[torch.ones(4, 3)],
        yardstick=Trace_ELBO(),
        evaluate_every=3,
        checkpoint=path,
        progress=False,
    )


def local_autoguide(data: Any, path: Any) -> TrainingComparison:
    """A guide whose parameters Pyro's param store does not know, with momentum."""

    def program(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    with pyro.settings.context(module_local_params=True):
        return train_and_compare(
            program,
            AutoNormal(program),
            {"trace": Trace_ELBO(num_particles=2, vectorize_particles=True)},
            pyro.optim.SGD({"lr": 1e-2, "momentum": 0.9}),
            data,
            num_steps=10,
            held_out=[torch.ones(4, 3)],
            yardstick=SilentELBO(),
            evaluate_every=3,
            checkpoint=path,
            progress=False,
        )


def baselines(data: Any, path: Any) -> TrainingComparison:
    """A loss that writes a running mean into the param store, and a schedule of learning rates."""

    def program(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            means = pyro.param("means", lambda: torch.randn(2))
            shift = pyro.param("shift", torch.zeros(()))
            if x[:, 0].sum() > 0:  # in some steps it has no gradient
                means = means + shift
            pyro.sample("x", dist.Normal(means[0] + means[1] * k, 1.0), obs=x.sum(-1))

    def proposal(x):
        logits = pyro.param("logits", lambda: torch.randn(3))
        with pyro.plate("data", len(x)):
            infer = {"baseline": {"use_decaying_avg_baseline": True}}
            pyro.sample("k", dist.Bernoulli(logits=x @ logits), infer=infer)

    return train_and_compare(
        program,
        proposal,
        {"graph": TraceGraph_ELBO(), "gumbel": GumbelRaoELBO(Linear(1.0, 0.5, num_steps=8), 5)},
        pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
        ),
        data,
        num_steps=10,
        held_out=[torch.ones(4, 3)],
        yardstick=Trace_ELBO(num_particles=3),
        evaluate_every=3,
        checkpoint=path,
        progress=False,
    )


def rare_parameter(data: Any, path: Any) -> TrainingComparison:
    """A parameter that is not made before the second batch of a pass, and not met in most steps."""

    def program(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if x[0, 0] > 1:
            z = z + pyro.param("rare", lambda: torch.rand(()), constraint=constraints.positive)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.mean())

    def proposal(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", lambda: torch.randn(())), 0.5))

    return train_and_compare(
        program,
        proposal,
        {"trace": Trace_ELBO()},
        adam(),
        data,
        num_steps=12,
        held_out=[torch.ones(4, 3)],
        yardstick=Trace_ELBO(num_particles=3),
        evaluate_every=1,
        checkpoint=path,
        progress=False,
    )


@pytest.mark.parametrize("steps", [[4], [4, 5]])
def test_a_parameter_that_is_made_late(steps, tmp_path):
    """It keeps value and momentum, also through a fifth step in a process that has not met it."""
    data = [torch.zeros(4, 3), torch.full((4, 3), 2.0), torch.zeros(4, 3), torch.zeros(4, 3)]
    whole = rare_parameter(data, None)
    breaking = Breaking(data)
    for before, after in zip([0, *steps], steps):
        # three batches are looked at first, and those of the pass so far are gone through again
        breaking.left = 3 + before + (after - before) + 1
        with pytest.raises(OSError, match="interrupted"):
            rare_parameter(breaking, tmp_path / "run.pt")
        content = torch.load(tmp_path / "run.pt", weights_only=True)
        assert content["current"]["record"]["steps"] == after
        assert "rare" in content["current"]["parameters"]
    assert untimed(rare_parameter(breaking, tmp_path / "run.pt")) == untimed(whole)


@pytest.mark.parametrize("compare", [twins, local_autoguide, baselines])
@pytest.mark.parametrize("batches", [7, 12])
def test_the_result_is_that_of_one_run(compare, batches, tmp_path):
    data = DataLoader(torch.randn(12, 3), batch_size=4, shuffle=True)
    whole = compare(data, None)
    assert all(row["error"] is None for row in whole.rows)
    resumed = interrupted(compare, data, tmp_path / "run.pt", batches)
    assert untimed(resumed) == untimed(whole)
    assert len(list(tmp_path.iterdir())) == 1, "no drafts are left"


LOSSES = {"twins": twins, "baselines": baselines}


@pytest.fixture(scope="module", params=LOSSES)
def broken_off(request, tmp_path_factory):
    """A comparison, its result, and what is left of it after an interruption."""
    pyro.set_rng_seed(2)
    data = DataLoader(torch.randn(12, 3), batch_size=4, shuffle=True)
    compare = LOSSES[request.param]
    path = tmp_path_factory.mktemp("broken") / "run.pt"
    whole = compare(data, None)
    breaking = Breaking(data)
    breaking.left = 10
    with pytest.raises(OSError, match="interrupted"):
        compare(breaking, path)
    pyro.clear_param_store()
    return request.param, compare, breaking, untimed(whole), torch.load(path, weights_only=True)


def forget(current: dict[str, Any], part: str) -> None:
    """Spoil one part of a state."""
    parameters = current["parameters"]
    if part == "optimizer":
        for saved in parameters.values():
            saved["optimizer"] = None
    elif part == "gradient":
        assert parameters["shift"]["has_gradient"]
        parameters["shift"]["has_gradient"] = False
    elif part == "baseline":
        assert parameters.pop("__baseline_avg_downstream_cost_k")["value"].any()
    elif part == "noise":
        current["noise"]["torch"] = torch.Generator().manual_seed(5).get_state()
    elif part == "others":
        current["others"] = [torch.ones_like(tensor) for tensor in current["others"]]
    elif part == "index":
        current["batches"]["index"] = 0
    elif part == "loss":
        current["loss"]["num_steps"] = 0
        current["loss"]["weight"] = None
    else:
        assert part == "nothing"


PARTS = {
    "twins": ("nothing", "optimizer", "noise", "others", "index", "loss"),
    "baselines": ("nothing", "gradient", "baseline"),
}


def test_each_part_of_a_state_is_needed(broken_off, tmp_path):
    """A checkpoint that lacks a part leads elsewhere: so the test above can fail."""
    name, compare, breaking, whole, content = broken_off
    for part in PARTS[name]:
        kept = copy.deepcopy(content)
        forget(kept["current"], part)
        torch.save(kept, tmp_path / "run.pt")
        resumed = untimed(compare(breaking, tmp_path / "run.pt"))
        assert (resumed == whole) == (part == "nothing"), part


def compare_small(path: Any, data: Any = None, **changes: Any) -> TrainingComparison:
    arguments = {
        "elbos": {"trace": Trace_ELBO(), "silent": SilentELBO()},
        "optim": adam(),
        "data": data or shuffled(),
        "num_steps": 4,
        "held_out": [X],
        "evaluate_every": 2,
        "seeds": (0, 1),
        "checkpoint": path,
        "progress": False,
        **changes,
    }
    return train_and_compare(model, guide, **arguments)


def test_ctrl_c_in_a_loss_and_finished_runs(tmp_path):
    """Finished runs are not run again: their seconds are the same figures."""
    path = tmp_path / "new folder" / "run.pt"
    stops = [11]

    def loss(model, guide, x):
        stops[0] -= 1
        if stops[0] == 0:
            raise KeyboardInterrupt
        return Trace_ELBO().differentiable_loss(model, guide, x)

    elbos = {"trace": Trace_ELBO(), "own": loss}
    whole = compare_small(None, elbos={**elbos, "own": Trace_ELBO().differentiable_loss})
    stops[0] = 7
    with pytest.raises(KeyboardInterrupt):
        compare_small(path, elbos=elbos)
    assert len(pyro.get_param_store()) == 0
    kept = torch.load(path, weights_only=True)
    assert [(run["name"], run["seed"]) for run in kept["finished"]] == [
        ("trace", 0),
        ("own", 0),
        ("trace", 1),
    ]
    assert kept["current"]["record"]["steps"] == 2
    resumed = compare_small(path, elbos=elbos)
    assert untimed(resumed) == untimed(whole)
    assert resumed.runs[0]["seconds"] == kept["finished"][0]["seconds"]
    assert compare_small(path, elbos=elbos) == resumed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The file of a comparison that came to its end."""
    path = tmp_path_factory.mktemp("finished") / "run.pt"
    compare_small(path)
    return path


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_steps": 5}, "num_steps was 4 and is 5"),
        ({"seeds": (0, 2)}, r"seeds was \[0, 1\] and is \[0, 2\]"),
        ({"elbos": {"trace": Trace_ELBO(num_particles=2)}}, "losses was"),
        ({"optim": adam(0.2)}, "optimizer was"),
        ({"yardstick": Trace_ELBO()}, "yardstick was 'exact -ELBO"),
        ({"data": [X, X]}, "first batch was"),
        ({"held_out": [X + 1]}, "yardstick at the parameters found was"),
        ({"patience": 3}, "patience was None and is 3"),
        ({"initialize": lambda: torch.rand(1)}, "initial values was"),
    ],
)
def test_a_checkpoint_of_another_comparison_is_refused(changes, text, finished):
    with pytest.raises(ConfigurationError, match=f"another comparison: {text}.*delete the file"):
        compare_small(finished, **changes)


def test_options_that_are_a_function_are_called(tmp_path):
    def optim(rate: float) -> pyro.optim.PyroOptim:
        return pyro.optim.Adam(lambda name: {"lr": rate})

    path = tmp_path / "run.pt"
    assert compare_small(path, optim=optim(0.1)) == compare_small(path, optim=optim(0.1))
    with pytest.raises(ConfigurationError, match="another comparison: optimizer was"):
        compare_small(path, optim=optim(0.2))


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="checkpoint: got the folder .*comparison.pt"):
        compare_small(tmp_path)
    path = tmp_path / "text.pt"
    path.write_text("no checkpoint")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        compare_small(path)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        compare_small(path)
