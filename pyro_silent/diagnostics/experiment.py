"""Runs of a model and a guide under a loss, with chosen values at the latents that are sampled."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_silent.elbo.annealed import AnnealedELBO
from pyro_silent.elbo.engine import TreatmentELBO
from pyro_silent.elbo.enumeration import is_enumerated
from pyro_silent.elbo.particle import Particle
from pyro_silent.elbo.silent import SilentELBO
from pyro_silent.elbo.treatment import DRAWN
from pyro_silent.errors import ConfigurationError, SampledSiteWarning, user_location
from pyro_silent.nn import branch

_SEED = 0
_REDRAWS = 20


class Watch(Messenger):
    """Notes where sample statements stand, and gives sites the values that were chosen for them.

    Entered before the guide's treatment, it has the last word on the value of a site.

    :ivar locations: of the last sample statement by site name.
    :ivar first_locations: of the first ones, which are the guide's where it has the site.
    :ivar auxiliary: locations of the guide's auxiliary latents.
    :ivar subsamples: what subsampling plates drew.
    """

    def __init__(self, chosen: dict[str, Tensor]) -> None:
        super().__init__()
        self.chosen = chosen
        self.locations: dict[str, str] = {}
        self.first_locations: dict[str, str] = {}
        self.auxiliary: set[str] = set()
        self.subsamples: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self.locations[msg["name"]] = user_location()
        self.first_locations.setdefault(msg["name"], self.locations[msg["name"]])
        if msg["infer"].get("is_auxiliary") and not msg["is_observed"]:
            self.auxiliary.add(self.locations[msg["name"]])
        if msg["name"] in self.chosen and not msg["is_observed"]:
            msg["value"] = self.chosen[msg["name"]]
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.subsamples[msg["name"]] = msg["value"]


class Experiment:
    """A pair of programs under a loss whose intractable terms are sampled, without its warnings.

    :param elbo: its options are used, it is not touched.
    :raises ConfigurationError: if it is not a loss of this package.
    """

    def __init__(
        self, model: Callable, guide: Callable, args: tuple, kwargs: dict, elbo: Any
    ) -> None:
        if elbo is None:
            elbo = SilentELBO(intractable="sample")
        self._branch: str | None = None
        self.notes: list[str] = []
        if isinstance(elbo, AnnealedELBO):
            elbo, self._branch, *self.notes = _part_of(elbo)
        if not isinstance(elbo, TreatmentELBO):
            raise ConfigurationError(
                f"elbo: got {elbo!r}, expected a SilentELBO, or None for one with its defaults, or "
                "another loss of pyro_silent, or an AnnealedELBO with one."
            )
        self._programs = model, guide, args, kwargs
        self.elbo = _probe(elbo)

    def run(
        self, seed: int = _SEED, chosen: dict[str, Tensor] | None = None
    ) -> tuple[Particle, Watch]:
        """One particle, drawn from a seed but for the values given by site name."""
        pyro.set_rng_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SampledSiteWarning)
            chosen_branch = nullcontext() if self._branch is None else branch(self._branch)
            with chosen_branch, Watch(chosen or {}) as watch:
                particle = next(iter(self.elbo._get_traces(*self._programs)))
        return particle, watch

    def terms(
        self, seed: int = _SEED, chosen: dict[str, Tensor] | None = None
    ) -> dict[tuple[str, str], Tensor]:
        """The log density of each site by ``("model" or "guide", site name)``."""
        return terms_of(self.run(seed, chosen)[0])

    def dependents(self, particle: Particle) -> dict[str, set[tuple[str, str]]]:
        """Which terms depend on the value of each latent that was sampled altogether.

        Found by experiment, one run for each such latent and one more: its value alone is drawn anew, and
        the terms that change depend on it. A latent that keeps its value in 20 draws has no dependents.
        """
        values = sampled_values(particle)
        if not values:
            return {}
        before = self.terms(chosen=values)
        found = {}
        for name, value in values.items():
            other = _another(particle.guide_trace.nodes[name]["fn"], value)
            after = before if other is None else self.terms(chosen={**values, name: other})
            found[name] = different(before, after)
        return found


def _part_of(elbo: AnnealedELBO) -> tuple[Any, str, str]:
    """The part that there is something to say of, the branch it runs, and a note.

    That is the silent part, unless one of Pyro's losses stands in its place.
    """
    parts = {"silent": elbo.silent, "stochastic": elbo.stochastic}
    shown, other = ("silent", "stochastic")
    if not isinstance(elbo.silent, TreatmentELBO):
        shown, other = other, shown
    note = (
        f"This is the {shown} part of AnnealedELBO; its {other} part is {type(parts[other]).__name__}. "
        f"The silent part's weight is {elbo.weight:g} at step {elbo.num_steps}."
    )
    return parts[shown], "analytic" if shown == "silent" else "expressive", note


def _probe(elbo: TreatmentELBO) -> TreatmentELBO:
    """A copy of a loss that samples what it must."""
    probe = copy.copy(elbo)
    if isinstance(probe, SilentELBO):
        probe.intractable = "sample"
        probe._warned, probe._plain = set(), dict(probe._plain)
    return probe


def terms_of(particle: Particle) -> dict[tuple[str, str], Tensor]:
    """The log density of each site by ``("model" or "guide", site name)``."""
    return {
        (kind, name): site["log_prob"]
        for kind, trace in traces_of(particle).items()
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
    }


def traces_of(particle: Particle) -> dict[str, Trace]:
    """The traces of a particle by kind."""
    return {"model": particle.model_trace, "guide": particle.guide_trace}


def different(before: dict, after: dict) -> set[tuple[str, str]]:
    """Keys of the tensors that are not the same in both, bit for bit."""
    return {
        key
        for key in before.keys() | after.keys()
        if key not in before or key not in after or not _same(before[key], after[key])
    }


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def sampled_values(particle: Particle) -> dict[str, Tensor]:
    """The values of the guide's latents that were drawn for the whole run."""
    return {
        name: site["value"].detach()
        for name, site in particle.guide_trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and (name not in particle.treated or particle.treated[name].method in DRAWN)
        and not is_enumerated(site)
    }


def _another(fn: Any, value: Tensor) -> Tensor | None:
    """A draw that differs from a value; None if there seems to be none."""
    for _ in range(_REDRAWS):
        other = fn.sample()
        if not torch.equal(other, value):
            return other
    return None
