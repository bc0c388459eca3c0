"""StraightThroughELBO: hard discrete samples whose gradient is an estimator's."""

from __future__ import annotations

from typing import Any

from pyro_silent.elbo.discrete import discrete_law, estimated_sample, is_soft
from pyro_silent.elbo.engine import TreatmentELBO
from pyro_silent.elbo.treatment import Treated, negative_entropy
from pyro_silent.errors import ConfigurationError
from pyro_silent.estimators import Estimator


class StraightThroughELBO(TreatmentELBO):
    r"""The ELBO of hard discrete samples, with the gradient of any straight-through estimator.

    Each Bernoulli, OneHotCategorical or Categorical site of the guide is sampled; model and guide see
    the hard value, and the backward pass replaces its derivative, which does not exist, by the
    estimator's: with :math:`D \sim \mathrm{softmax}(\theta)` and
    :math:`v = \partial \mathcal L / \partial D`,

    .. math:: \nabla_\theta \mathcal L \approx J(\theta, D)\, v .

    The *value* of the loss is exact in expectation: log densities are those of the hard sample under its
    mass function, KL(q || p) is in closed form where torch knows it, and the entropy of a discrete site
    always is. Its *gradient* has the estimator's bias. Continuous sites are reparameterized; whatever
    can be neither (a Poisson) gets a score-function term, as a discrete site with
    ``infer={"silent": False}`` does.

    A Categorical's value is an index tensor. Where the program indexes with it, compares it or selects
    by it (``table[z]``, ``F.embedding``, ``F.one_hot``, ``Vindex``, ``z == k``, ``torch.where``), the
    gradient flows through the one-hot code of what was done, which is linear in the code; the same holds
    for ``z == 1``, ``z.long()`` or ``z.bool()`` of a Bernoulli. Python control flow on a value, whose
    gradient would be lost, raises :class:`LeakError`.

    :param Estimator estimator: one of :mod:`pyro_silent.estimators`. Its temperature may be a schedule:
        a callable from the number of ``loss_and_grads`` calls so far (``num_steps``).
    :param int num_particles: samples that are averaged; ``vectorize_particles=True`` takes them at once.
    :raises ConfigurationError: for an argument that makes no sense.

    Cost: one run of guide and model, as with ``Trace_ELBO``, and the estimator's backward pass.
    Other keywords are those of :class:`pyro.infer.ELBO`.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_silent import ZGR, StraightThroughELBO
        >>> def model():
        ...     z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        ...     mean = torch.tensor([0.0, 2.0, 5.0])[z]
        ...     pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(4.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.zeros(3))))
        >>> pyro.clear_param_store()
        >>> pyro.set_rng_seed(0)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=StraightThroughELBO(ZGR()))
        >>> for _ in range(200):
        ...     _ = svi.step()
        >>> int(pyro.param("logits").argmax())
        2
    """

    estimator: Estimator

    def __init__(self, estimator: Estimator, *, num_particles: int = 1, **kwargs: Any) -> None:
        if not isinstance(estimator, Estimator):
            raise ConfigurationError(
                f"estimator: got {estimator!r}, expected an estimator such as GumbelRao(1.0) or ZGR()."
            )
        super().__init__(num_particles=num_particles, **kwargs)
        self.estimator = estimator

    def treat(self, msg: dict) -> Treated | None:
        """Discrete sites by the estimator, others as Pyro would."""
        law = discrete_law(msg["fn"]) if msg["infer"].get("silent", True) else None
        if law is None:
            return None
        value = estimated_sample(self.estimator, msg["name"], law, self.num_steps)
        method = "relaxed" if is_soft(self.estimator) else "straight-through"
        return Treated(value, method, lambda: negative_entropy(msg["fn"]))
