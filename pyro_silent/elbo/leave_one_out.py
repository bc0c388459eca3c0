"""LeaveOneOutELBO: score-function gradients, each particle with the others as its baseline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.elbo.discrete import discrete_law
from pyro_silent.elbo.engine import TreatmentELBO, check_positive_int
from pyro_silent.elbo.particle import Particle
from pyro_silent.elbo.score_function import Score, scores_of, sum_scores
from pyro_silent.elbo.subsamples import SharedSubsamples
from pyro_silent.elbo.treatment import Treated, negative_entropy
from pyro_silent.errors import ConfigurationError
from pyro_silent.estimators.leave_one_out import leave_one_out

_PARTICLES = "num_particles_vectorized"  # Pyro's name for the plate over particles


class LeaveOneOutELBO(TreatmentELBO):
    r"""The ELBO with the score-function estimator and a leave-one-out baseline: unbiased.

    With K particles, every latent that cannot be reparameterized contributes

    .. math::
        \frac1K \sum_k \Big(f_k - \frac1{K-1} \sum_{j \ne k} f_j\Big) \nabla \log q(z_k) ,

    where f holds the terms of the ELBO in the site's plates, as in ``Trace_ELBO``: a site in a plate is
    compared with itself in other particles at its own position. Continuous sites are reparameterized, KL
    is in closed form where torch knows it, and so is the entropy of Bernoulli, OneHotCategorical and
    Categorical sites. Any distribution may stand in the guide. All particles see one subsample of a
    subsampling plate.

    Also known as RLOO (Kool, van Hoof and Welling 2019) and VarGrad (Richter et al. 2020). Differs from
    ``Trace_ELBO(num_particles=K)`` in variance alone, and from ``TraceGraph_ELBO`` in needing no running
    mean and no network for its baseline.

    :param int num_particles: K >= 2 evaluations of guide and model. ``vectorize_particles=True``
        takes them at once.
    :raises ConfigurationError: for an argument that makes no sense.

    Cost: K runs; the graphs of all K are in memory together.

    Example::

        >>> from pyro_silent import LeaveOneOutELBO
        >>> loss = LeaveOneOutELBO(num_particles=4)
    """

    def __init__(self, num_particles: int = 2, **kwargs: Any) -> None:
        check_positive_int("num_particles", num_particles)
        if num_particles < 2:
            raise ConfigurationError(
                "num_particles: got 1, expected at least 2: the baseline of each is the others' mean. "
                "Write LeaveOneOutELBO(num_particles=2), or Trace_ELBO() for no baseline."
            )
        super().__init__(num_particles=num_particles, **kwargs)

    def treat(self, msg: dict) -> Treated | None:
        """A sample; the entropy of a discrete site is exact all the same."""
        if discrete_law(msg["fn"]) is None:
            return None
        return sampled(msg["fn"])

    def _groups(
        self, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> Iterator[list[Particle]]:
        with SharedSubsamples():
            yield list(self._get_traces(model, guide, args, kwargs))

    def _score_terms(self, group: list[Particle]) -> Tensor | float:
        if len(group) == 1:
            return sum_scores([_across_plate(score) for score in scores_of(group[0])])
        return sum_scores(across_runs([scores_of(particle) for particle in group]))


def sampled(fn: Distribution) -> Treated:
    """A plain sample of a discrete site, scored by its exact entropy."""
    return Treated(fn.sample(), "score function", lambda: negative_entropy(fn))


def _across_plate(score: Score) -> Score:
    """The score with a baseline from the other positions of the plate over particles."""
    dim = next((frame.dim for frame in score.frames if frame.name == _PARTICLES), None)
    if dim is None or not isinstance(score.signal, Tensor) or score.signal.dim() < -dim:
        return score._replace(signal=0.0)  # the same in all particles: no difference to learn from
    return score._replace(signal=leave_one_out(score.signal, dim))


def across_runs(runs: list[list[Score]]) -> list[Score]:
    """The scores of several runs, each with the mean of the others' signals as baseline.

    A site that only one of them has, or has in this shape, keeps its signal.
    """
    siblings: dict[Any, list[Score]] = {}
    for scores in runs:
        for score in scores:
            shape = score.signal.shape if isinstance(score.signal, Tensor) else None
            siblings.setdefault((score.name, shape), []).append(score)
    result = []
    for (_, shape), scores in siblings.items():
        if shape is not None and len(scores) > 1:
            signals = leave_one_out(torch.stack([score.signal for score in scores]))
            scores = [score._replace(signal=s) for score, s in zip(scores, signals, strict=True)]
        result += scores
    return result
