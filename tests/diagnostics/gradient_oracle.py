"""Noise, bias and direction of stored gradients, sample by sample as the formulas say, in numpy.

Gradients g are arrays [samples, parameters], and so are those of a reference, r, of which s
[parameters] is a mean that was found beforehand. Nothing here runs the package.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def noise_terms(g: Array) -> Array:
    """(i - 1) / i |g_i - mean of those before|^2 for i = 2, ..., n."""
    return np.array([i / (i + 1) * np.sum((g[i] - g[:i].mean(0)) ** 2) for i in range(1, len(g))])


def bias_terms(g: Array, r: Array, s: Array) -> Array:
    """<g_i - r_i, u_i> with u_i along the mean of the g before the i-th, minus s; i = 2, ..., n."""
    terms = []
    for i in range(1, len(g)):
        away = g[:i].mean(0) - s
        length = math.sqrt(np.sum(away**2))
        terms.append((g[i] - r[i]) @ away / length if length else 0.0)
    return np.array(terms)


def in_sample_terms(g: Array, r: Array, s: Array) -> Array:
    """A known wrong one: the direction is that of all samples, the i-th among them."""
    whole = g.mean(0) - s
    return (g - r)[1:] @ whole / np.linalg.norm(whole)


def naive_score(g: Array, r: Array) -> float:
    """A known wrong one: the norm of the mean difference over the root of its variance."""
    difference = g - r
    return np.linalg.norm(difference.mean(0)) / math.sqrt(
        np.var(difference, axis=0, ddof=1).sum() / len(g)
    )


def score(terms: Array) -> float:
    """The mean over its standard error."""
    return terms.mean() / standard_error(terms)


def standard_error(terms: Array) -> float:
    return np.std(terms, ddof=1) / math.sqrt(len(terms)) if len(terms) > 1 else math.nan


def along_earlier(x: Array, y: Array) -> float:
    """The mean of <x_i, mean of the y before it>: an unbiased estimate of <E x, E y>."""
    return float(np.mean([x[i] @ y[:i].mean(0) for i in range(1, len(x))]))


def figures(g: Array, r: Array, s: Array) -> dict[str, float]:
    """All figures, by the names that ``GradientFigures`` gives them.

    :param s: the reference's mean, found beforehand.
    """
    noise, bias = noise_terms(g), bias_terms(g, r, s)
    std = math.sqrt(np.var(g, axis=0, ddof=1).sum())
    bias_square = along_earlier(g - r, g - s)
    return {
        "norm": math.sqrt(max(along_earlier(g, g), 0.0)),
        "std": std,
        "std_se": standard_error(noise) / (2 * std) if std else 0.0,
        "mean_se": std / math.sqrt(len(g)),
        "bias": bias.mean(),
        "bias_se": standard_error(bias),
        "bias_square": bias_square,
        "rmse": math.sqrt(std**2 + max(bias_square, 0.0)),
        "product": np.mean(g @ s),
        "square": np.mean(np.sum(g**2, axis=1)),
    }
