"""One training twice from the same start, with Pyro's SVI and with a captured step, held together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor

from pyro_silent import CompiledSVI, SilentELBO

TOLERANCE = 1e-10  # relative, in double precision
BEFORE_REPLAYS = 3  # eager steps; before the last of them the graph is traced


class Training(NamedTuple):
    """What a training is made of; every part is made afresh for each of two trainings.

    :ivar programs: makes model and guide.
    :ivar arguments: those of a step, by its number.
    :ivar change: what happens before a step, by its number.
    """

    programs: Callable[[], tuple[Any, Any]]
    arguments: Callable[[int], tuple] = lambda step: ()
    loss: Callable[[], Any] = SilentELBO
    optim: Callable[[], Any] = lambda: Adam({"lr": 0.01})
    change: Callable[[int, SVI], object] = lambda step, svi: None


class Trained(NamedTuple):
    """What a training leaves behind."""

    losses: list[Any]
    parameters: dict[str, Tensor]
    states: dict[str, Any]
    random: Tensor
    svi: Any


def eager(*args: Any, **kwargs: Any) -> SVI:
    """Pyro's steps."""
    return SVI(*args, **kwargs)


def captured(*args: Any, **kwargs: Any) -> CompiledSVI:
    """Captured steps, run without a compiler."""
    return CompiledSVI(*args, backend="eager", **kwargs)


def compiled(*args: Any, **kwargs: Any) -> CompiledSVI:
    """Captured steps, compiled."""
    return CompiledSVI(*args, backend="inductor", **kwargs)


def train(make_svi: Callable[..., Any], training: Training, num_steps: int) -> Trained:
    """Take some steps from a fixed start."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = training.programs()
    svi = make_svi(model, guide, training.optim(), training.loss())
    losses = []
    for step in range(num_steps):
        training.change(step, svi)
        losses.append(svi.step(*training.arguments(step)))
    parameters = {
        name: leaf.detach().clone() for name, leaf in pyro.get_param_store().named_parameters()
    }
    return Trained(losses, parameters, svi.optim.get_state(), torch.get_rng_state(), svi)


def assert_trained_alike(found: Trained, expected: Trained, tolerance: float = TOLERANCE) -> None:
    """Losses, parameters, states of the optimizers and the random state are the same."""
    assert len(found.losses) == len(expected.losses)
    for step, (a, b) in enumerate(zip(found.losses, expected.losses)):
        assert type(a) is type(b)
        _assert_close(a, b, tolerance, f"loss of step {step}")
    assert list(found.parameters) == list(expected.parameters)
    for name, value in expected.parameters.items():
        _assert_close(found.parameters[name], value, tolerance, name)
    _assert_close(found.states, expected.states, tolerance, "optimizers")
    assert torch.equal(found.random, expected.random), "the random states differ"


def _assert_close(found: Any, expected: Any, tolerance: float, what: str) -> None:
    """Numbers relative to the largest of their tensor, all else equal."""
    if isinstance(expected, dict):
        found, expected = _without_empty_states(found), _without_empty_states(expected)
        assert found.keys() == expected.keys(), what
        for key in expected:
            _assert_close(found[key], expected[key], tolerance, f"{what}, {key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), what
        for i, pair in enumerate(zip(found, expected)):
            _assert_close(*pair, tolerance, f"{what}[{i}]")
    elif isinstance(expected, (float, Tensor)) and not isinstance(expected, bool):
        found, expected = torch.as_tensor(found), torch.as_tensor(expected)
        assert found.shape == expected.shape, what
        assert found.dtype == expected.dtype, what
        if not torch.equal(found, expected):
            size = expected.abs().max().clamp(min=1e-6)
            error = ((found - expected).abs().max() / size).item()
            assert error <= tolerance, f"{what}: off by {error:.2e} of {size.item():.3g}"
    else:
        assert found == expected, what


def _without_empty_states(states: dict) -> dict:
    """An optimizer without momentum keeps none, which is the same as one that is empty."""
    return {key: value for key, value in states.items() if value not in ({}, {0: {}})}


def assert_same(
    training: Training,
    num_steps: int,
    *,
    graphs: int | None = 1,
    replays: int | None = None,
    tolerance: float = TOLERANCE,
    make_svi: Callable[..., CompiledSVI] = captured,
) -> tuple[Trained, Trained]:
    """Captured steps arrive where eager ones do, and graphs have taken them.

    :param graphs: how many there have to be; None for any number.
    :param replays: how many steps graphs have to take; by default all but those before the first.
    :returns: the eager training and the captured one.
    """
    expected = train(eager, training, num_steps)
    found = train(make_svi, training, num_steps)
    statistics = found.svi.statistics
    assert_trained_alike(found, expected, tolerance)
    if graphs is not None:
        assert statistics.graphs == graphs, statistics
        wanted = num_steps - BEFORE_REPLAYS if replays is None else replays
        assert statistics.replays == wanted, statistics
        assert statistics.replays + statistics.eager_steps == num_steps
    return expected, found
