"""``expected_log_prob``: E[log p(x)] where x, or the parameters of p, are random tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.errors import ConfigurationError, IntractableError, LeakError
from pyro_silent.expectation.coercion import constraints_of
from pyro_silent.expectation.moments import mean_of, refusal
from pyro_silent.expectation.ranges import out_of_range
from pyro_silent.expectation.substitution import by_substitution, is_scalar_family
from pyro_silent.looking import is_free
from pyro_silent.random_tensor.program import latents_of, random_tensors
from pyro_silent.random_tensor.shapes import sum_rightmost
from pyro_silent.random_tensor.tensor import RandomTensor

_User = TypeVar("_User", bound=Callable)
_Rule = Callable[[Distribution, Tensor, int], Tensor]

_RULES: dict[type, _Rule] = {}


def closed_form(*classes: type) -> Callable[[_Rule], _Rule]:
    """Decorator for built-in rules ``(distribution, value, num_summed) -> Tensor``.

    They sum the rightmost ``num_summed`` batch dims themselves, so that variances can be contracted
    with their weights before they are spread over the batch.
    """

    def decorate(function: _Rule) -> _Rule:
        for cls in classes:
            _RULES[cls] = function
        return function

    return decorate


def register_expected_log_prob(distribution_class: type) -> Callable[[_User], _User]:
    """Decorator: the closed form of E[log p(x)] for a class of distributions.

    The function takes ``(distribution, value)``, either of which may hold random tensors, and returns
    a plain tensor of shape ``batch_shape``. Use :func:`mean`, :func:`variance` and :func:`covariance` on
    what is random, and raise :class:`IntractableError` for what has no closed form. The rule also holds
    for subclasses that keep the class's ``log_prob``. A later registration replaces an earlier one.

    :raises ConfigurationError: if the argument is not a class of distributions.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_silent import expected_log_prob, mean, random_tensor, register_expected_log_prob
        >>> class Rectangle(dist.Uniform):
        ...     def log_prob(self, value):
        ...         return super().log_prob(value)
        >>> @register_expected_log_prob(Rectangle)
        ... def _(distribution, value):
        ...     return -(distribution.high - distribution.low).log()
        >>> z = random_tensor(dist.Bernoulli(torch.tensor(0.5)))
        >>> float(expected_log_prob(Rectangle(-1.0, 1.0), z))
        -0.6931471824645996
    """
    if not (isinstance(distribution_class, type) and issubclass(distribution_class, Distribution)):
        raise ConfigurationError(
            "register_expected_log_prob: expected a subclass of torch.distributions.Distribution, got "
            f"{distribution_class!r}; write @register_expected_log_prob(MyDistribution)."
        )

    def decorate(function: _User) -> _User:
        def rule(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
            result = function(distribution, value)
            return sum_rightmost(result.expand(_result_shape(distribution, value)), num_summed)

        _RULES[distribution_class] = rule
        return function

    return decorate


def _result_shape(distribution: Distribution, value: Tensor) -> torch.Size:
    event_dim = len(distribution.event_shape)
    return torch.broadcast_shapes(distribution.batch_shape, value.shape[: value.dim() - event_dim])


def find_rule(cls: type) -> _Rule | None:
    """The rule of the nearest base class whose density the class still has."""
    for base in cls.__mro__:
        if base in _RULES:
            same = getattr(cls, "log_prob", None) is getattr(base, "log_prob", None)
            return _RULES[base] if same else None
    return None


def expected_log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    """The expectation of ``distribution.log_prob(value)`` over all random tensors involved.

    By the distribution's rule; else by running its own ``log_prob`` formula on random tensors and taking
    the :func:`mean` of the result; else, for scalars, with quadrature nodes put into that formula; else
    refused. Without random tensors it is ``distribution.log_prob``.

    :param distribution: any Pyro distribution; its parameters may be random tensors if it was built
        inside :func:`random_parameters`.
    :param value: a plain or random tensor.
    :return: a plain tensor of the broadcast batch shape.
    :raises IntractableError: if there is no closed form, naming the operation and line that lost it.

    Cost: for a Normal the mean's squared error, and one contraction for the variance.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_silent import expected_log_prob, random_parameters, random_tensor
        >>> z = random_tensor(dist.Normal(torch.zeros(()), torch.ones(())))
        >>> with random_parameters():
        ...     p = dist.Normal(3 * z, 2.0)
        >>> float(expected_log_prob(p, torch.tensor(1.0)))  # log N(1; 0, 2) - 9 / (2 * 4)
        -2.8620858192443848
    """
    result = expectation_of(distribution, value, 0)
    if is_free(result) and bool(result.isnan().any()):
        raise no_closed_form(
            distribution, value, "it overflows: a standard deviation is too large for this dtype"
        )
    return result


def expectation_of(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """:func:`expected_log_prob` summed over the rightmost ``num_summed`` batch dims."""
    if not isinstance(value, RandomTensor) and not random_tensors(distribution):
        return sum_rightmost(distribution.log_prob(value), num_summed)
    outside = out_of_range(distribution, value)
    if outside is not None:
        raise no_closed_form(distribution, value, outside)
    rule = find_rule(type(distribution)) or _by_formula
    try:
        return rule(distribution, value, num_summed)
    except IntractableError as error:
        raise _named(distribution, error) from None


def _named(distribution: Distribution, error: IntractableError) -> IntractableError:
    """The error with the distribution and its random arguments in front, unless they are there."""
    message = str(error)
    if message.startswith(_WHAT):
        return error
    return IntractableError(
        f"{_WHAT} of {_described(distribution)}: {message}",
        site=error.site,
        operation=error.operation,
        latents=error.latents,
        location=error.location,
    )


_WHAT = "the expected log density"


def _by_formula(distribution: Distribution, value: Tensor, num_summed: int) -> Tensor:
    """Run ``log_prob`` on random tensors and take the mean of what it returns; else put nodes in."""
    validate = distribution._validate_args
    distribution._validate_args = False
    refused: IntractableError
    try:
        log_prob = distribution.log_prob(value)
        what = f"{_WHAT} of {_described(distribution)}"
        return sum_rightmost(mean_of(log_prob, what), num_summed)
    except LeakError as error:
        refused = no_closed_form(distribution, value, f"its formula needs values: {error}")
    except IntractableError as error:
        refused = error
    finally:
        distribution._validate_args = validate
    if is_scalar_family(distribution, value):
        with suppress(IntractableError):
            return sum_rightmost(by_substitution(distribution, value, 0), num_summed)
    raise refused


def _described(distribution: Distribution) -> str:
    """The distribution and which of its arguments are random."""
    held = vars(distribution)
    public = constraints_of(distribution)
    arguments = [name for name in public if random_tensors(held.get(name))]
    if not arguments:
        with suppress(Exception):  # a property of the distribution that cannot be had
            arguments = [name for name in public if random_tensors(getattr(distribution, name))]
    if not arguments:
        names = (key.removeprefix("_unbroadcasted") for key in held if random_tensors(held[key]))
        arguments = list(dict.fromkeys(name.lstrip("_") for name in names))
    role = f"random {', '.join(arguments)}" if arguments else "a random value"
    return f"{type(distribution).__name__} with {role}"


def no_closed_form(distribution: Distribution, value: Any, why: str) -> IntractableError:
    """The refusal of a rule, naming the distribution and its random arguments."""
    tensors = [value] if isinstance(value, RandomTensor) else []
    tensors += random_tensors(distribution)
    described = _described(distribution)
    lost = next((t for t in tensors if t._form is None), None)
    if lost is not None and not why:
        return refusal(lost, f"{_WHAT} of {described}")
    latents = tuple(dict.fromkeys(name for t in tensors for name in latents_of(t)))
    return IntractableError(
        f"{_WHAT} of {described} (latent "
        f"{', '.join(map(repr, latents)) or '?'}) has no closed form here: {why}.",
        operation=f"{type(distribution).__name__}.log_prob",
        latents=latents,
        location=None if lost is None or lost._lost is None else lost._lost.location,
    )


def require_plain(distribution: Distribution, value: Any, *arguments: str) -> None:
    """Refuse where one of the named parameters is random."""
    for argument in arguments:
        if isinstance(vars(distribution).get(argument), RandomTensor):
            raise no_closed_form(distribution, value, f"{argument} is random")
