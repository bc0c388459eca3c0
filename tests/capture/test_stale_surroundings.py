"""Whatever a program reads besides its arguments is read anew in each captured step."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections import deque
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import Tensor
from torch.distributions import constraints

from tests.capture import stale_settings
from tests.capture.scenes import (
    DATA,
    ROWS,
    Scene,
    coefficients,
    guide,
    observe,
    play,
    point,
    regression,
)

OTHER = torch.tensor([2.0, 0.4, -1.3, 0.8], dtype=torch.float64)
NOISE = 0.5
SHIFT = torch.tensor(0.0)


def helper(z: Tensor) -> Tensor:
    return ROWS @ z


# Tensors: the first graph serves at once


def closure_tensor_rebound() -> Scene:
    data = DATA.clone()

    def model() -> None:
        observe(ROWS @ coefficients(), data)

    def change(svi):
        nonlocal data
        data = OTHER

    return Scene(model, point, change)


def closure_tensor_written() -> Scene:
    data = DATA.clone()

    def model() -> None:
        observe(ROWS @ coefficients(), data)

    return Scene(model, point, lambda svi: data.copy_(OTHER))


def view_of_a_closure_tensor_written() -> Scene:
    both = torch.stack([DATA, DATA])
    data = both[0]

    def model() -> None:
        observe(ROWS @ coefficients(), data)

    return Scene(model, point, lambda svi: both.copy_(torch.stack([OTHER, OTHER])))


def global_tensor_rebound() -> Scene:
    globals()["SHIFT"] = torch.tensor(0.0)

    def model() -> None:
        observe(ROWS @ coefficients() + SHIFT)

    return Scene(model, point, lambda svi: globals().update(SHIFT=torch.tensor(1.0)))


def tensor_in_a_dict() -> Scene:
    batch = {"data": DATA.clone(), "noise": 0.5}

    def model() -> None:
        observe(ROWS @ coefficients(), batch["data"])

    return Scene(model, point, lambda svi: batch.update(data=OTHER))


def tensor_in_a_nested_list() -> Scene:
    batches = [(0, [DATA.clone()])]

    def model() -> None:
        observe(ROWS @ coefficients(), batches[0][1][0])

    return Scene(model, point, lambda svi: batches[0][1].__setitem__(0, OTHER))


def tensor_attribute_of_the_models_object() -> Scene:
    program = Program()
    return Scene(program.model, point, lambda svi: setattr(program, "rows_seen", OTHER))


def tensor_attribute_of_a_callable_object() -> Scene:
    program = Program()
    return Scene(program, point, lambda svi: setattr(program, "rows_seen", OTHER))


def tensor_read_by_the_guide() -> Scene:
    offset = [torch.zeros(3)]

    def shifted() -> None:
        loc = pyro.param("loc", lambda: torch.zeros(3))
        pyro.sample("z", dist.Normal(loc + offset[0], 0.5).to_event(1))

    return Scene(regression, shifted, lambda svi: offset.__setitem__(0, torch.ones(3)))


def tensor_of_a_handler() -> Scene:
    observed = {"x": DATA}

    def model() -> None:
        z = coefficients()
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(ROWS @ z, 0.5))

    conditioned = pyro.condition(model, data=observed)
    return Scene(conditioned, point, lambda svi: observed.update(x=OTHER))


def default_tensor() -> Scene:
    def model(data: Tensor = DATA) -> None:
        observe(ROWS @ coefficients(), data)

    return Scene(model, point, lambda svi: setattr(model, "__defaults__", (OTHER,)))


TENSORS = [
    closure_tensor_rebound,
    closure_tensor_written,
    view_of_a_closure_tensor_written,
    global_tensor_rebound,
    tensor_in_a_dict,
    tensor_in_a_nested_list,
    tensor_attribute_of_the_models_object,
    tensor_attribute_of_a_callable_object,
    tensor_read_by_the_guide,
    tensor_of_a_handler,
]


@pytest.mark.parametrize("make", TENSORS)
def test_tensor(make):
    play(make)


# Python values: another graph


class Inner:
    """What an object of a user's keeps."""

    def __init__(self) -> None:
        self.noise = 0.5


class Slotted:
    """An object without ``__dict__``."""

    __slots__ = ("noise",)

    def __init__(self) -> None:
        self.noise = 0.5


@dataclasses.dataclass
class Settings:
    """Settings as a dataclass."""

    noise: float = 0.5


