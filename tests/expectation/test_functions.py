"""Every entry of the table against dense quadrature of the torch function it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_silent.expectation.functions import CLOSED, NUMERIC
from tests.expectation.scalar import reference

MEANS = (-1000.0, -30.0, -8.0, -1.0, -0.1, 0.0, 0.5, 2.0, 20.0, 300.0)
STDS = (1e-6, 1e-3, 0.1, 1.0, 3.0, 10.0, 100.0, 1000.0)
TOLERANCE = 1e-9
GRADIENT_TOLERANCE = 1e-8
# softplus and its kin: absolute where nearly all the mass is far below 0
FLOOR = 5e-11


class Row(NamedTuple):
    """A function, its plain arguments, and where it is not smooth."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    kinks: tuple[float, ...] = ()

    def plain(self, x: Tensor) -> Tensor:
        return self.function(x.clone(), *self.arguments, **self.keywords)

    def closed(self, mean: Tensor, std: Tensor) -> Tensor:
        return CLOSED[self.function](mean, std, *self.arguments, **self.keywords)

    @property
    def floor(self) -> float:
        return FLOOR if self.function in NUMERIC else 0.0

    def __str__(self) -> str:
        options = [*map(str, self.arguments), *(f"{k}={v}" for k, v in self.keywords.items())]
        return f"{self.function.__name__}({', '.join(options)})"


T = partial(torch.tensor, dtype=torch.float64)
CONSTANT = Row(torch.clamp, (2.0, -1.0))  # crossed bounds: the upper one wins
ROWS = [
    Row(torch.abs, kinks=(0.0,)),
    Row(torch.relu, kinks=(0.0,)),
    Row(F.relu6, kinks=(0.0, 6.0)),
    Row(F.hardtanh, kinks=(-1.0, 1.0)),
    Row(F.hardtanh, (-0.5, 3.0), kinks=(-0.5, 3.0)),
    Row(F.hardsigmoid, kinks=(-3.0, 3.0)),
    Row(F.leaky_relu, kinks=(0.0,)),
    Row(F.leaky_relu, (0.3,), kinks=(0.0,)),
    Row(F.softshrink, kinks=(-0.5, 0.5)),
    Row(F.softshrink, (2.0,), kinks=(-2.0, 2.0)),
    Row(torch.clamp, (-1.5, 2.0), kinks=(-1.5, 2.0)),
    Row(torch.clamp, (), {"min": 0.25}, kinks=(0.25,)),
    Row(torch.clamp, (), {"max": -7.0}, kinks=(-7.0,)),
    Row(torch.clamp, (-math.inf, 1.0), kinks=(1.0,)),
    CONSTANT,
    Row(torch.clamp, (T(0.0), T(1.0)), kinks=(0.0, 1.0)),
    Row(torch.clamp_min, (-3.0,), kinks=(-3.0,)),
    Row(torch.clamp_max, (3.0,), kinks=(3.0,)),
    Row(torch.maximum, (T(0.5),), kinks=(0.5,)),
    Row(torch.minimum, (T(-8.0),), kinks=(-8.0,)),
    Row(torch.fmax, (T(0.0),), kinks=(0.0,)),
    Row(torch.fmin, (T(1.0),), kinks=(1.0,)),
    Row(torch.gt, (0.5,), kinks=(0.5,)),
    Row(torch.ge, (0.5,), kinks=(0.5,)),
    Row(torch.lt, (T(-1.0),), kinks=(-1.0,)),
    Row(torch.le, (-1.0,), kinks=(-1.0,)),
    Row(torch.heaviside, (T(0.3),), kinks=(0.0,)),
    Row(torch.sign, kinks=(0.0,)),
    Row(torch.sgn, kinks=(0.0,)),
    Row(torch.erf),
    Row(torch.erfc),
    Row(torch.special.ndtr),
    Row(F.gelu),
    Row(torch.exp),
    Row(torch.exp2),
    Row(torch.expm1),
    Row(torch.sinh),
    Row(torch.cosh),
    Row(torch.sin),
    Row(torch.cos),
    Row(torch.square),
    Row(torch.sigmoid),
    Row(torch.tanh),
    Row(F.softplus),
    Row(F.softplus, (2.0,)),
    Row(F.softplus, (), {"beta": 0.5, "threshold": 40.0}),
    Row(F.silu),
    Row(F.logsigmoid),
    Row(torch.logaddexp, (T(0.7),)),
]
# what the rows leave out, and a row of the same entry stands for
ENTRIES = {CLOSED[row.function] for row in ROWS}
rows = pytest.mark.parametrize("row", ROWS, ids=str)


