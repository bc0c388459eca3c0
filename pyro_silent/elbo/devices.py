"""Programs that mix devices: which of their tensors is where. And autocast, which goes by device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from pyro_silent.errors import ConfigurationError
from pyro_silent.random_tensor.program import is_cache

_REMEDY = (
    "Move modules with .to(device) before the first step, and data and priors to the same device "
    "(x.new_zeros(...), torch.zeros(..., device=x.device))."
)

Places = Iterable[tuple[str, Tensor]]


@contextmanager
def outside_autocast() -> Iterator[None]:
    """Inside, nothing is computed in half precision that was not made in it."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if _is_autocast(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _is_autocast(device: str) -> bool:
    try:
        return torch.is_autocast_enabled(device)
    except TypeError:  # before torch 2.4
        return torch.is_autocast_cpu_enabled() if device == "cpu" else torch.is_autocast_enabled()


def check_site(site: Mapping[str, Any], error: RuntimeError) -> None:
    """Look whether a site's term failed because its parts are on several devices.

    :raises ConfigurationError: naming the parts and the devices.
    """
    parts = [("its value", site["value"]), ("its scale", site["scale"]), ("its mask", site["mask"])]
    found = [(name, part) for name, part in parts if isinstance(part, Tensor)]
    _check(f"site {site['name']!r}", [*found, *_parameters(site["fn"])], error)


def check_program(
    args: tuple, kwargs: dict[str, Any], latents: Mapping[str, Any], error: RuntimeError
) -> None:
    """Look whether a program failed because what it computes with is on several devices.

    :raises ConfigurationError: naming arguments, parameters and latents, and the devices.
    """
    named = {**{f"argument {i}": value for i, value in enumerate(args)}, **kwargs}
    found = [(name, value) for name, value in named.items() if isinstance(value, Tensor)]
    store = pyro.get_param_store()
    found += [(f"parameter {name!r}", value) for name, value in store.named_parameters()]
    found += [(f"latent {name!r}", v) for name, v in latents.items() if isinstance(v, Tensor)]
    _check("model and guide", found, error)


def _check(what: str, places: Places, error: RuntimeError) -> None:
    if "device" not in str(error):
        return
    by_device: dict[str, list[str]] = {}
    for name, tensor in places:
        if tensor.dim() or tensor.device.type != "cpu":  # a number on the CPU fits everywhere
            by_device.setdefault(str(tensor.device), []).append(name)
    if len(by_device) < 2:
        return
    found = "; ".join(f"on {device}: {_listed(names)}" for device, names in by_device.items())
    text = str(error).partition("\n")[0]
    raise ConfigurationError(
        f"{what}: got tensors on {' and '.join(by_device)} ({found}), expected all on one device. "
        f"{_REMEDY} torch says: {text}"
    ) from error


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _parameters(item: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a distribution holds, with its name."""
    for key, value in vars(item).items():
        if isinstance(value, Tensor) and not is_cache(key):
            yield f"{key.lstrip('_')} of {type(item).__name__}", value
        elif isinstance(value, (Distribution, Transform)):
            yield from _parameters(value)
        elif isinstance(value, (list, tuple)):
            for part in value:
                if isinstance(part, (Distribution, Transform)):
                    yield from _parameters(part)
