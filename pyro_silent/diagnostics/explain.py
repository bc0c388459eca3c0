"""``explain``: how the term of each site of a model and a guide is found, and why."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from pyro_silent.diagnostics.experiment import Experiment, Watch, traces_of
from pyro_silent.diagnostics.explanation import Explanation
from pyro_silent.diagnostics.remedies import remedy, remedy_of_law
from pyro_silent.diagnostics.undisturbed import undisturbed
from pyro_silent.elbo.engine import TreatmentELBO
from pyro_silent.elbo.enumeration import is_enumerated
from pyro_silent.elbo.particle import Particle, Record
from pyro_silent.elbo.silent import SilentELBO
from pyro_silent.elbo.treatment import innermost
from pyro_silent.random_tensor.program import latents_of, random_tensors
from pyro_silent.random_tensor.tensor import RandomTensor


def explain(
    model: Callable, guide: Callable, *args: Any, elbo: Any = None, **kwargs: Any
) -> Explanation:
    """How a loss finds the term of each site: the plan, with reasons and places.

    The programs run once, and where latents are sampled altogether (``infer={"silent": False}``, a law
    without known moments, a value that the program asked for) once more for each of those, to see which
    terms depend on it. Nothing is left behind: random state, param store, modules (an autoguide that was
    not set up is not set up afterwards), gradients and the loss given are as they were.

    :param model: a Pyro model.
    :param guide: a guide; any that the loss takes.
    :param args: arguments of both.
    :param elbo: the loss to explain; None for a :class:`SilentELBO` with the defaults. Terms that a
        :class:`SilentELBO` would refuse are shown as sampled, with the reason of the refusal. Of an
        :class:`AnnealedELBO` the silent part is explained, and a note says so.
    :param kwargs: keyword arguments of both.
    :return: an :class:`Explanation`: ``str()`` is a table, ``.rows`` is a list of dicts.
    :raises ConfigurationError: if ``elbo`` is not a loss of this package.

    What a model does may depend on its data and on its draws: the plan is that of these arguments. That
    terms shown as exact really are free of noise can be checked by :func:`audit`.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_silent import explain
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Poisson(z.exp()), obs=torch.tensor(2.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(torch.tensor(0.5), torch.tensor(0.3)))
        >>> print(explain(model, guide))
        Site  Kind      Term         Method       Sources  Reason
        ----  --------  -----------  -----------  -------  ------
        z     latent    -KL(q || p)  closed form  z
        x     observed  log p        closed form  z
    """
    with undisturbed(model, guide):
        return explain_run(Experiment(model, guide, args, kwargs, elbo))


def explain_run(experiment: Experiment) -> Explanation:
    """The explanation of an experiment's run; whoever calls keeps the surroundings."""
    particle, watch = experiment.run()
    run = _Run(particle, watch, experiment.dependents(particle), experiment.elbo)
    names = dict.fromkeys(
        name
        for trace in traces_of(particle).values()
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    )
    return Explanation([run.row(name) for name in names], (*experiment.notes, *_notes(particle)))


class _Run(NamedTuple):
    """One run of the programs, and which terms depend on each latent that was sampled altogether."""

    particle: Particle
    watch: Watch
    dependents: dict[str, set[tuple[str, str]]]
    elbo: TreatmentELBO

    def row(self, name: str) -> dict[str, Any]:
        """What is said of one site."""
        traces = traces_of(self.particle)
        sites = {kind: trace.nodes[name] for kind, trace in traces.items() if name in trace.nodes}
        records = {kind: self.particle.records[kind, name] for kind in sites}
        drawn = [
            latent
            for latent, terms in self.dependents.items()
            if any((kind, name) in terms for kind in sites)
        ]
        sources = [latent for site in sites.values() for latent in _sources(site, self.particle)]
        if any("divergence" in record.methods for record in records.values()):
            sources.append(name)
        method = "sampled" if drawn else _method(records)
        reasons, location = _reasons(sites, records, method)
        reasons += [self._told(name, latent) for latent in drawn]
        if drawn and location is None:
            location = self._lost_by(drawn[0])
        return {
            "site": name,
            "kind": "observed" if all(site["is_observed"] for site in sites.values()) else "latent",
            "term": _term(records),
            "method": method,
            "sources": tuple(dict.fromkeys(sources + drawn)),
            "reason": " ".join(reasons) or None,
            "location": self._place(name, location) if reasons else None,
        }

    def _place(self, name: str, location: str | None) -> str | None:
        """Where exactness was lost: by default at the site's sample statement.

        Code inside of one of Pyro's guides belongs to no line of the user's.
        """
        known = location is not None and location not in self.watch.auxiliary
        return location if known else self.watch.locations.get(name)

    def _lost_by(self, latent: str) -> str | None:
        """The line because of which a latent is sampled."""
        leak = re.search(r" at (.+:\d+) needs ", self._leaks.get(latent, ""))
        return leak[1] if leak else self.watch.first_locations.get(latent)

    def _told(self, name: str, latent: str) -> str:
        """Why a term depends on a latent that is sampled, and what to write instead."""
        subject = "It" if name == latent else f"It depends on {latent!r}, which"
        site, leaks = self.particle.guide_trace.nodes[latent], self._leaks
        if not site["infer"].get("silent", True):
            return f'{subject} is sampled because of infer={{"silent": False}}.'
        if not isinstance(self.elbo, SilentELBO):
            return f"{subject} is {self._manner(latent)}."
        if latent in leaks:
            return f"{subject} is sampled: {leaks[latent].replace(_LAWS_HAVE_NO_VALUE, '')}"
        law = innermost(site["fn"])
        return (
            f"{subject} is sampled: the exact moments of {type(law).__name__} are not known. "
            f"{remedy_of_law(law)}"
        )

    @property
    def _leaks(self) -> dict[str, str]:
        """Latents that the program asked for their values, and how."""
        return self.elbo._plain if isinstance(self.elbo, SilentELBO) else {}

    def _manner(self, latent: str) -> str:
        """How a loss of samples draws a latent."""
        treated = self.particle.treated.get(latent)
        if treated is not None:
            return _MANNERS[treated.method].format(getattr(self.elbo, "estimator", None))
        fn = self.particle.guide_trace.nodes[latent]["fn"]
        return "drawn, " + (
            "reparameterized" if fn.has_rsample else "with a score-function gradient"
        )


