"""Looking at a loss: which of its terms are exact, and the check that they are."""

from pyro_silent.diagnostics.audit import audit
from pyro_silent.diagnostics.compare import compare
from pyro_silent.diagnostics.comparison import Comparison
from pyro_silent.diagnostics.explain import explain
from pyro_silent.diagnostics.explanation import Explanation
from pyro_silent.diagnostics.training import train_and_compare
from pyro_silent.diagnostics.training_comparison import TrainingComparison

__all__ = [
    "Comparison",
    "Explanation",
    "TrainingComparison",
    "audit",
    "compare",
    "explain",
    "train_and_compare",
]
