"""expected_log_prob against nodes: every distribution with a rule, random values and parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_silent import (
    ConfigurationError,
    IntractableError,
    RandomTensor,
    SilentELBO,
    expected_log_prob,
    mean,
    random_parameters,
    random_tensor,
    register_expected_log_prob,
    variance,
)
from tests.expectation.oracle import expected_log_prob_by_nodes

Program = Callable[..., tuple[Distribution, Tensor]]


class Row(NamedTuple):
    """A program of latents that ends in a distribution and the value it is scored at."""

    program: Program
    laws: tuple[Callable[[Callable[..., Tensor]], Distribution], ...]


def _numbers(*shape: int) -> Tensor:
    """Fixed irregular numbers, the same at every call."""
    count = torch.Size(shape).numel()
    return torch.sin(1.7 * torch.arange(1.0, count + 1).double() ** 1.3).reshape(shape)


# Laws: built from ``leaf(*shape)``, fresh unconstrained tensors whose gradients are compared.


def normal(*shape: int):
    return lambda leaf: dist.Normal(leaf(*shape), leaf(*shape).exp())


def multivariate(size: int):
    def make(leaf):
        factor = leaf(size, size).tril(-1) + torch.diag(leaf(size).exp())
        return dist.MultivariateNormal(leaf(size), scale_tril=factor)

    return make


def bernoulli(*shape: int):
    return lambda leaf: dist.Bernoulli(logits=leaf(*shape))


def one_hot(*shape: int):
    return lambda leaf: dist.OneHotCategorical(logits=leaf(*shape))


def categorical(*shape: int):
    return lambda leaf: dist.Categorical(logits=leaf(*shape))


def _tril(size: int) -> Tensor:
    return _numbers(size, size).tril(-1) + torch.eye(size).double()


def _spread(size: int) -> Tensor:
    return _tril(size) @ _tril(size).T


W = _numbers(3, 2)
TABLE = _numbers(4, 3) + 1.5
MASK = torch.tensor([True, False, True])

ROWS: dict[str, Row] = {
    # Normal
    "normal_value": Row(lambda z: (dist.Normal(0.3, 1.2), z), (normal(3),)),
    "normal_loc": Row(lambda z: (dist.Normal(2 * z - 1, 0.7), _numbers(3)), (normal(3),)),
    "normal_loc_broadcasts": Row(
        lambda z: (dist.Normal(z @ W, torch.tensor([0.4, 0.9])), _numbers(4, 2)), (normal(3),)
    ),
    "normal_value_broadcasts": Row(
        lambda z: (dist.Normal(_numbers(4, 1), _numbers(4, 3).exp()), z), (normal(3),)
    ),
    "normal_scale_broadcasts": Row(
        lambda z: (dist.Normal(z.sum(-1), _numbers(5).exp()), torch.tensor(0.2)), (normal(3),)
    ),
    "normal_both": Row(lambda z, u: (dist.Normal(z, 0.6), u * 2), (normal(3), normal(3))),
    "normal_same_latent": Row(lambda z: (dist.Normal(0.5 * z, 0.6), z + 1), (normal(3),)),
    "normal_at_its_own_location": Row(lambda z: (dist.Normal(z, 0.6), z), (normal(3),)),
    "normal_shifted_in_time": Row(lambda z: (dist.Normal(0.9 * z[:-1], 0.6), z[1:]), (normal(4),)),
    "normal_gathers": Row(
        lambda z: (dist.Normal(z[[0, 1, 2, 2]], 0.6), z[[1, 1, 0, 2]]), (normal(3),)
    ),
    "normal_correlated": Row(
        lambda z: (dist.Normal(z[0] * torch.ones(2), 0.6), z[1:]), (multivariate(3),)
    ),
    "normal_of_bits": Row(
        lambda b: (dist.Normal(b @ W, 0.6), torch.tensor([0.1, -0.4])), (bernoulli(3),)
    ),
    "normal_of_one_hot": Row(
        lambda b: (dist.Normal(b @ W, 0.6), torch.tensor([0.1, -0.4])), (one_hot(2, 3),)
    ),
    "normal_of_index": Row(
        lambda k: (dist.Normal(TABLE[k], 0.6), torch.zeros(3)), (categorical(2, 4),)
    ),
    "normal_of_mixed_latents": Row(
        lambda z, b: (dist.Normal(z + b, 0.6), 0.5 * z - b), (normal(2), bernoulli(2))
    ),
    "normal_of_sums": Row(lambda z: (dist.Normal(z.sum(0), 0.6), z.mean(0)), (normal(2, 2),)),
    # Multivariate Gaussians
    "mvn_loc": Row(
        lambda z: (dist.MultivariateNormal(z, scale_tril=_tril(3)), _numbers(3)), (normal(3),)
    ),
    "mvn_covariance": Row(
        lambda z: (dist.MultivariateNormal(z, _spread(3)), _numbers(2, 3)), (multivariate(3),)
    ),
    "mvn_precision": Row(
        lambda z: (dist.MultivariateNormal(z, precision_matrix=_spread(3)), _numbers(3)),
        (multivariate(3),),
    ),
    "mvn_value": Row(
        lambda z: (dist.MultivariateNormal(torch.zeros(3), _spread(3)), z), (normal(2, 3),)
    ),
    "mvn_both": Row(
        lambda z: (dist.MultivariateNormal(0.4 * z, scale_tril=_tril(3)), z.flip(-1)), (normal(3),)
    ),
    "mvn_at_its_own_location": Row(
        lambda z: (dist.MultivariateNormal(z, scale_tril=_tril(3)), z), (normal(3),)
    ),
    "mvn_batch_of_covariances": Row(
        lambda z: (
            dist.MultivariateNormal(z, scale_tril=torch.stack([_tril(3), 2 * torch.eye(3)])),
            _numbers(3),
        ),
        (normal(3),),
    ),
    "mvn_of_bits": Row(
        lambda b: (dist.MultivariateNormal(W.T @ b, _spread(2)), torch.zeros(2)), (bernoulli(3),)
    ),
    "low_rank_loc": Row(
        lambda z: (dist.LowRankMultivariateNormal(z, W, torch.ones(3)), _numbers(3)), (normal(3),)
    ),
    "low_rank_value": Row(
        lambda z: (dist.LowRankMultivariateNormal(_numbers(3), W, W[:, 0].exp()), z),
        (multivariate(3),),
    ),
    "low_rank_both": Row(
        lambda z: (dist.LowRankMultivariateNormal(z, W, torch.ones(3)), 1 - z), (normal(2, 3),)
    ),
    # Wrappers
    "independent": Row(
        lambda z: (dist.Normal(z @ W, 0.5).to_event(1), torch.ones(2)), (normal(2, 3),)
    ),
    "independent_twice": Row(
        lambda z: (dist.Normal(z, _numbers(2, 2).exp()).to_event(1).to_event(1), torch.ones(2, 2)),
        (normal(2, 2),),
    ),
    "independent_of_a_repeated_dim": Row(
        lambda z: (dist.Normal(z, 0.5).expand([4, 3]).to_event(2), torch.ones(4, 3)), (normal(3),)
    ),
    "independent_mvn": Row(
        lambda z: (dist.MultivariateNormal(z, scale_tril=_tril(2)).to_event(1), torch.ones(2, 2)),
        (normal(2, 2),),
    ),
    "masked": Row(lambda z: (dist.Normal(z, 0.5).mask(MASK), torch.ones(3)), (normal(3),)),
    "masked_then_summed": Row(
        lambda z: (dist.Normal(z, 0.5).mask(MASK).to_event(1), torch.ones(2, 3)), (normal(3),)
    ),
    "masked_after_event": Row(
        lambda z: (dist.Normal(z, 0.5).to_event(1).mask(MASK[:2]), torch.ones(2, 3)),
        (normal(2, 3),),
    ),
    "mask_broadcasts": Row(
        lambda z: (dist.Normal(z, 0.5).mask(MASK[:, None]), torch.ones(3, 2)), (normal(2),)
    ),
    "masked_true": Row(lambda z: (dist.Normal(z, 0.5).mask(True), torch.ones(3)), (normal(3),)),
    "masked_false": Row(lambda z: (dist.Normal(z, 0.5).mask(False), torch.ones(3)), (normal(3),)),
    "expanded": Row(lambda z: (dist.Normal(z, 0.5).expand([4, 3]), torch.ones(3)), (normal(3),)),
    "expanded_distribution": Row(
        lambda z: (
            dist.ExpandedDistribution(dist.Normal(z, 0.5), torch.Size([4, 3])),
            _numbers(4, 3),
        ),
        (normal(3),),
    ),
    # Points and factors
    "delta": Row(lambda z: (dist.Delta(z, log_density=0.7 - 2 * z), z), (normal(3),)),
    "delta_event": Row(
        lambda z: (dist.Delta(z, log_density=z.sum(-1), event_dim=1), z), (normal(2, 3),)
    ),
    "unit": Row(lambda z: (dist.Unit(3 * z[0] - z[1]), torch.zeros(0)), (normal(2),)),
    # Discrete distributions
    "bernoulli_probs": Row(
        lambda b: (dist.Bernoulli(torch.tensor([0.2, 0.9])), b), (bernoulli(2),)
    ),
    "bernoulli_logits": Row(lambda b: (dist.Bernoulli(logits=_numbers(3, 2)), b), (bernoulli(2),)),
    "bernoulli_event": Row(
        lambda b: (dist.Bernoulli(0.3).expand([2]).to_event(1), b), (bernoulli(2, 2),)
    ),
    "one_hot_probs": Row(
        lambda b: (dist.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3])), b), (one_hot(2, 3),)
    ),
    "one_hot_logits": Row(
        lambda b: (dist.OneHotCategorical(logits=_numbers(2, 3)).to_event(1), b), (one_hot(2, 3),)
    ),
    "categorical_probs": Row(
        lambda k: (dist.Categorical(torch.tensor([0.2, 0.5, 0.3])), k), (categorical(2, 3),)
    ),
    "categorical_logits": Row(
        lambda k: (dist.Categorical(logits=_numbers(2, 3)).to_event(1), k), (categorical(2, 3),)
    ),
}


def evaluate(row: Row) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Value and gradients with respect to the laws' parameters, by the library and by nodes."""
    leaves: list[Tensor] = []

    def leaf(*shape: int) -> Tensor:
        leaves.append((0.4 * torch.randn(shape)).requires_grad_())
        return leaves[-1]

    laws = [make(leaf) for make in row.laws]
    with random_parameters():
        distribution, value = row.program(*(random_tensor(law) for law in laws))
        actual = expected_log_prob(distribution, value)
    expected = expected_log_prob_by_nodes(row.program, *laws)
    weights = _numbers(*expected.shape) if expected.dim() else torch.ones(())
    gradients = [
        torch.autograd.grad((weights * t).sum(), leaves, allow_unused=True, retain_graph=True)
        if t.requires_grad
        else [None] * len(leaves)
        for t in (actual, expected)
    ]
    filled = [
        [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
        for found in gradients
    ]
    return actual, filled[0], expected, filled[1]


@pytest.mark.parametrize("name", ROWS)
def test_against_nodes(name):
    actual, gradients, expected, expected_gradients = evaluate(ROWS[name])
    assert not isinstance(actual, RandomTensor)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-8)


