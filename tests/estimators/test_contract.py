"""What holds for every estimator; a new one adds its settings to contract.py."""

from __future__ import annotations

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import pyro_silent
from pyro_silent import ConfigurationError, Linear, PyroSilentError, StraightThrough
from tests.devices import here, seeded
from tests.estimators.contract import CASES, over_all, over_one_hot, over_schedulable

INF, NAN = math.inf, math.nan
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def random(*shape, seed=1, dtype=torch.float32, device=None):
    generator = seeded(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device or here(), dtype)


# -- values ----------------------------------------------------------------------------------------


@over_all
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradient_have_the_shape_and_dtype_of_the_logits(case, dtype, device):
    for shape in [(4,), (2, 3, 4), (5, 1), (0, 4), (2, 0, 3)]:
        logits = random(*shape, dtype=dtype, device=device)
        value, gradient = case.run(logits, random(*shape, seed=2, dtype=dtype, device=device))
        for result in (value, gradient):
            assert result.shape == shape
            assert result.dtype == dtype
            assert result.device == logits.device
            assert result.isfinite().all()
        if not case.soft:
            assert ((value == 0) | (value == 1)).all()
        if case.categorical:
            total = value.double().sum(-1)
            assert torch.allclose(total, torch.ones_like(total), atol=0.02 if case.soft else 0)


@over_all
def test_a_scalar(case):
    logits = torch.tensor(0.3)
    if case.categorical:
        with pytest.raises(
            ConfigurationError, match=r"logits: got shape \(\).*bernoulli\(logits\)"
        ):
            case(logits)
    else:
        value, gradient = case.run(logits, torch.tensor(1.0))
        assert value.shape == gradient.shape == ()


@over_all
def test_samples_follow_the_law_of_the_logits(case):
    # z < 5 for four frequencies: fails by chance at less than 3e-6
    count = 20_000
    torch.manual_seed(3)
    if case.categorical:
        logits = torch.tensor([0.3, -1.2, -INF, 1.0, 0.0], dtype=torch.float64)
        probs = np.array([math.exp(x) for x in logits.tolist()])
        probs /= probs.sum()
        values = case(logits.expand(count, 5))
        found = np.bincount(values.argmax(-1).numpy(), minlength=5) / count
    else:
        logits = torch.tensor([0.3, -1.2, -INF, 3.0], dtype=torch.float64)
        probs = np.array([1 / (1 + math.exp(-x)) for x in logits.tolist()])
        values = case(logits.expand(count, 4))
        found = (values > 0.5).double().mean(0).numpy()
    assert (found[probs == 0] == 0).all()
    error = np.sqrt(probs * (1 - probs) / count)
    assert (np.abs(found - probs) <= 5 * error).all(), (found, probs)


@over_all
def test_a_seed_decides(case):
    logits, weight = random(50, 4), random(50, 4, seed=2)
    first, second, other = (case.run(logits, weight, seed=seed) for seed in (7, 7, 8))
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], other[0])
    if not case.soft:
        torch.manual_seed(7)
        assert torch.equal(first[0], getattr(StraightThrough(), case.method)(logits))


@over_all
def test_without_gradient_the_same_sample_is_plain(case):
    logits = random(50, 4).requires_grad_()
    expected, _ = case.run(logits, torch.ones(50, 4))
    for plain in (logits.detach(), logits):
        torch.manual_seed(0)
        with torch.set_grad_enabled(plain is not logits):
            value = case(plain)
        assert not value.requires_grad
        assert torch.equal(value, expected)


# -- gradients -------------------------------------------------------------------------------------


@over_one_hot
def test_a_common_shift_of_the_logits_changes_nothing(case):
    logits, weight = random(200, 5, dtype=torch.float64), random(200, 5, seed=2).double()
    value, gradient = case.run(logits, weight)
    moved = case.run(logits + 3.0, weight)
    assert gradient.sum(-1).abs().max() < 1e-12
    assert torch.allclose(value, moved[0], atol=1e-12)
    assert torch.allclose(gradient, moved[1], atol=1e-10)
    # and no gradient where f is the same everywhere
    assert case.run(logits, torch.ones_like(weight))[1].abs().max() < 1e-10


@over_all
def test_a_sample_used_twice_adds_its_gradients(case):
    logits, one, two = (random(20, 4, seed=seed, dtype=torch.float64) for seed in range(3))
    _, expected = case.run(logits, one + 2 * two)
    torch.manual_seed(0)
    leaf = logits.requires_grad_()
    value = case(leaf)
    ((value * one).sum() + (2 * value * two).sum()).backward()
    assert torch.allclose(leaf.grad, expected, atol=1e-12)
    assert leaf.grad.abs().max() > 1e-3


