"""A guide that has run once: its sample sites, ready to be run again without its networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import apply_stack
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent.elbo.cuts import Cuts
from pyro_silent.errors import LeakError, PyroSilentError, user_location
from pyro_silent.expectation.coercion import check_plain_parameters, random_parameters
from pyro_silent.nn import no_branch
from pyro_silent.random_tensor.draw import Draw, map_parameters, sampled_site
from pyro_silent.random_tensor.program import (
    Call,
    map_tensors,
    nodes_of,
    random_tensors,
)
from pyro_silent.random_tensor.tensor import RandomTensor

_REASON = "the guide is run once for several losses"
_OF_ENUMERATION = ("_enumerate_dim", "_dim_to_id")


class RecordedGuide:
    """The sample sites of one run of a guide, with symbols in place of the latents' values.

    Distributions that depend on latents hold the program that leads to them, as random tensors do, so a
    :meth:`replica` can give the latents any values: another loss's draws, or laws. What does not depend
    on latents, an encoder above all, is not computed again.

    :param guide: it runs here, once; outer handlers see its parameters now, and its sample sites
        whenever a replica runs.
    :raises LeakError: if the guide needs the value of a latent (``if z > 0``).
    """

    def __init__(self, guide: Callable, args: tuple, kwargs: dict) -> None:
        recorded = poutine.trace(guide)
        with poutine.block(hide_types=["sample"]), random_parameters(), no_branch(), _Symbols():
            trace = recorded.get_trace(*args, **kwargs)
        self._sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
        self._dependent = {site["name"] for site in self._sites if random_tensors(site["fn"])}
        random = [t for site in self._sites for t in _random_tensors(site)]
        self._parents = {latent for node in nodes_of(*random) if (latent := _symbol_of(node))}

    def replica(self, cuts: Cuts) -> Callable[..., None]:
        """A guide with the same sites; the guide's tensors are seen through ``cuts``."""

        def guide(*args: Any, **kwargs: Any) -> None:
            values = _Values(cuts)
            for site in self._sites:
                is_dependent = site["name"] in self._dependent
                value = values.sites[site["name"]] = _sample(site, values, is_dependent)
                if isinstance(value, RandomTensor):
                    values.check_known(value)
                if site["name"] in self._parents and value.shape != site["value"].shape:
                    raise NotReplayable(f"site {site['name']!r} has another shape")

        return guide


class NotReplayable(PyroSilentError):
    """What was recorded does not serve this loss: the guide has to run anew for it."""


def record(guide: Callable, args: tuple, kwargs: dict) -> RecordedGuide | None:
    """The recorded guide; None for one that must run anew for each loss.

    That is a ``GuideMessenger``, which runs the model, and a guide that fails on symbols: its control
    flow needs a value, or code that is not torch's does. What it drew before it failed is left drawn.
    """
    if isinstance(poutine.unwrap(guide), GuideMessenger):
        return None
    try:
        return RecordedGuide(guide, args, kwargs)
    except Exception:
        # The guide's own code may take no symbols; an error of another kind comes again with values.
        return None


class _Symbols(Messenger):
    """Gives latent sites symbols for values."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg) or msg["done"] or msg["value"] is not None:
            return
        fn, name = msg["fn"], msg["name"]
        if msg["args"] or msg["kwargs"] or not isinstance(fn, Distribution):
            raise LeakError(f"guide site {name!r} is drawn by {fn!r}, which is no distribution")
        msg["value"] = sampled_site(name, fn, user_location(), _REASON, _symbol)
        msg["done"] = True


class _Values(Draw):
    """The reading of a guide's programs at the values that one replica's sites were given."""

    def __init__(self, cuts: Cuts) -> None:
        super().__init__()
        self._cuts = cuts
        self.sites: dict[str, Any] = {}
        self._known: set[int] = set()

    def known(self, value: Any) -> Any:
        """A setting of a site with values for what is random in it, such as the input of a baseline."""
        return map_tensors(super().__call__, value) if random_tensors(value) else value

    def check_known(self, value: RandomTensor) -> None:
        """Refuse a value with a symbol in it, which hid where no distribution shows its parameters.

        :raises NotReplayable: for those.
        """
        for node in nodes_of(value, seen=self._known):
            if _symbol_of(node):
                raise NotReplayable("a symbol was left in a distribution of the guide")

    def __call__(self, tensor: Any) -> Any:
        if isinstance(tensor, RandomTensor):
            return super().__call__(tensor)
        return self._cuts(tensor) if isinstance(tensor, Tensor) else tensor

    def substitute(self, distribution: Distribution) -> Distribution:
        return map_parameters(self, distribution, Tensor)

    def _run(self, call: Call) -> Any:
        if call.function is _symbol:
            return self.sites[call.args[0]]
        return super()._run(call)


def _sample(site: dict, values: _Values, is_dependent: bool) -> Any:
    """The sample statement of a recorded site, which already bears the marks of its plates.

    :param is_dependent: whether its distribution depends on latents.
    :raises ValueError: as torch does, for parameters out of their range at these values.
    """
    fn = site["fn"]
    if isinstance(fn, Distribution):
        fn = values.substitute(fn)
        if is_dependent and Distribution._validate_args:
            check_plain_parameters(fn)
    msg: Any = {
        "type": "sample",
        "name": site["name"],
        "fn": fn,
        "is_observed": site["is_observed"],
        "args": site["args"],
        "kwargs": site["kwargs"],
        "value": None if _symbol_of(site["value"]) else values(site["value"]),
        "infer": {k: values.known(v) for k, v in site["infer"].items() if k not in _OF_ENUMERATION},
        "scale": values(site["scale"]),
        "mask": values(site["mask"]),
        "cond_indep_stack": site["cond_indep_stack"],
        "done": False,
        "stop": False,
        "continuation": None,
    }
    apply_stack(msg)
    return msg["value"]


def _random_tensors(site: dict) -> list[RandomTensor]:
    """What a recorded site's statement is made from."""
    value = None if _symbol_of(site["value"]) else site["value"]
    return random_tensors((site["fn"], value, site["scale"], site["mask"]))


def _symbol(name: str, fn: Distribution, parameters: tuple) -> Tensor:
    """Marks the node of a latent whose value is left to a replica."""
    raise RuntimeError("a symbol has no value")


def _symbol_of(value: Any) -> str | None:
    """The name of the latent that a value is the symbol of."""
    call = value._call if isinstance(value, RandomTensor) else None
    return call.args[0] if call is not None and call.function is _symbol else None
