"""Batches of data: how they become arguments, and the same ones in the same order for every loss."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_silent.diagnostics.random_stream import RandomStream
from pyro_silent.errors import ConfigurationError


def check_data(argument: str, data: Any) -> None:
    """Refuse what cannot be gone through again and again, batch by batch.

    :raises ConfigurationError: naming the argument.
    """
    wanted = (
        "expected an iterable of batches that can be iterated again and again; write a DataLoader or "
        "a list of batches, for full-batch inference"
    )
    if isinstance(data, (Tensor, Mapping, str, bytes)):
        kind = "a tensor" if isinstance(data, Tensor) else f"a {type(data).__name__}"
        raise ConfigurationError(f"{argument}: got {kind}, {wanted} [x].")
    if isinstance(data, tuple) and any(isinstance(part, Tensor) for part in data):
        raise ConfigurationError(f"{argument}: got a tuple of tensors, {wanted} [(x, y)].")
    if not isinstance(data, Iterable):
        raise ConfigurationError(f"{argument}: got {data!r}, {wanted} [(x, y)].")
    if isinstance(data, Iterator):
        raise ConfigurationError(
            f"{argument}: got the iterator {type(data).__name__}, which ends for good, {wanted} "
            f"[(x, y)]; write {argument}=list(...) to keep what it gives."
        )
    if isinstance(data, Sized) and len(data) == 0:
        raise ConfigurationError(f"{argument}: got no batches, {wanted} [(x, y)].")


def arguments_of(batch: Any) -> tuple[tuple, dict[str, Any]]:
    """The arguments that a batch stands for: a tuple or list, a dict of keywords, or just one."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    return (batch,), {}


class Batches:
    """Batches one after the other, pass after pass, drawn from random numbers of their own.

    The generators of a ``DataLoader`` and of its samplers belong to these: whatever a loss draws, a
    seed stands for one order.

    :param argument: what the user calls the data.
    :ivar num_passes: passes that have ended.
    """

    def __init__(self, argument: str, data: Iterable, *seeds: int) -> None:
        self._argument, self._data = argument, data
        self._stream = RandomStream(*seeds, generators=generators_of(data))
        # to go from one random state to another takes a millisecond, and a list draws nothing
        self._draws = type(data) not in (list, tuple)
        self._iterator: Iterator | None = None
        self._pass_began = self._stream.state
        self._index = 0
        self.num_passes = 0

    def first(self) -> tuple[tuple, dict[str, Any]]:
        """Arguments from the first batch."""
        return next(self.one_pass())

    def one_pass(self) -> Iterator[tuple[tuple, dict[str, Any]]]:
        """Arguments from each batch of the first pass, which is still to come.

        :raises ConfigurationError: if there are no batches at all.
        """
        began, is_empty = self._stream.state, True
        try:
            with self._running():
                iterator = iter(self._data)
            while True:
                with self._running():
                    try:
                        batch = next(iterator)
                    except StopIteration:
                        break
                is_empty = False
                yield arguments_of(batch)
        finally:
            self._stream.state = began
        if is_empty:
            raise self._no_batches()

    def next(self) -> tuple[tuple, dict[str, Any]]:
        """Arguments from the next batch, of a new pass where one has ended.

        :raises ConfigurationError: if there are no batches at all.
        """
        with self._running():
            while True:
                if self._iterator is None:
                    self._pass_began = self._stream.now() if self._draws else self._stream.state
                    self._iterator, self._index = iter(self._data), 0
                try:
                    batch = next(self._iterator)
                    break
                except StopIteration:
                    if self._index == 0:
                        raise self._no_batches() from None
                    self._iterator = None
                    self.num_passes += 1
        self._index += 1
        return arguments_of(batch)

    def state(self) -> dict[str, Any]:
        """Where the next batch is to be found."""
        return {
            "pass_began": self._pass_began,
            "index": self._index,
            "num_passes": self.num_passes,
        }

    def go_to(self, state: dict[str, Any]) -> None:
        """Find it, by going through the pass up to there.

        :raises ConfigurationError: if the pass has fewer batches than before.
        """
        self._stream.state = self._pass_began = state["pass_began"]
        self._index, self.num_passes = state["index"], state["num_passes"]
        with self._running():
            self._iterator = iter(self._data)
            for _ in range(self._index):
                try:
                    next(self._iterator)
                except StopIteration:
                    raise ConfigurationError(
                        f"{self._argument}: got fewer than {self._index} batches in a pass, expected "
                        "the data that the checkpoint was made with."
                    ) from None

    def _running(self) -> AbstractContextManager:
        return self._stream.running() if self._draws else nullcontext()

    def _no_batches(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self._argument}: got an iterable without batches, expected at least one."
        )


def generators_of(data: Any) -> list[torch.Generator]:
    """The generators that a ``DataLoader`` and its samplers draw from, if they have their own."""
    sampler = getattr(data, "batch_sampler", None)
    owners = (data, getattr(data, "sampler", None), sampler, getattr(sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    generators = [generator for generator in found if isinstance(generator, torch.Generator)]
    return list({id(generator): generator for generator in generators}.values())


def fingerprint(values: Any) -> str:
    """A text that tells nests of tensors and numbers apart."""
    digest = hashlib.sha256()
    _feed(digest, values)
    return str(digest.hexdigest()[:16])


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        if value.layout == torch.strided:
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(repr(key).encode())
            _feed(digest, item)
    elif isinstance(value, (tuple, list)):
        digest.update(f"{len(value)}".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, (bool, int, float, str)):
        digest.update(repr(value).encode())
