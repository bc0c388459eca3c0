"""Distributions with random parameters, built through Pyro's hook for constructor arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.distributions.distribution import COERCIONS
from torch.distributions import Distribution, constraints

from pyro_silent.random_tensor.program import LEAVES, random_tensors
from pyro_silent.random_tensor.shapes import compact
from pyro_silent.random_tensor.tensor import RandomTensor

CONSTRUCTORS: dict[type, Callable[..., None]] = {}

"""class -> what to do in place of an ``__init__`` that needs values, called as it is."""


@contextmanager
def without_validation() -> Iterator[None]:
    """Inside, distributions that are made or used without a choice of their own do not validate."""
    default = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(default)


def _build(cls: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Make an ordinary instance whose parameters are random tensors; check the plain ones."""
    if all(type(arg) in LEAVES for arg in args) and (not kwargs or not random_tensors(kwargs)):
        return None  # told without a walk: most distributions are plain
    if not random_tensors((args, kwargs)):
        return None
    validate = kwargs.get("validate_args")
    if "validate_args" in cls.__signature__.parameters:
        kwargs = {**kwargs, "validate_args": False}
    construct = next((CONSTRUCTORS[base] for base in cls.__mro__ if base in CONSTRUCTORS), None)
    with without_validation():
        distribution = cls.__new__(cls)
        if construct is None:
            distribution.__init__(*args, **kwargs)
        else:
            construct(distribution, *args, **kwargs)
    if validate is None:
        validate = Distribution._validate_args
    if validate:
        check_plain_parameters(distribution)
    return distribution


def constraints_of(distribution: Distribution) -> dict[str, Any]:
    """The constraints of a distribution's arguments, none where it declares none."""
    try:
        return distribution.arg_constraints
    except (AttributeError, NotImplementedError):
        return {}


def check_plain_parameters(distribution: Distribution) -> None:
    """torch's own check of parameters, for those that have values.

    :raises ValueError: as torch does for a parameter out of its range.
    """
    if hasattr(distribution, "base_dist"):
        check_plain_parameters(distribution.base_dist)
    for name, constraint in constraints_of(distribution).items():
        value = vars(distribution).get(name)
        if value is None or isinstance(value, RandomTensor) or constraints.is_dependent(constraint):
            continue
        if random_tensors(vars(constraint)):
            continue  # a bound is random, as of Uniform's low where high is
        if not constraint.check(compact(value)).all():
            raise ValueError(
                f"Expected parameter {name} ({type(value).__name__} of shape {tuple(value.shape)}) "
                f"of distribution {type(distribution).__name__} to satisfy the constraint "
                f"{constraint}, but found invalid values:\n{value}"
            )


@contextmanager
def random_parameters() -> Iterator[None]:
    """Inside, Pyro's distributions can be built with :class:`RandomTensor` parameters.

    The losses do this around the guide and the model; it is needed only outside of them. It uses
    Pyro's own hook ``pyro.distributions.distribution.COERCIONS`` and nothing is patched.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_silent import random_parameters, random_tensor
        >>> z = random_tensor(dist.Normal(torch.zeros(3), torch.ones(3)))
        >>> with random_parameters():
        ...     p = dist.Normal(2 * z, 0.5).to_event(1)
        >>> p.event_shape
        torch.Size([3])
    """
    COERCIONS.append(_build)
    try:
        yield
    finally:
        COERCIONS.remove(_build)
