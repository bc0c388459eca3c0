"""Questions about a tensor that do not read its values, and what makes a plain tensor on purpose."""

from __future__ import annotations

from collections.abc import Callable
from types import GetSetDescriptorType
from typing import Any

import torch
from torch import Tensor

from pyro_silent.discrete_sample.dispatch import plain_values, samples_in
from pyro_silent.discrete_sample.refusals import leak
from pyro_silent.discrete_sample.sample import latents_in
from pyro_silent.discrete_sample.table import RULES, properties, register

_QUESTIONS = """
    size dim ndimension numel nelement stride storage_offset element_size is_floating_point is_complex
    is_signed is_contiguous is_same_size is_inference is_conj is_neg is_pinned is_shared is_set_to
    get_device data_ptr has_names register_hook backward retain_grad requires_grad_ __len__ __dir__
    result_type can_cast __hash__ _is_view is_distributed register_post_accumulate_grad_hook
    detach detach_copy
""".split()
_CREATION = """
    zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones
    new_empty new_full new_tensor new_empty_strided new
""".split()
_DIFFERENTIABLE = {"T", "mT", "H", "mH", "real", "imag"}


def plain(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The function on the plain tensors."""
    if len(args) == 1 and not kwargs:
        return func(plain_values(args[0]))
    return func(*plain_values(args), **plain_values(kwargs))


def create(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A new tensor like another one; a sample as its *content* would be copied without gradient."""
    content = list(samples_in((args[1:], kwargs)))
    if content:
        raise leak(func, latents_in(content), "Write z.expand(shape) or torch.where")
    return plain(func, args, kwargs)


register(plain, *_QUESTIONS)
RULES[torch.autograd.grad] = RULES[torch.autograd.backward] = plain
register(create, *_CREATION)
for _name in dir(Tensor):
    if isinstance(getattr(Tensor, _name), (GetSetDescriptorType, property)):
        if _name not in _DIFFERENTIABLE:
            RULES[properties(_name)[0]] = plain
