"""Training in a comparison leaves nothing behind, however it ends."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import Tensor
from torch.distributions import constraints

from pyro_silent import AnnealedELBO, Linear, SilentELBO, train_and_compare
from tests.diagnostics.training_programs import TwinVAE, adam


class Stop(BaseException):
    """Not an error: nothing may catch it."""


def everything(objects: dict[str, Any]) -> dict[str, Any]:
    """What can be seen of modules, param store, random states, settings, losses and optimizer."""
    vae = objects["vae"]
    store = pyro.get_param_store()
    tensors = {**dict(vae.named_parameters()), **dict(vae.named_buffers())}
    tensors |= {f"store {name}": leaf for name, leaf in store.named_parameters()}
    tensors["shared"] = objects["shared"]
    return {
        "objects": {name: id(tensor) for name, tensor in tensors.items()},
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "gradients": {
            name: None if t.grad is None else t.grad.clone() for name, t in tensors.items()
        },
        "gradient objects": {name: id(tensor.grad) for name, tensor in tensors.items()},
        "requires gradient": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "constraints": {name: str(c) for name, c in store._constraints.items()},
        "names": {name: store.param_name(leaf) for name, leaf in store.named_parameters()},
        "flags": [part.training for part in vae.modules()],
        "guide": sorted(vars(objects["guide"])),
        "torch": torch.get_rng_state(),
        "numpy": [str(part) for part in np.random.get_state()],
        "python": random.getstate(),
        "settings": pyro.settings.get(),
        "steps": objects["annealed"].num_steps,
        "loss": sorted(map(str, vars(objects["annealed"]).items())),
        "optimizer": len(objects["optim"].optim_objs),
        "grad mode": torch.is_grad_enabled(),
        "validation": torch.distributions.Distribution._validate_args,
    }


def same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return isinstance(after, Tensor) and torch.equal(before, after)
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[k], after[k]) for k in before)
    return bool(before == after)


@pytest.fixture
def objects() -> dict[str, Any]:
    """A VAE with used gradients, a param store with an older parameter, a guide not set up."""
    vae = TwinVAE()
    vae.decoder.expressive[2].eval()
    store = pyro.get_param_store()
    store.setdefault("older", torch.tensor(2.0), constraints.positive)
    store["older"].unconstrained().grad = torch.tensor(3.0)
    vae.encoder.weight.grad = torch.ones_like(vae.encoder.weight)
    shared = torch.tensor(
        0.7
    )  # the initial value of a parameter, and the very tensor that it trains

    def model(x: Tensor) -> None:
        vae.model(x)
        pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -((pyro.param("shared", shared) - 3) ** 2))
        pyro.factor("older penalty", -((pyro.param("older") - 3) ** 2))

    def inner(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(0.0, 1.0))

    autoguide = AutoDiagonalNormal(inner)

    def guide(x: Tensor) -> None:
        vae.guide(x)
        autoguide(x)
        np.random.rand()
        random.random()
        torch.rand(1)

    annealed = AnnealedELBO(SilentELBO(), Trace_ELBO(), Linear(1.0, 0.0, num_steps=3))
    return {
        "vae": vae,
        "model": model,
        "guide": autoguide,
        "program": guide,
        "annealed": annealed,
        "optim": adam(0.1),
        "shared": shared,
    }


def compare(objects: dict[str, Any], data: Any, **losses: Any) -> Any:
    return train_and_compare(
        objects["model"],
        objects["program"],
        {"annealed": objects["annealed"], "trace": Trace_ELBO(), **losses},
        objects["optim"],
        data,
        num_steps=4,
        yardstick=Trace_ELBO(),
        evaluate_every=2,
        initialize=lambda: objects["vae"].encoder.weight.data.normal_(),
        progress=False,
    )


def test_nothing_is_left_behind(objects):
    before = everything(objects)

    def failing(model, guide, x):
        pyro.settings.set(validate_infer=False)
        Trace_ELBO().differentiable_loss(model, guide, x).backward()
        raise RuntimeError("in the middle")

    comparison = compare(objects, [torch.ones(4, 3)], failing=failing)
    after = everything(objects)
    for key in before:
        assert same(before[key], after[key]), key
    errors = [row["error"] for row in comparison.rows]
    assert errors[:2] == [None, None] and "in the middle" in errors[2]
    moved = {point["yardstick"] for point in comparison.curves if point["name"] == "trace"}
    assert len(moved) == 3, "parameters do move"


@pytest.mark.parametrize("end", [KeyboardInterrupt, Stop, OSError])
def test_nothing_is_left_behind_where_it_breaks_off(objects, end):
    class Data:
        left = 10

        def __len__(self) -> int:
            return 2

        def __iter__(self):
            for _ in range(2):
                self.left -= 1
                if self.left == 0:
                    raise end
                yield torch.ones(4, 3) * torch.rand(1)

    before = everything(objects)
    with pytest.raises(end):
        compare(objects, Data())
    after = everything(objects)
    for key in before:
        assert same(before[key], after[key]), key


def test_ctrl_c_in_the_middle_of_a_step(objects):
    def interrupted(model, guide, x):
        objects["vae"].decoder.train(False)
        loss = Trace_ELBO().differentiable_loss(model, guide, x)
        loss.backward(retain_graph=True)
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return loss

    steps: list[int] = []
    before = everything(objects)
    with pytest.raises(KeyboardInterrupt):
        compare(objects, [torch.ones(4, 3)], interrupted=interrupted)
    after = everything(objects)
    for key in before:
        assert same(before[key], after[key]), key


def test_what_a_plain_training_leaves_is_seen(objects):
    """The look at everything above can fail."""
    before = everything(objects)
    svi = pyro.infer.SVI(
        objects["model"], objects["program"], objects["optim"], loss=objects["annealed"]
    )
    svi.step(torch.ones(4, 3))
    after = everything(objects)
    left = {key for key in before if not same(before[key], after[key])}
    assert left >= {"values", "gradients", "names", "guide", "torch", "numpy", "python", "steps"}
    assert left >= {"optimizer", "requires gradient"}
