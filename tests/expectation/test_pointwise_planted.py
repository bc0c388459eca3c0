"""The rows and the random programs catch known wrong rules when they are planted."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_silent import mean, variance
from pyro_silent.expectation import gaussian_moments, integral, product, tilting
from pyro_silent.random_tensor import algebra
from tests.expectation.pointwise_rows import ROWS
from tests.expectation.test_pointwise import Run

# The package exports a function of the same name.
second_moments = importlib.import_module("pyro_silent.random_tensor.covariance")
moments = importlib.import_module("pyro_silent.expectation.moments")

Patch = pytest.MonkeyPatch


def no_tilting_of_gaussians(patch: Patch) -> None:
    """E[p(a) e^b] = E[p(a)] E[e^b]: the covariance of polynomial and exponent is dropped."""
    patch.setattr(gaussian_moments.Moments, "shift", lambda self, atom, amount: None)


def no_tilting_of_codes(patch: Patch) -> None:
    """The same for Bernoulli and one-hot sources."""
    patch.setattr(tilting.Tilted, "mean", lambda self, form: form.offset)


def exp_without_variance(patch: Patch) -> None:
    """E[e^b] = e^E[b]."""
    original = gaussian_moments.Moments.variance

    def wrong(self, atom) -> Tensor:
        return torch.zeros_like(original(self, atom))

    patch.setattr(gaussian_moments.Moments, "variance", wrong)


def gathers_independent(patch: Patch) -> None:
    """Two gathers of one source are taken for independent, also where their indices meet."""
    original = second_moments._pair

    def dropped(a, b, *rest):
        same = all(second_moments.same_position(x, y) for x, y in zip(a.axes, b.axes, strict=True))
        gathered = any(isinstance(axis, Tensor) for axis in a.axes + b.axes)
        return [] if gathered and not same else original(a, b, *rest)

    patch.setattr(second_moments, "_pair", dropped)


def functions_independent(patch: Patch) -> None:
    """E[f(x) g(y)] = E[f(x)] E[g(y)] for correlated x, y."""
    original = product._independent_parts

    def apart(given):
        parts = []
        for part in original(given):
            for function in part.functions:
                alone = product.Part()
                alone.functions = [function]
                parts.append(alone)
            part.functions = []
            if part.powers or part.exponent is not None:
                parts.append(part)
        return parts

    patch.setattr(product, "_independent_parts", apart)


def square_of_a_sum_on_the_diagonal(patch: Patch) -> None:
    """(sum_k a_k)^2 = sum_k a_k^2: the cross terms are lost."""
    original = algebra._product

    def diagonal(p, q, num_dims):
        if not p.reduced or p.reduced != q.reduced:
            return original(p, q, num_dims)
        bare = [algebra.Product(x.coefficient, x.powers, x.exponent, x.functions) for x in (p, q)]
        result = original(*bare, num_dims)
        result.reduced = p.reduced
        return result

    patch.setattr(algebra, "_product", diagonal)


def summed_elements_independent(patch: Patch) -> None:
    """Var[sum_k a_k] = sum_k Var[a_k] whatever the elements share."""
    patch.setattr(moments, "_independent_along", lambda product, num_dims: True)


def pairings_of_distinct_factors_only(patch: Patch) -> None:
    """Isserlis without the pairings of a factor with itself: E[x^2] = E[x]^2."""
    original = gaussian_moments.product_moment

    def wrong(means, covariance):
        return original(means, lambda i, j: None if means[i] is means[j] else covariance(i, j))

    for module in (product, integral):
        patch.setattr(module, "product_moment", wrong)


PLANTS: dict[str, tuple[Callable[[Patch], None], Callable[[Tensor], Tensor], list[str]]] = {
    "no tilting": (
        no_tilting_of_gaussians,
        mean,
        ["x exp(y)", "x^2 exp(-x)", "gathered polynomial, gathered exponent", "x / exp"],
    ),
    "no tilting of codes": (
        no_tilting_of_codes,
        mean,
        ["tilted Bernoulli", "tilted Bernoulli, squared", "tilted one-hot over two blocks"],
    ),
    "exp without variance": (
        exp_without_variance,
        mean,
        ["exp", "x exp(y)", "exp of a gather", "(x / exp) ** 2", "sum of exp by rows"],
    ),
    "gathers independent": (
        gathers_independent,
        mean,
        ["product of gathers of correlated", "gathers of correlated", "product of gathered exps"],
    ),
    "functions independent": (
        functions_independent,
        mean,
        ["sin(x) cos(y), correlated", "softplus(x) sigmoid(y), correlated", "softplus(x) y"],
    ),
    "square of a sum on the diagonal": (
        square_of_a_sum_on_the_diagonal,
        mean,
        ["square of an inner product", "squared error of an inner product"],
    ),
    "summed elements independent": (
        summed_elements_independent,
        variance,
        ["sum of squares", "sum of row sums times column sums", "sum of exps"],
    ),
    "a factor not paired with itself": (
        pairings_of_distinct_factors_only,
        mean,
        ["square", "x^2 exp(-x)", "softplus(x) y^2"],
    ),
}
CASES = [(plant, row) for plant, (_, _, rows) in PLANTS.items() for row in rows]


@pytest.mark.parametrize(("plant", "name"), CASES)
def test_planted_error_is_caught(plant, name, monkeypatch):
    patch, moment, _ = PLANTS[plant]
    what = moment.__name__
    assert Run(ROWS[name]).check(moment, what, True)
    patch(monkeypatch)
    with pytest.raises(AssertionError, match=f"{what}: "):
        Run(ROWS[name]).check(moment, what, True)


@pytest.mark.parametrize("plant", ["no tilting", "exp without variance", "functions independent"])
def test_a_right_number_elsewhere_is_left_alone(plant, monkeypatch):
    """A plant is one error and not a broken library: what it does not touch still agrees."""
    PLANTS[plant][0](monkeypatch)
    for name in ("square", "inner product", "abs", "Bernoulli squared"):
        if plant == "exp without variance" and name == "abs":
            continue  # a standard deviation is a variance too
        Run(ROWS[name]).check(mean, "mean", True)
