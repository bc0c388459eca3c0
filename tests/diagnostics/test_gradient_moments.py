"""Running moments of gradients against numpy on the samples that they do not keep."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pyro_silent.diagnostics.gradient_moments import _CHUNK, GradientMoments
from pyro_silent.diagnostics.running import Running
from tests.devices import seeded
from tests.diagnostics import gradient_oracle as oracle

ROLES = {"a": {"guide"}, "b": {"model"}, "c": {"guide", "model"}}
GROUPS = {"all": "abc", "guide": "ac", "model": "bc", "a": "a", "b": "b", "c": "c"}
SHAPES = {"a": (3,), "b": (), "c": (2, 2)}
Samples = list[dict[str, Tensor]]


def draw(n: int, seed: int, mean: float = 0.0, spread: float = 1.0) -> Samples:
    generator = seeded(seed)
    return [
        {
            name: mean
            + spread * torch.randn(shape, generator=generator, dtype=torch.float64) ** (index + 1)
            for index, (name, shape) in enumerate(SHAPES.items())
        }
        for _ in range(n)
    ]


def moments_of(
    g: Samples, s: dict[str, Tensor], r: Samples | None = None, roles: dict = ROLES
) -> GradientMoments:
    """Of samples beside a reference with mean s; r are others of its samples if it is noisy."""
    moments = GradientMoments(roles, {name: value.flatten() for name, value in s.items()})
    for index, sample in enumerate(g):
        if r is not None:
            moments.add_reference(r[index])
        moments.add(sample)
    return moments


def stored(samples: Samples, names: str) -> np.ndarray:
    """Samples [n, parameters] of one group; what is missing is zero."""
    rows = [
        [sample.get(name, torch.zeros(SHAPES[name])).double().reshape(-1) for name in names]
        for sample in samples
    ]
    return torch.stack([torch.cat(row) for row in rows]).numpy()


def assert_figures(found, expected: dict[str, float], tolerance: float = 1e-12) -> None:
    for key, value in expected.items():
        got = getattr(found, key)
        assert got == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), key


def assert_agrees(
    moments: GradientMoments,
    g: Samples,
    s: dict[str, Tensor],
    r: Samples | None = None,
    tolerance: float = 1e-12,
) -> None:
    """Every figure of every group that there is."""
    for group in list(moments.figures()):
        names = GROUPS[group]
        (mean,) = stored([s], names)
        fresh = np.broadcast_to(mean, (len(g), len(mean))) if r is None else stored(r, names)
        expected = oracle.figures(stored(g, names), fresh, mean)
        assert_figures(moments.figures()[group], expected, tolerance)


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("reference", ["exact", "noisy"])
def test_every_figure_of_every_group_is_that_of_the_stored_samples(n, reference):
    g, (s,) = draw(n, seed=1, mean=0.5), draw(1, seed=2, mean=0.3)
    r = draw(n, seed=3, mean=0.3) if reference == "noisy" else None
    moments = moments_of(g, s, r)
    assert list(moments.figures()) == list(GROUPS)
    assert_agrees(moments, g, s, r)


def test_the_noise_is_the_usual_unbiased_variance():
    """The identity behind the running form: the mean of its terms is the textbook's variance."""
    g = stored(draw(9, seed=3, mean=2.0), "abc")
    assert oracle.noise_terms(g).mean() == pytest.approx(np.var(g, axis=0, ddof=1).sum(), rel=1e-13)


def some_of(data: st.DataObject, samples: Samples) -> Samples:
    """Some parameters of each sample."""
    kept = data.draw(
        st.lists(st.sets(st.sampled_from("abc")), min_size=len(samples), max_size=len(samples))
    )
    return [
        {name: sample[name] for name in "abc" if name in keep}
        for sample, keep in zip(samples, kept)
    ]


@settings(max_examples=50)
@given(data=st.data(), n=st.integers(2, 6), noisy=st.booleans())
def test_parameters_may_appear_late_or_be_missing(data, n, noisy):
    g = some_of(data, draw(n, seed=1, mean=0.5))
    (s,) = some_of(data, draw(1, seed=2))
    r = some_of(data, draw(n, seed=3)) if noisy else None
    moments = moments_of(g, s, r)
    seen = {name for sample in [*g, s, *(r or [])] for name in sample}
    assert set(list(moments.figures())) - {"all", "guide", "model"} == seen
    assert_agrees(moments, g, s, r, 1e-11)


