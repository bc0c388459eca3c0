"""What a random tensor answers by itself, what it rebinds, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor.program import DIRECT, RULES, random_tensors
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.tensor import RandomTensor, apply_rule, leak, storage_of

_METADATA = (
    "Tensor.shape.__get__", "Tensor.dtype.__get__", "Tensor.device.__get__", "Tensor.ndim.__get__",
    "Tensor.layout.__get__", "Tensor.is_cuda.__get__", "Tensor.is_cpu.__get__",
    "Tensor.is_sparse.__get__", "Tensor.is_quantized.__get__", "Tensor.is_nested.__get__",
    "Tensor.is_meta.__get__", "Tensor.is_mkldnn.__get__", "Tensor.itemsize.__get__",
    "Tensor.nbytes.__get__", "Tensor.names.__get__", "Tensor.is_leaf.__get__",
    "Tensor.requires_grad.__get__", "Tensor.size", "Tensor.dim", "Tensor.ndimension",
    "Tensor.numel", "Tensor.nelement", "Tensor.element_size", "Tensor.stride",
    "Tensor.is_contiguous", "is_floating_point", "is_complex", "Tensor.get_device", "Tensor.__len__",
    "is_same_size", "numel", "Tensor.is_inference", "Tensor.has_names", "Tensor.storage_offset",
    "result_type", "is_signed", "is_conj", "is_neg",
)  # fmt: skip

_LIKE = (
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
    "Tensor.new_zeros", "Tensor.new_ones", "Tensor.new_empty", "Tensor.new_full", "Tensor.new_tensor",
    "Tensor.new",
)  # fmt: skip

_LEAKS = (
    "Tensor.item", "Tensor.tolist", "Tensor.numpy", "Tensor.__array__", "Tensor.__bool__",
    "Tensor.__float__", "Tensor.__int__", "Tensor.__long__", "Tensor.__index__",
    "Tensor.__complex__", "Tensor.__contains__", "Tensor.__setitem__", "Tensor.__format__",
    "Tensor.data_ptr", "Tensor.untyped_storage", "Tensor.storage", "Tensor.backward",
    "Tensor.register_hook", "Tensor.retain_grad", "Tensor.requires_grad_", "Tensor.grad.__get__",
    "Tensor.grad_fn.__get__", "Tensor.data.__get__", "Tensor.data.__set__", "Tensor.__deepcopy__",
    "Tensor.__reduce_ex__", "Tensor.__dlpack__", "Tensor.__dlpack_device__",
    "Tensor.share_memory_", "Tensor.pin_memory",
    "Tensor.to_sparse", "Tensor.nonzero", "nonzero", "argwhere", "unique", "equal", "allclose",
    "is_nonzero", "autograd.grad", "autograd.backward",
    "bincount", "histc", "multinomial", "bernoulli", "poisson", "normal",
    "unique_consecutive",
)  # fmt: skip

_VIEWS = (
    "view", "view_as", "reshape", "reshape_as", "flatten", "ravel", "unflatten", "permute",
    "transpose", "swapaxes", "swapdims", "t", "Tensor.T.__get__", "Tensor.mT.__get__", "movedim",
    "moveaxis", "unsqueeze", "squeeze", "expand", "expand_as", "broadcast_to", "select", "narrow",
    "unbind", "split", "chunk", "tensor_split", "__getitem__", "diagonal", "detach", "contiguous",
    "real", "imag", "to", "type_as",
)  # fmt: skip


def _blank(value: Any) -> Any:
    if isinstance(value, RandomTensor):
        with torch._C.DisableTorchFunctionSubclass():
            shape, dtype, device = value.shape, value.dtype, value.device
        return torch.empty((), dtype=dtype, device=device).expand(shape)
    return value


def _metadata(function: Callable) -> Callable:
    def answer(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    return answer


def _like(function: Callable) -> Callable:
    def make(*args: Any, **kwargs: Any) -> Any:
        return function(*(_blank(arg) for arg in args), **kwargs)

    return make


def _refused(function: Callable) -> Callable:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise leak(function, *random_tensors((args, kwargs)))

    return refuse


def _viewing(function: Callable) -> Callable:
    """Run the rule as ever, and note that the result shares memory with the input in torch."""

    def view(*args: Any, **kwargs: Any) -> Any:
        result = apply_rule(function, args, kwargs)
        first = args[0] if args else next(iter(kwargs.values()))
        if isinstance(first, RandomTensor) and not _copies(function, args):
            base = storage_of(first)
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                tensor._alias = base
        return result

    return view


def _copies(function: Callable, args: tuple) -> bool:
    """Indexing with tensors, lists or masks makes a copy; any other kind makes a view."""
    if function is not Tensor.__getitem__ or len(args) < 2:
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(item, (Tensor, list, bool)) for item in index)


def _type(input: RandomTensor, dtype: Any = None, **kwargs: Any) -> Any:
    """``x.type()`` is a name; with an argument it is a cast."""
    if dtype is None:
        return _blank(input).type()
    return apply_rule(Tensor.type, (input, dtype), kwargs)


def _iterate(input: RandomTensor) -> Iterator[RandomTensor]:
    if input.dim() == 0:
        raise TypeError("iteration over a 0-d tensor")
    return iter(input.unbind(0))  # type: ignore[arg-type]


def register() -> None:
    """Fill the table of direct answers; every rule must be in its own table by now."""
    for names, make in ((_METADATA, _metadata), (_LIKE, _like), (_LEAKS, _refused)):
        for name in names:
            for function in functions(name):
                DIRECT[function] = make(function)
                RULES.pop(function, None)
    for name in _VIEWS:
        for function in functions(name):
            if function in RULES and function not in DIRECT:
                DIRECT[function] = _viewing(function)
    # torch's check of a sample by its support: a law is not a sample
    for function in functions("_is_all_true"):
        DIRECT[function] = lambda input: torch.tensor(True)
    DIRECT[Tensor.type] = _type
    DIRECT[Tensor.__iter__] = _iterate
    DIRECT[Tensor.__reversed__] = lambda input: input.flip(0)
