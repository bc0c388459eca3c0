"""A captured step uses the arguments of its call: values, shapes, kinds, identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_silent import CaptureWarning
from tests.capture.scenes import DATA, ROWS, coefficients, guide, observe, regression
from tests.capture.side_by_side import BEFORE_REPLAYS, Training, assert_same, captured, eager, train

STEPS = 15
GENERATOR = torch.Generator().manual_seed(3)
BATCHES = torch.randn(STEPS, 4, generator=GENERATOR, dtype=torch.float64)


class Case(NamedTuple):
    """A model and the arguments of each step."""

    model: Callable[..., None]
    arguments: Callable[[int], tuple]
    graphs: int = 1


def keywords(batch: dict[str, Any]) -> None:
    observe(ROWS @ coefficients(), batch["data"], batch.get("noise", 0.5))


def nested(batches: list) -> None:
    (first, weight), rest = batches
    observe(ROWS @ coefficients(), first + rest["more"], weight)


def two(first: Tensor, second: Tensor) -> None:
    observe(ROWS @ coefficients() + second, first)


def optional(data: Tensor, noise: Tensor | None = None) -> None:
    observe(ROWS @ coefficients(), data, 0.5 if noise is None else noise)


def of_rows(rows: Tensor, data: Tensor) -> None:
    observe(rows @ coefficients(), data)


def gathered(index: Tensor, data: Tensor) -> None:
    observe(coefficients()[index], data)


def embedded(index: Tensor, data: Tensor) -> None:
    table = pyro.param("table", lambda: torch.linspace(-1.0, 1.0, 5))
    observe(ROWS @ coefficients() + table[index], data)


def masked(mask: Tensor, data: Tensor) -> None:
    z = coefficients()
    with pyro.plate("rows", len(data)), poutine.mask(mask=mask):
        pyro.sample("x", dist.Normal(ROWS @ z, 0.5), obs=data)


def selected(mask: Tensor, data: Tensor) -> None:
    observe((ROWS @ coefficients())[mask], data[mask])


def partly_observed(mask: Tensor, data: Tensor) -> None:
    z = coefficients()
    with pyro.plate("rows", len(data)):
        pyro.sample("x", dist.Normal(ROWS @ z, 0.5), obs=data * mask, obs_mask=None)
        pyro.factor("observed", -(mask * (data - z.sum()).square()))


def branching(flag: bool, data: Tensor) -> None:
    observe(ROWS @ coefficients() * (2.0 if flag else 1.0), data)


def alternate(*choices: tuple) -> Callable[[int], tuple]:
    """One tuple of arguments after the other."""
    return lambda step: choices[step % len(choices)]


INDICES = torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2], [2, 2, 2, 1]])
MASKS = torch.tensor([[True, True, False, True], [False, True, True, False]])
COPY, WRITTEN = DATA.clone(), DATA.clone()

CASES = {
    "a new minibatch": Case(regression, lambda step: (BATCHES[step].clone(),)),
    "the same tensor written": Case(regression, lambda step: (WRITTEN.copy_(BATCHES[step]),)),
    "a view of a larger tensor": Case(regression, lambda step: (BATCHES[step],)),
    "two shapes": Case(of_rows, alternate((ROWS, DATA), (ROWS[:3], DATA[:3])), 2),
    "two dtypes": Case(regression, alternate((DATA,), (DATA.float(),)), 2),
    "two strides": Case(of_rows, alternate((ROWS, DATA), (ROWS.mT.contiguous().mT, DATA)), 2),
    "twice the same, then two": Case(two, alternate((DATA, DATA), (DATA, DATA.clone())), 2),
    "exchanged": Case(two, alternate((COPY, 2 * DATA), (2 * DATA, COPY))),
    "a dict": Case(keywords, lambda step: ({"data": BATCHES[step].clone()},)),
    "a longer dict": Case(
        keywords, alternate(({"data": DATA},), ({"data": DATA, "noise": torch.tensor(0.7)},)), 2
    ),
    "another order of a dict": Case(
        keywords,
        alternate(
            ({"data": DATA, "noise": torch.tensor(0.7)},),
            ({"noise": torch.tensor(0.9), "data": 2 * DATA},),
        ),
        2,
    ),
    "containers in containers": Case(
        nested, lambda step: ([(BATCHES[step], 0.5), {"more": BATCHES[step - 1]}],)
    ),
    "a number in a container": Case(
        nested, alternate(([(DATA, 0.5), {"more": DATA}],), ([(DATA, 0.7), {"more": DATA}],)), 2
    ),
    "an argument left out": Case(optional, alternate((DATA,), (DATA, torch.tensor(0.8))), 2),
    "None": Case(optional, alternate((DATA, None), (DATA, torch.tensor(0.8))), 2),
    "a flag": Case(branching, alternate((True, DATA), (False, DATA)), 2),
    "a flag or a number": Case(branching, alternate((True, DATA), (1, DATA), (0, DATA)), 3),
    "indices into a parameter": Case(
        embedded, lambda step: (INDICES[step % 3].clone(), BATCHES[step])
    ),
    "a mask": Case(masked, lambda step: (MASKS[step % 2].clone(), BATCHES[step])),
    "a mask by which terms are weighted": Case(
        partly_observed, lambda step: (MASKS[step % 2].clone(), BATCHES[step])
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_arguments(name):
    case = CASES[name]
    training = Training(lambda: (case.model, guide), case.arguments)
    expected, _ = assert_same(
        training, STEPS, graphs=case.graphs, replays=STEPS - BEFORE_REPLAYS * case.graphs
    )
    assert len(set(expected.losses)) == STEPS


@pytest.mark.parametrize(
    "case",
    [
        Case(gathered, lambda step: (INDICES[step // 5], BATCHES[step])),
        Case(selected, lambda step: (MASKS[step // 8], BATCHES[step])),
    ],
    ids=["indices into a latent", "a mask that selects"],
)
def test_arguments_that_decide_the_structure(case):
    """Other values are another graph, or no other at all; the first is kept."""
    returning = Training(
        lambda: (case.model, guide), lambda step: case.arguments(step if step < STEPS else 0)
    )
    _, found = assert_same(returning, STEPS + 1, graphs=None)
    assert found.svi.statistics.graphs <= 3
    assert found.svi.statistics.replays >= STEPS - BEFORE_REPLAYS * found.svi.statistics.graphs


def test_keyword_arguments():
    def model(data: Tensor, *, noise: Tensor, shift: float = 0.0) -> None:
        observe(ROWS @ coefficients() + shift, data, noise)

    class ByKeyword:
        """Hands arguments on by name."""

        def __init__(self, svi: Any) -> None:
            self._svi = svi
            self.optim = svi.optim

        def __getattr__(self, name: str) -> Any:
            return getattr(self._svi, name)

        def step(self, data: Tensor, noise: Tensor, shift: float) -> float:
            if shift:
                return self._svi.step(data, shift=shift, noise=noise)
            return self._svi.step(noise=noise, data=data)

    def arguments(step: int) -> tuple:
        return BATCHES[step], torch.tensor(0.5 + 0.1 * step), 0.3 * (step % 2)

    training = Training(lambda: (model, guide), arguments)
    expected = train(lambda *args: ByKeyword(eager(*args)), training, 12)
    found = train(lambda *args: ByKeyword(captured(*args)), training, 12)
    assert found.losses == pytest.approx(expected.losses, rel=1e-10)
    assert found.svi.statistics.graphs == 2
    assert found.svi.statistics.replays == 12 - 2 * BEFORE_REPLAYS


def test_object_as_an_argument():
    """It is told by identity, and what the model reads of it is looked at."""

    class Batch:
        def __init__(self, data: Tensor, noise: float) -> None:
            self.data, self.noise = data, noise

    def model(batch: Batch) -> None:
        observe(ROWS @ coefficients(), batch.data, batch.noise)

    batches: list[Batch] = []

    def programs() -> tuple:
        batches[:] = [Batch(DATA.clone(), 0.5)]
        return model, guide

    def arguments(step: int) -> tuple:
        if step == 4:
            batches[0].data = 2 * DATA
        if step == 7:
            batches[0].noise = 0.9
        return (batches[0],)

    _, found = assert_same(Training(programs, arguments), STEPS, graphs=2, replays=9)
    assert found.losses[4] != found.losses[3]


def test_number_that_changes_in_each_step():
    """Every value would be a graph of its own: steps are eager, and a warning says why."""

    def model(weight: float) -> None:
        with poutine.scale(scale=weight):
            regression()

    def scaled(weight: float) -> None:
        with poutine.scale(scale=weight):
            guide()

    training = Training(lambda: (model, scaled), lambda step: (1.0 + 0.001 * step,))
    with pytest.warns(CaptureWarning, match="Pass what changes from step to step as tensors"):
        _, found = assert_same(training, 70, graphs=None)
    assert found.svi.statistics.graphs == 0
