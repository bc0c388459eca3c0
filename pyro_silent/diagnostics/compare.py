"""``compare``: gradient noise, bias, time and memory of losses, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_silent.diagnostics.comparison import Comparison
from pyro_silent.diagnostics.comparison_rows import comparison_of
from pyro_silent.diagnostics.gradient_sampler import Programs
from pyro_silent.diagnostics.losses import Loss, check_losses, check_programs
from pyro_silent.diagnostics.measurement import FOR_PREPARATION, Measurement
from pyro_silent.diagnostics.parameters import find_parameters
from pyro_silent.diagnostics.random_stream import seed_everything
from pyro_silent.diagnostics.reference import named
from pyro_silent.diagnostics.undisturbed import undisturbed
from pyro_silent.elbo.engine import check_positive_int
from pyro_silent.errors import ConfigurationError


def compare(
    model: Callable,
    guide: Callable,
    elbos: Mapping[str, Loss],
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    num_samples: int = 100,
    reference: str | Loss | None = None,
    *,
    seed: int = 0,
    measure_memory: bool = True,
    progress: bool = False,
) -> Comparison:
    r"""Measure losses at the same parameters: value, gradient noise and bias, time and memory.

    With :math:`g_i` the n gradients of a loss, :math:`\bar r` a mean of the reference's gradients and
    :math:`r_i` others of them,

    .. math::
        \text{noise}^2 = \frac1{n-1} \sum_{i=1}^n \lVert g_i - \bar g \rVert^2 , \qquad
        \text{bias} = \frac1{n-1} \sum_{i=2}^n \Big\langle g_i - r_i,
            \frac{\bar g_{i-1} - \bar r}{\lVert \bar g_{i-1} - \bar r \rVert} \Big\rangle ,

    summed over parameters (unconstrained, as an optimizer sees them), all together and by group: those
    of the guide, those of the model, and each by name. The bias is an estimate of
    :math:`\lVert E g - E r \rVert` from below that is standard normal over its standard error where
    there is none; see :class:`~pyro_silent.diagnostics.gradient_moments.GradientMoments` for that and
    for the other figures, and :class:`Comparison` for what each is called.

    The reference is a loss that the user names; else ``SilentELBO()`` if :func:`explain` finds all its
    terms exact; else ``LeaveOneOutELBO(num_particles=10)``, unbiased for every guide, drawn anew beside
    each sample of each loss, so that its own error is part of each standard error. Twins of
    :class:`TwinDecoder` run their expressive branch in a reference that was not named.

    :param model: a Pyro model.
    :param guide: a guide.
    :param elbos: name to loss: Pyro's, ours, or a function as ``SVI`` takes it. Copies of them run, each
        sample in the state they are in now (the step of a schedule). A function is called as it is.
    :param args: positional arguments of model and guide, a tuple.
    :param kwargs: keyword arguments of both.
    :param int num_samples: gradients drawn of each loss, at least 3; errors fall with its root. A loss
        that draws no random numbers is evaluated 10 times.
    :param reference: a name in ``elbos``, a loss, or None.
    :param int seed: of the random numbers; the same seed gives the same figures but for time.
    :param bool measure_memory: False leaves ``peak_bytes`` out, and with it torch's profiler.
    :param bool progress: whether to show a progress bar.
    :raises ConfigurationError: for an argument that makes no sense. A loss that raises becomes a row with
        its error.

    Left as found, also after an exception: parameters, their ``.grad``, param store and constraints,
    random states of torch, numpy and Python, modules with their buffers and train flags, Pyro's settings
    and the losses given; see ``diagnostics/undisturbed.py`` for the limits of that.

    Where it is wrong: bias that hides below 3 standard errors is not seen, rare huge gradients that the
    samples miss are not counted, and figures hold at these parameters and this minibatch only. Noise
    includes that of minibatches if plates draw them.

    Cost: ``num_samples`` steps of each loss, as many of the reference for each if that is noisy, and
    some 0.2 s for the clock. Memory: two gradients beside the step's own, whatever ``num_samples``.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro_silent import SilentELBO, compare
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(2.0 * z, 0.5), obs=torch.tensor(1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.3))
        >>> comparison = compare(model, guide, {"silent": SilentELBO(), "trace": Trace_ELBO()})
        >>> [row["grad_std"] > 0 for row in comparison.rows]
        [False, True]
        >>> print(comparison.advice)
        Use silent: its gradient has no noise and no bias was found...
    """
    check_programs(model, guide)
    losses = check_losses(elbos)
    kwargs = _check_arguments(args, kwargs, num_samples, seed)
    if reference is not None:
        named(reference, losses)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    with undisturbed(model, guide, tensors=tensors) as surroundings:
        programs = Programs(model, guide, tuple(args), kwargs, surroundings.restore_buffers)
        seed_everything(seed, FOR_PREPARATION)
        parameters = find_parameters(programs, surroundings.remember_gradient)
        measurement = Measurement(programs, losses, parameters, seed, num_samples)
        measurement.prepare(reference)
        measurement.draw(progress)
        measurement.measure_costs(measure_memory)
    return comparison_of(measurement)


def _check_arguments(args: Any, kwargs: Any, num_samples: Any, seed: Any) -> dict[str, Any]:
    """The keyword arguments as a dict.

    :raises ConfigurationError: for an argument that makes no sense.
    """
    if not isinstance(args, (tuple, list)):
        raise ConfigurationError(
            f"args: got {type(args).__name__}, expected the tuple of the programs' positional "
            "arguments; for one argument write args=(x,)."
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ConfigurationError(
            f"kwargs: got {type(kwargs).__name__}, expected the dict of the programs' keyword arguments."
        )
    for key in kwargs or {}:
        if not isinstance(key, str):
            raise ConfigurationError(
                f"kwargs: got the key {key!r}, expected the name of an argument."
            )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigurationError(f"seed: got {seed!r}, expected an integer from 0.")
    check_positive_int("num_samples", num_samples)
    if num_samples < 3:
        raise ConfigurationError(
            f"num_samples: got {num_samples}, expected at least 3: fewer give noise without an error."
        )
    return dict(kwargs or {})
