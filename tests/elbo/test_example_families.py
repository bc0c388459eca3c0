"""The families of the examples: factors, mixtures, trends and variances, each against its formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor
from torch import distributions as td

import factorisation
import gaussian_mixture
import local_linear_trend
import log_linear_variance
from fitting import fresh_guide
from pyro_silent import SilentELBO
from tests.elbo.agreement import assert_close, assert_exact, evaluate, new_parameters
from tests.elbo.codes import ARITY, BATCH, BLOCKS, CODE, CODES, DATA, Code
from tests.formulas import (
    LOG_2PI,
    binary_codes,
    block_diagonal,
    categorical_covariance,
    expected_normal,
    gauss_hermite_grid,
    kl_categorical,
    kl_normal,
)

P = pyro.param


# A code whose decoder gives the mean and the log variance

Tilted = tuple[Tensor, Tensor, Tensor]  # log E[exp(-v.z)]; mean and covariance under that tilt


def tilt_gaussian(mean: Tensor, covariance: Tensor, v: Tensor) -> Tilted:
    """The mean moves by -S v, the covariance stays."""
    shift = torch.einsum("bkl,dl->bdk", covariance, v)
    log_norm = -mean @ v.T + 0.5 * (shift * v).sum(-1)
    return log_norm, mean.unsqueeze(1) - shift, covariance.unsqueeze(1)


def tilt_bernoulli(mean: Tensor, covariance: Tensor, v: Tensor) -> Tilted:
    """``p e^-v / (1 - p + p e^-v)``, bit by bit."""
    p, weight = mean.unsqueeze(1), (-v).exp()
    norm = 1 - p + p * weight
    tilted = p * weight / norm
    return norm.log().sum(-1), tilted, torch.diag_embed(tilted * (1 - tilted))


def tilt_plus_minus_one(mean: Tensor, covariance: Tensor, v: Tensor) -> Tilted:
    """Bits b with z = 2 b - 1."""
    log_norm, p, spread = tilt_bernoulli((mean + 1) / 2, covariance, 2 * v)
    return log_norm + v.sum(-1), 2 * p - 1, 4 * spread


def tilt_one_hot(mean: Tensor, covariance: Tensor, v: Tensor) -> Tilted:
    """Probabilities proportional to ``p e^-v``, block by block."""
    weighted = (mean.unsqueeze(1) * (-v).exp()).unflatten(-1, (BLOCKS, ARITY))
    norm = weighted.sum(-1, keepdim=True)
    tilted = weighted / norm
    spread = block_diagonal(categorical_covariance(tilted))
    return norm.log().sum((-2, -1)), tilted.flatten(-2), spread


TILTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tilted]] = {
    "normal": tilt_gaussian,
    "scale_tril": tilt_gaussian,
    "precision_matrix": tilt_gaussian,
    "low_rank": tilt_gaussian,
    "bernoulli_probs": tilt_bernoulli,
    "bernoulli_logits": tilt_bernoulli,
    "plus_minus_one": tilt_plus_minus_one,
    "one_hot_probs": tilt_one_hot,
    "one_hot_logits": tilt_one_hot,
}


@pytest.mark.parametrize(
    "family, form",
    [
        *((family, "exp") for family in TILTS),
        *(
            (family, form)
            for family in ("normal", "bernoulli_logits", "one_hot_logits")
            for form in ("sqrt_exp", "log_normal")
        ),
    ],
)
def test_log_variance_linear_in_the_code(family, form):
    """E log p = -1/2 sum log 2 pi + v.m + c + N e^-c ((x - b - w.m~)^2 + w' S~ w)."""
    code: Code = CODES[family]
    new_parameters(
        prior=CODE, encoder=(DATA, code.encoder_outputs), w=(DATA, CODE), v=(DATA, CODE), c=DATA
    )
    data = torch.randn(BATCH, DATA)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = code.to_decoder(pyro.sample("z", code.prior()))
            loc, log_variance = F.linear(z, P("w")), F.linear(z, P("v"), P("c"))
            if form == "log_normal":
                law = dist.LogNormal(loc, (0.5 * log_variance).exp())
                pyro.sample("x", law.to_event(1), obs=x.exp())
            else:
                scale = (0.5 * log_variance).exp() if form == "exp" else log_variance.exp().sqrt()
                pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", code.posterior(x @ P("encoder")))

    def formula() -> Tensor:
        h = data @ P("encoder")
        mean, covariance = code.moments(h)
        log_norm, tilted, spread = TILTS[family](mean, covariance, P("v"))
        square = (data - (tilted * P("w")).sum(-1)).square()
        square = square + torch.einsum("dk,...dkl,dl->...d", P("w"), spread, P("w"))
        terms = mean @ P("v").T + P("c") + (log_norm - P("c")).exp() * square
        jacobian = data.sum() if form == "log_normal" else 0.0
        return code.kl(h).sum() + 0.5 * (LOG_2PI + terms).sum() + jacobian

    assert_exact(model, guide, formula, data)


def test_the_tilts_are_those_of_enumeration():
    """The truths above, for bits, against a sum over all codes."""
    p, v = torch.rand(BATCH, CODE), torch.randn(DATA, CODE)
    log_norm, mean, _ = tilt_bernoulli(p, p, v)
    norm = sum(weight.unsqueeze(-1) * (-(v @ z)).exp() for z, weight in binary_codes(p))
    first = sum(
        (weight.unsqueeze(-1) * (-(v @ z)).exp()).unsqueeze(-1) * z for z, weight in binary_codes(p)
    )
    assert_close(log_norm, norm.log(), 1e-12, "log norm")
    assert_close(mean, first / norm.unsqueeze(-1), 1e-12, "tilted mean")


def test_regression_of_mean_and_log_variance():
    """The example's model under the guide by hand, by dense quadrature of one household at a time."""
    mean_terms, variance_terms = torch.randn(4, 2), torch.randn(4, 2)
    spent = torch.randn(4)
    data = (mean_terms, variance_terms, spent)
    guide = log_linear_variance.hand_guide
    guide(*data)
    nodes, weights = gauss_hermite_grid(2, 40)

    def formula() -> Tensor:
        kl, moments = torch.tensor(0.0), []
        for name, terms, prior in (
            ("slope", mean_terms, 5.0),
            ("log_variance_slope", variance_terms, 2.0),
        ):
            loc, scale = P(f"{name}_loc"), P(f"{name}_scale")
            kl = kl + kl_normal(loc, scale, 0.0, prior).sum()
            moments.append((terms @ loc, (terms.square() @ scale.square()).sqrt()))
        (mean, mean_std), (log_variance, log_variance_std) = moments
        location = mean + mean_std * nodes[:, :1]
        deviation = (0.5 * (log_variance + log_variance_std * nodes[:, 1:])).exp()
        return kl - weights @ td.Normal(location, deviation).log_prob(spent).sum(-1)

    assert_exact(log_linear_variance.expenditure, guide, formula, *data)


# Matrix factorisation


def test_factorisation():
    """Var(u.v) of independent factors, times E[noise^-2] of a log-normal."""
    rows, columns = torch.tensor([0, 0, 1, 2, 3, 3]), torch.tensor([0, 2, 1, 1, 0, 2])
    values = torch.randn(6)
    shape, num_factors = (4, 3), 2
    sizes = {"shape": shape, "num_factors": num_factors}

    def model(*data: Tensor) -> None:
        factorisation.factorisation(*data, **sizes)

    def guide(*data: Tensor) -> None:
        factorisation.hand_guide(*data, **sizes)

    guide(rows, columns, values)

    def formula() -> Tensor:
        names = ("country", "u", "year", "v")
        mean = {n: P(f"{n}_loc") for n in names}
        scale = {n: P(f"{n}_scale") for n in names}
        kl = sum(kl_normal(mean[n], scale[n]).sum() for n in names)
        log_noise, spread = P("log_noise"), P("log_spread")
        kl = kl + kl_normal(log_noise, spread, -1.0, 1.0)
        u, v, su, sv = mean["u"][rows], mean["v"][columns], scale["u"][rows], scale["v"][columns]
        residual = values - mean["country"][rows] - mean["year"][columns] - (u * v).sum(-1)
        product = (u * sv).square() + (v * su).square() + (su * sv).square()
        variance = scale["country"][rows].square() + scale["year"][columns].square()
        square = residual.square() + variance + product.sum(-1)
        precision = (2 * spread.square() - 2 * log_noise).exp()
        return kl + 0.5 * (LOG_2PI + 2 * log_noise + precision * square).sum()

    assert_exact(model, guide, formula, rows, columns, values)


# Mixtures


@pytest.mark.parametrize("way", gaussian_mixture.WAYS)
def test_mixture(way):
    """Each group's expected log density, weighted with the group's probability."""
    flowers = torch.randn(7, 2)
    problem = gaussian_mixture.WAYS[way].problem(flowers)
    guide = fresh_guide(gaussian_mixture.WAYS[way].maker(flowers), problem, jitter=0.3)

    def formula() -> Tensor:
        mean, spread = guide.means_loc, guide.means_scale
        log_deviation, uncertainty = guide.log_deviation_loc, guide.log_deviation_scale
        kl = kl_normal(mean, spread).sum()
        kl = kl + kl_normal(log_deviation, uncertainty, *gaussian_mixture.PRIOR_LOG_DEVIATION).sum()
        groups = guide.logits.softmax(-1)
        kl = kl + kl_categorical(groups, torch.full((3,), 1 / 3)).sum()
        squares = (flowers.unsqueeze(1) - mean).square() + spread.square()
        precision = (2 * uncertainty.square() - 2 * log_deviation).exp()
        terms = 0.5 * (LOG_2PI + 2 * log_deviation + precision * squares).sum(-1)
        return kl + (groups * terms).sum()

    assert_exact(problem.model, guide, formula, flowers)


@pytest.mark.parametrize("way", ["enumerated", "index"])
def test_mixture_with_a_deviation_for_each_group(way):
    """Location and scale are both picked by the group."""
    x = torch.randn(6)
    new_parameters(mean=3, spread=3, log_scale=3, uncertainty=3, logits=(6, 3))
    infer = {"enumerate": "parallel"} if way == "enumerated" else {}

    def model() -> None:
        mean = pyro.sample("means", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        scale = pyro.sample("scales", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(mean[z], scale[z]), obs=x)

    def guide() -> None:
        pyro.sample("means", dist.Normal(P("mean"), P("spread").exp()).to_event(1))
        pyro.sample("scales", dist.LogNormal(P("log_scale"), P("uncertainty").exp()).to_event(1))
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Categorical(logits=P("logits")), infer=infer)

    def formula() -> Tensor:
        kl = kl_normal(P("mean"), P("spread").exp(), 0.0, 2.0).sum()
        kl = kl + kl_normal(P("log_scale"), P("uncertainty").exp()).sum()
        groups = P("logits").softmax(-1)
        kl = kl + kl_categorical(groups, torch.full((3,), 1 / 3)).sum()
        square = (x.unsqueeze(-1) - P("mean")).square() + (2 * P("spread")).exp()
        precision = (2 * (2 * P("uncertainty")).exp() - 2 * P("log_scale")).exp()
        terms = 0.5 * (LOG_2PI + 2 * P("log_scale") + precision * square)
        return kl + (groups * terms).sum()

    assert_exact(model, guide, formula)


# Trends


def states(num_years: int) -> tuple[Tensor, Tensor]:
    """Levels = offset + matrix @ (first level, first slope, level shocks, slope shocks)."""
    steps = num_years - 1

    def levels(z: Tensor) -> Tensor:
        first_level, first_slope, level_shock, slope_shock = z.split([1, 1, steps, steps])
        return local_linear_trend.drift(first_level[0], first_slope[0], level_shock, slope_shock)

    (level, level_deviation), (slope, slope_deviation) = (
        local_linear_trend.FIRST_LEVEL,
        local_linear_trend.FIRST_SLOPE,
    )
    first = torch.eye(2 + 2 * steps)
    first[0, 0], first[1, 1] = level_deviation, slope_deviation
    offset = torch.zeros(2 + 2 * steps)
    offset[0], offset[1] = level, slope
    zero = levels(torch.zeros_like(offset))
    matrix = torch.stack([levels(row) - zero for row in first], -1)
    return levels(offset), matrix


def test_trend_with_unknown_scales():
    """Independent Gaussians: E[1 / scale^2] times second moments of shocks and of residuals."""
    flow = torch.randn(5) + 11.0
    model = local_linear_trend.unknown_scales
    names = ["first_level", "first_slope", "level_shock", "slope_shock"]
    sizes = dict(zip(names, [(), (), (4,), (4,)], strict=True))
    scales = {f"{name}_scale": math.log(s) for name, s in local_linear_trend.SCALES.items()}
    new_parameters(**{f"{n}_m": sizes.get(n, ()) for n in [*names, *scales]})
    new_parameters(**{f"{n}_s": sizes.get(n, ()) for n in [*names, *scales]})

    def guide(flow: Tensor) -> None:
        for name in scales:
            pyro.sample(name, dist.LogNormal(P(f"{name}_m"), 0.3 * P(f"{name}_s").exp()))
        for name in names[:2]:
            pyro.sample(name, dist.Normal(P(f"{name}_m"), P(f"{name}_s").exp()))
        with pyro.plate("steps", 4):
            for name in names[2:]:
                pyro.sample(name, dist.Normal(P(f"{name}_m"), P(f"{name}_s").exp()))

    def formula() -> Tensor:
        spread = local_linear_trend.LOG_SPREAD
        kl = sum(
            kl_normal(P(f"{n}_m"), 0.3 * P(f"{n}_s").exp(), guess, spread)
            for n, guess in scales.items()
        )
        kl = kl + sum(kl_normal(P(f"{n}_m"), P(f"{n}_s").exp()).sum() for n in names[:2])
        precision = {
            n: (2 * (0.3 * P(f"{n}_s").exp()).square() - 2 * P(f"{n}_m")).exp() for n in scales
        }
        for n in names[2:]:
            scale = n.replace("shock", "scale")
            square = P(f"{n}_m").square() + (2 * P(f"{n}_s")).exp()
            kl = kl + 0.5 * (LOG_2PI + 2 * P(f"{scale}_m") + precision[scale] * square).sum()
            kl = kl - (0.5 * (LOG_2PI + 1) + P(f"{n}_s")).sum()  # entropy
        offset, matrix = states(5)
        mean = torch.cat([P(f"{n}_m").reshape(-1) for n in names])
        variance = torch.cat([(2 * P(f"{n}_s")).exp().reshape(-1) for n in names])
        square = (flow - offset - matrix @ mean).square() + matrix.square() @ variance
        terms = 2 * P("flow_scale_m") + precision["flow_scale"] * square
        return kl + 0.5 * (LOG_2PI + terms).sum()

    assert_exact(model, guide, formula, flow)


def test_the_filter_is_the_dense_evidence():
    """The truth of the example: a multivariate normal density of all flows."""
    flow = torch.randn(8) + 11.0
    scales = [torch.tensor(s) for s in local_linear_trend.SCALES.values()]
    offset, matrix = states(8)
    deviations = torch.cat([torch.ones(2), scales[0].expand(7), scales[1].expand(7)])
    covariance = (matrix * deviations.square()) @ matrix.T + scales[2].square() * torch.eye(8)
    dense = td.MultivariateNormal(offset, covariance).log_prob(flow)
    assert_close(local_linear_trend.log_evidence(flow, *scales), dense, 1e-12, "log evidence")


def test_a_markov_chain_at_the_posterior_has_the_evidence_for_its_loss():
    """Two-dimensional states, each drawn given the last: -ELBO = -log p(y), and no gradient."""
    num, noise = 5, 0.7
    y = torch.randn(num)
    move = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    spread = torch.tensor([0.5, 0.2])

    def model() -> None:
        state = torch.zeros(2)
        for t in pyro.markov(range(num)):
            state = pyro.sample(f"state_{t}", dist.Normal(state @ move.T, spread).to_event(1))
            pyro.sample(f"y_{t}", dist.Normal(state[0], noise), obs=y[t])

    # All states together are a Gaussian with precision D' D / spread^2 + the observations'.
    size = 2 * num
    change = torch.eye(size)
    for t in range(1, num):
        change[2 * t : 2 * t + 2, 2 * t - 2 : 2 * t] = -move
    whitened = change / spread.repeat(num).unsqueeze(-1)
    observed = torch.eye(size)[::2]
    precision = whitened.T @ whitened + observed.T @ observed / noise**2
    covariance = precision.inverse()
    mean = covariance @ observed.T @ y / noise**2
    marginal = observed @ (whitened.T @ whitened).inverse() @ observed.T + noise**2 * torch.eye(num)
    evidence = td.MultivariateNormal(torch.zeros(num), marginal).log_prob(y)

    for t in range(num):
        now, last = slice(2 * t, 2 * t + 2), slice(max(2 * t - 2, 0), 2 * t)
        regress = covariance[now, last] @ covariance[last, last].inverse()
        left = covariance[now, now] - regress @ covariance[last, now]
        P(f"offset_{t}", mean[now] - regress @ mean[last])
        P(f"matrix_{t}", regress)
        P(f"tril_{t}", torch.linalg.cholesky(left), constraint=constraints.lower_cholesky)

    def guide() -> None:
        state = torch.zeros(0)
        for t in pyro.markov(range(num)):
            loc = P(f"offset_{t}")
            loc = loc + state @ P(f"matrix_{t}").T if t else loc
            law = dist.MultivariateNormal(loc, scale_tril=P(f"tril_{t}"))
            state = pyro.sample(f"state_{t}", law)

    loss, gradients = evaluate(SilentELBO(), model, guide)
    assert_close(loss, -evidence, 1e-9, "loss")
    assert max(g.abs().max().item() for g in gradients.values() if g.numel()) < 1e-8
    with torch.no_grad():
        P("offset_2").add_(0.1)
    moved, gradients = evaluate(SilentELBO(), model, guide)
    assert moved > loss + 1e-3
    assert gradients["offset_2"].abs().max() > 1e-2


def test_expected_normal_is_the_limit_of_no_tilt():
    """With v = 0 the variance is plain, and the two truths of this folder meet."""
    mean, covariance = CODES["normal"].moments(torch.randn(BATCH, 2 * CODE))
    v, w, x = torch.zeros(DATA, CODE), torch.randn(DATA, CODE), torch.randn(BATCH, DATA)
    log_norm, tilted, spread = tilt_gaussian(mean, covariance, v)
    square = (x - (tilted * w).sum(-1)).square() + torch.einsum(
        "dk,bdkl,dl->bd", w, spread.expand(BATCH, DATA, CODE, CODE), w
    )
    terms = -0.5 * (LOG_2PI + log_norm.exp() * square)
    variance = (w.square() * covariance.diagonal(dim1=-2, dim2=-1).unsqueeze(1)).sum(-1)
    assert_close(terms, expected_normal(x - mean @ w.T, variance, 1.0), 1e-12, "terms")