def exactly(row: Row) -> Callable[[Tensor], Tensor]:
    """The function without torch's own errors.

    Softplus is linear from a threshold on, an error of 2e-9; the normal distribution function and
    gelu lose the lower tail.
    """
    if row.function is F.softplus:
        beta = row.keywords.get("beta", row.arguments[0] if row.arguments else 1.0)
        return lambda x: torch.logaddexp(torch.zeros_like(x), beta * x) / beta
    if row.function is torch.special.ndtr:
        return lambda x: 0.5 * torch.erfc(-x / math.sqrt(2))
    if row.function is F.gelu:
        return lambda x: 0.5 * x * torch.erfc(-x / math.sqrt(2))
    return row.plain


def errors(
    row: Row, closed: Callable[[Tensor, Tensor], Tensor], means: Any = MEANS, stds: Any = STDS
) -> tuple[float, float]:
    """The worst errors of value and gradients over the grid, relative to E|f| and its like."""
    function = exactly(row)
    mean, std = (axis.flatten() for axis in torch.meshgrid(T(means), T(stds), indexing="ij"))
    mean.requires_grad_()
    std.requires_grad_()
    value = closed(mean, std)
    in_mean, in_std = torch.autograd.grad(value.sum(), (mean, std))
    worst = worst_gradient = 0.0
    means, stds = mean.tolist(), std.tolist()
    for i, (m, s) in enumerate(zip(means, stds)):
        if row.function in (torch.sin, torch.cos) and s > 20:
            continue  # the panels are too long for the waves, and the value is exp(-200)
        known = reference(function, m, s, row.kinks)
        if not math.isfinite(known.value.scale) or known.value.scale > 1e200:
            # exp of more than half the exponents there are; sinh may cancel
            assert abs(value[i].item()) > 1e190 or (m == 0.0 and value[i] == 0.0)
            continue
        floor = row.floor
        worst = max(
            worst, known.value.error(value[i].item()) - floor / max(known.value.scale, 1e-300)
        )
        for gradient, slope in ((in_mean, known.in_mean), (in_std, known.in_std)):
            error = slope.error(gradient[i].item()) - floor / max(slope.scale, 1e-300)
            worst_gradient = max(worst_gradient, error)
    return worst, worst_gradient


def test_every_entry_has_a_row() -> None:
    missing = [name for name, entry in CLOSED.items() if entry not in ENTRIES]
    assert not missing
    assert NUMERIC <= CLOSED.keys()


@rows
def test_value_and_gradients_against_dense_quadrature(row: Row) -> None:
    value, gradient = errors(row, row.closed)
    assert value < TOLERANCE
    assert gradient < GRADIENT_TOLERANCE


@pytest.mark.parametrize("row", [row for row in ROWS if row is not CONSTANT], ids=str)
def test_a_wrong_formula_is_caught(row: Row) -> None:
    """The variance in place of the standard deviation."""
    value, gradient = errors(
        row, lambda mean, std: row.closed(mean, std**2), (-1.0, 0.5), (0.1, 3.0)
    )
    assert value > 1e-3
    assert gradient > 1e-3


@rows
def test_without_spread_it_is_the_function(row: Row) -> None:
    at_kinks = [*MEANS, *row.kinks]
    mean = T([m for m in at_kinks if abs(m) < 500]).requires_grad_()
    std = torch.zeros_like(mean, requires_grad=True)
    value = row.closed(mean, std)
    expected = exactly(row)(mean.detach()).to(mean.dtype)
    torch.testing.assert_close(value.detach(), expected, rtol=1e-10, atol=2 * row.floor)
    gradients = torch.autograd.grad(value.sum(), (mean, std), allow_unused=True)
    for gradient in gradients:
        assert gradient is None or gradient.isfinite().all()
    smooth = torch.tensor([m not in row.kinks for m in mean.tolist()])
    plain = mean.detach().clone().requires_grad_()
    output = exactly(row)(plain)
    if output.requires_grad and row.function is not torch.heaviside:  # which has no gradient
        (slope,) = torch.autograd.grad(output.sum(), plain)
        torch.testing.assert_close(
            gradients[0][smooth], slope[smooth], rtol=1e-7, atol=2 * row.floor
        )


