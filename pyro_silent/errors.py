"""Everything pyro_silent raises or warns about, and the place in the user's code it points to."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from types import FrameType

import pyro
import torch

__all__ = [
    "CaptureError",
    "CaptureWarning",
    "ConfigurationError",
    "IntractableError",
    "LeakError",
    "PyroSilentError",
    "SampledSiteWarning",
]


class PyroSilentError(Exception):
    """Base class of every error raised on purpose by pyro_silent.

    Not a ValueError, RuntimeError or TypeError: Pyro rebuilds the first two from their text while it
    traces a program, which would drop the attributes, and torch takes a TypeError inside an operator
    for "not implemented".
    """


class IntractableError(PyroSilentError):
    """An expectation has no closed form here.

    :ivar site: name of the sample site whose term is refused, if known.
    :ivar operation: the operation that lost exactness.
    :ivar latents: names of the latents involved.
    :ivar location: ``file:line`` in the user's code where exactness was lost.
    """

    def __init__(
        self,
        message: str,
        *,
        site: str | None = None,
        operation: str | None = None,
        latents: tuple[str, ...] = (),
        location: str | None = None,
    ) -> None:
        super().__init__(message)
        self.site = site
        self.operation = operation
        self.latents = latents
        self.location = location


class LeakError(PyroSilentError):
    """A program tried to turn a random tensor into a plain Python value or storage.

    Mixing an expectation with one concrete value of the same latent is bias, so it is refused.

    :ivar latents: names of the latents whose value was asked for, where they are known.
    """

    def __init__(self, message: str, *, latents: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.latents = latents


class CaptureError(PyroSilentError):
    """A training step cannot be captured as a graph of plain tensors; the message says why."""


class ConfigurationError(PyroSilentError, ValueError):
    """An argument has a value that makes no sense; the message says what came and what is expected."""


class CaptureWarning(UserWarning):
    """Steps run as they do under ``pyro.infer.SVI``, or uncompiled, since something prevents more."""


class SampledSiteWarning(UserWarning):
    """The term of one site is estimated from a sample instead of computed exactly."""


class QuadratureWarning(UserWarning):
    """An expectation found by quadrature is not known to be accurate to a relative error of 1e-6."""


_LIBRARY_ROOTS = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep
    for path in (torch.__file__, pyro.__file__, __file__)
)
MODES = ("torch.utils._device", "torch.overrides")
"""Modules between a call of torch and its implementation, such as the mode of the default device."""

_STANDARD_LIBRARY = os.path.dirname(os.path.abspath(contextlib.__file__)) + os.sep


@functools.lru_cache(maxsize=4096)
def _is_library(filename: str) -> bool:
    return (
        filename.startswith(_LIBRARY_ROOTS)
        or (filename.startswith(_STANDARD_LIBRARY) and "site-packages" not in filename)
        or filename.startswith("<")
    )


def user_location() -> str:
    """The innermost ``file:line`` on the stack that belongs to none of torch, Pyro and pyro_silent."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not _is_library(filename):
            return f"{filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "<unknown>"