def test_groups_without_parameters_are_left_out():
    moments = GradientMoments({"a": {"guide"}}, {})
    moments.add({"a": torch.ones(2)})
    assert list(moments.figures()) == ["all", "guide", "a"]
    moments.add({"a": torch.ones(2), "unknown": torch.ones(2)})
    assert list(moments.figures()) == ["all", "guide", "a", "unknown"], (
        "it is in no group but its own"
    )
    assert moments.figures()["all"].norm == pytest.approx(math.sqrt(2)), "the earlier one had none"


def test_a_parameter_may_be_called_as_a_group():
    g = [{"model": sample["a"], "a": sample["c"]} for sample in draw(4, seed=1)]
    roles = {"model": {"guide"}, "a": {"model"}}
    moments = moments_of(g, {}, roles=roles)
    assert list(moments.figures()) == ["all", "guide", "model", "parameter model", "a"]
    assert moments.figures()["model"] == moments.figures()["a"]
    assert (
        moments.figures()["parameter model"] == moments.figures()["guide"] != moments.figures()["a"]
    )


def test_no_parameters_have_no_norm():
    moments = moments_of([{}, {}, {}], {})
    found = moments.figures()["all"]
    assert list(moments.figures()) == ["all"] and moments.epsilon == 0.0 and not moments.on_cuda
    assert (found.norm, found.std, found.bias, found.rmse) == (0.0, 0.0, 0.0, 0.0)


def test_one_sample_has_no_figures():
    moments = moments_of(draw(1, seed=1), draw(1, seed=2)[0])
    assert all(math.isnan(figure) for figure in moments.figures()["all"])


