"""One subsample of every plate for several runs of the programs."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor


class SharedSubsamples(Messenger):
    """Within it, a subsampling plate gives every run the minibatch it gave the first one.

    Runs that are compared with each other must see the same data, or their difference is the data's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and not msg["done"] and msg["name"] in self._drawn:
            msg["value"] = self._drawn[msg["name"]]
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._drawn.setdefault(msg["name"], msg["value"])
