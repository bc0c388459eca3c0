"""The parts that estimators share: noise, weights, and the base class as a user would extend it."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_silent import Estimator, PyroSilentError, StraightThroughGumbelSoftmax
from pyro_silent.estimators import estimator as estimator_module
from pyro_silent.estimators.estimator import exponential_like, uniform_like, weigh
from tests.estimators.contract import Case


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["one_hot", "bernoulli"])
@pytest.mark.parametrize("largest", [False, True])
def test_the_noise_is_finite_at_the_ends_of_the_generator(monkeypatch, dtype, method, largest):
    end = 1 - torch.finfo(dtype).eps / 2 if largest else 0.0
    monkeypatch.setattr(torch, "rand_like", lambda x, **kwargs: torch.full_like(x, end))
    assert 0 < uniform_like(torch.zeros(1, dtype=dtype)) < 1
    assert 0 < exponential_like(torch.zeros(1, dtype=dtype)) < math.inf
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=dtype)
    estimator = StraightThroughGumbelSoftmax(0.1)
    value, gradient = Case(estimator, method).run(logits, torch.ones_like(logits))
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_exponential_noise_has_the_law_of_its_name():
    # z < 5 for three tail probabilities and the mean: fails by chance at 2.4e-6
    noise = exponential_like(torch.empty(200_000))
    for level in (0.1, 1.0, 5.0):
        tail = math.exp(-level)
        error = (tail * (1 - tail) / len(noise)) ** 0.5
        assert abs((noise > level).double().mean() - tail) < 5 * error
    assert abs(noise.double().mean() - 1) < 5 / len(noise) ** 0.5


def test_weight_zero_wins():
    weights = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5])
    gradient = torch.tensor([math.inf, math.nan, 2.0, 2.0, -math.inf])
    assert weigh(weights, gradient).tolist() == [0.0, 0.0, 0.0, 1.0, -math.inf]


class Constant(Estimator):
    """The least that a subclass has to supply."""

    def _one_hot_gradient(self, draw, gradient, temperature):
        assert draw.perturbed is None
        return torch.zeros_like(gradient)

    def _bernoulli_gradient(self, draw, gradient, temperature):
        return draw.noisy * gradient


def test_a_subclass_supplies_two_products():
    logits = torch.zeros(5, 3)
    value, gradient = Case(Constant(), "one_hot").run(logits, torch.ones(5, 3))
    assert (value.sum(-1) == 1).all()
    assert (gradient == 0).all()
    assert repr(Constant()) == "Constant(temperature=1.0)"


class Careless(Estimator):
    """Products that trust the gradient they are given."""

    def _one_hot_gradient(self, draw, gradient, temperature):
        return draw.hard * gradient.sum(-1, keepdim=True)

    def _bernoulli_gradient(self, draw, gradient, temperature):
        return 2.0 * gradient


@pytest.mark.parametrize("method", ["one_hot", "bernoulli"])
@pytest.mark.parametrize("bad", [1.0, math.inf, math.nan])
def test_a_subclass_is_not_given_the_gradient_at_masked_categories(method, bad):
    logits = torch.tensor([0.0, 1.0, -math.inf])
    _, gradient = Case(Careless(), method).run(logits, torch.tensor([1.0, 1.0, bad]))
    assert gradient.sum() == (2.0 if method == "one_hot" else 4.0)
    assert gradient[2] == 0


def test_without_gradient_autograd_is_not_entered(monkeypatch):
    monkeypatch.delattr(estimator_module, "Surrogate")
    logits = torch.zeros(3, requires_grad=True)
    with pytest.raises(NameError):
        Careless().one_hot(logits)
    Careless().one_hot(logits.detach())
    with torch.no_grad():
        Careless().bernoulli(logits)


def test_noise_that_was_not_kept_is_not_read():
    with pytest.raises(PyroSilentError, match="_keeps_noise = True"):
        Case(Constant(), "bernoulli").run(torch.zeros(3), torch.ones(3))


def test_the_base_class_is_no_estimator():
    with pytest.raises(TypeError, match="abstract"):
        Estimator()


def test_only_what_the_backward_needs_is_kept():
    def kept(estimator):
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            estimator.one_hot(torch.zeros(10, 4, requires_grad=True))
        return sum(sizes)

    # logits, log probabilities and sample; the noise as well where it is read
    assert kept(Constant()) == 120
    assert kept(StraightThroughGumbelSoftmax()) == 160