class Program:
    """A model and what it reads."""

    shared = 0.5

    def __init__(self) -> None:
        self.beta = 0.5
        self.rows_seen = DATA.clone()
        self.inner = Inner()
        self.slotted = Slotted()
        self.settings = Settings()
        self._hidden = 0.5
        self.kinds = {"noise": 0.5}

    def model(self) -> None:
        observe(ROWS @ coefficients(), self.rows_seen, self.beta)

    __call__ = model

    def model_of_inner(self) -> None:
        observe(ROWS @ coefficients(), noise=self.inner.noise)

    def model_of_slotted(self) -> None:
        observe(ROWS @ coefficients(), noise=self.slotted.noise)

    def model_of_settings(self) -> None:
        observe(ROWS @ coefficients(), noise=self.settings.noise)

    @property
    def hidden(self) -> float:
        return self._hidden

    def model_of_property(self) -> None:
        observe(ROWS @ coefficients(), noise=self.hidden)

    def model_of_name(self) -> None:
        observe(ROWS @ coefficients(), noise=getattr(self, "be" + "ta"))

    def model_of_vars(self) -> None:
        observe(ROWS @ coefficients(), noise=vars(self)["beta"])

    def model_of_class(self) -> None:
        observe(ROWS @ coefficients(), noise=self.shared)

    def noise(self) -> float:
        return self.beta

    def model_of_method(self) -> None:
        observe(ROWS @ coefficients(), noise=self.noise())


class Derived(Program):
    """What it reads is inherited."""

    def noise(self) -> float:
        return 2 * super().noise()


class Lazy:
    """Attributes by ``__getattr__``."""

    def __init__(self) -> None:
        self.values = {"noise": 0.5}

    def __getattr__(self, name: str) -> float:
        return self.values[name]


def of_program(model: str, change: Any, make: Any = Program) -> Any:
    def scene() -> Scene:
        program = make()
        return Scene(getattr(program, model), point, lambda svi: change(program))

    return scene


def class_attribute() -> Scene:
    class Fresh(Program):
        """A class for this scene."""

    program = Fresh()
    return Scene(program.model_of_class, point, lambda svi: setattr(Fresh, "shared", 0.9))


def closure_float_rebound() -> Scene:
    noise = 0.5

    def model() -> None:
        observe(ROWS @ coefficients(), noise=noise)

    def change(svi):
        nonlocal noise
        noise = 0.9

    return Scene(model, point, change)


def global_float_rebound() -> Scene:
    globals()["NOISE"] = 0.5

    def model() -> None:
        observe(ROWS @ coefficients(), noise=NOISE)

    return Scene(model, point, lambda svi: globals().update(NOISE=0.9))


def global_function_rebound() -> Scene:
    globals()["helper"] = helper_of(1.0)

    def model() -> None:
        observe(helper(coefficients()))

    return Scene(model, point, lambda svi: globals().update(helper=helper_of(2.0)))


def helper_of(factor: float) -> Any:
    return lambda z: factor * ROWS @ z


def constant_of_another_module() -> Scene:
    stale_settings.noise = 0.5

    def model() -> None:
        observe(ROWS @ coefficients(), noise=stale_settings.noise)

    return Scene(model, point, lambda svi: setattr(stale_settings, "noise", 0.9))


def function_of_another_module() -> Scene:
    stale_settings.scale = lambda value: value

    def model() -> None:
        observe(ROWS @ coefficients(), noise=stale_settings.scale(0.5))

    return Scene(model, point, lambda svi: setattr(stale_settings, "scale", lambda v: 2 * v))


def list_appended() -> Scene:
    terms = [0.5]

    def model() -> None:
        observe(ROWS @ coefficients() + sum(terms))

    return Scene(model, point, lambda svi: terms.append(0.9))


def list_of_tensors_appended() -> Scene:
    terms = [DATA]

    def model() -> None:
        z = coefficients()
        for i, data in enumerate(terms):
            with pyro.plate(f"rows_{i}", 4):
                pyro.sample(f"x_{i}", dist.Normal(ROWS @ z, 1.0), obs=data)

    return Scene(model, point, lambda svi: terms.append(OTHER))


def long_list_changed() -> Scene:
    terms = [0.0] * 200

    def model() -> None:
        observe(ROWS @ coefficients() + sum(terms))

    return Scene(model, point, lambda svi: terms.__setitem__(150, 1.0))


def deque_rotated() -> Scene:
    terms = deque([0.5, 0.9])

    def model() -> None:
        observe(ROWS @ coefficients(), noise=terms[0])

    return Scene(model, point, lambda svi: terms.rotate(1))


def array_written() -> Scene:
    noise = np.array([0.5, 0.6])

    def model() -> None:
        observe(ROWS @ coefficients(), noise=float(noise[0]))

    return Scene(model, point, lambda svi: noise.__setitem__(0, 0.9))


def array_replaced() -> Scene:
    program = types.SimpleNamespace(noise=np.array([0.5]))

    def model() -> None:
        observe(ROWS @ coefficients(), noise=torch.as_tensor(program.noise))

    return Scene(model, point, lambda svi: setattr(program, "noise", np.array([0.9])))