@over_all
def test_strides_do_not_matter(case):
    weight = random(4, 6, seed=2)
    logits = random(6, 4).T
    assert not logits.is_contiguous()
    for found, expected in zip(
        case.run(logits, weight), case.run(logits.contiguous(), weight), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@over_all
def test_expanded_logits_get_independent_samples_and_the_sum_of_gradients(case):
    logits, weight = random(4).requires_grad_(), random(30, 4, seed=2)
    value, expected = case.run(logits.detach().repeat(30, 1), weight)
    torch.manual_seed(0)
    found = case(logits.expand(30, 4))
    assert torch.equal(found, value)
    assert len(value.unique(dim=0)) > 1
    found.backward(weight)
    assert torch.allclose(logits.grad, expected.sum(0), atol=1e-4)


@over_all
def test_differentiating_twice_is_refused(case):
    logits, weight = random(6, 4).requires_grad_(), random(6, 4, seed=2).requires_grad_()
    _, expected = case.run(logits, weight.detach())
    torch.manual_seed(0)
    value = case(logits)
    (gradient,) = torch.autograd.grad(value, logits, weight, create_graph=True)
    assert torch.equal(gradient, expected)
    for target in (logits, weight):
        with pytest.raises(PyroSilentError, match="differentiated once more.*detach it"):
            torch.autograd.grad(gradient.sum(), target, retain_graph=True)


# -- masks and extremes ----------------------------------------------------------------------------

MASKED = torch.tensor(
    [[0.2, -INF, 1.0, -INF], [-INF, 0.5, -0.5, 0.1], [-INF, -INF, 0.3, -INF], [0.1, 0.2, 0.3, 0.4]]
)


@over_all
@pytest.mark.parametrize("bad", [1.0, INF, -INF, NAN])
def test_masked_categories_never_occur_and_count_nothing(case, bad):
    for dtype in DTYPES:
        logits = MASKED.to(dtype).repeat(20, 1)
        mask = logits == -INF
        clean = random(80, 4, seed=2, dtype=dtype)
        _, expected = case.run(logits, clean.masked_fill(mask, 0.0))
        value, gradient = case.run(logits, clean.masked_fill(mask, bad))
        assert (value[mask] == 0).all()
        assert (gradient[mask] == 0).all()
        assert gradient.isfinite().all()
        assert torch.equal(gradient, expected)
        assert (gradient[~mask] != 0).any()
        if case.categorical:
            # all but one are masked
            assert (value[2::4] == torch.tensor([0, 0, 1, 0])).all()
            assert (gradient[2::4] == 0).all()


@over_all
@pytest.mark.parametrize("bad", [1.0, INF, NAN])
def test_extreme_logits(case, bad):
    for dtype in DTYPES:
        weight = torch.full((50, 3), bad, dtype=dtype)
        if case.categorical:
            logits = torch.tensor([1e4, 0.0, -1e4], dtype=dtype)
            weight[:, 0] = 2.0
        else:
            logits = torch.tensor([1e4, -1e4, -INF], dtype=dtype)
        value, gradient = case.run(logits.expand(50, 3), weight)
        assert torch.equal(value, torch.tensor([1, 0, 0], dtype=dtype).expand(50, 3))
        assert torch.equal(gradient, torch.zeros_like(gradient))


@over_one_hot
def test_a_category_out_of_reach_is_as_good_as_masked(case):
    for dtype in (torch.float32, torch.float64):
        near = random(300, 2, dtype=dtype)
        weight = torch.cat([random(300, 2, seed=2), torch.full((300, 1), INF)], -1).to(dtype)
        finite, masked = (
            torch.cat([near, torch.full((300, 1), low, dtype=dtype)], -1) for low in (-1e5, -INF)
        )
        assert torch.equal(case.run(finite, weight)[1], case.run(masked, weight)[1])


@over_one_hot
@pytest.mark.parametrize("level", [1e4, -1e4])
def test_large_logits_that_differ_by_little_are_told_apart(case, level):
    near, weight = random(300, 3), random(300, 3, seed=2)
    far = near + level
    value, gradient = case.run(far, weight)
    expected = case.run(far - level, weight)
    assert torch.allclose(value, expected[0], atol=1e-5)
    assert torch.allclose(gradient, expected[1], atol=1e-4, rtol=1e-3)
    assert len(value.argmax(-1).unique()) == 3


@over_one_hot
def test_a_single_category(case):
    for dtype in DTYPES:
        value, gradient = case.run(random(5, 1, dtype=dtype), random(5, 1, seed=2, dtype=dtype))
        assert torch.equal(value, torch.ones_like(value))
        assert torch.equal(gradient, torch.zeros_like(value))


@over_all
def test_half_precision_is_single_precision_rounded(case):
    for dtype in (torch.float16, torch.bfloat16):
        logits, weight = random(100, 4, dtype=dtype), random(100, 4, seed=2, dtype=dtype)
        half = case.run(logits, weight)
        single = case.run(logits.float(), weight.float())
        assert all(torch.equal(h, s.to(dtype)) for h, s in zip(half, single, strict=True))


# -- where it runs ---------------------------------------------------------------------------------


@over_all
def test_no_value_is_read_back_from_the_device(case):
    # a fake tensor has no values: reading one (item, bool, tolist) raises
    with FakeTensorMode():
        logits = torch.zeros(3, 4, requires_grad=True)
        value = case(logits)
        value.backward(torch.ones_like(value))
        assert value.shape == logits.grad.shape == (3, 4)


@over_all
def test_nothing_is_made_on_another_device(case):
    # an operation on a meta tensor and one of the CPU raises
    logits = torch.zeros(3, 4, device="meta", requires_grad=True)
    value = case(logits)
    value.sum().backward()
    assert value.is_meta
    assert logits.grad.shape == (3, 4)


# -- as an object ----------------------------------------------------------------------------------


@over_all
def test_a_copy_is_as_good(case):
    logits, weight = random(20, 4), random(20, 4, seed=2)
    for clone in (copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))):
        twin = case._replace(estimator=clone(case.estimator))
        assert all(map(torch.equal, case.run(logits, weight), twin.run(logits, weight)))
        assert repr(twin.estimator) == repr(case.estimator)


