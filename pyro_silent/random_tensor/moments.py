"""Mean, variance and covariance of random tensors."""

from __future__ import annotations

from torch import Tensor

from pyro_silent.errors import IntractableError
from pyro_silent.random_tensor.affine import Affine, NoForm
from pyro_silent.random_tensor.covariance import covariance as covariance_of_forms
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of, constant, latents_of


def refusal(tensor: RandomTensor, what: str, site: str | None = None) -> IntractableError:
    """The error for an expectation of a tensor that has lost its form."""
    lost = tensor._lost
    latents = latents_of(tensor)
    names = ", ".join(map(repr, latents)) or "?"
    if lost is None:
        operation = location = reason = None
        why = "it has no affine form"
    else:
        operation, location, reason = lost
        why = f"exactness was lost in {operation} at {location} ({reason})"
    return IntractableError(
        f"{what} of a function of latent {names} has no closed form here: {why}.",
        site=site,
        operation=operation,
        latents=latents,
        location=location,
    )


def form_of(tensor: Tensor, what: str) -> Affine:
    """The affine form behind a tensor; a plain tensor is a constant.

    :raises IntractableError: if it has lost it.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what}: expected a tensor, got {type(tensor).__name__}")
    if not isinstance(tensor, RandomTensor):
        return constant(tensor)
    try:
        return affine_of(tensor)
    except NoForm:
        raise refusal(tensor, what) from None


def mean(t: Tensor) -> Tensor:
    """The expectation of each element, ``E[y]``; a plain tensor is its own mean.

    Exact wherever the tensor is affine in its latents. Shape of ``t``; cost none (it is kept up to date).

    :raises IntractableError: if the tensor has lost its form, naming the operation and the line.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_silent import mean, random_tensor
        >>> z = random_tensor(dist.Bernoulli(torch.tensor([0.25, 0.5])))
        >>> mean(2 * z - 1)
        tensor([-0.5000,  0.0000])
    """
    return form_of(t, "the mean").offset


def variance(t: Tensor) -> Tensor:
    """The variance of each element, ``Var[y]``; zero for a plain tensor.

    ``sum_s sum_ii' C_si C_si' Cov(z_si, z_si')``: correlations inside and between readings of one latent
    count. Shape of ``t``; cost one product of the squared coefficients with the sources' variances.

    :raises IntractableError: if the tensor has lost its form.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_silent import random_tensor, variance
        >>> z = random_tensor(dist.OneHotCategorical(torch.tensor([0.25, 0.75])))
        >>> variance(z).tolist(), float(variance(z.sum()))
        ([0.1875, 0.1875], 0.0)
    """
    form = form_of(t, "the variance")
    return _second_moment(form, form, t)


def covariance(a: Tensor, b: Tensor) -> Tensor:
    """The covariance of elements, ``Cov[a, b]``, on the broadcast shape.

    Zero where nothing random is shared. The covariance *matrix* of a vector y is
    ``covariance(y[:, None], y[None, :])``.

    :raises IntractableError: if a tensor has lost its form, or where a live and a detached reading of
        one latent meet (the gradient of their product is neither's).

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_silent import covariance, random_tensor
        >>> z = random_tensor(dist.Normal(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])))
        >>> covariance(z[:2] + z[2], z[2] - z[:2]).tolist()
        [8.0, 5.0]
    """
    return _second_moment(form_of(a, "the covariance"), form_of(b, "the covariance"), a)


def _second_moment(a: Affine, b: Affine, t: Tensor) -> Tensor:
    try:
        return covariance_of_forms(a, b)
    except NoForm as reason:
        names = latents_of(t) if isinstance(t, RandomTensor) else ()
        raise IntractableError(
            f"a second moment of a function of latent {', '.join(map(repr, names))} has no closed "
            f"form here: {reason}.",
            latents=names,
        ) from None