def set_extended() -> Scene:
    factors = {0.5}

    def model() -> None:
        observe(ROWS @ coefficients(), noise=sum(factors))

    return Scene(model, point, lambda svi: factors.add(0.25))


def dict_entry_set() -> Scene:
    settings = {"noise": 0.5}

    def model() -> None:
        observe(ROWS @ coefficients(), noise=settings["noise"])

    return Scene(model, point, lambda svi: settings.update(noise=0.9))


def dict_entry_added() -> Scene:
    settings: dict[str, float] = {}

    def model() -> None:
        observe(ROWS @ coefficients(), noise=settings.get("noise", 0.5))

    return Scene(model, point, lambda svi: settings.update(noise=0.9))


def keyword_of_a_partial() -> Scene:
    def model(noise: float) -> None:
        observe(ROWS @ coefficients(), noise=noise)

    partial = functools.partial(model, noise=0.5)
    return Scene(partial, point, lambda svi: partial.keywords.update(noise=0.9))


def keyword_default() -> Scene:
    def model(*, noise: float = 0.5) -> None:
        observe(ROWS @ coefficients(), noise=noise)

    return Scene(model, point, lambda svi: model.__kwdefaults__.update(noise=0.9))


def code_of_a_function() -> Scene:
    def model() -> None:
        observe(ROWS @ coefficients(), noise=0.5)

    def other() -> None:
        observe(ROWS @ coefficients(), noise=0.9)

    return Scene(model, point, lambda svi: setattr(model, "__code__", other.__code__))


def attribute_of_a_function() -> Scene:
    def model() -> None:
        observe(ROWS @ coefficients(), noise=settings.noise)

    def settings() -> None:
        return

    settings.noise = 0.5
    return Scene(model, point, lambda svi: setattr(settings, "noise", 0.9))


def decorated() -> Scene:
    settings = {"noise": 0.5}

    def with_noise(function: Any) -> Any:
        @functools.wraps(function)
        def inner() -> None:
            function(settings["noise"])

        return inner

    @with_noise
    def model(noise: float) -> None:
        observe(ROWS @ coefficients(), noise=noise)

    return Scene(model, point, lambda svi: settings.update(noise=0.9))


def memory_of_a_lazy_object() -> Scene:
    lazy = Lazy()

    def model() -> None:
        observe(ROWS @ coefficients(), noise=lazy.noise)

    return Scene(model, point, lambda svi: lazy.values.update(noise=0.9))


def cached_function_cleared() -> Scene:
    settings = {"noise": 0.5}

    @functools.cache
    def noise() -> float:
        return settings["noise"]

    def model() -> None:
        observe(ROWS @ coefficients(), noise=noise())

    def change(svi):
        settings["noise"] = 0.9
        noise.cache_clear()

    return Scene(model, point, change)


def scale_of_a_handler() -> Scene:
    handler = ScaleMessenger(1.0)
    return Scene(handler(regression), point, lambda svi: setattr(handler, "scale", 3.0))


def handler_made_in_the_model() -> Scene:
    weight = [1.0]

    def model() -> None:
        with poutine.scale(scale=weight[0]):
            regression()

    return Scene(model, point, lambda svi: weight.__setitem__(0, 3.0))


def setting_of_the_loss() -> Scene:
    loss = Trace_ELBO()
    return Scene(
        regression, guide, lambda svi: setattr(loss, "num_particles", 3), loss=lambda: loss
    )


def model_of_the_svi() -> Scene:
    def model() -> None:
        observe(ROWS @ coefficients(), OTHER)

    return Scene(regression, point, lambda svi: setattr(svi, "model", model))


def guide_of_the_svi() -> Scene:
    def narrow() -> None:
        loc = pyro.param("loc", lambda: torch.zeros(3))
        scale = pyro.param("scale", lambda: torch.ones(3), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(loc, 0.1 * scale).to_event(1))

    return Scene(regression, point, lambda svi: setattr(svi, "guide", narrow))


def shape_of_a_closure_tensor() -> Scene:
    rows, data = [ROWS], [DATA]

    def model() -> None:
        observe(rows[0] @ coefficients(), data[0])

    def change(svi):
        rows[0], data[0] = ROWS[:3], DATA[:3]

    return Scene(model, point, change)


def values_of_an_index() -> Scene:
    index = torch.tensor([0, 1, 2, 0])

    def model() -> None:
        observe(coefficients()[index])

    return Scene(model, point, lambda svi: index.copy_(torch.tensor([1, 1, 0, 2])))


def another_index() -> Scene:
    index = [torch.tensor([0, 1, 2, 0])]

    def model() -> None:
        observe(coefficients()[index[0]])

    return Scene(model, point, lambda svi: index.__setitem__(0, torch.tensor([1, 1, 0, 2])))


