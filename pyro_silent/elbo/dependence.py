"""Which sites of a guide depend on samples that were drawn before them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_silent.errors import MODES

_METADATA = frozenset(
    getattr(attribute, "__get__", attribute)
    for attribute in (
        *(
            Tensor.shape,
            Tensor.dtype,
            Tensor.device,
            Tensor.requires_grad,
            Tensor.ndim,
            Tensor.is_leaf,
        ),
        *(Tensor.layout, Tensor.is_cuda, Tensor.is_meta, Tensor.is_sparse, Tensor.grad_fn),
    )
) | {
    *(Tensor.dim, Tensor.ndimension, Tensor.size, Tensor.numel, Tensor.nelement, Tensor.stride),
    *(Tensor.is_floating_point, Tensor.is_complex, Tensor.is_contiguous, Tensor.get_device),
    *(Tensor.__len__, Tensor.__repr__, Tensor.data_ptr, Tensor.register_hook),
}


class Marked(Tensor):
    """A tensor that depends on a sample, as all that is computed from it does.

    torch gives the results of every operation on a subclass the type of the subclass, also where there
    is no derivative. What becomes a Python value, or is written into a plain tensor, leaves no mark and
    is counted. Out of reach is what goes around torch's functions: ``torch.tensor(z)``, ``torch.vmap``,
    ``torch.jit``.

    :cvar num_escapes: how often a marked tensor became something that is not marked.
    """

    num_escapes = 0

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function; its results are marked."""
        kwargs = kwargs or {}
        result = super().__torch_function__(func, types, args, kwargs)
        is_value = not isinstance(result, (Tensor, tuple, list)) or func is Tensor.tolist
        if is_value and func not in _METADATA and not _is_validation():
            Marked.num_escapes += 1
        elif kwargs.get("out") is not None or (_is_in_place(func) and type(args[0]) is not cls):
            Marked.num_escapes += 1
        return result

    def __deepcopy__(self, memo: dict) -> Tensor:
        """A copy with the mark."""
        return self.clone()


def _is_in_place(func: Callable) -> bool:
    name = getattr(func, "__name__", "")
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def _is_validation() -> bool:
    """Whether torch.distributions looks at the value, as it does to check arguments."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(MODES):
        frame = frame.f_back
    return frame is not None and frame.f_globals["__name__"].startswith("torch.distributions")


class DependenceTracker(Messenger):
    """Put inside the guide's trace, it lets the guide see marked samples; the model sees plain ones.

    A site whose parameters carry the mark depends on a sample. Once the guide has turned a marked
    tensor into a Python value, any later site may depend on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self, follows: bool = True) -> None:
        """Forget the run before.

        :param follows: whether the guide runs inside; if not, every site after the first may depend.
        """
        self._escapes_before = Marked.num_escapes
        self._follows = follows
        self._num_sites = 0

    def depends(self, parameter: Tensor) -> bool:
        """Whether the next site's parameter depends, or may depend, on a sample of this run."""
        if not self._follows:
            return self._num_sites > 0
        return isinstance(parameter, Marked) or Marked.num_escapes > self._escapes_before

    def count_site(self) -> None:
        """A site gets its value."""
        self._num_sites += 1

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg) or not isinstance(msg["value"], Tensor):
            return
        msg["value"] = msg["value"].as_subclass(Marked)
