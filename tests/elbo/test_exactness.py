"""Linear-decoder models: every code, decoder and scale against the expected ELBO by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_silent import SilentELBO
from tests.elbo.agreement import assert_exact, new_parameters
from tests.formulas import (
    block_diagonal,
    categorical_covariance,
    dense_linear,
    expected_multivariate_normal,
    expected_normal,
    kl_bernoulli,
    kl_categorical,
    kl_multivariate_normal,
    kl_normal,
    quadratic_form,
)

BATCH, CODE, DATA = 3, 4, 6
BLOCKS, ARITY = 2, 2


class Code(NamedTuple):
    """One family of latent: its site, its input to the decoder, its moments and its KL, per row."""

    encoder_outputs: int
    prior: Callable[[], dist.Distribution]
    posterior: Callable[[Tensor], dist.Distribution]
    moments: Callable[[Tensor], tuple[Tensor, Tensor]]
    kl: Callable[[Tensor], Tensor]
    to_decoder: Callable[[Tensor], Tensor] = lambda z: z


def _square(h: Tensor) -> Tensor:
    """A well-conditioned lower triangle from encoder outputs [B, 16]."""
    matrix = h.reshape(-1, CODE, CODE).tril(-1)
    return matrix + torch.diag_embed(h.reshape(-1, CODE, CODE).diagonal(dim1=-2, dim2=-1).exp())


def _tril_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    factor = _square(h[:, CODE:])
    return h[:, :CODE], factor @ factor.mT


def _precision_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    mean, precision = _tril_moments(h)
    return mean, torch.linalg.inv(precision)


def _low_rank(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    factor = h[:, CODE : 3 * CODE].reshape(-1, CODE, 2)
    return h[:, :CODE], factor, h[:, 3 * CODE :].exp()


def _low_rank_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    mean, factor, diagonal = _low_rank(h)
    return mean, factor @ factor.mT + torch.diag_embed(diagonal)


def _standard_normal() -> dist.Distribution:
    return dist.Normal(0.0, 1.0).expand([CODE]).to_event(1)


def _multivariate(make: Callable, moments: Callable, outputs: int = CODE + CODE**2) -> Code:
    return Code(
        outputs, _standard_normal, make, moments, lambda h: kl_multivariate_normal(*moments(h))
    )


def _bernoulli_prior() -> dist.Distribution:
    return dist.Bernoulli(torch.sigmoid(pyro.param("prior"))).to_event(1)


def _bernoulli_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.sigmoid(h)
    return p, torch.diag_embed(p * (1 - p))


def _bernoulli_kl(h: Tensor) -> Tensor:
    return kl_bernoulli(torch.sigmoid(h), torch.sigmoid(pyro.param("prior"))).sum(-1)


def _one_hot_probs(h: Tensor) -> Tensor:
    return torch.softmax(h.reshape(-1, BLOCKS, ARITY), -1)


def _one_hot_moments(h: Tensor) -> tuple[Tensor, Tensor]:
    p = _one_hot_probs(h)
    return p.flatten(-2), block_diagonal(categorical_covariance(p))


def _one_hot(**arguments: Callable[[Tensor], Tensor]) -> Code:
    def prior() -> dist.Distribution:
        logits = pyro.param("prior").reshape(BLOCKS, ARITY)
        return dist.OneHotCategorical(logits=logits).to_event(1)

    def posterior(h: Tensor) -> dist.Distribution:
        made = {name: function(h) for name, function in arguments.items()}
        return dist.OneHotCategorical(**made).to_event(1)

    def kl(h: Tensor) -> Tensor:
        weights = torch.softmax(pyro.param("prior").reshape(BLOCKS, ARITY), -1)
        return kl_categorical(_one_hot_probs(h), weights).sum(-1)

    return Code(
        CODE, prior, posterior, _one_hot_moments, kl, lambda z: z.reshape(*z.shape[:-2], -1)
    )


CODES = {
    "normal": Code(
        2 * CODE,
        _standard_normal,
        lambda h: dist.Normal(h[:, :CODE], h[:, CODE:].exp()).to_event(1),
        lambda h: (h[:, :CODE], torch.diag_embed((2 * h[:, CODE:]).exp())),
        lambda h: kl_normal(h[:, :CODE], h[:, CODE:].exp()).sum(-1),
    ),
    "scale_tril": _multivariate(
        lambda h: dist.MultivariateNormal(h[:, :CODE], scale_tril=_square(h[:, CODE:])),
        _tril_moments,
    ),
    "covariance_matrix": _multivariate(
        lambda h: dist.MultivariateNormal(h[:, :CODE], covariance_matrix=_tril_moments(h)[1]),
        _tril_moments,
    ),
    "precision_matrix": _multivariate(
        lambda h: dist.MultivariateNormal(h[:, :CODE], precision_matrix=_tril_moments(h)[1]),
        _precision_moments,
    ),
    "low_rank": _multivariate(
        lambda h: dist.LowRankMultivariateNormal(*_low_rank(h)), _low_rank_moments, 4 * CODE
    ),
    "bernoulli_probs": Code(
        CODE,
        _bernoulli_prior,
        lambda h: dist.Bernoulli(torch.sigmoid(h)).to_event(1),
        _bernoulli_moments,
        _bernoulli_kl,
    ),
    "bernoulli_logits": Code(
        CODE,
        _bernoulli_prior,
        lambda h: dist.Bernoulli(logits=h).to_event(1),
        _bernoulli_moments,
        _bernoulli_kl,
    ),
    "plus_minus_one": Code(
        CODE,
        _bernoulli_prior,
        lambda h: dist.Bernoulli(logits=h).to_event(1),
        lambda h: (2 * torch.sigmoid(h) - 1, 4 * _bernoulli_moments(h)[1]),
        _bernoulli_kl,
        lambda z: 2 * z - 1,
    ),
    "one_hot_probs": _one_hot(probs=_one_hot_probs),
    "one_hot_logits": _one_hot(logits=lambda h: h.reshape(-1, BLOCKS, ARITY)),
}


def _conv_transpose() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(-1, (2, CODE // 2)), nn.ConvTranspose1d(2, 2, 2), nn.Flatten(-2)
    )


DECODERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(CODE, DATA),
    "no_bias": lambda: nn.Linear(CODE, DATA, bias=False),
    "deep_2": lambda: nn.Sequential(nn.Linear(CODE, 5), nn.Linear(5, DATA)),
    "deep_3": lambda: nn.Sequential(nn.Linear(CODE, 5), nn.Linear(5, 3), nn.Linear(3, DATA)),
    "conv_transpose": _conv_transpose,
}

SCALES: dict[str, Callable[[Tensor], Tensor | float]] = {
    "fixed": lambda x: 0.3,
    "shared": lambda x: pyro.param("scale")[0].exp(),
    "per_dimension": lambda x: pyro.param("scale").exp(),
    "per_row": lambda x: (pyro.param("scale")[0] + x.mean(-1, keepdim=True)).exp(),
    "of_the_data": lambda x: F.softplus(x * pyro.param("scale")) + 0.1,
}


def check(code: Code, make_decoder: Callable[[], nn.Module], scale: Callable, elbo=None) -> None:
    pyro.set_rng_seed(5)
    new_parameters(prior=CODE, scale=DATA)
    encoder, decoder = nn.Linear(DATA, code.encoder_outputs), make_decoder()
    data = torch.randn(BATCH, DATA)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", code.prior())
            loc = decoder(code.to_decoder(z))
            pyro.sample("x", dist.Normal(loc, scale(x)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", code.posterior(encoder(x)))

    def formula() -> Tensor:
        h = encoder(data)
        mean, covariance = code.moments(h)
        matrix, offset = dense_linear(decoder, CODE)
        residual = data - mean @ matrix.T - offset
        spread = quadratic_form(matrix, covariance)
        return code.kl(h).sum() - expected_normal(residual, spread, scale(data)).sum()

    assert_exact(model, guide, formula, data, elbo=elbo)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("code", CODES)
def test_linear_decoder(code, scale):
    check(CODES[code], DECODERS["linear"], SCALES[scale])


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "linear"])
@pytest.mark.parametrize("code", CODES)
def test_decoders_that_compose_linear_layers(code, decoder):
    check(CODES[code], DECODERS[decoder], SCALES["per_dimension"])


@pytest.mark.parametrize("code", CODES)
def test_vectorized_particles(code):
    elbo = SilentELBO(num_particles=2, vectorize_particles=True)
    check(CODES[code], DECODERS["deep_2"], SCALES["per_row"], elbo)


@pytest.mark.parametrize("law", ["normal", "bernoulli"])
@pytest.mark.parametrize("data_size", [1, 5])
@pytest.mark.parametrize("code_size", [1, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_sizes_of_one(batch, code_size, data_size, law):
    """Dims of size 1 broadcast, which is where an axis can be mistaken for a repeated one."""
    new_parameters(w=(code_size, data_size), h=(batch, code_size), log_scale=data_size)
    data = torch.randn(batch, data_size)

    def posterior() -> dist.Distribution:
        h = pyro.param("h")
        return dist.Normal(h, 0.3) if law == "normal" else dist.Bernoulli(logits=h)

    def model() -> None:
        prior = dist.Normal(0.0, 1.0) if law == "normal" else dist.Bernoulli(0.4)
        with pyro.plate("data", batch):
            z = pyro.sample("z", prior.expand([code_size]).to_event(1))
            scale = pyro.param("log_scale").exp()
            pyro.sample("x", dist.Normal(z @ pyro.param("w"), scale).to_event(1), obs=data)

    def guide() -> None:
        with pyro.plate("data", batch):
            pyro.sample("z", posterior().to_event(1))

    def formula() -> Tensor:
        w, h = pyro.param("w"), pyro.param("h")
        if law == "normal":
            mean, spread, kl = h, torch.full_like(h, 0.3**2), kl_normal(h, torch.tensor(0.3))
        else:
            mean = torch.sigmoid(h)
            spread, kl = mean * (1 - mean), kl_bernoulli(mean, 0.4)
        scale = pyro.param("log_scale").exp()
        return kl.sum() - expected_normal(data - mean @ w, spread @ w**2, scale).sum()

    assert_exact(model, guide, formula)


def test_images_from_transposed_convolutions():
    """Feature maps as a code, pixels as data (event dim 3 both), one noise per channel."""
    new_parameters(loc=(BATCH, 2, 2, 2), log_scale=(2, 2, 2), noise=(3, 1, 1))
    layers = nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2), nn.Conv2d(4, 3, 2))
    data = torch.randn(BATCH, 3, 4, 4)

    def model(x: Tensor) -> None:
        pyro.module("layers", layers)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, 2, 2), 1.0).to_event(3))
            noise = pyro.param("noise").exp()
            pyro.sample("x", dist.Normal(layers(z), noise).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scale = pyro.param("log_scale").exp()
            pyro.sample("z", dist.Normal(pyro.param("loc"), scale).to_event(3))

    def formula() -> Tensor:
        matrix, offset = dense_linear(lambda z: layers(z.reshape(-1, 2, 2, 2)), 8)
        loc, scale = pyro.param("loc").flatten(1), pyro.param("log_scale").exp().flatten()
        residual = data - (loc @ matrix.T + offset).reshape(data.shape)
        spread = (matrix**2 @ scale**2).reshape(data.shape[1:])
        noise = pyro.param("noise").exp()
        return kl_normal(loc, scale).sum() - expected_normal(residual, spread, noise).sum()

    assert_exact(model, guide, formula, data)


@pytest.mark.parametrize("code", CODES)
def test_multivariate_normal_likelihood(code):
    """A full covariance of the data: the trace term couples all dimensions of the code."""
    family = CODES[code]
    new_parameters(prior=CODE, weights=(DATA, CODE), encoder=(DATA, family.encoder_outputs))
    noise = torch.randn(DATA, DATA)
    covariance = noise @ noise.T + torch.eye(DATA)
    data = torch.randn(BATCH, DATA)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", family.prior())
            loc = family.to_decoder(z) @ pyro.param("weights").T
            pyro.sample("x", dist.MultivariateNormal(loc, covariance), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", family.posterior(x @ pyro.param("encoder")))

    def formula() -> Tensor:
        h = data @ pyro.param("encoder")
        mean, spread = family.moments(h)
        weights = pyro.param("weights")
        residual = data - mean @ weights.T
        image = weights @ spread @ weights.T
        expected = expected_multivariate_normal(residual, image, covariance)
        return family.kl(h).sum() - expected.sum()

    assert_exact(model, guide, formula, data)


@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("lookup", ["index", "embedding", "one_hot", "index_select"])
def test_categorical_code_and_lookup_table(lookup, nonlinear):
    """An integer code: the log densities at the table's rows mix with the code's probabilities.

    A function of one integer takes as many values as the integer: a nonlinear decoder is as exact.
    """
    states = 5
    new_parameters(prior=states, logits=(BATCH, states), table=(states, DATA))
    data = torch.randn(BATCH, DATA)

    def decode(row: Tensor) -> Tensor:
        return torch.tanh(row @ weights.relu()).exp() if nonlinear else row

    weights = torch.randn(DATA, DATA)
    readings = {
        "index": lambda table, z: table[z],
        "embedding": lambda table, z: F.embedding(z, table),
        "one_hot": lambda table, z: F.one_hot(z, states).to(table.dtype) @ table,
        "index_select": lambda table, z: torch.index_select(table, 0, z),
    }

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=pyro.param("prior")))
            loc = decode(readings[lookup](pyro.param("table"), z))
            pyro.sample("x", dist.Normal(loc, 0.4).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=pyro.param("logits")))

    def formula() -> Tensor:
        p, prior = (torch.softmax(pyro.param(name), -1) for name in ("logits", "prior"))
        table = decode(pyro.param("table"))
        by_state = expected_normal(data[:, None, :] - table, 0.0, 0.4).sum(-1)
        return kl_categorical(p, prior).sum() - (p * by_state).sum()

    assert_exact(model, guide, formula, data)


def test_categorical_blocks_read_from_separate_tables():
    """Several integer codes per row, each with a table of its own, summed into one location."""
    states = 3
    new_parameters(logits=(BATCH, BLOCKS, states), table=(BLOCKS, states, DATA))
    data = torch.randn(BATCH, DATA)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(BLOCKS, states)).to_event(1))
            loc = sum(pyro.param("table")[b][z[..., b]] for b in range(BLOCKS))
            pyro.sample("x", dist.Normal(loc, 0.4).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=pyro.param("logits")).to_event(1))

    def formula() -> Tensor:
        p = torch.softmax(pyro.param("logits"), -1)
        table = pyro.param("table")
        mean = torch.einsum("nbk,bkd->nd", p, table)
        spread = torch.einsum("nbkl,bkd,bld->nd", categorical_covariance(p), table, table)
        kl = kl_categorical(p, torch.full((states,), 1 / states)).sum()
        return kl - expected_normal(data - mean, spread, 0.4).sum()

    assert_exact(model, guide, formula, data)
