"""The losses: named policies over treatments on one engine."""

from pyro_silent.elbo.annealed import AnnealedELBO
from pyro_silent.elbo.disarm import DisARMELBO
from pyro_silent.elbo.gumbel_rao import GumbelRaoELBO
from pyro_silent.elbo.leave_one_out import LeaveOneOutELBO
from pyro_silent.elbo.relaxed import RelaxedELBO
from pyro_silent.elbo.silent import SilentELBO
from pyro_silent.elbo.straight_through import StraightThroughELBO

__all__ = [
    "AnnealedELBO",
    "DisARMELBO",
    "GumbelRaoELBO",
    "LeaveOneOutELBO",
    "RelaxedELBO",
    "SilentELBO",
    "StraightThroughELBO",
]
