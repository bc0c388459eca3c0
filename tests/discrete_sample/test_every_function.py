"""Every function torch lets a subclass override, called on a sample: none may lose the gradient silently.

What comes back must be a sample, or carry a gradient, or not depend on the sample's value; anything else
must have been refused by name. What comes back with a gradient must have the value of the plain call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import get_overridable_functions

from pyro_silent.discrete_sample import DiscreteSample, bernoulli_sample, index_sample
from pyro_silent.discrete_sample.metadata import plain as plain_rule
from pyro_silent.discrete_sample.table import RULES
from pyro_silent.errors import PyroSilentError

# Content that is not the sample's, fresh draws, or functions that write by contract.
_NOT_ASKED = (
    *(
        "_like",
        "new_",
        "detach",
        "rand",
        "bernoulli",
        "poisson",
        "multinomial",
        "normal",
        "dropout",
    ),
    *("gumbel", "__i", "data_ptr", "__hash__", "resize", "sparse", "cudnn", "miopen", "mkldnn"),
    *("quantize", "fbgemm", "pickle", "backward", "register", "rnn", "lstm", "gru", "__set__"),
    *("__delete__", "share_memory", "cuda", "xpu", "boxed", "__reduce", "pin_memory", "map2"),
    *("module_load", "sym_", "lowrank", "is_set_to", "multi_head", "ctc", "_tensor_from"),
)

_PLAIN = {f"{name}.__get__" for name in ("data", "grad_fn", "_grad_fn", "_cdata", "name")}

X = torch.tensor([[0.3, -1.2, 0.7], [1.1, 0.4, -0.2]])
CALLS: dict[str, Callable[[Callable, Any], Any]] = {
    "(z)": lambda f, z: f(z),
    "(z, 1)": lambda f, z: f(z, 1),
    "(z, z)": lambda f, z: f(z, z),
    "(z, x)": lambda f, z: f(z, X.clone()),
    "(x, z)": lambda f, z: f(X.clone(), z),
    "(z, 0, 1)": lambda f, z: f(z, 0, 1),
    "([z, z])": lambda f, z: f([z, z]),
    "(z > 1, x, x)": lambda f, z: f(z > 1, X.clone(), X.clone() + 1),
    "(x, z > 1, 2)": lambda f, z: f(X.clone(), z > 1, 2.0),
    "(x, 1, z)": lambda f, z: f(X.clone(), 1, z % 3),
    "(x, scalar)": lambda f, z: f(X.clone(), z[0, 0]),
    "(x, (z,), 1)": lambda f, z: f(X.clone(), (z % 2,), torch.tensor(1.0)),
}
HARD = {
    "index": torch.tensor([[0, 2, 1], [1, 1, 2]]),
    "bernoulli": torch.tensor([[0, 1, 1], [1, 0, 1]]),
}


def _shown(function: Callable) -> str:
    owner = getattr(function, "__self__", None)
    return f"{getattr(owner, '__name__', '')}.{function.__name__}"


def overridable() -> list[Callable]:
    """The functions, without in-place ones and those that hand out the plain tensor by contract."""
    found = {}
    for functions in get_overridable_functions().values():
        for function in functions:
            name = getattr(function, "__name__", str(function))
            if (name.endswith("_") and not name.endswith("__")) or any(
                part in name for part in _NOT_ASKED
            ):
                continue
            if _shown(function) not in _PLAIN:
                found[function] = _shown(function)
    return sorted(found, key=lambda function: found[function])


def leaves(result: Any) -> Iterator[Any]:
    """The items of nested results."""
    if isinstance(result, (tuple, list)):
        for item in result:
            yield from leaves(item)
    else:
        yield result


def plain(kind: str, hard: torch.Tensor) -> torch.Tensor:
    return hard + 1 if kind == "index" else hard.to(X.dtype)


def sample(kind: str) -> torch.Tensor:
    if kind == "index":
        code = torch.nn.functional.one_hot(HARD[kind], 3).to(X.dtype)
        return index_sample(code.requires_grad_() * 1, "z") + 1
    return bernoulli_sample(HARD[kind].to(X.dtype).requires_grad_() * 1, "z")


def depends(call: Callable, function: Callable, kind: str, i: int) -> bool:
    """Whether item ``i`` of torch's result changes with some element of the plain value."""
    base = repr(list(leaves(call(function, plain(kind, HARD[kind]))))[i])
    for p in range(6):
        for k in range(3 if kind == "index" else 2):
            hard = HARD[kind].clone()
            hard.view(-1)[p] = k
            try:
                changed = list(leaves(call(function, plain(kind, hard))))
            except Exception:  # a value that torch refuses
                continue
            if len(changed) <= i or repr(changed[i]) != base:
                return True
    return False


def audit(kind: str, functions: list[Callable]) -> tuple[list[str], int, int]:
    """What was lost or changed, and how many results kept a gradient or were refused."""
    wrong, kept, refused = [], 0, 0
    for function in functions:
        for name, call in CALLS.items():
            try:
                known = list(leaves(call(function, plain(kind, HARD[kind]))))
            except Exception:
                continue  # not a call that torch accepts
            try:
                found = list(leaves(call(function, sample(kind))))
            except PyroSilentError:
                refused += 1
                continue
            except (TypeError, RuntimeError, NotImplementedError):
                continue  # torch does not take a tensor that carries a gradient there
            for i, (item, value) in enumerate(zip(found, known, strict=True)):
                if isinstance(item, torch.Tensor) and (
                    isinstance(item, DiscreteSample) or item.requires_grad
                ):
                    kept += 1
                    if not torch.allclose(item.detach(), value.detach(), atol=1e-5, equal_nan=True):
                        wrong.append(f"{_shown(function)} {name}: another value")
                elif depends(call, function, kind, i):
                    wrong.append(f"{_shown(function)} {name}: lost")
    return wrong, kept, refused


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_lost_in_silence(kind):
    wrong, kept, refused = audit(kind, overridable())
    assert not wrong, "\n".join(wrong)
    assert kept > 500
    assert refused > 100


def test_a_missing_rule_is_found(monkeypatch):
    for function in (torch.eq, torch.floor, torch.searchsorted):
        monkeypatch.setitem(RULES, function, plain_rule)
        (lost, *_), _, _ = audit("index", [function])
        assert lost.endswith("lost")
