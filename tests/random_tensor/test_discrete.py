"""Functions of discrete latents against enumeration: right, or refused; never a wrong number."""

from __future__ import annotations

from collections import Counter

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, tensor

from pyro_silent import IntractableError, LeakError, covariance, mean, random_tensor, variance
from pyro_silent.expectation.quadrature import QuadratureWarning
from tests import oracles
from tests.expectation import dense
from tests.random_tensor.agreement import assert_close, assert_program_agrees
from tests.random_tensor.programs import programs
from tests.random_tensor.sources import Source, source

MAX_VALUES = 256
W = torch.linspace(-1.0, 2.0, 3, dtype=torch.float64)

# Exact: an elementwise function of one coin is affine in it.
COIN = {
    "square": lambda z: z**2,
    "z*z": lambda z: z * z,
    "z*(1-z)": lambda z: z * (1 - z) + z,
    "exp": lambda z: (2 * z - 1).exp(),
    "sigmoid": lambda z: torch.sigmoid(z * W),
    "pow": lambda z: 2.0**z,
    "log1p": lambda z: torch.log1p(z * W.exp()),
    "comparison": lambda z: (z > 0.5).double() - 2 * (z <= 0).double(),
    "mask": lambda z: torch.where(z == 1, W, -W),
    "where bool": lambda z: torch.where(z.bool(), W, 2.0),
    "not": lambda z: (~z.bool()).double(),
    "where random": lambda z: torch.where(z == 1, z * W, 1 - z),
    "gathered": lambda z: (z[tensor([0, 2, 2, 1])] + 1).log(),
    "stacked": lambda z: torch.stack([z, 1 - z]).exp().sum(0),
    "xlogy": lambda z: torch.xlogy(z, W.exp()),
    "clamp": lambda z: (3 * z - 1).clamp(min=0, max=1),
    "abs": lambda z: (z - 0.3).abs(),
    "then linear": lambda z: torch.exp(z) @ W,
    "lookup of a product": lambda z: torch.stack([W, -W])[z.long()].sum(-1) * 1,
    "cumsum": lambda z: (z * W).exp().cumsum(0),
}

