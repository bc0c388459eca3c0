"""The models, data and optimizers of the examples, for benchmarks, which run as scripts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import count_regression  # noqa: E402
import data  # noqa: E402
import eight_schools  # noqa: E402
import fitting  # noqa: E402
import logistic_regression  # noqa: E402

__all__ = ["count_regression", "data", "eight_schools", "fitting", "logistic_regression"]
