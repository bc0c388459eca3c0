"""E of a distribution's own plain log density, with quadrature nodes put in place of what is random.

For densities whose formula cannot be run on random tensors, or not well: they write into buffers, choose
by values, sum over components. What is needed is that each element depends on one or two Gaussian
scalars, or on few discrete ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import is_dependent

from pyro_silent.expectation.coercion import constraints_of, without_validation
from pyro_silent.expectation.moments import mean
from pyro_silent.expectation.terms import elementwise, shape_of
from pyro_silent.random_tensor.draw import map_parameters
from pyro_silent.random_tensor.program import random_tensors
from pyro_silent.random_tensor.tensor import RandomTensor


def _log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    return distribution.log_prob(value)


def by_substitution(
    distribution: Distribution,
    value: Tensor,
    extra_dims: int,
    log_prob: Callable[[Distribution, Tensor], Tensor] = _log_prob,
) -> Tensor:
    """E[log p] of scalars.

    :param extra_dims: how many dims random parameters have to the right of the batch, such as one for the
        components of a mixture; they are taken apart along them.
    """
    parameters: dict[int, RandomTensor] = {}
    map_parameters(lambda t: parameters.setdefault(id(t), t), distribution)
    columns: list[Tensor] = [value]
    places: dict[int, tuple[int, torch.Size]] = {}
    for key, parameter in parameters.items():
        batch = parameter.dim() - extra_dims
        extra = parameter.shape[batch:]
        flat = parameter.reshape(*parameter.shape[:batch], extra.numel())
        places[key] = (len(columns) - 1, extra)
        columns += [flat[..., k] for k in range(extra.numel())]

    def at_nodes(value: Tensor, *columns: Tensor) -> Tensor:
        def given(parameter: RandomTensor) -> Tensor:
            start, extra = places[id(parameter)]
            chosen = torch.broadcast_tensors(*columns[start : start + extra.numel()])
            stacked = torch.stack(chosen, -1)
            return stacked.reshape(*stacked.shape[:-1], *extra)

        with without_validation():
            substituted = copy.copy(map_parameters(given, distribution))
            substituted._validate_args = False
            return log_prob(substituted, value)

    return mean(elementwise(at_nodes, *columns, shape=shape_of(distribution, value)))


def is_scalar_family(distribution: Distribution, value: Tensor) -> bool:
    """Whether what is random about a distribution is scalar parameters, declared as such, and a value."""
    if len(distribution.event_shape) or shape_of(distribution, value) != distribution.batch_shape:
        return False
    declared = constraints_of(distribution)
    for name, item in vars(distribution).items():
        if not random_tensors(item):
            continue
        constraint = declared.get(name)
        if constraint is None or is_dependent(constraint) or constraint.event_dim:
            return False
        if not isinstance(item, RandomTensor):
            return False
    return True