@pytest.mark.parametrize("estimator", {repr(c.estimator): c.estimator for c in CASES}.values())
def test_the_repr_makes_it_again(estimator):
    again = eval(repr(estimator), vars(pyro_silent))
    assert type(again) is type(estimator)
    assert vars(again) == vars(estimator)


# -- temperature -----------------------------------------------------------------------------------


@over_schedulable
def test_a_schedule_is_asked_at_the_step(case):
    logits, weight = random(20, 4), random(20, 4, seed=2)
    fixed, scheduled = case.with_temperature(1.5), case.with_temperature(Linear(3.0, 1.0, 4))
    assert scheduled.estimator.temperature_at(3) == fixed.estimator.temperature_at(0) == 1.5
    found = scheduled.run(logits, weight, step=3)
    assert all(map(torch.equal, found, fixed.run(logits, weight)))
    assert not torch.equal(found[1], scheduled.run(logits, weight)[1])
    assert f"temperature={Linear(3.0, 1.0, 4)!r}" in repr(scheduled.estimator)


BAD_TEMPERATURES = [0, -1.0, NAN, INF, "1", None, True, torch.tensor(1.0)]


@over_schedulable
def test_a_bad_temperature_is_refused(case):
    for bad in BAD_TEMPERATURES:
        got = re.escape(f"temperature: got {bad!r}")
        with pytest.raises(ConfigurationError, match=f"^{got}, expected a finite number >"):
            case.with_temperature(bad)
        scheduled = case.with_temperature(_Bad(bad))
        with pytest.raises(ConfigurationError, match=f"^{got} from bad .* at step 5, expected"):
            scheduled(torch.zeros(4), step=5)


class _Bad:
    def __init__(self, value):
        self.value = value

    def __call__(self, step):
        return self.value if step == 5 else 1.0

    def __repr__(self):
        return "bad schedule"


# -- logits ----------------------------------------------------------------------------------------


BAD_LOGITS = [
    ([0.1, 0.2], "logits: got list, expected a floating-point tensor; write torch.tensor"),
    (torch.zeros(3, dtype=torch.int64), "logits: got dtype torch.int64.*logits.float"),
    (torch.tensor([0.0, NAN]), r"logits: got NaN or \+inf"),
    (torch.tensor([0.0, INF]), r"logits: got NaN or \+inf"),
    (torch.tensor([-INF, NAN]), r"logits: got NaN or \+inf"),
]


@over_all
def test_bad_logits_are_refused(case):
    for logits, message in BAD_LOGITS:
        with pytest.raises(ConfigurationError, match=message):
            case(logits)


@over_one_hot
def test_bad_rows_are_refused(case):
    with pytest.raises(ConfigurationError, match="a row whose categories are all masked"):
        case(torch.tensor([[0.0, 1.0], [-INF, -INF]]))
    with pytest.raises(ConfigurationError, match=r"got shape \(3, 0\).*at least one category"):
        case(torch.zeros(3, 0))


@over_all
def test_values_are_looked_at_only_while_torch_validates(case):
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        case(torch.tensor([0.0, NAN]))
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)
