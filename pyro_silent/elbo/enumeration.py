"""Guide enumeration: all values of a discrete site side by side, terms weighted with their probabilities.

Pyro's ``EnumMessenger`` gives an enumerated site its support in a dim of its own, left of the plates. A
term that depends on such sites then holds one value for each of theirs; its expectation is the sum under
the guide's probabilities, those of the sites' own enumerated parents included.
"""

from __future__ import annotations

import copy
from typing import Any

import opt_einsum  # type: ignore[import-untyped]
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
        self._probabilities: dict[str, tuple[Tensor, list]] = {}
        self._weights: dict[tuple, Tensor] = {}
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
        self._owners[site["infer"]["_dim_to_id"][site["infer"]["_enumerate_dim"]]] = site
        self._probabilities[name] = (_squeezed(probabilities), self._labels(site, probabilities))

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
        if site["name"] in self._probabilities and "score_parts" in site:
            site["score_parts"] = ScoreParts(site["log_prob"], 0.0, site["log_prob"])
        elif "score_parts" in site:
            _, score_function, entropy = site["score_parts"]
            if not is_identically_zero(entropy):
                entropy = _weighted(entropy, weight)
            site["score_parts"] = ScoreParts(site["log_prob"], score_function, entropy)
        return True

    def _weight(self, site: dict, dims: dict[int, int]) -> Tensor:
        """The joint probability of the values along some dims, its parents' values summed out."""
        involved = self._closure(set(dims.values()))
        plates = {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
        for owner in involved:
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
        key = tuple(sorted(dims.items()))
        if key not in self._weights:
            self._weights[key] = self._marginal(dims, involved)
        return self._weights[key]

    def _closure(self, owners: set[int]) -> set[int]:
        """Enumerated sites and all enumerated sites their probabilities depend on."""
        involved: set[int] = set()
        stack = list(owners)
        while stack:
            owner = stack.pop()
            if owner not in involved:
                involved.add(owner)
                _, labels = self._probabilities[self._owners[owner]["name"]]
                stack += [label for kind, label in labels if kind == _ENUMERATED]
        return involved

    def _marginal(self, dims: dict[int, int], involved: set[int]) -> Tensor:
        tables = [self._probabilities[self._owners[owner]["name"]] for owner in sorted(involved)]
        target = {(_ENUMERATED, owner): dim for dim, owner in dims.items()}
        for _, labels in tables:
            target.update({label: label[1] for label in labels if label[0] == _PLATE})
        out = sorted(target, key=target.__getitem__)
        # Numbers as labels: opt_einsum takes any that can be sorted.
        numbers: dict[Any, int] = {}
        operands: list[Any] = []
        for table, labels in tables:
            operands += [table, [numbers.setdefault(label, len(numbers)) for label in labels]]
        result = opt_einsum.contract(*operands, [numbers[label] for label in out])
        shape = [1] * -min(target.values())
        for size, label in zip(result.shape, out):
            shape[target[label]] = size
        return result.reshape(shape)

    def _labels(self, site: dict, tensor: Tensor) -> list[tuple[int, int]]:
        """A name for each dim of a tensor that is larger than 1."""
        dims = self.dims(site, tensor)
        return [
            (_ENUMERATED, dims[dim]) if dim in dims else (_PLATE, dim)
            for dim in range(-tensor.dim(), 0)
            if tensor.size(dim) > 1
        ]


_PLATE, _ENUMERATED = 0, 1


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
