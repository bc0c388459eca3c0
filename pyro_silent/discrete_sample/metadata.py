"""Questions about a tensor that do not read its values, and what makes a plain tensor on purpose."""

from __future__ import annotations

from collections.abc import Callable
from types import GetSetDescriptorType
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.table import RULES, functions, properties, rule

_DIFFERENTIABLE = {"T", "mT", "H", "mH", "real", "imag"}

_QUESTIONS = """
    size dim ndimension numel nelement stride storage_offset element_size is_floating_point is_complex
    is_signed is_contiguous is_same_size is_inference is_conj is_neg is_pinned is_shared is_set_to
    get_device data_ptr has_names register_hook backward retain_grad requires_grad_ __len__ __dir__
    result_type can_cast is_storage zeros_like ones_like empty_like full_like rand_like
    randn_like randint_like new_zeros new_ones new_empty new_full new_tensor new_empty_strided
    untyped_storage storage storage_type __hash__ _is_view is_distributed
    register_post_accumulate_grad_hook
""".split()


@rule("detach", "detach_copy", "lift_fresh")
def plain(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The function on the plain tensors."""
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


for _function in functions(*_QUESTIONS):
    RULES[_function] = plain
for _name in dir(Tensor):
    if isinstance(getattr(Tensor, _name), (GetSetDescriptorType, property)):
        if _name not in _DIFFERENTIABLE:
            RULES[properties(_name)[0]] = plain
