"""``audit``: the check that terms said to be free of noise are the same at every seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro_silent.diagnostics.experiment import Experiment, different, terms_of
from pyro_silent.diagnostics.explain import explain_run
from pyro_silent.diagnostics.undisturbed import undisturbed
from pyro_silent.errors import PyroSilentError


def audit(
    model: Callable, guide: Callable, *args: Any, elbo: Any = None, **kwargs: Any
) -> dict[str, bool]:
    """Run model and guide at two seeds; every term that :func:`explain` calls exact must be bit-equal.

    A helper for tests. Subsampled plates see the same minibatch at both seeds. Arguments are those of
    :func:`explain`, and as little is left behind; the cost is two runs more.

    :return: for each site whether its term was bit-equal at both seeds.
    :raises PyroSilentError: if a term that is not sampled differs: the model draws numbers of its own
        (dropout, ``torch.randn``), a device adds up in no fixed order, or pyro_silent has a bug.
    :raises ConfigurationError: if ``elbo`` is not a loss of this package.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_silent import audit
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(2.0 * z, 0.5), obs=torch.tensor(1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(torch.tensor(0.5), torch.tensor(0.3)))
        >>> audit(model, guide)
        {'z': True, 'x': True}
    """
    with undisturbed(model, guide):
        experiment = Experiment(model, guide, args, kwargs, elbo)
        explanation = explain_run(experiment)
        particle, watch = experiment.run(seed=1)
        again = experiment.terms(seed=2, chosen=watch.subsamples)
        differing = {name for _, name in different(terms_of(particle), again)}
    noisy = [
        row["site"]
        for row in explanation.rows
        if row["method"] != "sampled" and row["site"] in differing
    ]
    if noisy:
        named = ", ".join(map(repr, noisy))
        raise PyroSilentError(
            f"audit: expected terms that are not sampled to be bit-equal at two seeds, got different "
            f"values at {named}. Does the model draw numbers of its own (dropout, torch.randn)?"
        )
    return {row["site"]: row["site"] not in differing for row in explanation.rows}