def values_of_a_mask_that_indexes() -> Scene:
    mask = torch.tensor([True, True, False, True])

    def model() -> None:
        observe((ROWS @ coefficients())[mask], DATA[mask])

    return Scene(model, point, lambda svi: mask.copy_(torch.tensor([False, False, True, True])))


def values_of_a_mask() -> Scene:
    mask = torch.tensor([True, True, False, True])

    def model() -> None:
        z = coefficients()
        with pyro.plate("rows", 4), poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(ROWS @ z, 0.5), obs=DATA)

    return Scene(model, point, lambda svi: mask.copy_(torch.tensor([False, False, True, True])))


def number_in_a_tensor() -> Scene:
    """It decides how many terms there are."""
    number = torch.tensor(2)

    def model() -> None:
        z = coefficients()
        for i in range(number.item()):
            with pyro.plate(f"rows_{i}", 4):
                pyro.sample(f"x_{i}", dist.Normal(ROWS @ z, 1.0), obs=DATA)

    return Scene(model, point, lambda svi: number.fill_(3))


VALUES = [
    default_tensor,
    of_program("model", lambda program: setattr(program, "beta", 0.9)),
    of_program("model_of_inner", lambda program: setattr(program.inner, "noise", 0.9)),
    of_program("model_of_inner", lambda program: setattr(program, "inner", Settings(0.9))),
    of_program("model_of_slotted", lambda program: setattr(program.slotted, "noise", 0.9)),
    of_program("model_of_settings", lambda program: setattr(program.settings, "noise", 0.9)),
    of_program("model_of_property", lambda program: setattr(program, "_hidden", 0.9)),
    of_program("model_of_method", lambda program: setattr(program, "beta", 0.9)),
    of_program("model_of_method", lambda program: setattr(program, "beta", 0.9), Derived),
    of_program("model_of_method", lambda program: setattr(program, "noise", lambda: 0.9)),
    of_program("model_of_name", lambda program: setattr(program, "beta", 0.9)),
    of_program("model_of_vars", lambda program: setattr(program, "beta", 0.9)),
    class_attribute,
    closure_float_rebound,
    global_float_rebound,
    global_function_rebound,
    constant_of_another_module,
    function_of_another_module,
    list_appended,
    list_of_tensors_appended,
    long_list_changed,
    deque_rotated,
    array_written,
    array_replaced,
    set_extended,
    dict_entry_set,
    dict_entry_added,
    keyword_of_a_partial,
    keyword_default,
    code_of_a_function,
    attribute_of_a_function,
    decorated,
    memory_of_a_lazy_object,
    cached_function_cleared,
    scale_of_a_handler,
    handler_made_in_the_model,
    setting_of_the_loss,
    model_of_the_svi,
    guide_of_the_svi,
    shape_of_a_closure_tensor,
    values_of_a_mask_that_indexes,
    number_in_a_tensor,
]


@pytest.mark.parametrize("make", VALUES)
def test_value(make):
    play(make, graphs=2)


@pytest.mark.parametrize("make", [values_of_an_index, another_index, values_of_a_mask])
def test_index_or_mask(make):
    """Another graph where the values decide the structure, the same where they do not."""
    play(make, graphs=None)


def two_places_that_come_apart() -> Scene:
    """The tensor is the one of the module's globals too, until it is not."""
    program = Program()
    program.rows_seen = DATA
    return Scene(program.model, point, lambda svi: setattr(program, "rows_seen", OTHER))


def two_tensors_that_become_one() -> Scene:
    first, second = [DATA.clone()], [OTHER.clone()]

    def model() -> None:
        observe(ROWS @ coefficients() + first[0], second[0])

    return Scene(model, point, lambda svi: first.__setitem__(0, second[0]))


def two_tensors_that_are_exchanged() -> Scene:
    pair = [DATA.clone(), OTHER.clone()]

    def model() -> None:
        observe(ROWS @ coefficients() + pair[0], pair[1])

    return Scene(model, point, lambda svi: pair.reverse())


@pytest.mark.parametrize(
    "make",
    [two_places_that_come_apart, two_tensors_that_become_one, two_tensors_that_are_exchanged],
)
def test_places(make):
    play(make, graphs=None)


def test_tensor_out_of_a_cache():
    """It cannot be seen, and is refused."""
    scale = {"shift": 0.5}

    @functools.cache
    def shift() -> Tensor:
        return torch.full((4,), scale["shift"])

    def make() -> Scene:
        scale["shift"] = 0.5
        shift.cache_clear()

        def model() -> None:
            observe(ROWS @ coefficients() + shift())

        def change(svi):
            scale["shift"] = 0.9
            shift.cache_clear()

        return Scene(model, point, change)

    play(make, refused="cache")
