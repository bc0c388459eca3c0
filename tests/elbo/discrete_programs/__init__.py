"""Small programs with discrete latents, each written twice (see ``discrete_oracle``)."""

from tests.elbo.discrete_programs import edges, one_site, plates, several_sites, treatments
from tests.elbo.discrete_programs.program import GRID, PROGRAMS, THREE, P, logit, observe

__all__ = [
    "GRID",
    "PROGRAMS",
    "THREE",
    "P",
    "edges",
    "logit",
    "observe",
    "one_site",
    "plates",
    "several_sites",
    "treatments",
]
