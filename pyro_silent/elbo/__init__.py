"""The losses: named policies over treatments on one engine."""

from pyro_silent.elbo.silent import SilentELBO

__all__ = ["SilentELBO"]
