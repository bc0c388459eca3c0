"""Terms without a closed form: refused with a reason, or sampled alone and without bias."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from torch import Tensor, nn

from pyro_silent import IntractableError, SampledSiteWarning, SilentELBO
from tests.elbo.agreement import (
    assert_close,
    assert_entry_points_agree,
    evaluate,
    gradients_of,
    new_parameters,
)
from tests.elbo.chance import Z_LIMIT, assert_unbiased, run_many, worst_z_scores
from tests.formulas import (
    binary_codes,
    expected_normal,
    gauss_hermite_grid,
    kl_bernoulli,
    kl_categorical,
    kl_normal,
)

P = pyro.param
BATCH, CODE, DATA, STATES = 2, 2, 3, 4

quiet = pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")


def sampling(num_particles: int = 1) -> SilentELBO:
    return SilentELBO(
        intractable="sample", num_particles=num_particles, vectorize_particles=num_particles > 1
    )


def line_of(function: Callable, fragment: str) -> str:
    """``file:line`` of the one line of a function that contains a fragment."""
    lines, start = inspect.getsourcelines(function)
    (offset,) = [i for i, line in enumerate(lines) if fragment in line]
    return f"{__file__}:{start + offset}"


# Refusal


def gaussian_guide(*_) -> None:
    with pyro.plate("data", BATCH):
        fn = dist.Normal(P("loc"), P("log_scale").exp()).to_event(1)
        pyro.sample("z", fn)


def model_of(transform: Callable[[Tensor], Tensor]) -> Callable:
    def model(x: Tensor) -> None:
        with pyro.plate("data", BATCH):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(transform(z), 0.5).to_event(1), obs=x)

    return model


def deep_tanh(z: Tensor) -> Tensor:
    hidden = torch.tanh(z @ P("w1"))
    return torch.tanh(hidden @ P("w2")) @ P("w3")


def deep_relu(z: Tensor) -> Tensor:
    hidden = torch.relu(z @ P("w1"))
    return (hidden @ P("w2")).relu() @ P("w3")


def product(z: Tensor) -> Tensor:
    return (z[..., :1] * z[..., 1:]) ** 3 * P("w3")[0]


@pytest.fixture
def weights():
    new_parameters(loc=(BATCH, CODE), log_scale=(BATCH, CODE))
    new_parameters(w1=(CODE, 4), w2=(4, 4), w3=(4, DATA))


@pytest.mark.parametrize(
    ("decoder", "fragment", "operation"),
    [(deep_tanh, "z @", "tanh"), (deep_relu, "z @", "relu"), (product, "** 3", "mul|pow")],
)
def test_refusal_names_everything(weights, decoder, fragment, operation):
    """Site, operation, latent, the line where exactness was lost, and what to write instead."""
    with pytest.raises(IntractableError) as caught:
        SilentELBO().loss(model_of(decoder), gaussian_guide, torch.randn(BATCH, DATA))
    error, message = caught.value, str(caught.value)
    assert error.site == "x"
    assert re.search(operation, error.operation)
    assert error.latents == ("z",)
    assert error.location == line_of(decoder, fragment)
    for part in ("'x'", "'z'", error.operation, error.location):
        assert part in message
    assert 'intractable="sample"' in message
    assert 'infer={"silent": False}' in message


def test_refusal_points_at_the_users_call_of_a_module(weights):
    """An activation inside nn.Sequential is torch's code; the place is the line that calls it."""
    decoder = nn.Sequential(nn.Linear(CODE, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())

    def model(x: Tensor) -> None:
        with pyro.plate("data", BATCH):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            loc = decoder(z)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    with pytest.raises(IntractableError, match="tanh") as caught:
        SilentELBO().loss(model, gaussian_guide, torch.randn(BATCH, 4))
    assert caught.value.location == line_of(model, "decoder(z)")


def test_random_scale_is_refused_by_name(weights):
    def model() -> None:
        with pyro.plate("data", BATCH):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            x = torch.zeros(BATCH, CODE)
            pyro.sample("x", dist.Normal(0.0, z.sigmoid() + z.cos() ** 2).to_event(1), obs=x)

    with pytest.raises(IntractableError, match="'x'") as caught:
        SilentELBO().loss(model, gaussian_guide)
    assert re.search("sigmoid|cos", caught.value.operation)


def test_a_refused_model_leaves_the_random_state_alone(weights):
    before = torch.get_rng_state()
    with pytest.raises(IntractableError):
        SilentELBO().loss_and_grads(model_of(deep_tanh), gaussian_guide, torch.zeros(BATCH, DATA))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(leaf.grad is None for _, leaf in pyro.get_param_store().named_parameters())


def test_guide_law_without_known_moments_is_refused():
    new_parameters(rate=())

    def model() -> None:
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", dist.Gamma(3.0, P("rate").exp()))

    with pytest.raises(IntractableError, match="guide site 'z'.*Gamma") as caught:
        SilentELBO().loss(model, guide)
    assert caught.value.site == "z"
    assert caught.value.latents == ("z",)
    assert 'infer={"silent": False}' in str(caught.value)


def test_auxiliary_guide_law_without_known_moments_is_refused():
    """Being auxiliary does not make a noisy site silent."""
    new_parameters(rate=())

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        u = pyro.sample("u", dist.Gamma(3.0, P("rate").exp()), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(u, 1.0))

    with pytest.raises(IntractableError, match="guide site 'u'.*Gamma"):
        SilentELBO().loss(model, guide)


# Sampling: warnings, and noise that comes from one site alone


def sampled_warnings(elbo, model, guide, *args, times: int = 1) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            elbo.loss_and_grads(model, guide, *args)
    return [str(w.message) for w in caught if issubclass(w.category, SampledSiteWarning)]


def two_views(with_exact: bool = True, prior_scale: float = 1.0) -> Callable:
    """One observed site behind a deep decoder, and one that is linear in the same latent."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", BATCH):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), prior_scale).to_event(1))
            pyro.sample("deep", dist.Normal(deep_tanh(z), 0.5).to_event(1), obs=x)
            if with_exact:
                pyro.sample("linear", dist.Normal(z @ P("v"), 0.01).to_event(1), obs=x)

    return model


def test_one_warning_per_sampled_site(weights):
    elbo = sampling()
    x = torch.randn(BATCH, DATA)
    (message,) = sampled_warnings(elbo, model_of(deep_relu), gaussian_guide, x, times=3)
    assert "'x'" in message
    assert "relu" in message
    assert line_of(deep_relu, "z @") in message
    new_parameters(v=(CODE, DATA))
    messages = sampled_warnings(sampling(), two_views(), gaussian_guide, x, times=2)
    assert len(messages) == 1
    assert "'deep'" in messages[0]


def test_exact_models_do_not_warn(weights):
    x = torch.randn(BATCH, 4)
    assert not sampled_warnings(sampling(), model_of(lambda z: z @ P("w1")), gaussian_guide, x)


def test_an_exact_loss_draws_nothing(weights):
    """``intractable="sample"`` costs no draw where nothing is intractable."""
    x = torch.randn(BATCH, 4)
    before = torch.get_rng_state()
    sampling().loss_and_grads(model_of(lambda z: z @ P("w1")), gaussian_guide, x)
    assert torch.equal(torch.get_rng_state(), before)


@quiet
@pytest.mark.parametrize("family", ["normal", "bernoulli", "one_hot_blocks"])
def test_noise_comes_from_the_sampled_site_alone(family):
    """An exact site and another prior shift loss and gradient by the same at all seeds."""
    latent = FAMILIES[family]
    x = torch.randn(BATCH, DATA)
    latent.new_parameters()
    new_parameters(w1=(latent.width, 4), w2=(4, DATA), v=(latent.width, DATA))

    def model(with_exact: bool) -> Callable:
        def run(x: Tensor) -> None:
            with pyro.plate("data", BATCH):
                z = pyro.sample("z", latent.prior(0.3 if with_exact else 0.5))
                code = latent.code(z)
                pyro.sample("deep", dist.Normal(deep(code), 0.5).to_event(1), obs=x)
                if with_exact:
                    pyro.sample("linear", dist.Normal(code @ P("v"), 0.01).to_event(1), obs=x)

        return run

    losses, gradients = run_many(sampling(), model(True), latent.guide, x, runs=5)
    bare_losses, bare_gradients = run_many(sampling(), model(False), latent.guide, x, runs=5)
    assert losses.std() > 1e-3
    nodes, probabilities = latent.nodes()
    linear = expected_normal(x - nodes @ P("v"), 0.0, 0.01).sum(-1)
    shift = latent.kl(0.3).sum() - latent.kl(0.5).sum() - (probabilities * linear).sum()
    for change in losses - bare_losses:
        assert_close(change, shift, 1e-9, "shift of the loss")
    for name, truth in gradients_of(shift).items():
        bare = bare_gradients.get(name, torch.zeros(5, *truth.shape))
        for change in gradients[name] - bare:
            assert_close(change, truth, 1e-7, f"shift of the gradient of {name}")


# Sampling: no bias


class Family(NamedTuple):
    """A local latent: its guide, its nodes and probabilities (a truth), its KL to a prior."""

    width: int
    new_parameters: Callable[[], None]
    fn: Callable[[], dist.Distribution]
    prior: Callable[[float], dist.Distribution]
    code: Callable[[Tensor], Tensor]
    nodes: Callable[[], tuple[Tensor, Tensor]]
    kl: Callable[[float], Tensor]
    infer: dict | None = None

    def guide(self, *_) -> None:
        with pyro.plate("data", BATCH):
            pyro.sample("z", self.fn(), infer=self.infer)


def deep(code: Tensor) -> Tensor:
    return torch.tanh(3.0 * torch.tanh(2.0 * code @ P("w1")) @ P("w2"))


def _gaussian_nodes() -> tuple[Tensor, Tensor]:
    grid, probabilities = gauss_hermite_grid(CODE)
    return P("loc") + P("log_scale").exp() * grid[:, None, :], probabilities[:, None]


def _binary_nodes() -> tuple[Tensor, Tensor]:
    values, probabilities = zip(*binary_codes(torch.sigmoid(P("logits"))), strict=True)
    return torch.stack(values)[:, None, :], torch.stack(probabilities)


def _state_nodes() -> tuple[Tensor, Tensor]:
    return torch.eye(STATES)[:, None, :], torch.softmax(P("logits"), -1).T


def _state_prior(first: float) -> Tensor:
    return torch.tensor([first] + [(1 - first) / (STATES - 1)] * (STATES - 1))


def _block_prior(first: float) -> Tensor:
    return torch.tensor([first, (1 - first) / 2, (1 - first) / 2])


def _state_kl(first: float) -> Tensor:
    return kl_categorical(torch.softmax(P("logits"), -1), _state_prior(first))


GAUSSIAN = Family(
    CODE,
    lambda: new_parameters(loc=(BATCH, CODE), log_scale=(BATCH, CODE)),
    lambda: dist.Normal(P("loc"), P("log_scale").exp()).to_event(1),
    lambda scale: dist.Normal(torch.zeros(CODE), scale).to_event(1),
    lambda z: z,
    _gaussian_nodes,
    lambda scale: kl_normal(P("loc"), P("log_scale").exp(), 0.0, scale),
)
BERNOULLI = Family(
    CODE,
    lambda: new_parameters(logits=(BATCH, CODE)),
    lambda: dist.Bernoulli(logits=P("logits")).to_event(1),
    lambda p: dist.Bernoulli(torch.tensor([p] * CODE)).to_event(1),
    lambda z: z,
    _binary_nodes,
    lambda p: kl_bernoulli(torch.sigmoid(P("logits")), p),
)
ONE_HOT = Family(
    STATES,
    lambda: new_parameters(logits=(BATCH, STATES)),
    lambda: dist.OneHotCategorical(logits=P("logits")),
    lambda first: dist.OneHotCategorical(_state_prior(first)),
    lambda z: z,
    _state_nodes,
    _state_kl,
)
CATEGORICAL = ONE_HOT._replace(
    fn=lambda: dist.Categorical(logits=P("logits")),
    prior=lambda first: dist.Categorical(_state_prior(first)),
    code=lambda z: torch.eye(STATES)[z],
)


def _block_nodes() -> tuple[Tensor, Tensor]:
    p = torch.softmax(P("logits"), -1)
    pairs = [(i, j) for i in range(3) for j in range(3)]
    nodes = torch.stack([torch.eye(3)[[i, j]].flatten() for i, j in pairs])
    return nodes[:, None, :], torch.stack([p[:, 0, i] * p[:, 1, j] for i, j in pairs])


BLOCKS = Family(
    6,
    lambda: new_parameters(logits=(BATCH, 2, 3)),
    lambda: dist.OneHotCategorical(logits=P("logits")).to_event(1),
    lambda first: dist.OneHotCategorical(_block_prior(first).expand(2, 3)).to_event(1),
    lambda z: z.flatten(-2),
    _block_nodes,
    lambda first: kl_categorical(torch.softmax(P("logits"), -1), _block_prior(first)),
)
OPTED_OUT = {"silent": False}


FAMILIES = {
    "normal": GAUSSIAN,
    "normal_opted_out": GAUSSIAN._replace(infer=OPTED_OUT),
    "normal_opted_out_scored": GAUSSIAN._replace(
        fn=lambda: NonreparameterizedNormal(P("loc"), P("log_scale").exp()).to_event(1),
        infer=OPTED_OUT,
    ),
    "bernoulli": BERNOULLI,
    "bernoulli_opted_out": BERNOULLI._replace(infer=OPTED_OUT),
    "one_hot": ONE_HOT,
    "one_hot_opted_out": ONE_HOT._replace(infer=OPTED_OUT),
    "one_hot_blocks": BLOCKS,
    "categorical": CATEGORICAL,
    "categorical_opted_out": CATEGORICAL._replace(infer=OPTED_OUT),
}


def deep_pair(latent: Family) -> tuple[Callable, Callable[[], Tensor], Tensor]:
    """A deep decoder of a family, and its negative ELBO by quadrature or enumeration."""
    latent.new_parameters()
    new_parameters(w1=(latent.width, 4), w2=(4, DATA))
    x = torch.randn(BATCH, DATA)

    def model(x: Tensor) -> None:
        with pyro.plate("data", BATCH):
            z = pyro.sample("z", latent.prior(0.5))
            loc = deep(latent.code(z))
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def formula() -> Tensor:
        nodes, probabilities = latent.nodes()
        likelihood = expected_normal(x - deep(nodes), 0.0, 0.5).sum(-1)
        return latent.kl(0.5).sum() - (probabilities * likelihood).sum()

    return model, formula, x


@quiet
@pytest.mark.parametrize("family", FAMILIES)
def test_deep_decoder_is_unbiased(family):
    latent = FAMILIES[family]
    model, formula, x = deep_pair(latent)
    evaluate(sampling(), model, latent.guide, x)
    assert_unbiased(sampling(100), model, latent.guide, formula(), x)


@quiet
@pytest.mark.parametrize("family", ["normal", "bernoulli"])
def test_the_mean_of_a_deep_decoder_would_be_caught(family):
    """The z-test rejects the plug-in f(E[z]), which is what a silent leak would compute."""
    latent = FAMILIES[family]
    model, formula, x = deep_pair(latent)
    evaluate(sampling(), model, latent.guide, x)
    nodes, probabilities = latent.nodes()
    mean = (probabilities[..., None] * nodes).sum(0)
    wrong = latent.kl(0.5).sum() - expected_normal(x - deep(mean), 0.0, 0.5).sum()
    worst = worst_z_scores(sampling(100), model, latent.guide, wrong, x)
    assert worst["loss"] > 2 * Z_LIMIT


@quiet
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_entry_points_agree_at_a_seed(family, num_particles):
    latent = FAMILIES[family]
    model, _, x = deep_pair(latent)
    assert_entry_points_agree(sampling(num_particles), model, latent.guide, x)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "opted_out" in name])
def test_opted_out_latents_are_pyros_own_samples(family):
    """The model sees what the guide draws; only the divergence from the prior is exact."""
    latent = FAMILIES[family]
    model, _, x = deep_pair(latent)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SampledSiteWarning)
        loss, gradients = evaluate(SilentELBO(), model, latent.guide, x, seed=7)
    pyro.set_rng_seed(7)
    drawn = poutine.trace(latent.guide).get_trace()
    replayed = poutine.trace(poutine.replay(model, drawn)).get_trace(x)
    replayed.compute_log_prob()
    expected = latent.kl(0.5).sum() - replayed.nodes["x"]["log_prob_sum"]
    assert_close(loss, expected, 1e-12, "loss")
    truth = gradients_of(expected)
    for name in truth if latent.fn().has_rsample else ("w1", "w2"):
        assert_close(gradients[name], truth[name], 1e-12, f"gradient of {name}")


@quiet
@pytest.mark.parametrize("family", ["normal", "bernoulli"])
def test_scale_and_mask_of_a_sampled_term(family):
    latent = FAMILIES[family]
    model, _, x = deep_pair(latent)
    mask, scale = torch.tensor([True, False]), 2.5
    nodes, probabilities = latent.nodes()
    model = poutine.scale(poutine.mask(model, mask=mask), scale=scale)
    guide = poutine.scale(poutine.mask(latent.guide, mask=mask), scale=scale)
    evaluate(sampling(), model, guide, x)
    likelihood = (probabilities * expected_normal(x - deep(nodes), 0.0, 0.5).sum(-1)).sum(0)
    truth = scale * latent.kl(0.5)[mask].sum()
    truth = truth - scale * likelihood[mask].sum()
    assert_unbiased(sampling(100), model, guide, truth, x)


@quiet
@pytest.mark.parametrize("vectorized", [False, True])
def test_discrete_latents_and_sampled_terms_in_different_plates(vectorized):
    """Bits of an outer plate read in an inner one: the score weight sums the inner plate only."""
    new_parameters(logits=3, w=(3, 2))
    data = torch.randn(3, 2)

    def model() -> None:
        if vectorized:
            with pyro.plate("outer", 3, dim=-2):
                z = pyro.sample("z", dist.Bernoulli(0.4))
                with pyro.plate("inner", 2, dim=-1):
                    pyro.sample("x", dist.Normal(torch.tanh(P("w") * z).exp(), 0.5), obs=data)
            return
        for i in pyro.plate("outer", 3):
            z = pyro.sample(f"z_{i}", dist.Bernoulli(0.4))
            with pyro.plate(f"inner_{i}", 2):
                pyro.sample(
                    f"x_{i}", dist.Normal(torch.tanh(P("w")[i] * z).exp(), 0.5), obs=data[i]
                )

    def guide() -> None:
        if vectorized:
            with pyro.plate("outer", 3, dim=-2):
                pyro.sample("z", dist.Bernoulli(logits=P("logits")[:, None]))
            return
        for i in pyro.plate("outer", 3):
            pyro.sample(f"z_{i}", dist.Bernoulli(logits=P("logits")[i]))

    p, w = torch.sigmoid(P("logits")), P("w")
    on = expected_normal(data - torch.tanh(w).exp(), 0.0, 0.5).sum(-1)
    off = expected_normal(data - 1.0, 0.0, 0.5).sum(-1)
    truth = kl_bernoulli(p, 0.4).sum() - (p * on + (1 - p) * off).sum()
    evaluate(sampling(), model, guide)
    assert_unbiased(sampling(50), model, guide, truth)


@quiet
def test_sampled_term_of_a_latent_summed_over_its_plate():
    """One nonlinear observation of all bits: every bit's score weight is the whole term."""
    new_parameters(logits=3, w=3)

    def model() -> None:
        with pyro.plate("bits", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
        loc = torch.exp((P("w") * z).sum(-1, keepdim=True)).sin()  # [particles, 1]
        pyro.sample("x", dist.Normal(loc, 0.5), obs=torch.tensor(0.7))

    def guide() -> None:
        with pyro.plate("bits", 3):
            pyro.sample("z", dist.Bernoulli(logits=P("logits")))

    p, w = torch.sigmoid(P("logits")), P("w")
    terms = [
        probability * expected_normal(0.7 - torch.exp((w * z).sum()).sin(), 0.0, 0.5)
        for z, probability in binary_codes(p)
    ]
    truth = kl_bernoulli(p, 0.4).sum() - sum(terms)
    elbo = SilentELBO(
        intractable="sample", num_particles=100, vectorize_particles=True, max_plate_nesting=1
    )
    evaluate(elbo, model, guide)
    assert_unbiased(elbo, model, guide, truth)


@quiet
def test_subsampled_plate_with_a_sampled_term():
    """Rows and latents are both drawn: the mean is the full loss."""
    new_parameters(loc=4, w=())
    data = torch.randn(4)

    def model() -> None:
        with pyro.plate("data", 4, subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.tanh(P("w") * z).exp(), 0.5), obs=data[rows])

    def guide() -> None:
        with pyro.plate("data", 4, subsample_size=2) as rows:
            pyro.sample("z", dist.Normal(P("loc")[rows], 0.6))

    grid, probabilities = gauss_hermite_grid(1, 60)
    nodes = P("loc") + 0.6 * grid
    likelihood = expected_normal(data - torch.tanh(P("w") * nodes).exp(), 0.0, 0.5)
    truth = kl_normal(P("loc"), torch.tensor(0.6)).sum()
    truth = truth - (probabilities[:, None] * likelihood).sum()
    evaluate(sampling(), model, guide)
    assert_unbiased(sampling(50), model, guide, truth, runs=100)