@pytest.mark.parametrize("size", [_CHUNK - 1, _CHUNK, 2 * _CHUNK + 17])
def test_long_gradients_are_taken_in_pieces(size):
    generator = seeded(0)
    g, r = torch.randn(2, 4, size, generator=generator, dtype=torch.float64)
    g, s = 0.1 + g, torch.randn(size, generator=generator, dtype=torch.float64)
    moments = moments_of([{"a": x} for x in g], {"a": s}, [{"a": x} for x in r])
    assert_figures(moments.figures()["all"], oracle.figures(g.numpy(), r.numpy(), s.numpy()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_summed_in_single_precision(dtype):
    g = [{name: value.to(dtype) for name, value in sample.items()} for sample in draw(6, 1, 0.5)]
    s = {name: value.float() for name, value in draw(1, 2)[0].items()}
    moments = moments_of(g, s)
    assert moments.epsilon == torch.finfo(dtype).eps
    assert_agrees(moments, g, s, tolerance=2e-5)
    many = moments_of([{"a": torch.full((5000,), x, dtype=dtype)} for x in (1.0, 3.0)], {})
    noise = many.figures()["all"].std
    assert noise == pytest.approx(math.sqrt(2 * 5000)), "too much for half precision"


def test_sparse_gradients():
    g, dense = [], []
    for seed, places in enumerate([[0, 2], [1, 1], [2, 0]]):
        values = torch.tensor([[1.0 + seed, 2.0], [0.5, -seed]], dtype=torch.float64)
        sparse = torch.sparse_coo_tensor([places], values, (3, 2), check_invariants=True)
        g.append({"table": sparse})
        dense.append(sparse.to_dense().flatten().numpy())
    array = np.stack(dense)
    found = moments_of(g, {}).figures()["all"]
    assert_figures(found, oracle.figures(array, np.zeros_like(array), np.zeros(6)))


@pytest.mark.parametrize("conjugate", [False, True], ids=["plain", "lazily conjugated"])
def test_a_complex_gradient_is_one_of_real_and_imaginary_parts(conjugate):
    generator = seeded(0)
    g = torch.randn(5, 3, generator=generator, dtype=torch.complex128)
    array = torch.cat([g.real, -g.imag if conjugate else g.imag], -1).numpy()
    found = moments_of([{"a": x} for x in (g.conj() if conjugate else g)], {}).figures()["all"]
    assert_figures(found, oracle.figures(array, np.zeros_like(array), np.zeros(6)))


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_a_gradient_that_is_not_finite_has_figures_that_are_not(value):
    """And says so without a warning, which here would be an error; other parameters keep theirs."""
    g, (s,) = draw(5, seed=1), draw(1, seed=2)
    g[2]["a"][1] = value
    moments = moments_of(g, s)
    for group in ("all", "guide", "a"):
        found = moments.figures()[group]
        assert not math.isfinite(found.std) and not math.isfinite(found.bias)
        assert not math.isfinite(found.rmse)
    for group in ("model", "b", "c"):
        names = GROUPS[group]
        expected = oracle.figures(stored(g, names), stored([s] * 5, names), stored([s], names)[0])
        assert_figures(moments.figures()[group], expected)


def test_small_noise_and_bias_beside_a_large_gradient():
    """A difference of squares would lose both: 1e8 squared has 16 digits before the point."""
    g, s = draw(8, seed=1, mean=1e8), draw(1, seed=0, mean=1e8 + 0.5, spread=0.0)[0]
    away = stored([s], "abc")[0] - 1e8
    expected = oracle.figures(stored(g, "abc") - 1e8, np.tile(away, (8, 1)), away)
    found = moments_of(g, s).figures()["all"]
    for key in ("std", "std_se", "bias", "bias_se", "rmse"):
        assert getattr(found, key) == pytest.approx(expected[key], rel=1e-6), key


@pytest.mark.parametrize("n", [2, 3, 50])
def test_equal_gradients_have_no_noise_at_all(n):
    g, (s,) = draw(1, seed=1, mean=1 / 3) * n, draw(1, seed=2)
    found, same = moments_of(g, s).figures()["all"], moments_of(g, g[0]).figures()["all"]
    distance = np.linalg.norm(stored(g[:1], "abc") - stored([s], "abc"))
    assert found.std == 0.0
    assert found.bias == pytest.approx(distance, rel=1e-14)
    assert found.rmse == pytest.approx(distance, rel=1e-14)
    assert (same.bias, same.rmse) == (0.0, 0.0)
    if n > 2:  # one term has no spread
        assert found.bias_se < 1e-14 * distance and same.bias_se == 0.0


def test_gradients_are_not_kept():
    moments = GradientMoments({}, {})
    seen = []
    for _ in range(4):
        gradient, other = torch.randn(10), torch.randn(10)
        moments.add_reference({"a": other})
        moments.add({"a": gradient})
        seen += [weakref.ref(gradient), weakref.ref(other)]
        del gradient, other
    assert all(sample() is None for sample in seen)


def test_what_is_handed_over_is_not_written_to():
    """The first sample is not the tensor in which the mean is kept."""
    g, r, (s,) = draw(3, seed=1), draw(3, seed=2), draw(1, seed=3)
    given_ones = [*g, *r, s]
    copies = [{name: value.clone() for name, value in sample.items()} for sample in given_ones]
    moments_of(g, s, r)
    for sample, copy in zip(given_ones, copies):
        assert all(torch.equal(sample[name], copy[name]) for name in copy)


def test_a_sample_needs_no_copy_of_a_long_gradient():
    size = 2_000_000
    gradient, mean = torch.ones(size), torch.zeros(size)
    moments = moments_of([{"a": gradient}] * 2, {"a": mean}, [{"a": gradient}] * 2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        moments.add_reference({"a": gradient})
        moments.add({"a": gradient})
    events = profiler.profiler.kineto_results.events()
    largest = max(event.nbytes() for event in events if event.name() == "[memory]")
    assert 0 < largest <= 6 * _CHUNK * 8 < size * 4 / 2


def test_running_figures_are_numpys():
    values = np.random.default_rng(0).normal(size=(9, 4, 2))
    values[:3, 2:] = 0.0  # rows that come later
    running = Running()
    for index, value in enumerate(values):
        running.add(value[:2] if index < 3 else value)
    assert running.count == 9
    np.testing.assert_allclose(running.mean, values.mean(0), atol=1e-15)
    np.testing.assert_allclose(running.std, values.std(0, ddof=1), rtol=1e-13)
    np.testing.assert_allclose(running.se, values.std(0, ddof=1) / 3, rtol=1e-13)
    fresh = Running()
    fresh.add(np.ones(2))
    assert np.isnan(fresh.std).all() and np.isnan(fresh.se).all()