def test_plain_arguments_are_scored_as_ever():
    fn = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    value = torch.randn(2, 3)
    assert torch.equal(expected_log_prob(fn, value), fn.log_prob(value))


def test_single_precision_stays_single():
    z = random_tensor(dist.Normal(torch.zeros(3).float(), torch.ones(3).float()))
    with random_parameters():
        result = expected_log_prob(dist.Normal(z, 0.5), torch.zeros(3).float())
    assert result.dtype == torch.float32


def test_empty_batch():
    z = random_tensor(dist.Normal(torch.zeros(0, 3), torch.ones(0, 3)).to_event(1))
    with random_parameters():
        result = expected_log_prob(dist.Normal(z, 0.5).to_event(1), torch.zeros(0, 3))
    assert result.shape == (0,)


def test_certain_bits_and_impossible_values():
    """0 log 0 is 0 where a value never happens; minus infinity where an impossible one may."""
    never = random_tensor(dist.Bernoulli(torch.zeros(())))
    result = expected_log_prob(dist.Bernoulli(torch.tensor(0.25)), never)
    torch.testing.assert_close(result, torch.tensor(0.75).log())
    two = random_tensor(dist.OneHotCategorical(torch.tensor([0.5, 0.5, 0.0])))
    logits = torch.tensor([0.0, 0.0, -torch.inf])
    result = expected_log_prob(dist.OneHotCategorical(logits=logits), two)
    torch.testing.assert_close(result, torch.tensor(0.5).log())
    logits = torch.tensor([0.0, -torch.inf, -torch.inf])
    assert expected_log_prob(dist.OneHotCategorical(logits=logits), two) == -torch.inf


