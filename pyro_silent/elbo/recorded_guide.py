"""A guide that has run once: its sample sites, ready to be run again without its networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import apply_stack
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_silent.elbo.leaves import leaves_of
from pyro_silent.elbo.random_state import random_state, restore
from pyro_silent.errors import LeakError, user_location
from pyro_silent.expectation.coercion import random_parameters
from pyro_silent.random_tensor.draw import Draw, map_parameters, sample_site, sampled_site
from pyro_silent.random_tensor.program import Call, plain_operands
from pyro_silent.random_tensor.tensor import RandomTensor

_REASON = "the guide is run once for several losses"
_OF_ENUMERATION = ("_enumerate_dim", "_dim_to_id")


class Cuts:
    """Tensors of a guide as one loss sees them: leaves of its own, which collect its gradients.

    :ivar pairs: ``(the guide's tensor, the leaf that stands for it)``.
    """

    def __init__(self) -> None:
        self._leaves: dict[int, Tensor] = {}
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def watched(self, guide: Callable) -> Callable:
        """A guide that is not recorded; its parameters stand for themselves."""
        messenger = poutine.unwrap(guide)
        if isinstance(messenger, GuideMessenger):
            parameters = messenger.parameters() if isinstance(messenger, nn.Module) else ()
            self.pairs += [(leaf, leaf) for leaf in parameters]
            return guide
        return _Watch(self)(guide)

    def keep(self, fn: Any) -> None:
        """Let the parameters that a distribution of the guide comes from stand for themselves."""

        def visit(tensor: Any) -> Any:
            if isinstance(tensor, RandomTensor):
                for plain in plain_operands(tensor):
                    visit(plain)
            elif tensor.requires_grad:
                self.pairs += [(leaf, leaf) for leaf in leaves_of(tensor)]
            return tensor

        map_parameters(visit, fn, Tensor)

    def __call__(self, tensor: Tensor) -> Tensor:
        """The leaf that stands for a tensor; one without a gradient stands for itself."""
        if not tensor.requires_grad:
            return tensor
        leaf = self._leaves.get(id(tensor))
        if leaf is None:
            leaf = self._leaves[id(tensor)] = tensor.detach().requires_grad_()
            self.pairs.append((tensor, leaf))
        return leaf


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
        with poutine.block(hide_types=["sample"]), random_parameters(), _Symbols():
            trace = recorded.get_trace(*args, **kwargs)
        self._sites = [site for site in trace.nodes.values() if site["type"] == "sample"]

    def replica(self, cuts: Cuts) -> Callable[..., None]:
        """A guide with the same sites; the guide's tensors are seen through ``cuts``."""

        def guide(*args: Any, **kwargs: Any) -> None:
            values = _Values(cuts)
            for site in self._sites:
                values.sites[site["name"]] = _sample(site, values)

        return guide


def record(guide: Callable, args: tuple, kwargs: dict) -> RecordedGuide | None:
    """The recorded guide; None for one that must run anew for each loss.

    That is a ``GuideMessenger``, which runs the model, and a guide whose control flow needs a value.
    """
    if isinstance(poutine.unwrap(guide), GuideMessenger):
        return None
    state = random_state()
    try:
        return RecordedGuide(guide, args, kwargs)
    except LeakError:
        restore(state)  # it will draw again
        return None


class _Symbols(Messenger):
    """Gives latent sites symbols for values."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg) or msg["done"] or msg["value"] is not None:
            return
        fn, name = msg["fn"], msg["name"]
        if msg["args"] or msg["kwargs"] or not isinstance(fn, Distribution):
            raise LeakError(f"guide site {name!r} is drawn by {fn!r}, which is no distribution")
        msg["value"] = sampled_site(name, fn, user_location(), _REASON)
        msg["done"] = True


class _Watch(Messenger):
    """Tells a guide's parameters from others while it runs."""

    def __init__(self, cuts: Cuts) -> None:
        super().__init__()
        self.cuts = cuts

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], Distribution) and not site_is_subsample(msg):
            self.cuts.keep(msg["fn"])


class _Values(Draw):
    """The reading of a guide's programs at the values that one replica's sites were given."""

    def __init__(self, cuts: Cuts) -> None:
        super().__init__()
        self._cuts = cuts
        self.sites: dict[str, Any] = {}

    def __call__(self, tensor: Any) -> Any:
        if isinstance(tensor, RandomTensor):
            return super().__call__(tensor)
        return self._cuts(tensor) if isinstance(tensor, Tensor) else tensor

    def substitute(self, distribution: Distribution) -> Distribution:
        return map_parameters(self, distribution, Tensor)

    def _run(self, call: Call) -> Any:
        if call.function is sample_site:
            return self.sites[call.args[0]]
        return super()._run(call)


def _sample(site: dict, values: _Values) -> Any:
    """The sample statement of a recorded site, which already bears the marks of its plates."""
    msg: Any = {
        "type": "sample",
        "name": site["name"],
        "fn": values.substitute(site["fn"]) if isinstance(site["fn"], Distribution) else site["fn"],
        "is_observed": site["is_observed"],
        "args": site["args"],
        "kwargs": site["kwargs"],
        "value": None if _is_symbol(site) else values(site["value"]),
        "infer": {k: v for k, v in site["infer"].items() if k not in _OF_ENUMERATION},
        "scale": values(site["scale"]),
        "mask": values(site["mask"]),
        "cond_indep_stack": site["cond_indep_stack"],
        "done": False,
        "stop": False,
        "continuation": None,
    }
    apply_stack(msg)
    return msg["value"]


def _is_symbol(site: dict) -> bool:
    """Whether a latent's value is left to the loss."""
    value = site["value"]
    call = value._call if isinstance(value, RandomTensor) else None
    return call is not None and call.function is sample_site and not site["is_observed"]
