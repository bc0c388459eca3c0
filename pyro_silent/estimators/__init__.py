"""Gradient estimators of discrete variables: hard samples with a surrogate backward pass."""

from pyro_silent.estimators.estimator import Estimator
from pyro_silent.estimators.gapped_straight_through import GappedStraightThrough
from pyro_silent.estimators.gumbel_rao import GumbelRao
from pyro_silent.estimators.gumbel_softmax import GumbelSoftmax
from pyro_silent.estimators.reinmax import ReinMax
from pyro_silent.estimators.straight_through import StraightThrough
from pyro_silent.estimators.straight_through_gumbel_softmax import StraightThroughGumbelSoftmax
from pyro_silent.estimators.zgr import ZGR

__all__ = [
    "Estimator",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "ReinMax",
    "StraightThrough",
    "StraightThroughGumbelSoftmax",
    "ZGR",
]
