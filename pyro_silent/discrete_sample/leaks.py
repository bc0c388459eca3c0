"""What turns a sample into a Python value or writes into it: refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.dispatch import refused, samples_in
from pyro_silent.discrete_sample.metadata import plain
from pyro_silent.discrete_sample.outcome import settled
from pyro_silent.discrete_sample.refusals import in_place, leak
from pyro_silent.discrete_sample.sample import DiscreteSample, is_float, latents_in
from pyro_silent.discrete_sample.table import RULES, rule


@rule(
    *("__bool__", "item", "tolist", "__int__", "__float__", "__index__", "__complex__", "numpy"),
    *("__array__", "nonzero", "argwhere", "unique", "unique_consecutive", "bincount", "equal"),
    *("allclose", "is_nonzero", "__contains__", "histc", "histogram", "nonzero_static"),
    *("__reduce_ex__", "__reduce__", "__setstate__", "__dlpack__", "storage", "untyped_storage"),
)
def needs_value(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Python values and data-dependent shapes, unless the sample does not depend on its latents."""
    samples = list(samples_in((args, kwargs)))
    if not torch.is_grad_enabled():
        return plain(func, args, kwargs)
    if len(args) == 1 and type(args[0]) is DiscreteSample:
        value = settled(args[0])
        if value is not None:
            return func(value, **kwargs)
    raise leak(func, latents_in(samples), _REMEDIES.get(func.__name__, ""))


_REMEDIES = {
    "bincount": "Write F.one_hot(z, n).sum(0)",
    "equal": "Write (a == b).all()",
    "allclose": "Write torch.isclose(a, b).all()",
}


@rule("bernoulli", "poisson", "multinomial", "normal", "binomial")
def draws(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A draw has a derivative of zero."""
    raise refused(func, args, kwargs)


def write(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An in-place method: a float sample may be written into a plain tensor, nothing into a sample."""
    samples = list(samples_in((args, kwargs)))
    if type(args[0]) is DiscreteSample or not all(is_float(sample) for sample in samples):
        raise in_place(func, latents_in(samples))
    return plain(func, args, kwargs)


_WRITES = "add sub mul div truediv floordiv mod pow and or xor lshift rshift matmul".split()
for _name in dir(Tensor):
    _method = getattr(Tensor, _name)
    _is_write = _name.endswith("_") and not _name.startswith("_") and _name != "requires_grad_"
    if callable(_method) and (_is_write or _name in {f"__i{verb}__" for verb in _WRITES}):
        RULES[_method] = write
RULES[Tensor.data.__set__] = write
