"""Random numbers of their own for one purpose, whatever others draw in between."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch

from pyro_silent.elbo.random_state import random_state, restore


def seed_everything(*seeds: int) -> None:
    """Seed torch, numpy and Python with one number that is mixed from several."""
    pyro.set_rng_seed(_mixed(seeds))


class RandomStream:
    """A state of torch's, numpy's and Python's generators that waits while others are drawn from.

    :param seeds: mixed into one seed, so that streams of different purposes are unrelated.
    :param generators: others that belong to the stream, such as that of a ``DataLoader``.
    """

    def __init__(self, *seeds: int, generators: Iterable[torch.Generator] = ()) -> None:
        self._generators = tuple(generators)
        outer = self.now()
        try:
            seed_everything(*seeds)
            for generator in self._generators:
                generator.manual_seed(_mixed(seeds))
            self.state = self.now()
        finally:
            self._go_to(outer)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, random numbers come from this stream."""
        outer = self.now()
        try:
            self._go_to(self.state)
            yield
        finally:
            self.state = self.now()
            self._go_to(outer)

    def now(self) -> dict[str, Any]:
        """The state that random numbers come from at the moment."""
        generators = [generator.get_state() for generator in self._generators]
        return {**random_now(), "generators": generators}

    def _go_to(self, state: dict[str, Any]) -> None:
        go_to(state)
        for generator, own in zip(self._generators, state["generators"], strict=True):
            generator.set_state(own)


def random_now() -> dict[str, Any]:
    """The state of torch, numpy and Python at the moment, in types that torch saves."""
    cpu, cuda = random_state()
    name, keys, *rest = np.random.get_state()
    return {
        "torch": cpu,
        "cuda": cuda,
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def go_to(state: dict[str, Any]) -> None:
    """Draw from a state of :func:`random_now` from here on."""
    restore((state["torch"], state["cuda"]))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether no generator has moved on between two states of :func:`random_now`."""
    (_, keys, *rest), (_, other_keys, *other_rest) = a["numpy"], b["numpy"]
    tensors = zip([a["torch"], *(a["cuda"] or [])], [b["torch"], *(b["cuda"] or [])])
    return (
        len(a["cuda"] or []) == len(b["cuda"] or [])
        and all(torch.equal(x, y) for x, y in tensors)
        and torch.equal(keys, other_keys)
        and rest == other_rest
        and a["python"] == b["python"]
    )


def _mixed(seeds: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])
