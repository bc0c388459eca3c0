"""Pyro losses without sampling noise wherever mathematics allows it."""

from pyro_silent.capture import CompiledELBOModule, CompiledSVI
from pyro_silent.diagnostics import (
    Comparison,
    Explanation,
    TrainingComparison,
    audit,
    compare,
    explain,
    train_and_compare,
)
from pyro_silent.elbo import (
    AnnealedELBO,
    DisARMELBO,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    RelaxedELBO,
    SilentELBO,
    StraightThroughELBO,
)
from pyro_silent.errors import (
    CaptureError,
    CaptureWarning,
    ConfigurationError,
    IntractableError,
    LeakError,
    PyroSilentError,
    QuadratureWarning,
    SampledSiteWarning,
)
from pyro_silent.estimators import (
    ZGR,
    Estimator,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    ReinMax,
    StraightThrough,
    StraightThroughGumbelSoftmax,
)
from pyro_silent.expectation import (
    covariance,
    expected_log_prob,
    mean,
    random_parameters,
    register_expected_log_prob,
    variance,
)
from pyro_silent.nn import TwinDecoder
from pyro_silent.random_tensor import RandomTensor, random_tensor
from pyro_silent.schedules import Constant, Cosine, Exponential, Linear

__all__ = [
    "AnnealedELBO",
    "CaptureError",
    "CaptureWarning",
    "Comparison",
    "CompiledELBOModule",
    "CompiledSVI",
    "ConfigurationError",
    "Constant",
    "Cosine",
    "DisARMELBO",
    "Estimator",
    "Explanation",
    "Exponential",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelRaoELBO",
    "GumbelSoftmax",
    "IntractableError",
    "LeakError",
    "LeaveOneOutELBO",
    "Linear",
    "PyroSilentError",
    "QuadratureWarning",
    "RandomTensor",
    "ReinMax",
    "RelaxedELBO",
    "SampledSiteWarning",
    "SilentELBO",
    "StraightThrough",
    "StraightThroughELBO",
    "StraightThroughGumbelSoftmax",
    "TrainingComparison",
    "TwinDecoder",
    "ZGR",
    "audit",
    "compare",
    "covariance",
    "expected_log_prob",
    "explain",
    "mean",
    "random_parameters",
    "random_tensor",
    "train_and_compare",
    "register_expected_log_prob",
    "variance",
]

__version__ = "0.1.0"
