"""Guide enumeration: all values of a discrete site side by side, terms weighted with their probabilities.

Pyro's ``EnumMessenger`` gives an enumerated site its support in a dim of its own, left of the plates. A
term that depends on such sites then holds one value for each of theirs; its expectation is the sum under
the guide's probabilities, those of the sites' own enumerated parents included.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import is_identically_zero
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_silent.errors import ConfigurationError, IntractableError, LeakError
from pyro_silent.random_tensor.program import latents_of, random_tensors
from pyro_silent.random_tensor.tensor import RandomTensor


class EnumerationMessenger(EnumMessenger):
    """Pyro's own, for values that have a shape and no ``.data``."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if isinstance(value, RandomTensor):
            msg = {**msg, "value": torch.empty(value.shape, device="meta")}
        super()._pyro_post_sample(msg)


class EnumeratedSite(Exception):
    """Met a site to enumerate in a run that had no dims for it."""


def is_enumerated(site: dict) -> bool:
    """Whether a site of the guide has all its values side by side."""
    return site["infer"].get("_enumerate_dim") is not None


def check_enumerable(msg: dict) -> None:
    """Look at a latent guide site before it gets a value.

    :raises ConfigurationError: for a way of enumerating that is not honoured.
    :raises EnumeratedSite: if the run has no enumeration and needs it.
    """
    strategy, name = msg["infer"].get("enumerate"), msg["name"]
    if strategy is None:
        return
    if strategy != "parallel" or msg["infer"].get("num_samples") is not None:
        got = f"enumerate={strategy!r}" + (", num_samples" if strategy == "parallel" else "")
        raise ConfigurationError(
            f'guide site {name!r}: got infer with {got}, expected infer={{"enumerate": "parallel"}}, '
            "which takes all values of the support side by side; or leave it out to have the site "
            "treated by its law."
        )
    if msg["done"]:
        return
    try:
        msg["fn"].enumerate_support(expand=False)
    except NotImplementedError as error:
        raise ConfigurationError(
            f"guide site {name!r}: got infer with enumerate='parallel' at {type(msg['fn']).__name__}, "
            f"expected a discrete distribution with a finite support ({error}). Replace to_event by a "
            "plate, or leave enumerate out to have the site treated by its law."
        ) from error
    raise EnumeratedSite