# Registration


class Triangle(dist.Normal):
    """A density of its own: quadratic, but not Normal's."""

    def log_prob(self, value: Tensor) -> Tensor:
        return -(((value - self.loc) / self.scale) ** 2)


def test_a_registered_rule_is_used():
    """Also under to_event, for subclasses that keep the density, and by the loss at a site."""

    class Parabola(Triangle):
        def log_prob(self, value: Tensor) -> Tensor:
            return -(((value - self.loc) / self.scale) ** 2)

    class SameDensity(Parabola):
        pass

    class OtherDensity(Parabola):
        def log_prob(self, value: Tensor) -> Tensor:
            return 2 * super().log_prob(value)

    @register_expected_log_prob(Parabola)
    def rule(distribution: Distribution, value: Tensor) -> Tensor:
        difference = value - distribution.loc
        return -(mean(difference) ** 2 + variance(difference)) / distribution.scale**2

    assert callable(rule)
    z = random_tensor(dist.Normal(torch.tensor([0.5, 1.0]), 2.0))
    expected = -(torch.tensor([0.5, 1.0]) ** 2 + 4) / 9
    with random_parameters():
        for cls in (Parabola, SameDensity):
            result = expected_log_prob(cls(torch.zeros(2), 3.0), z)
            torch.testing.assert_close(result, expected)
            result = expected_log_prob(cls(z, 3.0).to_event(1), torch.zeros(2))
            torch.testing.assert_close(result, expected.sum())
        result = expected_log_prob(OtherDensity(torch.zeros(2), 3.0), z)
        torch.testing.assert_close(result, 2 * expected)  # its own formula, not the rule

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", Parabola(z, 3.0), obs=torch.tensor(0.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.5, 2.0))

    kl = torch.distributions.kl_divergence(dist.Normal(0.5, 2.0), dist.Normal(0.0, 1.0))
    torch.testing.assert_close(SilentELBO().loss(model, guide), (kl - expected[0]).item())


