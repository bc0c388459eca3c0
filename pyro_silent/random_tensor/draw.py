"""The other reading of a random tensor's program: one shared draw of all its latents."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from pyro_silent.random_tensor.program import Call, Lost, is_cache, map_tensors, random_tensors
from pyro_silent.random_tensor.source import Source
from pyro_silent.random_tensor.tensor import RandomTensor, opaque

Sampler = Callable[[str, Distribution], "Tensor | None"]

_SCALARS = frozenset((int, float, bool, str, type(None), torch.Size))


def map_parameters(
    function: Callable[[Any], Any], value: Any, kind: type[Tensor] = RandomTensor
) -> Any:
    """A distribution (or transform, or nest of them) with its random parameters replaced.

    Whatever holds none that changes is returned as it is, not copied.

    :param kind: which parameters to replace; ``Tensor`` for all.
    """
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (Distribution, Transform)):
        changed = {
            key: new
            for key, old in vars(value).items()
            if type(old) not in _SCALARS
            and not is_cache(key)
            and (new := map_parameters(function, old, kind)) is not old
        }
        if not changed:
            return value
        value = copy.copy(value)
        vars(value).update(changed)
        for key in filter(is_cache, list(vars(value))):
            setattr(value, key, (None, None) if key == "_cached_x_y" else None)
        return value
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [map_parameters(function, item, kind) for item in value]
        if all(new is old for new, old in zip(items, value)):
            return value
        return type(value)(items)
    return value


class Draw:
    """One value for every latent, drawn when it is first needed and shared ever after.

    A latent is drawn by ``sampler(site name, distribution)``; where that gives None it is
    reparameterized, and where this is impossible the draw is recorded in :attr:`scored`, for a
    score-function term.

    :ivar scored: ``(site name, distribution, value)`` of each draw that carries no gradient.
    """

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._sampler = sampler
        self._values: dict[int, Any] = {}
        self._kept: list[Any] = []
        self._sources: dict[int, Tensor] = {}
        self.scored: list[tuple[str, Distribution, Tensor]] = []

    def __call__(self, tensor: Any) -> Any:
        """The value of a random tensor; anything else is returned as it is."""
        if not isinstance(tensor, RandomTensor):
            return tensor
        stack = [tensor]
        while stack:
            node = stack[-1]
            if id(node) in self._values:
                stack.pop()
                continue
            inputs = (
                [] if node._call is None else random_tensors((node._call.args, node._call.kwargs))
            )
            missing = [t for t in inputs if id(t) not in self._values]
            if missing:
                stack.extend(missing)
                continue
            self._values[id(node)] = self._evaluate(node)
            self._kept.append(node)
            stack.pop()
        return self._values[id(tensor)]

    def substitute(self, distribution: Distribution) -> Distribution:
        """The distribution with drawn parameters."""
        return map_parameters(self, distribution)

    def _evaluate(self, node: RandomTensor) -> Tensor:
        if node._source is not None:
            return self._of_source(node._source)
        call = node._call
        if call is None:
            raise ValueError(f"{node!r} has neither a source nor a call to be made from")
        if id(call) not in self._values:
            self._values[id(call)] = self._run(call)
            self._kept.append(call)
        result = self._values[id(call)]
        return result if node._index is None else result[node._index]

    def _run(self, call: Call) -> Any:
        if call.function is sample_site:
            name, fn = call.args[:2]
            return self._sample(name, self.substitute(fn))
        call.check_unchanged()
        args = map_tensors(self, call.args)
        kwargs = map_tensors(self, call.kwargs)
        with torch.set_grad_enabled(call.grad_enabled and torch.is_grad_enabled()):
            return call.function(*args, **kwargs)

    def _of_source(self, source: Source) -> Tensor:
        key = id(source.key)
        if key not in self._sources:
            self._sources[key] = self._sample(source.name, source.distribution)
            self._kept.append(source)
        return self._sources[key]

    def _sample(self, name: str, fn: Distribution) -> Tensor:
        chosen = None if self._sampler is None else self._sampler(name, fn)
        if chosen is not None:
            return chosen
        if fn.has_rsample:
            return fn.rsample()
        value = fn.sample()
        self.scored.append((name, fn, value))
        return value


def sample_site(name: str, fn: Distribution, parameters: tuple) -> Tensor:
    """Marks the node of a guide site whose law is known only given other latents' values."""
    raise RuntimeError("sample_site is evaluated by Draw")


def sampled_site(
    name: str, fn: Distribution, location: str, reason: str, function: Callable = sample_site
) -> RandomTensor:
    """The value of a guide site that can only be drawn together with the latents it depends on.

    :param function: marks the node; :class:`Draw` knows what to do with :func:`sample_site`.
    """
    parameters = tuple(random_tensors(fn))
    lost = next((t._lost for t in parameters if t._lost is not None), None)
    if lost is None:
        operation = f"pyro.sample({name!r}, {type(fn).__name__})"
        lost = Lost(operation, location, reason)
    call = Call(function, (name, fn, parameters), {})
    like = _first_tensor(fn)
    dtype = torch.get_default_dtype() if like is None else like.dtype
    if _is_index(fn):
        dtype = torch.int64
    device = None if like is None else like.device
    return opaque(call, torch.empty((), dtype=dtype, device=device), fn.shape(), lost)


def _first_tensor(fn: Any) -> Tensor | None:
    """A parameter of a distribution, which tells dtype and device of its values."""
    for value in vars(fn).values():
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Distribution) and (found := _first_tensor(value)) is not None:
            return found
    return None


def _is_index(fn: Any) -> bool:
    """Whether values are integers that torch keeps as such: those of a Categorical."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, torch.distributions.Categorical)