def check_model_enumeration(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse latents that only the model enumerates.

    :raises ConfigurationError: naming the site and where to put it.
    """
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or name in guide_trace.nodes:
            continue
        if site["infer"].get("enumerate") is not None:
            raise ConfigurationError(
                f"model site {name!r} is to be enumerated and is not in the guide: only sites of the "
                "guide are. Put it in the guide (AutoDiscreteParallel writes one), or sum it out with "
                "pyro.infer.TraceEnum_ELBO."
            )


class Enumeration:
    """The enumerated sites of one run of the guide, and the weights they give to terms.

    :param guide_trace: sites with ``infer["_enumerate_dim"]`` are the enumerated ones.
    :param num_plates: ``max_plate_nesting``: dims further left are enumerated sites'.
    :raises LeakError: if the probabilities of an enumerated site are random.
    """

    def __init__(self, guide_trace: Trace, num_plates: float) -> None:
        self.num_plates = num_plates
        self._owners: dict[int, dict] = {}
        self._tables: dict[int, _Table] = {}
        self._marginals: dict[frozenset[int], _Table] = {}
        for site in guide_trace.nodes.values():
            if site["type"] == "sample" and is_enumerated(site):
                self._add(site)

    def _add(self, site: dict) -> None:
        fn, name = site["fn"], site["name"]
        random = random_tensors(fn)
        if random:
            latents = tuple(dict.fromkeys(latent for t in random for latent in latents_of(t)))
            raise LeakError(
                f"enumerated guide site {name!r} needs the value of {', '.join(map(repr, latents))}: "
                'its probabilities depend on them. Mark them with infer={"silent": False} in the guide '
                "to have them sampled, or leave enumerate out at the site.",
                latents=latents,
            )
        # A masked site is drawn all the same, so its mask is no part of the weights.
        probabilities = _unmasked(fn).log_prob(site["value"]).exp()
        owner = site["infer"]["_dim_to_id"][site["infer"]["_enumerate_dim"]]
        self._owners[owner] = site
        self._tables[owner] = _Table(_squeezed(probabilities), self._labels(site, probabilities))

    def dims(self, site: dict, tensor: Tensor) -> dict[int, int]:
        """The enumerated dims of a tensor of a site: dim -> id of the site that owns it.

        :raises ConfigurationError: for a dim that belongs to no enumerated site.
        """
        if not self._owners:
            return {}
        found = {}
        for dim in range(-tensor.dim(), -int(self.num_plates)):
            if tensor.size(dim) > 1:
                owner = site["infer"].get("_dim_to_id", {}).get(dim)
                if owner not in self._owners:
                    raise ConfigurationError(
                        f"site {site['name']!r}: dim {dim} of its log density (shape "
                        f"{tuple(tensor.shape)}) is neither a plate's nor an enumerated site's; got "
                        f"max_plate_nesting={self.num_plates}, expected at least {-dim}."
                    )
                found[dim] = owner
        return found

    def frames(self, site: dict) -> tuple[CondIndepStackFrame, ...]:
        """The dims of a site's term: its vectorized plates and the enumerated sites it depends on."""
        frames = tuple(frame for frame in site["cond_indep_stack"] if frame.vectorized)
        log_prob = site["log_prob"]
        for dim, owner in self.dims(site, log_prob).items():
            frames += (CondIndepStackFrame(f"_enumerated_{owner}", dim, log_prob.size(dim), 0),)
        return frames

    def weigh(self, site: dict) -> bool:
        """Multiply a site's terms by the probabilities of what they depend on; whether there are any.

        :raises IntractableError: for a site outside a plate of an enumerated site it depends on.
        """
        dims = self.dims(site, site["log_prob"])
        if not dims:
            return False
        weight = self._weight(site, dims)
        site["log_prob"] = _weighted(site["log_prob"], weight)
        site["log_prob_sum"] = site["log_prob"].sum()
        if "score_parts" in site and is_enumerated(site):
            site["score_parts"] = ScoreParts(site["log_prob"], 0.0, site["log_prob"])
        elif "score_parts" in site:
            _, score_function, entropy = site["score_parts"]
            if not is_identically_zero(entropy):
                entropy = _weighted(entropy, weight)
            site["score_parts"] = ScoreParts(site["log_prob"], score_function, entropy)
        return True

    def _weight(self, site: dict, dims: dict[int, int]) -> Tensor:
        """The joint probability of the values along some dims, laid out for the site's term."""
        plates = _plates(site)
        for owner in dims.values():
            outside = _plates(self._owners[owner]) - plates
            if outside:
                raise IntractableError(
                    f"site {site['name']!r} depends on enumerated site "
                    f"{self._owners[owner]['name']!r} but is outside its plate "
                    f"{', '.join(map(repr, sorted(outside)))}: its expectation runs over all joint "
                    "values of the plate. Move it into the plate, or leave enumerate out at that site.",
                    site=site["name"],
                    operation='infer={"enumerate": "parallel"}',
                    latents=(self._owners[owner]["name"],),
                )
        table, labels = self._marginal(frozenset(dims.values()))
        place = {(_ENUMERATED, owner): dim for dim, owner in dims.items()}
        target = [place.get(label, label[1]) for label in labels]
        order = sorted(range(len(labels)), key=target.__getitem__)
        shape = [1] * -min(target)
        for size, dim in zip(table.shape, target):
            shape[dim] = size
        return table.permute(order).reshape(shape)

    def _marginal(self, owners: frozenset[int]) -> _Table:
        """The joint probability of the values of some sites, all others summed out.

        The site that comes last depends on earlier ones only: their joint with its parents, times its
        own table, summed over parents that are not asked for.
        """
        if owners not in self._marginals:
            last = max(owners)
            table = self._tables[last]
            parents = {number for kind, number in table.labels if kind == _ENUMERATED} - {last}
            before = owners - {last} | parents
            if before:
                table = _contracted(self._marginal(before), table, owners)
            self._marginals[owners] = table
        return self._marginals[owners]

    def _labels(self, site: dict, tensor: Tensor) -> list[tuple[int, int]]:
        """A name for each dim of a tensor that is larger than 1."""
        dims = self.dims(site, tensor)
        return [
            (_ENUMERATED, dims[dim]) if dim in dims else (_PLATE, dim)
            for dim in range(-tensor.dim(), 0)
            if tensor.size(dim) > 1
        ]


_PLATE, _ENUMERATED = 0, 1


class _Table(NamedTuple):
    """Probabilities, and what each dim runs over: a plate's dim or an enumerated site's number."""

    values: Tensor
    labels: list[tuple[int, int]]


def _contracted(a: _Table, b: _Table, owners: frozenset[int]) -> _Table:
    """The product, summed over enumerated sites that are not among some."""
    labels = list(dict.fromkeys(a.labels + b.labels))
    kept = [label for label in labels if label[0] == _PLATE or label[1] in owners]
    numbers = [[labels.index(label) for label in part] for part in (a.labels, b.labels, kept)]
    return _Table(torch.einsum(a.values, numbers[0], b.values, numbers[1], numbers[2]), kept)


def _plates(site: dict) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}


def _squeezed(tensor: Tensor) -> Tensor:
    return tensor.reshape([size for size in tensor.shape if size != 1])


def _weighted(log_prob: Tensor, weight: Tensor) -> Tensor:
    """Their product, where an impossible value counts 0 whatever its log density."""
    return torch.where(weight == 0, log_prob.new_zeros(()), log_prob) * weight


def _unmasked(fn: Any) -> Any:
    """The distribution without its masks."""
    if isinstance(fn, MaskedDistribution):
        return _unmasked(fn.base_dist)
    base = getattr(fn, "base_dist", None)
    if base is None:
        return fn
    inner = _unmasked(base)
    if inner is base:
        return fn
    fn = copy.copy(fn)
    fn.base_dist = inner
    return fn
