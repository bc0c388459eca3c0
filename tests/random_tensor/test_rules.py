"""One contract for every linear rule: moments, gradients, metadata, batches of one and of none."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.ops.indexing import Vindex
from torch import Tensor, tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_silent import IntractableError, RandomTensor, covariance, mean, random_tensor, variance
from tests import oracles
from tests.devices import here
from tests.random_tensor.agreement import (
    assert_close,
    assert_metadata_agrees,
    assert_program_agrees,
)
from tests.random_tensor.rows import (
    ARITHMETIC,
    INDEXING,
    JOINING,
    PRODUCTS,
    REDUCTIONS,
    ROWS,
    Row,
)
from tests.random_tensor.sources import KINDS, Source, source

BATCHED = [row for row in ROWS if row.batched]


def test_row_names_are_unique():
    assert len({row.name for row in ROWS}) == len(ROWS)


def _size(shape, batch: int) -> tuple[int, ...]:
    return tuple(batch if size == "B" else size for size in shape)


def _operands(row: Row, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    values = (torch.randn(_size(s, batch), generator=generator) for s in row.operands)
    return [value.to(dtype).requires_grad_() for value in values]


def _latent(row: Row, kind: str, batch: int = 2, dtype: torch.dtype = torch.float64) -> Source:
    return source(kind, _size(row.shape, batch), dtype)


# A diagonal, a factor added to one, a factor taken from one; the other kinds of source differ from
# these in their moments alone: test_sources has them.
@pytest.mark.parametrize("kind", ["normal", "low_rank", "one_hot"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_moments_and_gradients(row, kind):
    assert_program_agrees(row.program, [_latent(row, kind)], _operands(row))


# torch cannot build a OneHotCategorical for a batch of none.
@pytest.mark.parametrize(
    ("kind", "batch"),
    [("normal", 1), ("normal", 0), ("low_rank", 1), ("mvn_tril", 0)],
)
@pytest.mark.parametrize("row", BATCHED, ids=str)
def test_batch_of_one_and_of_none(row, kind, batch):
    latent, operands = _latent(row, kind, batch), _operands(row, batch)
    try:
        row.program(torch.zeros(_size(row.shape, batch), dtype=torch.float64), *operands)
    except (RuntimeError, ValueError, IndexError):
        pytest.skip("torch refuses the plain program too")
    assert_program_agrees(row.program, [latent], operands)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_metadata(row):
    """In float32; the moments are compared in float64."""
    latent = _latent(row, "normal", dtype=torch.float32)
    assert_metadata_agrees(row.program, [latent], _operands(row, dtype=torch.float32))


# A second device without a GPU: fake tensors refuse to mix devices, and compute nothing (slowly).
ELSEWHERE = [*ARITHMETIC, *PRODUCTS[::3], *REDUCTIONS[::2], *INDEXING[::2], *JOINING[::2]]


FAKE = FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize("row", ELSEWHERE, ids=str)
def test_second_device(row):
    with FAKE, pyro.validation_enabled(False):
        device = {"device": "meta", "dtype": torch.float64}
        operands = [torch.ones(_size(s, 2), **device) for s in row.operands]
        ones = torch.ones(_size(row.shape, 2), **device)
        try:
            row.program(ones, *operands)
        except (RuntimeError, ValueError) as error:
            pytest.skip(f"torch does not run it on fake tensors: {type(error).__name__}")
        # A diagonal and a factor: both parts of every source.
        latent = random_tensor(dist.LowRankMultivariateNormal(ones, ones[..., None], ones))
        y = row.program(latent, *operands)
        assert y.device.type == mean(y).device.type == variance(y).device.type == "meta"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_two_sources_through_one_rule(row):
    """The rule on a sum of an elementwise source and of one that other rules have mixed already."""

    def program(x, y, *operands):
        return row.program(x + 0.5 * y.flip(-1) + y.sum(-1, keepdim=True), *operands)

    sources = [_latent(row, "normal"), source("low_rank", _size(row.shape, 2), seed=1)]
    assert_program_agrees(program, sources, _operands(row), gradients=False)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_rule_after_a_gather_along_the_batch(row):
    """The rule on ``alpha[group]``, whose rows share latents."""
    group = tensor([1, 0, 1, 2])[: _size(row.shape, 2)[0]]
    group = torch.cat([group, group.new_ones(_size(row.shape, 2)[0] - len(group))])

    def program(x, *operands):
        return row.program(x[group], *operands)

    sources = [source("normal", (3, *_size(row.shape, 2)[1:]))]
    assert_program_agrees(program, sources, _operands(row), gradients=False)


# Sources of every make: the shape of the latent is part of what is tested.

G = tensor([0, 2, 1, 1, 2, 0])
WINNER, LOSER = tensor([0, 1, 3, 2, 0]), tensor([1, 0, 2, 2, 3])


@pytest.mark.parametrize(
    "kind",
    [*KINDS, "normal_plate", "normal_expanded", "mvn_expanded", "bernoulli_plate", "one_hot_probs"],
)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 3), (2, 1, 3), (2, 1), (0, 3)], ids=str)
def test_sources(kind, shape):
    if kind.endswith("expanded") and len(shape) == 1:
        pytest.skip("there is no batch to expand")
    if kind.startswith("one_hot") and 0 in shape:
        pytest.skip("torch cannot build it")
    assert_program_agrees(_program_of_any_shape, [source(kind, shape)])


def _program_of_any_shape(z: Tensor) -> Tensor:
    return torch.cat([z.reshape(-1), (2 * z.flip(-1)).sum(-1).reshape(-1), z.cumsum(0).reshape(-1)])


def test_source_without_dims():
    assert_program_agrees(lambda z, w: z * w + z, [source("normal", ())], [_weights(4)])
    assert_program_agrees(lambda z, w: w * z - 1, [source("bernoulli_plate", ())], [_weights(4)])


def test_masked_source_keeps_its_law():
    shape, mask = (2, 3), tensor([True, False])
    plain = source("normal", shape)
    masked = Source(plain.parameters, lambda m, s: dist.Normal(m, s.exp()).to_event(1).mask(mask))
    assert_program_agrees(lambda z: z.sum(0), [masked])


EXPANDED = {
    "Bernoulli": lambda p: dist.Bernoulli(logits=p).expand([2, 3]).to_event(1),
    "OneHotCategorical": lambda p: dist.OneHotCategorical(logits=p).expand([2]),
    "LowRank": lambda p: dist.LowRankMultivariateNormal(
        p, p[:, None] ** 2, p.exp(), validate_args=False
    ).expand([2]),
    "Normal to_event(2)": lambda p: dist.Normal(p, p.exp()).expand([2, 3]).to_event(2),
    "Normal broadcast": lambda p: dist.Normal(p, p.exp()[:, None]).to_event(1),
    "Independent expanded": lambda p: dist.Normal(p, 2.0).to_event(1).expand([2]).to_event(1),
    "expand_by": lambda p: dist.Normal(p, p.exp()).expand_by([2]).to_event(1),
    "expand twice": lambda p: dist.Normal(p[0], 1.0).expand([3]).expand([2, 3]).to_event(1),
    "masked and expanded": lambda p: dist.Normal(p, 1.0).mask(False).expand([2, 3]),
    "torch Normal": lambda p: torch.distributions.Normal(p.expand(2, 3), 1.0),
    "torch Independent": lambda p: torch.distributions.Independent(
        torch.distributions.Bernoulli(logits=p.expand(2, 3)), 1
    ),
    "torch MultivariateNormal": lambda p: torch.distributions.MultivariateNormal(
        p, scale_tril=torch.diag_embed(p.exp())
    ).expand([2]),
}


@pytest.mark.parametrize("name", EXPANDED)
def test_expanded_sources(name):
    leaf = _weights(3)
    shape = EXPANDED[name](leaf).sample().shape
    assert random_tensor(EXPANDED[name](leaf)).shape == shape
    assert_program_agrees(
        lambda z: torch.cat([z.reshape(-1), z.sum(0).reshape(-1), z[..., 0].reshape(-1)]),
        [Source([leaf], EXPANDED[name])],
    )


def test_delta_is_a_latent_without_variance():
    value = _weights(2, 3)
    z = random_tensor(dist.Delta(value, event_dim=1))
    other = random_tensor(dist.Normal(tensor(0.0).double(), tensor(2.0).double()))
    y = z.sum(-1) * 2 + other
    assert_close(mean(y), value.sum(-1) * 2, 1e-12, "mean")
    assert_close(variance(y), torch.full((2,), 4.0).double(), 1e-12, "variance")


def _weights(*shape: int, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


GATHERS = {
    "alpha[group]": (lambda a: a[G], (4,), ()),
    "alpha[group]*x": (lambda a, x: a[G] * x, (4,), ((6,),)),
    "skill difference": (lambda a: a[WINNER] - a[LOSER], (4,), ()),
    "skill difference weighted": (lambda a, w: a[WINNER] * w - a[LOSER], (4,), ((5,),)),
    "skill difference of columns": (lambda a, w: a[WINNER] * w - a[LOSER], (4, 2), ((2,),)),
    "sum over plate": (lambda a: a[G].sum(), (4,), ()),
    "weighted sum over plate": (lambda a, x: (a[G] * x).sum(), (4,), ((6,),)),
    "sum of difference": (lambda a: (a[WINNER] - a[LOSER]).sum(0), (4, 2), ()),
    "mean over plate": (lambda a: a[G] - a[G].mean(0), (4, 2), ()),
    "cumsum over plate": (lambda a: a[G].cumsum(0)[2:], (4,), ()),
    "dot over plate": (lambda a, x: a[G] @ x, (4,), ((6,),)),
    "mix of plate": (lambda a, x: x @ a[G], (4, 2), ((3, 6),)),
    "2-d index": (lambda a: a[G.reshape(2, 3)], (4,), ()),
    "2-d index sum": (lambda a: a[G.reshape(2, 3)].sum(-1), (4,), ()),
    "2-d index sum(0)": (lambda a: a[G.reshape(2, 3)].sum(0), (4, 2), ()),
    "pairs": (
        lambda a: (lambda p: p[0] - p[1])(a[torch.stack([WINNER, LOSER])]),
        (4,),
        (),
    ),
    "pairs diff": (lambda a: a[torch.stack([WINNER, LOSER], -1)].diff(dim=-1), (4,), ()),
    "rows dot": (lambda a, x: (a[G] * x).sum(-1), (4, 2), ((6, 2),)),
    "rows einsum": (lambda a, x: torch.einsum("ni,ni->n", a[G], x), (4, 2), ((6, 2),)),
    "rows linear": (lambda a, w, b: F.linear(a[G], w, b), (4, 2), ((3, 2), (3,))),
    "linear then gather": (lambda a, w: (a @ w)[G] - (a @ w)[G.flip(0)], (4, 2), ((2, 3),)),
    "gather of a gather": (lambda a: a[G][tensor([5, 0, 0, 3])], (4,), ()),
    "gather and its source": (lambda a: torch.cat([a[G], a]), (4,), ()),
    "gather reshape sum": (lambda a: a[G].reshape(2, 3).sum(1), (4,), ()),
    "gather transpose": (lambda a, w: a[G].T @ w, (4, 2), ((6, 2),)),
    "gather of columns": (lambda a: a[:, tensor([1, 1, 0])][G], (4, 2), ()),
    "pick of rows and columns": (lambda a: a[G, tensor([0, 1, 1, 0, 1, 0])], (4, 2), ()),
    "two picks": (lambda a: a[G, 0] - a[G.flip(0), 1], (4, 2), ()),
    "neighbours": (lambda a: a[1:] - a[:-1], (4, 2), ()),
    "second difference": (lambda a: a[2:] - 2 * a[1:-1] + a[:-2], (4,), ()),
    "same row twice": (lambda a: a[[2, 2]] - a[2], (4, 2), ()),
    "broadcast difference": (lambda a: a[:, None] - a[None], (4,), ()),
    "broadcast difference of gathers": (lambda a: a[G][:, None] - a[LOSER], (4,), ()),
    "where of gathers": (lambda a: torch.where(WINNER > LOSER, a[WINNER], a[LOSER]), (4,), ()),
    "conv of a gather": (
        lambda a, w: F.conv1d(a[G][None, None], w),
        (4,),
        ((2, 1, 3),),
    ),
    "vindex": (lambda a: Vindex(a)[G], (4, 2), ()),
    "vindex last": (lambda a: Vindex(a)[tensor([0, 1, 3, 3]), tensor([1, 0, 1, 1])], (4, 2), ()),
    "vindex broadcast": (lambda a: Vindex(a)[..., tensor([1, 0, 1, 1])], (4, 2), ()),
    "index_select": (lambda a: a.index_select(0, G) * 2, (4, 2), ()),
    "gather op": (lambda a: a.gather(0, G[:, None].expand(-1, 2)), (4, 2), ()),
    "mask of a gather": (lambda a: a[G][tensor([True, False, True, True, False, True])], (4,), ()),
    "stack of gathers": (lambda a: torch.stack([a[WINNER], a[LOSER]]).sum(0), (4,), ()),
}


@pytest.mark.parametrize(
    "kind", ["normal_plate", "normal", "mvn_tril", "bernoulli_plate", "one_hot"]
)
@pytest.mark.parametrize("name", GATHERS)
def test_gathers(name, kind):
    program, shape, operands = GATHERS[name]
    weights = [_weights(*s, seed=i) for i, s in enumerate(operands)]
    assert_program_agrees(program, [source(kind, shape)], weights)


PAIRS = {
    "x+y": lambda x, y, w: x + y,
    "x*w-y": lambda x, y, w: x * w - y,
    "cat": lambda x, y, w: torch.cat([x, 2 * y, x + y], -1),
    "stack": lambda x, y, w: torch.stack([x, y, x - y]).sum(-1),
    "x+y.sum(0)": lambda x, y, w: x + y.sum(0),
    "x[idx]-y": lambda x, y, w: x[tensor([1, 1])] - y,
    "affine": lambda x, y, w: x @ w.T + y @ w.T + x.sum() - y[0, 0],
    "where": lambda x, y, w: torch.where(w > 0, x, y),
    "difference of differences": lambda x, y, w: (x - y)[1:] - (x - y)[:-1],
    "index from both": lambda x, y, w: (x[:, :, None] + y[:, None, :]).reshape(2, 9)[:, ::2],
    "mean of cat": lambda x, y, w: torch.cat([x, y]).mean(0),
    "iadd": lambda x, y, w: _accumulate(x * w, y),
    "addmm": lambda x, y, w: torch.addmm(x, w, y.T @ torch.eye(2, dtype=w.dtype)[:, [0, 1, 1]]),
}


def _accumulate(total, y):
    total += y
    total -= y.mean()
    return total


@pytest.mark.parametrize(
    "kinds",
    [
        ("normal", "normal"),
        ("normal", "mvn_covariance"),
        ("low_rank", "mvn_precision"),
        ("bernoulli_logits", "normal"),
        ("one_hot", "bernoulli_probs"),
        ("one_hot", "low_rank"),
        ("one_hot", "one_hot"),
    ],
    ids="-".join,
)
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_sources(name, kinds):
    sources = [source(kind, (2, 3), seed=i) for i, kind in enumerate(kinds)]
    assert_program_agrees(PAIRS[name], sources, [_weights(2, 3)])


CROSS = {
    "source and sum": (lambda z: z, lambda z: z.sum(0)),
    "source and total": (lambda z: z, lambda z: z.sum()),
    "rows": (lambda z: z[0], lambda z: z[1]),
    "gather and linear": (
        lambda z: z[tensor([1, 0, 1])],
        lambda z: z @ torch.arange(9.0).double().reshape(3, 3)[:, :1] + z.sum(),
    ),
    "gather and gather": (lambda z: z[tensor([1, 0])], lambda z: z[tensor([1, 1])]),
    "transposed": (lambda z: z.T, lambda z: z[:, 0]),
    "column and row": (lambda z: z[:, :1], lambda z: z[:1, :]),
    "cumsum and flip": (lambda z: z.cumsum(1), lambda z: z.flip(1) * 3),
    "scalars": (lambda z: z[0, 1], lambda z: 2 * z[0, 0] + z[0, 1]),
    "constant": (lambda z: z * 0.0, lambda z: z),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CROSS)
def test_covariance_is_elementwise_on_the_broadcast_shape(name, kind):
    first, second = CROSS[name]
    if name == "gather and linear":
        second = _drop_batch(second)
    made = source(kind, (2, 3))

    def both(z: Tensor) -> Tensor:
        a, b = torch.broadcast_tensors(first(z), second(z))
        return torch.stack([a, b])

    full = oracles.moments(both, made.distribution())
    half = full.mean.numel() // 2
    expected = full.covariance[:half, half:].diagonal().reshape(full.mean.shape[1:])
    z = random_tensor(made.distribution())
    for actual in (covariance(first(z), second(z)), covariance(second(z), first(z))):
        assert actual.shape == expected.shape
        assert_close(actual, expected, 1e-9, "covariance")


def _drop_batch(program):
    return lambda z: program(z)[0]


def test_independent_sources_do_not_covary():
    """Two draws of one distribution are two latents, also when every parameter is shared."""
    distribution = source("normal", (2, 3)).distribution()
    x, y = random_tensor(distribution), random_tensor(distribution)
    assert torch.equal(covariance(x, y), torch.zeros(2, 3).double())
    assert_close(variance(x - y), 2 * variance(x), 1e-12, "variance of a difference")


def test_moments_of_plain_tensors():
    plain = _weights(2, 3)
    z = random_tensor(source("normal", (2, 3)).distribution())
    assert torch.equal(mean(plain), plain)
    assert torch.equal(variance(plain), torch.zeros(2, 3).double())
    assert torch.equal(covariance(plain, z), torch.zeros(2, 3).double())


# Categorical latents are index tensors: a table row is a linear image of the one-hot.

K = 4
LOOKUPS = {
    "table[z]": (lambda z, t: t[z], (K, 2)),
    "loc[z]": (lambda z, t: t[z], (K,)),
    "F.embedding": (lambda z, t: F.embedding(z, t), (K, 2)),
    "one_hot": (lambda z, t: F.one_hot(z, K).to(t.dtype), (K,)),
    "one_hot float": (lambda z, t: F.one_hot(z, K).double() @ t, (K, 2)),
    "one_hot times": (lambda z, t: (F.one_hot(z, K) * t).sum(-1), (K,)),
    "index_select": (lambda z, t: t.index_select(0, z), (K, 2)),
    "torch.index_select": (lambda z, t: torch.index_select(t, 1, z), (2, K)),
    "Vindex[z]": (lambda z, t: Vindex(t)[z], (K,)),
    "Vindex[..., z]": (lambda z, t: Vindex(t)[..., z], (3, K)),
    "Vindex[z, :]": (lambda z, t: Vindex(t)[z, :], (K, 2)),
    "Vindex[..., z, :]": (lambda z, t: Vindex(t)[..., z, :], (3, K, 2)),
    "table[z, j]": (lambda z, t: t[z, 1], (K, 2)),
    "table[z, idx]": (lambda z, t: t[z, tensor([0, 1, 1])], (K, 2)),
    "table[z[:, None], idx]": (lambda z, t: t[z[:, None], tensor([1, 0])], (K, 2)),
    "table[:, z]": (lambda z, t: t[:, z], (2, K)),
    "table[..., z]": (lambda z, t: t[..., z], (2, 2, K)),
    "table[arange, z]": (lambda z, t: t[torch.arange(3), z], (3, K)),
    "table[idx, z]": (lambda z, t: t[tensor([1, 0, 1]), z], (2, K)),
    "table[z, :, idx]": (lambda z, t: t[z, :, tensor([1, 0, 1])], (K, 2, 2)),
    "table[z, None]": (lambda z, t: t[z, None], (K, 2)),
    "table[z, 1:]": (lambda z, t: t[z, 1:], (K, 3)),
    "reshape": (lambda z, t: t[z.reshape(3, 1)], (K, 2)),
    "unsqueeze": (lambda z, t: t[z.unsqueeze(-1)].squeeze(-1), (K,)),
    "expand": (lambda z, t: t[z.expand(2, 3)], (K,)),
    "expand sum": (lambda z, t: t[z.expand(2, 3)].sum(0), (K,)),
    "gather before": (lambda z, t: t[z[tensor([2, 0, 0, 1])]], (K, 2)),
    "gather before and sum": (lambda z, t: t[z[tensor([2, 0, 0, 1])]].sum(0), (K, 2)),
    "slice before": (lambda z, t: t[z[1:]] - t[z[:-1]], (K,)),
    "one element": (lambda z, t: t[z[1]], (K, 2)),
    "flip before": (lambda z, t: t[z] - t[z.flip(0)], (K,)),
    "stack before": (lambda z, t: t[torch.stack([z, z.flip(0)])].sum(0), (K,)),
    "sum after": (lambda z, t: t[z].sum(0), (K, 2)),
    "linear after": (lambda z, t: t[z] @ t.T, (K, 2)),
    "two tables": (lambda z, t: t[z] + 3 * t.exp()[z], (K,)),
    "table and its source": (lambda z, t: torch.cat([t[z], F.one_hot(z, K).double() @ t]), (K,)),
    "gather op": (lambda z, t: t.gather(0, z), (K,)),
    "gather op rows": (lambda z, t: t.gather(-1, z[:, None]).squeeze(-1), (3, K)),
    "take_along_dim": (lambda z, t: torch.take_along_dim(t, z[:, None], 1), (3, K)),
    "take": (lambda z, t: torch.take(t, z), (K,)),
    "z==k": (lambda z, t: (z == 2).to(t.dtype) * t[0], (K,)),
    "k==z": (lambda z, t: (2 == z).double(), (K,)),
    "z!=k": (lambda z, t: (z != 1).to(t.dtype), (K,)),
    "z==tensor": (lambda z, t: (z == tensor([0, 1, 1])).to(t.dtype), (K,)),
    "z==arange": (lambda z, t: (z[:, None] == torch.arange(K)).to(t.dtype) @ t, (K, 2)),
    "torch.eq": (lambda z, t: torch.eq(z, 0).to(t.dtype), (K,)),
    "long": (lambda z, t: t[z.long()], (K, 2)),
    "to long": (lambda z, t: t[z.to(torch.long)], (K,)),
    "clone": (lambda z, t: t[z.clone()], (K,)),
    "nn.Embedding": (lambda z, t: F.embedding(z[None], t * 1), (K, 2)),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_categorical_lookups(name):
    program, shape = LOOKUPS[name]
    assert_program_agrees(program, [source(f"categorical{K}", (3,))], [_weights(*shape)])


@pytest.mark.parametrize("name", LOOKUPS)
def test_metadata_of_categorical_lookups(name):
    program, shape = LOOKUPS[name]
    assert_metadata_agrees(program, [source(f"categorical{K}", (3,))], [_weights(*shape)])


@pytest.mark.parametrize("shape", [(), (1,), (2, 2), (2, 1)], ids=str)
def test_categorical_batches(shape):
    def program(z, t):
        return torch.cat(
            [t[z].reshape(-1), (z == 1).to(t.dtype).reshape(-1), t.T[:, z].sum(0).reshape(-1)]
        )

    assert_program_agrees(program, [source("categorical3", shape)], [_weights(3, 2)])


def test_indicator_has_the_law_of_a_coin():
    made = source("categorical3", (2,))
    z = random_tensor(made.distribution())
    probability = made.distribution().probs[:, 1]
    hit = z == 1
    assert isinstance(hit, RandomTensor) and hit.dtype is torch.bool and hit.shape == (2,)
    assert_close(mean(hit.double()), probability, 1e-12, "mean")
    assert_close(variance(hit.double()), probability * (1 - probability), 1e-12, "variance")


def test_categorical_with_a_normal():
    sources = [source("categorical3", (2,)), source("normal", (2, 2), seed=1)]
    assert_program_agrees(lambda z, x, t: t[z] + x @ t.T[:, :2], sources, [_weights(3, 2)])
    assert_program_agrees(lambda z, x, t: torch.cat([t[z], x + t[z]]), sources, [_weights(3, 2)])


BINARY = {
    "table[z.long()]": (lambda z, t: t[z.long()], (2, 2)),
    "table[z.int()]": (lambda z, t: t[z.int()], (2,)),
    "table[z.to(int64)]": (lambda z, t: t[z.to(torch.int64)], (2,)),
    "embedding": (lambda z, t: F.embedding(z.long(), t), (2, 2)),
    "one_hot": (lambda z, t: F.one_hot(z.long(), 2).to(t.dtype) @ t, (2, 2)),
    "Vindex": (lambda z, t: Vindex(t)[..., z.long()], (3, 2)),
    "z==1": (lambda z, t: (z == 1).to(t.dtype) * t[0], (2,)),
    "z==0": (lambda z, t: (z == 0).to(t.dtype) * t[0], (2,)),
    "mixture of two means": (lambda z, t: (1 - z) * t[0] + z * t[1], (2,)),
    "lookup and source": (lambda z, t: t[z.long()] - z, (2,)),
}


@pytest.mark.parametrize("kind", ["bernoulli_plate", "bernoulli_probs"])
@pytest.mark.parametrize("name", BINARY)
def test_bernoulli_lookups(name, kind):
    program, shape = BINARY[name]
    assert_program_agrees(program, [source(kind, (3,))], [_weights(*shape)])


# What does not fit a row.


def test_detach_cuts_the_gradient_and_keeps_the_law():
    made, w = source("normal", (2, 3)), _weights(2, 3)
    z = random_tensor(made.distribution())
    expected = oracles.moments(lambda z: z * w, made.distribution())
    y = (z * w).detach()
    assert isinstance(y, RandomTensor)
    assert not mean(y).requires_grad and not variance(y).requires_grad
    assert_close(mean(y), expected.mean.detach(), 1e-9, "mean")
    assert_close(variance(y), expected.variance.detach(), 1e-9, "variance")
    # The gradient of their product would be neither's, so the two readings do not meet.
    for meet in (lambda: variance(z - z.detach()), lambda: covariance(z, y)):
        with pytest.raises(IntractableError, match="detached"):
            meet()


@pytest.mark.parametrize(
    "convert",
    [
        lambda z: z.to(torch.float32),
        lambda z: z.float(),
        lambda z: z.type(torch.float32),
        lambda z: z.type("torch.FloatTensor"),
        lambda z: z.to(here(), torch.float32),
        lambda z: z.type_as(torch.zeros((), dtype=torch.float32)),
    ],
)
def test_conversion_to_float32(convert):
    made = source("mvn_tril", (2, 3))
    expected = oracles.moments(lambda z: z.sum(0), made.distribution())
    y = convert(random_tensor(made.distribution())).sum(0)
    assert y.dtype is torch.float32 and mean(y).dtype is torch.float32
    assert_close(mean(y), expected.mean, 1e-5, "mean")
    assert_close(variance(y), expected.variance, 1e-5, "variance")


@pytest.mark.parametrize("kind", KINDS)
def test_float32_source(kind):
    made = source(kind, (2, 3), torch.float32)
    y = random_tensor(made.distribution()).cumsum(0) @ torch.arange(6.0).reshape(3, 2)
    double = Source([p.detach().double() for p in made.parameters], made.build)
    weights = torch.arange(6.0).double().reshape(3, 2)
    expected = oracles.moments(lambda z: z.cumsum(0) @ weights, double.distribution())
    assert mean(y).dtype is variance(y).dtype is torch.float32
    assert_close(mean(y), expected.mean, 1e-4, "mean")
    assert_close(variance(y), expected.variance, 1e-4, "variance")


def test_float32_latent_with_float64_operand_promotes():
    z = random_tensor(source("normal", (2, 3), torch.float32).distribution())
    y = z * _weights(2, 3)
    assert y.dtype is mean(y).dtype is torch.float64


def test_in_place_operators_rebind():
    made = source("normal", (2, 3))
    z = random_tensor(made.distribution())
    y = z * 1
    before = mean(z).clone()
    y += 1.0
    y *= 2.0
    assert_close(mean(y), (before + 1) * 2, 1e-12, "mean")
    assert torch.equal(mean(z), before)


def test_unsigned_operand_does_not_wrap():
    """Negating the operand to subtract it would turn 3 into 253."""
    byte = tensor([3, 0, 1], dtype=torch.uint8)
    assert_program_agrees(lambda z: z - byte, [source("normal", (2, 3))])
    assert_program_agrees(lambda z: byte - z, [source("normal", (2, 3))])
    assert_program_agrees(lambda z: z * byte, [source("normal", (2, 3))])


@pytest.mark.parametrize(
    "program",
    [
        lambda z, w: torch.where(w != 0, z / w, 0.5),
        lambda z, w: (z / w).masked_fill(w == 0, 0.5),
        lambda z, w: torch.where(w == 0, z, z / w),
    ],
)
def test_masked_out_infinities_do_not_reach_the_moments(program):
    w = tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
    made = source("mvn_tril", (2, 3))
    keep = [0, 2]
    y = program(random_tensor(made.distribution()), w)
    expected = oracles.moments(lambda z: program(z, w)[:, keep], made.distribution())
    assert torch.isfinite(mean(y)).all() and torch.isfinite(variance(y)).all()
    assert_close(variance(y)[:, keep], expected.variance, 1e-9, "variance")


def test_random_state_and_operands_are_untouched():
    w = _weights(2, 3).detach()
    before, state = w.clone(), torch.get_rng_state()
    y = (random_tensor(source("normal", (2, 3)).distribution()) * w).cumsum(0)
    mean(y), variance(y), repr(y)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(w, before)


def test_method_forms_of_the_moments_agree_with_the_functions():
    y = random_tensor(source("mvn_tril", (2, 3)).distribution()).cumsum(0)
    assert "RandomTensor" in repr(y) and "float64" in repr(y)
    assert "(2, 3)" in repr(y) or "[2, 3]" in repr(y)
    assert mean(y).shape == variance(y).shape == (2, 3)


def test_shape_errors_are_those_of_torch():
    z = random_tensor(source("normal", (2, 3)).distribution())
    for wrong in (
        lambda: z + torch.zeros(4).double(),
        lambda: z @ torch.zeros(4, 2).double(),
        lambda: z.reshape(5),
        lambda: z.expand(3, 3),
        lambda: F.linear(z, torch.zeros(2, 4).double()),
        lambda: z.permute(0, 0),
    ):
        with pytest.raises(RuntimeError):
            wrong()
    short, long = tensor([True]), tensor([True, False, True, True])
    for wrong in (lambda: z[short], lambda: z[long], lambda: z[:, long], lambda: z[short[None]]):
        with pytest.raises(IndexError):
            wrong()
    for wrong in (lambda: z[5], lambda: z[:, :, 0], lambda: z[tensor([0, 7])], lambda: z.sum(3)):
        with pytest.raises(IndexError):
            wrong()