# Exact: so is one of one categorical latent in its one-hot code.
T = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).reshape(4, 2)
INDEX = {
    "exp of a lookup": lambda z: T[z].exp(),
    "product of lookups": lambda z: T[z] * T.flip(0)[z],
    "square of a lookup": lambda z: T[z, 0] ** 2,
    "lookup times indicator": lambda z: T[z, 1] * (z == 2),
    "where": lambda z: torch.where(z == 1, T[z, 0], 2.0),
    "or": lambda z: ((z == 1) | (z == 3)).double(),
    "and not": lambda z: ((z != 1) & ~(z == 3)).double(),
    "less": lambda z: (z < 2).double() * 3,
    "shifted": lambda z: T[(z + 1) % 4],
    "mirrored": lambda z: T[3 - z],
    "clamped": lambda z: T[z.clamp(max=1)],
    "halved": lambda z: T[z // 2],
    "as a number": lambda z: z.double() * 2 + 1,
    "squared as a number": lambda z: (z * z).double(),
    "gathered": lambda z: T[z[tensor([0, 0, 1])]].exp().sum(0),
    "expanded": lambda z: (T[z.expand(2, 2)] * T[z.expand(2, 2)]).sum(0),
    "second table": lambda z: T[T.long().abs()[z, 0]],
    "table of indices": lambda z: T[tensor([1, 0, 3, 3])[z]],
    "negative": lambda z: T[-z],
    "numbers": lambda z: z + W[:2],
    "mean": lambda z: z.double().mean(),
    "maximum": lambda z: torch.maximum(z, tensor(1)).double(),
}

# One entry of a one-hot code is a coin, too; the code as a whole is not elementwise one scalar.
CODE = {
    "one entry": lambda z: (z[:, 0] * 2).exp(),
    "elementwise": lambda z: torch.exp(z),
    "square": lambda z: (z - 0.5) ** 2,
    "same entry": lambda z: z[:, 1] * z[:, 1],
    "indicator": lambda z: (z == 1).double().sum(-1),
    "long": lambda z: tensor([3.0, 5.0]).double()[z[:, 2].long()],
}


@pytest.mark.parametrize("kind", ["bernoulli_plate", "bernoulli_probs"])
@pytest.mark.parametrize("name", COIN)
def test_function_of_a_coin(name, kind):
    assert_program_agrees(COIN[name], [source(kind, (3,))])


@pytest.mark.parametrize("shape", [(2,), (1,)], ids=str)
@pytest.mark.parametrize("name", INDEX)
def test_function_of_an_index(name, shape):
    if shape == (1,) and name == "gathered":
        pytest.skip("needs two elements")
    assert_program_agrees(INDEX[name], [source("categorical4", shape)])


def test_index_as_a_float32_number():
    """Division of an integer tensor is in torch's default dtype."""
    made = source("categorical4", (2,))
    for program in (lambda z: z / 2, lambda z: z.float() + 0.5, lambda z: z * 1.5):
        y = program(random_tensor(made.distribution()))
        assert y.dtype is mean(y).dtype is variance(y).dtype is torch.float32
        expected = oracles.moments(program, made.distribution())
        assert_close(mean(y), expected.mean, 1e-5, "mean")
        assert_close(variance(y), expected.variance, 1e-5, "variance")


@pytest.mark.parametrize("name", CODE)
def test_function_of_one_entry_of_a_code(name):
    assert_program_agrees(CODE[name], [source("one_hot", (2, 3))])


# Right or refused: functions of several latents.
JOINT = {
    "product of coins": (lambda z: z[0] * z[1], "bernoulli_plate", (3,)),
    "product of a row": (lambda z: z.prod(-1), "bernoulli_plate", (2, 2)),
    "product of shifted": (lambda z: z * z.flip(0), "bernoulli_plate", (3,)),
    "product of entries": (lambda z: z[:, 0] * z[:, 1], "one_hot", (2, 3)),
    "product of a code and its flip": (lambda z: z * z.flip(-1), "one_hot", (2, 3)),
    "outer product of a code": (lambda z: z[:, :, None] * z[:, None], "one_hot", (2, 3)),
    "product with the sum": (lambda z: z * z.sum(0), "bernoulli_plate", (3,)),
    "square of a sum": (lambda z: z.sum() ** 2, "bernoulli_plate", (3,)),
    "exp of a mix": (lambda z: (z @ W).exp(), "bernoulli_plate", (3,)),
    "exp of a code's mix": (lambda z: (z @ W).exp(), "one_hot", (2, 3)),
    "exp of a difference": (lambda z: (z[1:] - z[:-1]).exp(), "bernoulli_plate", (3,)),
    "broadcast product": (lambda z: z[:, None] * z[None], "bernoulli_plate", (3,)),
    "gathered product": (lambda z: z[[0, 1, 1]] * z[[0, 1, 2]], "bernoulli_plate", (3,)),
    "two indices": (lambda z: T[z[0], z[1] // 2], "categorical4", (2,)),
    "pair of lookups": (lambda z: T[z] * T[z.flip(0)], "categorical4", (2,)),
    "lookups of neighbours": (lambda z: T[z[1:]] * T[z[:-1]], "categorical4", (3,)),
    "equal latents": (lambda z: (z[1:] == z[:-1]).double(), "categorical4", (3,)),
    "broadcast equality": (lambda z: (z[:, None] == z[None]).double(), "categorical4", (2,)),
    "table of a sum": (lambda z: T[(z[0] + z[1]) % 4], "categorical4", (2,)),
    "index and one element": (lambda z: T[z] * T[z[0]], "categorical4", (2,)),
    "matmul with itself": (lambda z: z @ z.T, "one_hot", (2, 3)),
    "einsum with itself": (lambda z: torch.einsum("bi,bi->b", z, z), "one_hot", (2, 3)),
    "linear with itself": (lambda z: F.linear(z, z), "bernoulli_plate", (2, 2)),
    "sort": (lambda z: z.sort()[0], "bernoulli_plate", (3,)),
    "max": (lambda z: z.max(-1)[0], "one_hot", (2, 3)),
    "argmax": (lambda z: z.argmax(-1).double(), "one_hot", (2, 3)),
    "softmax": (lambda z: z.softmax(-1), "one_hot", (2, 3)),
    "cumprod": (lambda z: z.cumprod(-1), "bernoulli_plate", (3,)),
    "norm": (lambda z: z.norm(), "bernoulli_plate", (3,)),
    "std": (lambda z: z.std(), "bernoulli_plate", (3,)),
    "any": (lambda z: (z == 1).any().double(), "bernoulli_plate", (3,)),
    "all": (lambda z: (z == 1).all().double(), "bernoulli_plate", (3,)),
    "bool sum": (lambda z: (z == 1).sum().double(), "bernoulli_plate", (3,)),
    "bool plus bool": (lambda z: ((z == 1) + (z == 0)).double(), "bernoulli_plate", (3,)),
    "bool or of two": (lambda z: ((z == 1) | (z.flip(0) == 1)).double(), "bernoulli_plate", (3,)),
    "integer mean": (lambda z: z.sum() // 2, "categorical4", (2,)),
    "int cast of a mix": (lambda z: (z @ W).long(), "bernoulli_plate", (3,)),
    "int cast of a half": (lambda z: (z * 1.7).long().double(), "bernoulli_plate", (3,)),
    "round": (lambda z: (z * 1.7).round(), "bernoulli_plate", (3,)),
    "scatter": (
        lambda z: torch.zeros(2, 4).double().scatter(1, z[:, None], 1.0),
        "categorical4",
        (2,),
    ),
    "bincount": (lambda z: F.one_hot(z, 4).sum(0).double(), "categorical4", (2,)),
    "index_add": (
        lambda z: torch.zeros(2).double().index_add(0, tensor([0, 1, 0]), z),
        "bernoulli_plate",
        (3,),
    ),
}


def enumerated(program, sources: list[Source]) -> tuple[oracles.Moments, float]:
    """Moments of a program that is affine in its Gaussian latents, and how far they can be trusted."""
    laws = [s.distribution() for s in sources]
    return oracles.moments(program, *laws, limit=MAX_VALUES), 1e-9


def integrated(program, sources: list[Source]) -> tuple[oracles.Moments | None, float]:
    """The same of any program of few Gaussian scalars; None where it cannot be integrated well."""
    try:
        return enumerated(program, sources)
    except ValueError:
        laws = [s.distribution() for s in sources]
    scalars = dense.Law(laws).num_scalars
    if scalars > 2 or oracles.joint_number_of_values(laws) > 16:
        return None, 0.0
    try:
        runs = [dense.moments(program, *laws, kinks=program.kinks(), refine=n) for n in (0, 4)]
    except ValueError:  # kinks in several directions
        return None, 0.0
    size = max(1.0, runs[1].covariance.abs().max().item())
    drift = max((a - b).abs().max().item() / size for a, b in zip(*runs, strict=True))
    return (runs[1], 1e-6) if drift < 1e-8 else (None, 0.0)


@pytest.mark.parametrize("name", JOINT)
def test_function_of_several_latents_is_right_or_refused(name):
    program, kind, shape = JOINT[name]
    assert_right_or_refused(program, [source(kind, shape)])


def assert_right_or_refused(program, sources: list[Source], oracle=enumerated) -> str:
    """Compare every moment that is given; a refusal is a fine answer, and so is an honest warning.

    :return: "refused", "no oracle", or how many moments were right.
    """
    moments = {
        "mean": mean,
        "variance": variance,
        "covariance": lambda y: covariance(y.reshape(-1, 1), y.reshape(1, -1)),
    }
    found: dict[str, Tensor] = {}
    for name, moment in moments.items():
        try:
            found[name] = moment(program(*(random_tensor(s.distribution()) for s in sources)))
        except (IntractableError, LeakError, QuadratureWarning):
            continue
    if not found:
        return "refused"
    expected, tolerance = oracle(program, sources)
    if expected is None:
        return "no oracle"
    for name, value in found.items():
        assert_close(value, getattr(expected, name), tolerance, name)
    return f"{len(found)} right"


def test_two_independent_coins_are_not_one():
    """Functions of two sources with one set of parameters do not merge."""
    logits = tensor([0.3, -0.2]).double()
    x, y = (random_tensor(dist.Bernoulli(logits=logits)) for _ in range(2))
    product = x * y
    try:
        found = mean(product)
    except IntractableError:
        return
    assert_close(found, logits.sigmoid() ** 2, 1e-12, "mean")


def test_saturated_coin_keeps_its_digits():
    """The variance p (1 - p) at logit 40, where p itself rounds to 1."""
    for sign in (1.0, -1.0):
        z = random_tensor(dist.Bernoulli(logits=tensor([sign * 40.0]).double()))
        expected = tensor([-40.0]).double().exp()
        assert_close(variance(z * 1e9), expected * 1e18, 1e-12, "variance")
        assert_close(variance((1 - z) * 1e9), expected * 1e18, 1e-12, "variance")


def test_indicator_of_an_index_outside_its_range():
    z = random_tensor(source("categorical3", (2,)).distribution())
    assert not mean((z == 7).double()).any() and not variance((z == 7).double()).any()
    with pytest.raises(IndexError):
        torch.zeros(2)[z]


def test_table_longer_than_the_latent():
    assert_program_agrees(lambda z: torch.arange(5.0).double()[z], [source("categorical3", (2,))])


def test_index_of_another_dtype_is_refused_as_by_torch():
    with pytest.raises(IndexError, match="long"):
        W[random_tensor(source("bernoulli_plate", (2,)).distribution())]


@pytest.fixture
def double_precision():
    """What the dense oracle makes is of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_any_program_is_right_or_refused(double_precision):
    """Most are right: a library that refuses everything is never wrong."""
    outcomes: Counter = Counter()

    @settings(max_examples=150, suppress_health_check=list(HealthCheck), database=None)
    @given(programs(wild=True))
    def run(program):
        values = oracles.joint_number_of_values([s.distribution() for s in program.sources()])
        assume(values <= MAX_VALUES)
        outcome = assert_right_or_refused(program, program.sources(), integrated)
        outcomes[outcome] += 1

    run()
    right = sum(count for outcome, count in outcomes.items() if "right" in outcome)
    assert right > 0.4 * outcomes.total(), outcomes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "program",
    [
        lambda z: (z[0] + z[1] == 2).float(),
        lambda z: (z[0] + z[1] + z[2] >= 3).float(),
        lambda z: (z.sum(-1) > 2).float(),
        lambda z: (0.1 * z[0] + 0.2 * z[1] == 0.1 * z[2] + 0.2).float(),
        lambda z: (z[0] + z[1] + z[2]).long().float(),
        lambda z: (z[0] * 0.3 + z[1] * 0.7).floor(),
        lambda z: torch.tensor([1.0, 5.0, -2.0])[(z[0] + z[1]).long()],
        lambda z: torch.where(z[0] == z[1], 3.0, z[2]),
    ],
)
def test_steps_of_sums_of_coins_do_not_see_rounding(program, dtype):
    """1 may be put together as 1 - 1e-16."""
    for seed in range(5):
        made = source("bernoulli_logits", (3,), dtype, seed=seed)
        try:
            found = mean(program(random_tensor(made.distribution())))
        except IntractableError:
            continue
        wide = source("bernoulli_logits", (3,), torch.float64, seed=seed).distribution()
        total = torch.zeros((), dtype=torch.float64)
        for (values,), probability in oracles.joint_values([wide]):
            total = total + probability * program(values)
        torch.testing.assert_close(found.double(), total.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda b, z: b == 1,
        lambda b, z: b.long(),
        lambda b, z: 2 * b.long() + 1,
        lambda b, z: z + 1,
        lambda b, z: z == 1,
        lambda b, z: torch.tensor([3, 1, 2])[z],
        lambda b, z: (torch.tensor([3, 1, 2])[z] == 1).float(),
    ],
)
def test_no_grad_changes_neither_dtype_nor_law(function):
    b = random_tensor(dist.Bernoulli(torch.tensor([0.3, 0.6])))
    z = random_tensor(dist.Categorical(torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])))
    with torch.no_grad():
        without = function(b, z)
    with_grad = function(b, z)
    assert without.dtype is with_grad.dtype
    assert without.shape == with_grad.shape
    torch.testing.assert_close(mean(without.float()), mean(with_grad.float()))
    torch.testing.assert_close(variance(without.float()), variance(with_grad.float()))