@rows
def test_single_precision_is_finite_and_near(row: Row) -> None:
    mean, std = (
        axis.flatten() for axis in torch.meshgrid(T(MEANS), T((0.0, *STDS)), indexing="ij")
    )
    exact = row.closed(mean, std)
    single = [tensor.float().requires_grad_() for tensor in (mean, std)]
    arguments = [a.float() if isinstance(a, Tensor) else a for a in row.arguments]
    value = CLOSED[row.function](*single, *arguments, **row.keywords)
    assert value.dtype == torch.float32
    fits = exact.abs() < 1e30
    assert value[fits].isfinite().all()
    # rounding of the mean and of the std moves the argument
    moved = exact.abs() + row.closed(mean, std + 1e-3 * mean.abs()).abs()
    tolerance = 2e-4 * (moved + 1e-3) + 2e-6 * std
    assert ((value.double() - exact).abs()[fits] <= tolerance[fits]).all()
    gradients = torch.autograd.grad(value[fits].sum(), single, allow_unused=True)
    for gradient in gradients:
        assert gradient is None or gradient[fits].isfinite().all()


def test_all_names_of_an_entry_mean_the_same() -> None:
    x = T(MEANS)
    for row in ROWS:
        expected = row.plain(x)
        for name, entry in CLOSED.items():
            if entry is not CLOSED[row.function] or row.function.__name__ == "clamp":
                continue
            try:
                value = name(x.clone(), *row.arguments, **row.keywords)
            except TypeError:  # the method has no such keyword, or wants a tensor
                continue
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("function", [F.softplus, torch.sigmoid, torch.tanh, F.silu])
def test_derivatives_of_logistic_functions_to_second_order(function: Callable) -> None:
    mean = T([-3.0, 0.0, 1.0]).requires_grad_()
    std = T([0.5, 2.0, 0.0]).requires_grad_()
    assert torch.autograd.gradcheck(CLOSED[function], (mean, std))
    assert torch.autograd.gradgradcheck(CLOSED[function], (mean, std), atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("function", [F.softplus, torch.sigmoid, torch.relu, torch.abs])
def test_function_transforms(function: Callable) -> None:
    """torch.func and forward mode give what backward passes give."""
    mean, std = T([-1.0, 0.5]), T([0.7, 2.0])

    def total(mean: Tensor) -> Tensor:
        return CLOSED[function](mean, std).sum()

    slope = torch.autograd.functional.jacobian(total, mean)
    torch.testing.assert_close(torch.func.grad(total)(mean), slope)
    torch.testing.assert_close(
        torch.func.jvp(total, (mean,), (T([1.0, 2.0]),))[1], slope @ T([1.0, 2.0])
    )
    curvature = torch.autograd.functional.hessian(total, mean)
    torch.testing.assert_close(torch.func.hessian(total)(mean), curvature)
    assert torch.vmap(total)(mean.expand(3, 2)).shape == (3,)
    traced = make_fx(torch.func.grad(total))(mean)
    torch.testing.assert_close(traced(mean + 1), torch.func.grad(total)(mean + 1))


@rows
def test_operands_broadcast(row: Row) -> None:
    mean, std = T([[-1.0], [0.0], [2.0]]), T([0.1, 1.0, 0.0, 3.0])
    value = row.closed(mean, std)
    assert value.shape == (3, 4)
    one_by_one = [[row.closed(m, s) for s in std] for m in mean[:, 0]]
    torch.testing.assert_close(value, torch.stack([torch.stack(line) for line in one_by_one]))


def test_bounds_may_be_tensors_with_dims() -> None:
    mean, std = torch.zeros(3), torch.ones(3)
    threshold = T([[-1.0], [1.0]])
    expected = torch.special.ndtr(-threshold).expand(2, 3)
    torch.testing.assert_close(CLOSED[torch.gt](mean, std, threshold), expected)
    assert CLOSED[torch.clamp](mean, std, threshold, threshold + 1).shape == (2, 3)


def test_options_without_an_entry_are_left_to_quadrature() -> None:
    assert CLOSED[F.gelu](torch.zeros(1), torch.ones(1), approximate="tanh") is NotImplemented


def test_large_tensors_are_computed_in_chunks_of_the_same_value() -> None:
    mean, std = torch.linspace(-30, 30, 5001), torch.linspace(0, 9, 5001)
    whole = CLOSED[F.softplus](mean, std)
    parts = [CLOSED[F.softplus](m, s) for m, s in zip(mean.split(7), std.split(7))]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-13, atol=0.0)


def test_tails_are_not_lost() -> None:
    """Far below 0 softplus and the sigmoid are exp, however small."""
    mean, std = T([-40.0, -300.0, -60.0]), T([0.5, 3.0, 2.0])
    exponential = torch.exp(mean + 0.5 * std**2)
    for function in (F.softplus, torch.sigmoid):
        torch.testing.assert_close(CLOSED[function](mean, std), exponential, rtol=1e-6, atol=0.0)