_MANNERS = {
    "straight-through": "a hard draw with the gradient of {}",
    "relaxed": "a soft draw of {}",
    "score function": "drawn, with a score-function gradient",
    "antithetic": "drawn in antithetic pairs",
}

_LAWS_HAVE_NO_VALUE = (
    ", but an analytic latent is a law and has no value; one drawn value would bias the expectation"
)


def _term(records: dict[str, Record]) -> str:
    if any("divergence" in record.methods for record in records.values()):
        return "-KL(q || p)"
    if len(records) == 2:
        return "log p - log q"
    return "log p" if "model" in records else "-log q"


def _method(records: dict[str, Record]) -> str:
    """One name for how all terms of a site are found."""
    methods = [method for record in records.values() for method in record.methods]
    if "sampled" in methods:
        return "sampled"
    nodes = [int(found[1]) for m in methods if (found := re.fullmatch(r"quadrature\((\d+)\)", m))]
    parts = ["enumerated"] if "enumerated" in methods else []
    parts += [f"quadrature({max(nodes)})"] if nodes else []
    return " + ".join(parts) or "closed form"


def _random_tensors(site: dict) -> list[RandomTensor]:
    """What is random in a site's term."""
    own = [site[key] for key in ("value", "scale", "mask") if isinstance(site[key], RandomTensor)]
    return own + random_tensors(site["fn"])


def _sources(site: dict, particle: Particle) -> list[str]:
    """The guide's latents, treated or enumerated, that a term depends on."""
    sources = [name for tensor in _random_tensors(site) for name in latents_of(tensor)]
    enumerated = {
        guide_site["infer"]["_dim_to_id"][guide_site["infer"]["_enumerate_dim"]]: name
        for name, guide_site in particle.guide_trace.nodes.items()
        if guide_site["type"] == "sample" and is_enumerated(guide_site)
    }
    if enumerated:
        owners = particle.enumeration.dims(site, site["log_prob"]).values()
        sources += [enumerated[owner] for owner in owners]
    return sources


def _reasons(
    sites: dict[str, dict], records: dict[str, Record], method: str
) -> tuple[list[str], str | None]:
    """Why a term is not in closed form, and the line where that was decided if one is known."""
    for record in records.values():
        if record.error is not None:
            location = record.error.location
            told = str(record.error).replace(f" at {location}", "")
            return [told[:1].upper() + told[1:], remedy(record.error)], location
    for kind, record in records.items():
        if any(m.startswith("quadrature") for m in record.methods) and "quadrature" in method:
            return _why_integrated(kind, sites[kind])
    return [], None


def _why_integrated(kind: str, site: dict) -> tuple[list[str], str | None]:
    law = type(innermost(site["fn"])).__name__
    density = "log p" if kind == "model" else "log q"
    lost = next((t._lost for t in _random_tensors(site) if t._lost is not None), None)
    if lost is None:
        return [f"{density} of {law} has no closed expectation."], None
    through = f"{density} of {law}, seen through {lost.operation}, has no closed expectation."
    return [through], lost.location


def _notes(particle: Particle) -> tuple[str, ...]:
    """What else makes the loss differ from step to step."""
    plates = {
        frame.name: f"{frame.size} of {frame.full_size}"
        for trace in traces_of(particle).values()
        for site in trace.nodes.values()
        for frame in site.get("cond_indep_stack", ())
        if frame.full_size is not None and frame.full_size != frame.size
    }
    return tuple(
        f"Plate {name!r} is subsampled, {sizes}: terms are exact given the minibatch."
        for name, sizes in plates.items()
    )
