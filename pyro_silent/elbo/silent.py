"""SilentELBO: the ELBO by analytic expectation, with gradients that have no sampling noise."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.elbo.discrete import discrete_law, estimated_sample, is_soft
from pyro_silent.elbo.engine import TreatmentELBO, check_positive_int, warn_sampled
from pyro_silent.elbo.particle import Particle
from pyro_silent.elbo.random_state import random_state, restore
from pyro_silent.elbo.treatment import Treated, analytic, conditional
from pyro_silent.errors import ConfigurationError, IntractableError, LeakError
from pyro_silent.estimators import Estimator, GumbelRao
from pyro_silent.expectation.settings import quadrature_points
from pyro_silent.random_tensor.program import latents_of, random_tensors

_CHOICES = ("raise", "sample")
_DEFAULT_ESTIMATOR = GumbelRao()


class SilentELBO(TreatmentELBO):
    r"""The ELBO with every site's expectation in closed form: a loss without sampling noise.

    .. math::
        \mathcal L = \sum_{\text{model sites}} E_q[\log p] - \sum_{\text{guide sites}} E_q[\log q]

    The guide runs once. Where a latent's law is known (Normal, MultivariateNormal,
    LowRankMultivariateNormal, Bernoulli, OneHotCategorical, Categorical, Delta, Gaussians whose
    location is affine in earlier latents, and LogNormal or any ``TransformedDistribution`` of these)
    the model sees a :class:`RandomTensor` instead of a sample, and each site contributes its expected
    log density. Loss and gradient are then deterministic. So all of Pyro's Gaussian autoguides run,
    ``GuideMessenger`` ones included.

    A term is exact where the log density is a polynomial, an exponential, or both times each other, in
    affine images of the latents: linear decoders of any depth, generalized linear models, group effects,
    factorisations, state spaces. Other functions of one or two Gaussian scalars per element are
    integrated by quadrature. Elsewhere (a deep network of the latents) the site is intractable; other
    sites are not touched, since the ELBO is a sum. A discrete site of the guide with
    ``infer={"enumerate": "parallel"}`` takes all its values side by side, and the terms that depend on it
    are weighted with their probabilities, as in ``TraceEnum_ELBO``.

    Fitting a Gaussian with a linear decoder this way is due to Lucas et al. 2019 ("Don't Blame the
    ELBO!"); its use to guide encoders to Shao, Liu and Van den Broeck, "Zero-Variance Gradients for
    Variational Autoencoders", arXiv 2508.03587.

    Values agree with :class:`~pyro.infer.Trace_ELBO` in expectation, also where ``TraceMeanField_ELBO``
    does not (a Delta's ``log_density``, different scales in model and guide).

    Cost: one step of a 784-200-200 VAE at batch 200 takes about as long as with ``Trace_ELBO``
    (``examples/benchmarks/vae_step.py``); coefficients of shared decoders carry no batch dimension.

    :param str intractable: ``"raise"``: a term without a closed form raises :class:`IntractableError`.
        ``"sample"``: just that term is estimated from one shared draw per particle, reparameterized
        where the latent allows, by ``estimator`` where it is discrete, else by the score function. A
        latent whose value the program needs
        (``if z > 0``) is sampled altogether, from then on wherever this loss meets a site of its name.
        :class:`SampledSiteWarning` says so once per site.
    :param int quadrature_points: the least number of nodes for functions without a closed expectation.
    :param Estimator estimator: gradient estimator of discrete latents in sampled terms, such as
        ``GumbelRao()``, the default. Its gradient is biased, the value is not; None for the score
        function, whose gradient is unbiased and noisy.
    :param int num_particles: matters for sampled terms and for subsampling plates only.
    :raises ConfigurationError: for an argument that makes no sense.

    Other keywords are those of :class:`pyro.infer.ELBO`. A guide site with ``infer={"silent": False}``
    is sampled.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_silent import SilentELBO
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.4)), 0.5))
        >>> pyro.clear_param_store()
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=SilentELBO())
        >>> svi.evaluate_loss(torch.tensor(1.0)) == svi.evaluate_loss(torch.tensor(1.0))
        True
    """

    def __init__(
        self,
        *,
        intractable: str = "raise",
        quadrature_points: int = 32,
        estimator: Estimator | None = _DEFAULT_ESTIMATOR,
        num_particles: int = 1,
        **kwargs: Any,
    ) -> None:
        if intractable not in _CHOICES:
            raise ConfigurationError(
                f'intractable: got {intractable!r}, expected "raise" (refuse a term without a closed '
                'form) or "sample" (estimate just that term).'
            )
        check_positive_int("quadrature_points", quadrature_points)
        if estimator is not None and (not isinstance(estimator, Estimator) or is_soft(estimator)):
            raise ConfigurationError(
                f"estimator: got {estimator!r}, expected an estimator of hard samples such as "
                "GumbelRao(), or None for the score function."
            )
        super().__init__(num_particles=num_particles, **kwargs)
        self.intractable = intractable
        self.quadrature_points = quadrature_points
        self.estimator = estimator
        self._warned: set[str] = set()
        self._plain: dict[str, str] = {}  # latents that have to be sampled, and why

    def treat(self, msg: dict) -> Treated | None:
        """By law where the law is known; else by sampling, if that was asked for."""
        name, fn = msg["name"], msg["fn"]
        silent = msg["infer"].get("silent", True) and name not in self._plain
        if silent:
            treated = analytic(name, fn)
            if treated is not None:
                return treated
        parameters = random_tensors(fn)
        if parameters:
            reason = "its law is not a linear-Gaussian function of the latents"
            if not silent:
                parents = dict.fromkeys(n for t in parameters for n in latents_of(t))
                named = ", ".join(map(repr, parents))
                reason = f"it is sampled, so mark the latents it depends on as well: {named}"
            return conditional(name, fn, reason)
        if silent:
            self._unknown_law(name, type(fn).__name__)
        return None

    def sampler(self, name: str, fn: Distribution) -> Tensor | None:
        """A discrete latent's draw for sampled terms carries the estimator's gradient."""
        law = None if self.estimator is None else discrete_law(fn)
        if self.estimator is None or law is None:
            return None
        return estimated_sample(self.estimator, name, law, self.num_steps)

    def _unknown_law(self, name: str, law: str) -> None:
        reason = f"the exact moments of {law} are not known"
        if self.intractable == "raise":
            raise IntractableError(
                f"guide site {name!r}: {reason}, so it would be sampled. Write SilentELBO("
                'intractable="sample") to allow that, infer={"silent": False} at the site to ask for it, '
                "or choose a Normal, MultivariateNormal, LowRankMultivariateNormal, Bernoulli, "
                "OneHotCategorical, Categorical, Delta, or an invertible transform of one.",
                site=name,
                operation=law,
                latents=(name,),
            )
        self._warn(name, reason)

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Particle:
        if self.intractable == "raise":
            return self._get_scored(model, guide, args, kwargs)
        state = random_state()
        while True:
            try:
                return self._get_scored(model, guide, args, kwargs)
            except LeakError as error:
                # The program needs values of these latents: run it again with all of them sampled.
                new = sorted(set(error.latents) - self._plain.keys())
                if not new:
                    raise
                for name in new:
                    self._warn(name, str(error))
                    self._plain[name] = str(error)
                restore(state)

    def _get_scored(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Particle:
        with quadrature_points(self.quadrature_points):
            return super()._get_trace(model, guide, args, kwargs)

    def on_intractable(self, site: dict, error: IntractableError) -> None:
        """Raise with the site's name and the remedy, or warn once and let the term be sampled."""
        name = site["name"]
        if self.intractable == "raise":
            raise IntractableError(
                f'site {name!r}: {error} Write SilentELBO(intractable="sample") to estimate this term '
                'alone, mark the latent with infer={"silent": False} in the guide to sample it, or keep '
                "the model affine in it.",
                site=name,
                operation=error.operation,
                latents=error.latents,
                location=error.location,
            ) from error
        self._warn(name, str(error))

    def _warn(self, name: str, reason: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warn_sampled(name, reason)
