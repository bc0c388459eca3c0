"""The other reading of a random tensor: one shared draw of its latents runs the same program."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, tensor

from pyro_silent import LeakError, covariance, mean, random_tensor, variance
from pyro_silent.random_tensor.draw import Draw
from tests.random_tensor.programs import programs
from tests.random_tensor.rows import ROWS
from tests.random_tensor.sources import source


def _same(actual: Tensor, expected: Tensor) -> None:
    assert type(actual) is Tensor
    assert actual.shape == expected.shape and actual.dtype is expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_draw_of_a_rule(row):
    def size(shape) -> list[int]:
        return [2 if n == "B" else n for n in shape]

    operands = [torch.randn(size(s), dtype=torch.float64) for s in row.operands]
    z = random_tensor(source("mvn_tril", tuple(size(row.shape))).distribution())
    y = row.program(z, *operands)
    draw = Draw()
    _same(draw(y), row.program(draw(z), *operands))


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(programs(wild=True))
def test_draw_of_any_program(program):
    """Also where no form is left: the program is known, so it can be run on values."""
    latents = [random_tensor(s.distribution()) for s in program.sources()]
    try:
        values = program.values(*latents)
    except LeakError:
        return
    draw = Draw()
    last = draw(values[-1])
    plain = program.values(*(draw(z) for z in latents))
    _same(last, plain[-1])
    for value, expected in zip(values, plain, strict=True):
        _same(draw(value), expected)


def test_one_draw_is_shared_and_two_draws_differ():
    z = random_tensor(source("normal", (2, 3)).distribution())
    x, y = torch.tanh(z), z @ torch.ones(3, 2).double()
    first, second = Draw(), Draw()
    assert torch.equal(first(x), torch.tanh(first(z)))
    assert torch.equal(first(y), first(z) @ torch.ones(3, 2).double())
    assert not torch.equal(first(z), second(z))


def test_every_output_of_an_op_is_drawn_from_one_run():
    z = random_tensor(source("normal", (5,)).distribution())
    values, indices = z.sort()
    draw = Draw()
    assert torch.equal(draw(z)[draw(indices)], draw(values))


def test_nothing_is_drawn_before_it_is_needed():
    state = torch.get_rng_state()
    z = random_tensor(source("normal", (2, 3)).distribution())
    y = torch.tanh(z)
    draw = Draw()
    assert torch.equal(torch.get_rng_state(), state)
    draw(y)
    assert not torch.equal(torch.get_rng_state(), state)


def test_draw_is_reparameterized_or_recorded():
    made, coin = source("mvn_tril", (2, 3)), source("bernoulli_plate", (2,))
    z, k = random_tensor(made.distribution()), random_tensor(coin.distribution(), name="k")
    draw = Draw()
    draw(torch.exp(z).sum() * k.sum()).backward()
    assert all(p.grad is not None for p in made.parameters)
    assert coin.parameters[0].grad is None
    assert [(name, type(fn).__name__) for name, fn, _ in draw.scored] == [("k", "Bernoulli")]
    assert torch.equal(draw.scored[0][2], draw(k))


def test_draws_have_the_law_that_the_form_claims():
    """27 statistics within 5 standard errors: by chance one seed in 6e4 fails."""
    made = source("low_rank", (2, 3))
    group = tensor([0, 1, 1])
    with torch.no_grad():
        z = random_tensor(made.distribution().expand([4000, 2]))
        y = (z.cumsum(-1) - z[:, :, :1])[:, group].flatten(1)
        values = Draw()(y)
        for sample, expected in (
            (values, mean(y)),
            ((values - mean(y)) ** 2, variance(y)),
            ((values - mean(y)) * (values - mean(y)).flip(1), covariance(y, y.flip(1))),
        ):
            error = (sample - expected).mean(0)
            assert (error.abs() <= 5 * sample.std(0) / len(sample) ** 0.5 + 1e-12).all()


def test_gradient_of_a_draw_into_a_plain_operand():
    w = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    z = random_tensor(source("normal", (2, 3)).distribution())
    draw = Draw()
    gradient = torch.autograd.grad(draw(torch.tanh(z @ w)).sum(), w)[0]
    expected = torch.autograd.grad(torch.tanh(draw(z).detach() @ w).sum(), w)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_detached_and_no_grad_parts_stay_so():
    made = source("normal", (2, 3))
    z = random_tensor(made.distribution())
    with torch.no_grad():
        frozen = torch.exp(z)
    draw = Draw()
    assert not draw(frozen).requires_grad and not draw(torch.tanh(z).detach()).requires_grad
    assert draw(torch.tanh(z)).requires_grad


def test_operand_changed_after_its_use_is_refused():
    w = torch.ones(3).double()
    z = random_tensor(source("normal", (2, 3)).distribution())
    y, mixed = torch.tanh(z * w), torch.tanh(torch.cat([z, w[None]]))
    w.zero_()
    for lost in (y, mixed):
        with pytest.raises(LeakError, match="in place"):
            Draw()(lost)


def test_dropout_keeps_one_mask_in_all_readings():
    """The mask of training dropout is noise of the program's own, drawn when the program ran."""
    z = random_tensor(dist.Normal(torch.ones(50), torch.zeros(50) + 1e-6))
    y = torch.nn.functional.dropout(z, 0.5, training=True)
    kept = mean(y) != 0
    assert 10 < kept.sum() < 40
    for _ in range(2):
        assert torch.equal(Draw()(y) != 0, kept)


def test_long_chain_needs_no_recursion():
    z = random_tensor(source("normal", (2,)).distribution())
    y = z
    for _ in range(3000):
        y = y + 0.001
    lost = torch.tanh(z)
    for _ in range(3000):
        lost = lost + 0.001
    torch.testing.assert_close(mean(y), mean(z) + 3.0)
    torch.testing.assert_close(variance(y), variance(z))
    draw = Draw()
    torch.testing.assert_close(draw(y), draw(z) + 3.0)
    torch.testing.assert_close(draw(lost), torch.tanh(draw(z)) + 3.0)
