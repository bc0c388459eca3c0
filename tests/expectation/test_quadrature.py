"""Quadrature against dense panels, and its own opinion of how good it is against the truth."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_silent.expectation.method import recording
from pyro_silent.expectation.quadrature import QuadratureWarning, expect, integrate
from tests.expectation.scalar import reference

MEANS = (-10.0, -3.0, 0.0, 0.4, 2.0, 10.0)
# function, and the std up to which all is well in double precision
SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "softplus": (lambda x: torch.logaddexp(x, torch.zeros_like(x)), 10.0),
    "sigmoid": (torch.sigmoid, 10.0),
    "tanh": (torch.tanh, 10.0),
    "log cosh": (lambda x: torch.logaddexp(x, -x), 10.0),
    "log1p(x^2 / 4)": (lambda x: torch.log1p(x * x / 4), 10.0),
    "log1p(x^2)": (lambda x: torch.log1p(x * x), 10.0),
    "sqrt(1 + x^2)": (lambda x: torch.sqrt(1 + x * x), 10.0),
    "lgamma(exp x)": (lambda x: torch.lgamma(torch.exp(x)), 10.0),
    "lgamma(exp x + 3)": (lambda x: torch.lgamma(torch.exp(x) + 3), 10.0),
    "log ndtr": (torch.special.log_ndtr, 10.0),
    "exp": (torch.exp, 10.0),
    "exp(x) sigmoid(x)": (lambda x: torch.exp(x) * torch.sigmoid(x), 10.0),
    "x^6": (lambda x: x**6, 1000.0),
    "sin(3 x)": (lambda x: torch.sin(3 * x), 3.0),
    "log softplus": (lambda x: torch.log(F.softplus(x)), 10.0),
}
STDS = (1e-6, 0.01, 0.3, 1.0, 3.0, 10.0, 1000.0)
CASES = [(name, std) for name, (_, widest) in SMOOTH.items() for std in STDS if std <= widest]


@pytest.mark.parametrize(("name", "std"), CASES)
def test_smooth_functions_to_a_millionth(name: str, std: float) -> None:
    """And much better as a rule; gradients too. The warning filter of the suite proves silence."""
    function, _ = SMOOTH[name]
    for center in MEANS:
        mean, spread = (torch.tensor(value, requires_grad=True) for value in (center, std))
        value = expect(function, mean, spread)
        in_mean, in_std = torch.autograd.grad(value, (mean, spread))
        known = reference(function, center, std)
        assert known.value.error(value.item()) < 1e-6
        assert known.in_mean.error(in_mean.item()) < 1e-6
        assert known.in_std.error(in_std.item()) < 1e-6


def test_a_fixed_rule_would_not_pass() -> None:
    """What the accuracy above is worth: 32 Gauss-Hermite nodes against the same truth."""
    nodes, weights = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(32))
    for name, std in (("tanh", 3.0), ("softplus", 10.0), ("log1p(x^2)", 1.0), ("exp", 10.0)):
        function, _ = SMOOTH[name]
        value = (weights / weights.sum()) @ function(0.4 + std * nodes)
        assert reference(function, 0.4, std).value.error(value.item()) > 1e-6


def test_the_default_count_is_far_better_up_to_unit_spread() -> None:
    mean, std = torch.tensor(MEANS), torch.tensor(0.5)
    with recording() as methods:
        value = expect(F.softplus, mean, std)
    assert methods == ["quadrature(33)"]
    exact = [reference(F.softplus, m, 0.5).value.value for m in MEANS]
    torch.testing.assert_close(value, torch.tensor(exact), rtol=1e-11, atol=0.0)


def test_old_nodes_are_used_again() -> None:
    """Counts are doubled, and no node is computed twice."""
    seen: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return torch.tanh(x)

    with recording() as methods:
        expect(function, torch.tensor([0.3]), torch.tensor([5.0]))
    nodes = torch.cat(seen)
    assert len(seen) > 2
    assert len(nodes.unique()) == len(nodes)
    assert methods == [f"quadrature({len(nodes)})"]


def test_exponentials_widen_the_range() -> None:
    """exp(x) is largest at std^2, far outside of the first nodes."""
    std = torch.tensor(12.0)
    value = expect(torch.exp, torch.tensor(0.0), std)
    torch.testing.assert_close(value, torch.exp(std**2 / 2), rtol=1e-8, atol=0.0)


@given(
    shift=st.floats(-5.0, 5.0),
    width=st.floats(0.05, 3.0),
    std=st.floats(0.01, 20.0),
    kink=st.sampled_from([0.0, 0.0, 1e-3, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_no_inexact_answer_in_silence(shift: float, width: float, std: float, kink: float) -> None:
    """Poles at any distance, with a kink or without: right to 1e-6, or a warning."""

    def function(x: Tensor) -> Tensor:
        y = (x - shift) / width
        return torch.log1p(y * y) + kink * (x + 0.7).abs()

    mean, spread = torch.tensor([-0.2, 1.0, 4.0]), torch.tensor(std)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = expect(function, mean, spread)
    if any(issubclass(warning.category, QuadratureWarning) for warning in caught):
        assert width / std < 0.2 or kink > 0  # the good cases are not warned of
        return
    for m, v in zip(mean.tolist(), value.tolist()):
        known = reference(function, m, std, (-0.7, *(shift + width * np.linspace(-8, 8, 33))))
        assert known.value.error(v) < 1e-6


def test_a_kink_is_warned_of() -> None:
    mean, std = torch.linspace(-1, 1, 20), torch.ones(20)
    with pytest.warns(QuadratureWarning, match="uncertain by a relative .* kink"):
        value = expect(torch.abs, mean, std)
    exact = torch.tensor([reference(torch.abs, m, 1.0, (0.0,)).value.value for m in mean.tolist()])
    torch.testing.assert_close(value, exact, rtol=1e-3, atol=0.0)


def test_what_is_infinite_is_warned_of() -> None:
    with pytest.warns(QuadratureWarning):
        expect(lambda x: 1 / x, torch.tensor(0.0), torch.tensor(1.0))


def test_small_elements_beside_large_ones_do_not_cost_nodes() -> None:
    """exp(-x^2) at 10 is 1e-40: not worth a finer grid when it is added to a 1."""
    mean, std = torch.tensor([0.0, 12.0]), torch.tensor(0.2)
    with recording() as methods:
        value = expect(lambda x: torch.exp(-x * x), mean, std)
    assert methods == ["quadrature(33)"]
    exact = 1 / math.sqrt(1 + 2 * 0.04)
    assert value[0].item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("points", [4, 8, 16, 64, 200])
def test_counts_to_begin_with(points: int) -> None:
    with recording() as methods:
        value = expect(torch.sigmoid, torch.tensor(0.7), torch.tensor(1e-3), points)
    assert value.item() == pytest.approx(torch.sigmoid(torch.tensor(0.7)).item(), rel=1e-6)
    (method,) = methods
    assert int(method[len("quadrature(") : -1]) >= points


def test_single_precision() -> None:
    mean, std = torch.tensor(MEANS), torch.tensor(2.0)
    value = expect(torch.tanh, mean.float(), std.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expect(torch.tanh, mean, std), rtol=1e-5, atol=1e-6)


def test_shapes_broadcast_and_may_be_empty() -> None:
    mean, std = torch.zeros(3, 1), torch.rand(2, 1, 4) + 0.1
    value = expect(lambda x: torch.cos(x) * torch.ones(4), mean, std)
    torch.testing.assert_close(value, torch.exp(-0.5 * std**2).expand(2, 3, 4))
    assert expect(torch.cos, torch.zeros(0, 2), torch.ones(2)).shape == (0, 2)


def test_where_values_cannot_be_seen_the_first_count_is_taken() -> None:
    def of(mean: Tensor, std: Tensor) -> Tensor:
        return expect(torch.tanh, mean, std)

    mean, std = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 4.0])
    with recording() as methods:
        traced = make_fx(of)(mean, std)
    assert methods == ["quadrature(33)"]
    exact = of(mean, std)
    torch.testing.assert_close(traced(mean, std), exact, rtol=0.0, atol=0.05)
    torch.testing.assert_close(traced(mean, std)[0], exact[0], rtol=1e-9, atol=0.0)
    torch.testing.assert_close(torch.vmap(of)(mean, std), traced(mean, std))
    with FakeTensorMode() as mode:
        assert of(mode.from_tensor(mean), mode.from_tensor(std)).shape == (2,)


def plane(function: Callable[[Tensor, Tensor], Tensor], reach: float = 9.0) -> float:
    """``E[function(e1, e2)]`` for independent N(0, 1), on a grid of 901 x 901."""
    axis = torch.linspace(-reach, reach, 901)
    weights = torch.exp(-0.5 * axis**2)
    weights = weights / weights.sum()
    return (weights @ function(axis[:, None], axis) @ weights).item()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: F.softplus(x) * torch.cos(y),
        lambda x, y: torch.log1p((x - y) ** 2),
        lambda x, y: torch.exp(x - 1) * torch.tanh(2 * y + x),
        lambda x, y: torch.logaddexp(2 * x, 1.5 * y),
    ],
)
def test_two_scalars(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    like = torch.zeros(1)
    value = integrate(lambda axes: function(*axes), 2, like, 1)
    assert value.shape == (1,)
    assert value.item() == pytest.approx(plane(function), rel=1e-8)


def test_two_scalars_with_a_kink_are_warned_of() -> None:
    with pytest.warns(QuadratureWarning):
        integrate(lambda axes: (axes[0] + 0.3 * axes[1] - 0.1).abs(), 2, torch.zeros(1), 1)