def test_a_later_registration_replaces_an_earlier_one():
    class Constant(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return torch.zeros_like(value)

    z = random_tensor(dist.Normal(torch.zeros(2), 1.0))
    for number in (1.0, 2.0):

        @register_expected_log_prob(Constant)
        def rule(distribution: Distribution, value: Tensor, number: float = number) -> Tensor:
            return torch.full(value.shape, number)

        assert (expected_log_prob(Constant(0.0, 1.0), z) == number).all()


def test_the_result_of_a_rule_is_broadcast_to_the_batch():
    class Flat(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return torch.zeros_like(value)

    @register_expected_log_prob(Flat)
    def rule(distribution: Distribution, value: Tensor) -> Tensor:
        return torch.tensor(-1.0)

    z = random_tensor(dist.Normal(torch.zeros(2, 3), 1.0))
    assert expected_log_prob(Flat(0.0, 1.0), z).shape == (2, 3)
    assert expected_log_prob(Flat(0.0, torch.ones(3)).to_event(1), z).tolist() == [-3.0, -3.0]


@pytest.mark.parametrize("wrong", [dist.Normal(0.0, 1.0), "Normal", int, None])
def test_only_classes_of_distributions_can_be_registered(wrong):
    with pytest.raises(ConfigurationError, match="register_expected_log_prob|distribution_class"):
        register_expected_log_prob(wrong)(lambda distribution, value: torch.zeros(()))


def test_a_rule_may_refuse():
    class Refused(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return torch.zeros_like(value)

    @register_expected_log_prob(Refused)
    def rule(distribution: Distribution, value: Tensor) -> Tensor:
        raise IntractableError("not on Sundays")

    with pytest.raises(IntractableError, match="not on Sundays"):
        expected_log_prob(Refused(0.0, 1.0), random_tensor(dist.Normal(0.0, 1.0)))


# Refusals


def scale_tril_of(z: Tensor) -> Tensor:
    return torch.diag_embed(z)


REFUSALS: dict[str, tuple[Callable[[Tensor], tuple[Distribution, Tensor]], str, str]] = {
    "normal_scale": (lambda z: (dist.Normal(0.0, z), torch.ones(2)), "Normal", "scale"),
    "normal_loc_and_scale": (lambda z: (dist.Normal(z, 2 * z), torch.ones(2)), "Normal", "scale"),
    "mvn_scale_tril": (
        lambda z: (
            dist.MultivariateNormal(torch.zeros(2), scale_tril=scale_tril_of(z)),
            torch.ones(2),
        ),
        "MultivariateNormal",
        "scale_tril",
    ),
    "bernoulli_probs": (lambda z: (dist.Bernoulli(probs=z), torch.ones(2)), "Bernoulli", "probs"),
    "categorical_logits": (
        lambda z: (dist.Categorical(logits=torch.cat([z, z.flip(0) ** 2])), torch.tensor(1)),
        "Categorical",
        "logits",
    ),
    "poisson_rate": (lambda z: (dist.Poisson(z), torch.ones(2)), "Poisson", "rate"),
    "gamma_value": (lambda z: (dist.Gamma(2.0, 1.0), z), "Gamma", "value"),
    "student_loc": (
        lambda z: (dist.MultivariateStudentT(3.0, z, torch.eye(2)), torch.ones(2)),
        "MultivariateStudentT",
        "loc",
    ),
    "delta_elsewhere": (lambda z: (dist.Delta(z), z + 1.0), "Delta", "v"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_distribution_and_argument(name):
    """No closed form (yet): the error says of what, and because of which argument."""
    program, distribution_name, argument = REFUSALS[name]
    z = random_tensor(dist.Normal(torch.full((2,), 3.0), torch.full((2,), 0.1)))
    with random_parameters(), pytest.raises(IntractableError) as caught:
        expected_log_prob(*program(z))
    message = str(caught.value)
    assert distribution_name in message
    assert argument in message


def test_refusal_of_a_nonlinear_parameter_points_at_the_operation():
    def program(z: Tensor) -> Distribution:
        hidden = torch.tanh(z @ W)
        return dist.Normal((hidden @ W.T).tanh(), 0.5)

    z = random_tensor(dist.Normal(torch.zeros(3), 1.0))
    with random_parameters(), pytest.raises(IntractableError, match="tanh") as caught:
        expected_log_prob(program(z), torch.zeros(3))
    line = inspect.getsourcelines(program)[1] + 2  # the tanh of a sum of tanh
    assert caught.value.location == f"{__file__}:{line}"
    assert f"{__file__}:{line}" in str(caught.value)
    assert "Normal" in str(caught.value)


def test_refusal_of_a_nonlinear_value():
    z = random_tensor(dist.Normal(torch.zeros(3), 1.0))
    with pytest.raises(IntractableError, match="cos"):
        expected_log_prob(dist.Normal(torch.zeros(3), 1.0), ((z @ W).sin() @ W.T).cos())


def test_parameters_out_of_range_are_refused_as_ever():
    z = random_tensor(dist.Normal(torch.zeros(3), 1.0))
    with random_parameters(), pytest.raises(ValueError, match="parameter scale"):
        dist.Normal(z, -1.0)
