"""Sites of the guide with ``infer={"enumerate": "parallel"}``: all values side by side, weighted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import hypothesis
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import strategies
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import TraceEnum_ELBO, autoguide, config_enumerate
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_silent import ConfigurationError, IntractableError, LeakError, SilentELBO
from tests.elbo.agreement import (
    assert_close,
    assert_exact,
    evaluate,
    gradients_of,
    leaves,
    new_parameters,
)
from tests.elbo.chance import assert_unbiased
from tests.elbo.oracle import negative_elbo
from tests.formulas import (
    binary_codes,
    gauss_hermite,
    gauss_hermite_grid,
    kl_bernoulli,
    kl_normal,
)

P = pyro.param
PARALLEL = {"enumerate": "parallel"}
WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


# Programs with discrete latents only: TraceEnum_ELBO is exact for them


class Mixture:
    """Assignments in a plate."""

    def __init__(self) -> None:
        new_parameters(logits=(4, 3), mean=3)
        self.x = torch.randn(4)

    def model(self) -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Normal(P("mean")[z], 0.7), obs=self.x)

    @config_enumerate
    def guide(self) -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Categorical(logits=P("logits")))


class Parents:
    """A global bit, local states whose guide depends on it, and a second local site on both."""

    def __init__(self) -> None:
        new_parameters(bit=(), logits=(2, 4, 3), second=(2, 3), mean=(2, 3, 2))
        self.x = torch.randn(4)

    def model(self) -> None:
        b = pyro.sample("b", dist.Bernoulli(0.3)).long()
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Categorical(WEIGHTS))
            w = pyro.sample("w", dist.Bernoulli(torch.tensor([0.1, 0.4, 0.6])[z])).long()
            pyro.sample("x", dist.Normal(P("mean")[b, z, w], 0.7), obs=self.x)

    def guide(self) -> None:
        b = pyro.sample("b", dist.Bernoulli(logits=P("bit")), infer=PARALLEL).long()
        with pyro.plate("data", 4):
            logits = P("logits")[b, torch.arange(4)]
            z = pyro.sample("z", dist.Categorical(logits=logits), infer=PARALLEL)
            pyro.sample("w", dist.Bernoulli(logits=P("second")[b, z]), infer=PARALLEL)


class NestedPlates:
    """An enumerated site in the outer plate and one in the inner, subsampled and scaled."""

    def __init__(self) -> None:
        new_parameters(states=(3, 3), bits=(3, 5, 2), mean=(3, 2))
        self.x = torch.randn(3, 5)
        self.index = torch.tensor([4, 0])

    @poutine.scale(scale=0.7)
    def model(self) -> None:
        with pyro.plate("outer", 3, dim=-2):
            z = pyro.sample("z", dist.Categorical(WEIGHTS))
            with pyro.plate("inner", 5, subsample=self.index, dim=-1):
                w = pyro.sample("w", dist.Bernoulli(0.4)).long()
                pyro.sample("x", dist.Normal(P("mean")[z, w], 0.7), obs=self.x[:, self.index])

    @config_enumerate(expand=True)
    def guide(self) -> None:
        with pyro.plate("outer", 3, dim=-2):
            pyro.sample("z", dist.Categorical(logits=P("states").unsqueeze(-2)))
            with pyro.plate("inner", 5, subsample=self.index, dim=-1):
                logits = P("bits")[:, self.index]
                pyro.sample("w", dist.Bernoulli(logits=logits[..., 0] + logits[..., 1]))


class Masked:
    """Both the assignments and the data masked, each by its kind of mask."""

    def __init__(self) -> None:
        new_parameters(logits=(4, 3), mean=3)
        self.x = torch.randn(4)
        self.mask = torch.tensor([True, False, True, True])

    def model(self) -> None:
        with pyro.plate("data", 4), poutine.mask(mask=self.mask):
            z = pyro.sample("z", dist.OneHotCategorical(WEIGHTS))
            pyro.sample("x", dist.Normal(z @ P("mean"), 0.7), obs=self.x)

    @config_enumerate
    def guide(self) -> None:
        with pyro.plate("data", 4), poutine.mask(mask=self.mask):
            pyro.sample("z", dist.OneHotCategorical(logits=P("logits")))


class SequentialPlate:
    """One dim for each step of a loop, and a count."""

    def __init__(self) -> None:
        new_parameters(logits=(3, 3), rate=())
        self.x = torch.randn(3)

    def model(self) -> None:
        n = pyro.sample("n", dist.Binomial(2, torch.tensor(0.4)))
        for i in pyro.plate("data", 3):
            z = pyro.sample(f"z_{i}", dist.Categorical(WEIGHTS))
            pyro.sample(f"x_{i}", dist.Normal(n - z, 0.7), obs=self.x[i])

    @config_enumerate
    def guide(self) -> None:
        pyro.sample("n", dist.Binomial(2, logits=P("rate")))
        for i in pyro.plate("data", 3):
            pyro.sample(f"z_{i}", dist.Categorical(logits=P("logits")[i]))


class MarkovChain:
    """A chain in model and guide: dims are used again, ancestors are summed out."""

    length = 9

    def __init__(self) -> None:
        new_parameters(start=3, transition=(3, 3), mean=3)
        self.x = torch.randn(self.length, 2)

    def model(self) -> None:
        z = torch.tensor(0)
        with pyro.plate("series", 2):
            for t in pyro.markov(range(self.length)):
                z = pyro.sample(f"z_{t}", dist.Categorical((torch.eye(3) + 0.2)[z]))
                pyro.sample(f"x_{t}", dist.Normal(P("mean")[z], 0.7), obs=self.x[t])

    @config_enumerate
    def guide(self) -> None:
        z = None
        with pyro.plate("series", 2):
            for t in pyro.markov(range(self.length)):
                logits = P("start") if z is None else P("transition")[z]
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))


DISCRETE = [Mixture, Parents, NestedPlates, Masked, SequentialPlate, MarkovChain]


@pytest.mark.parametrize("program", DISCRETE)
def test_discrete_programs_agree_with_trace_enum(program):
    pair = program()
    nesting = 2 if program is NestedPlates else 1
    truth, gradients = evaluate(TraceEnum_ELBO(max_plate_nesting=nesting), pair.model, pair.guide)
    for elbo in (SilentELBO(), SilentELBO(max_plate_nesting=nesting + 1)):
        for _ in range(2):  # the first run learns that the guide enumerates
            loss, found = evaluate(elbo, pair.model, pair.guide)
            assert_close(loss, truth, 1e-9, "loss")
            assert found.keys() == gradients.keys()
            for name, gradient in gradients.items():
                assert gradient.abs().max() > 1e-3, f"a gradient that tests nothing: {name}"
                assert_close(found[name], gradient, 1e-9, f"gradient of {name}")


@pytest.mark.parametrize("program", [Mixture, Masked])
def test_discrete_programs_agree_with_summation(program):
    """The sum over joint values, by Pyro's own traces."""
    pair = program()
    assert_exact(pair.model, pair.guide, lambda: negative_elbo(pair.model, pair.guide))


def test_autodiscreteparallel():
    x = torch.randn(4)

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.3))
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Normal(b + z, 0.7), obs=x)

    guide = autoguide.AutoDiscreteParallel(model)
    guide()
    for leaf in leaves().values():
        leaf.data += 0.3 * torch.randn_like(leaf)
    truth, gradients = evaluate(TraceEnum_ELBO(max_plate_nesting=1), model, guide)
    loss, found = evaluate(SilentELBO(), model, guide)
    assert_close(loss, truth, 1e-9, "loss")
    for name, gradient in gradients.items():
        assert_close(found[name], gradient, 1e-9, name)


# Enumerated and analytic latents together, against the sum over all values and Gaussian nodes


def gaussian_mixture(x: Tensor) -> tuple[Callable, Callable]:
    """Random means with Gaussian posteriors, assignments in a plate: the model everybody has."""
    new_parameters(loc=2, scale=2, logits=(len(x), 2))

    def model() -> None:
        with pyro.plate("components", 2):
            means = pyro.sample("means", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Normal(means[..., z], 0.7), obs=x)

    def guide() -> None:
        with pyro.plate("components", 2):
            pyro.sample("means", dist.Normal(P("loc"), P("scale").exp()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=P("logits")), infer=PARALLEL)

    return model, guide


def test_a_mixture_with_random_means():
    model, guide = gaussian_mixture(torch.randn(3))
    assert_exact(model, guide, lambda: negative_elbo(model, guide))


def test_vectors_as_means():
    """Components of two coordinates with a correlated posterior."""
    x = torch.randn(2, 2)
    new_parameters(loc=(2, 2), logits=(2, 2))
    tril = torch.tensor([[0.5, 0.0], [0.3, 0.4]])

    def model() -> None:
        with pyro.plate("components", 2):
            means = pyro.sample("means", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Normal(means[z], 0.7).to_event(1), obs=x)

    @config_enumerate
    def guide() -> None:
        with pyro.plate("components", 2):
            pyro.sample("means", dist.MultivariateNormal(P("loc"), scale_tril=tril))
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Categorical(logits=P("logits")))

    assert_exact(model, guide, lambda: negative_elbo(model, guide))


class Conditional:
    """Analytic latents whose laws depend on enumerated values, globally and locally."""

    def __init__(self) -> None:
        new_parameters(bit=(), logits=(2, 2), loc=(2, 2), offset=2, slope=(2,))
        self.x = torch.randn(2)

    def model(self) -> None:
        b = pyro.sample("b", dist.Bernoulli(0.3))
        shift = pyro.sample("shift", dist.Normal(b, 1.0))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            a = pyro.sample("a", dist.Normal(shift, 1.0 + 0.5 * z))
            pyro.sample("x", dist.Normal(a * (1.0 + b), 0.7), obs=self.x)

    def guide(self) -> None:
        b = pyro.sample("b", dist.Bernoulli(logits=P("bit")), infer=PARALLEL).long()
        shift = pyro.sample("shift", dist.Normal(P("offset")[b], 0.4))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(logits=P("logits")), infer=PARALLEL)
            loc = P("loc")[b, z] + P("slope")[z] * shift
            pyro.sample("a", dist.Normal(loc, 0.3 + 0.2 * z))


def test_laws_that_depend_on_enumerated_values():
    pair = Conditional()
    assert_exact(pair.model, pair.guide, lambda: negative_elbo(pair.model, pair.guide, 10000))


def test_an_enumerated_site_and_a_discrete_one_by_its_law():
    """The same posterior of independent bits, enumerated, by its law, or each its way."""
    x = torch.randn(3)
    new_parameters(first=3, second=3)

    def model() -> None:
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(0.3))
            b = pyro.sample("b", dist.Bernoulli(0.6))
            pyro.sample("x", dist.Normal(a + 2 * b, 0.7), obs=x)

    def guide(a: dict, b: dict) -> None:
        with pyro.plate("data", 3):
            pyro.sample("a", dist.Bernoulli(logits=P("first")), infer=a)
            pyro.sample("b", dist.Bernoulli(logits=P("second")), infer=b)

    for infer in ((PARALLEL, PARALLEL), (PARALLEL, {}), ({}, PARALLEL)):
        pair = partial(guide, *infer)
        assert_exact(model, pair, lambda: negative_elbo(model, partial(guide, {}, {})))


def test_a_masked_site_is_drawn_all_the_same():
    """A mask at the assignments alone drops their density; the data keep their weights."""
    x = torch.randn(2)
    mask = torch.tensor([True, False])
    new_parameters(logits=(2, 2), other=(2, 2))

    def model() -> None:
        with pyro.plate("data", 2):
            with poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            w = pyro.sample("w", dist.Categorical(torch.tensor([0.4, 0.6])).mask(mask))
            pyro.sample("x", dist.Normal(1.0 * z - 2.0 * w, 0.7), obs=x)

    @config_enumerate
    def guide() -> None:
        with pyro.plate("data", 2):
            with poutine.mask(mask=mask):
                pyro.sample("z", dist.Categorical(logits=P("logits")))
            pyro.sample("w", dist.Categorical(logits=P("other")).mask(mask))

    def truth() -> Tensor:
        """As without masks, less the masked divergences."""
        p, r = P("logits").softmax(-1), P("other").softmax(-1)
        prior = torch.tensor([0.4, 0.6])
        kl = (p * (p.log() - prior.log())).sum(-1) + (r * (r.log() - prior.log())).sum(-1)
        z, w = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
        loc = z[:, None] - 2.0 * w
        log_prob = dist.Normal(loc, 0.7).log_prob(x[:, None, None])
        return (kl * mask).sum() - (p[:, :, None] * r[:, None, :] * log_prob).sum()

    assert_exact(model, guide, truth)


def test_impossible_values_count_nothing():
    """A value of probability 0 may have density 0 in the model."""

    def model() -> None:
        z = pyro.sample("z", dist.Categorical(logits=torch.tensor([0.3, -torch.inf, 0.1])))
        pyro.sample("x", dist.Normal(1.0 * z, 0.7), obs=torch.tensor(0.4))

    @config_enumerate
    def guide() -> None:
        free = P("free", torch.tensor([0.2, -0.3]))
        logits = torch.stack([free[0], torch.tensor(-torch.inf), free[1]])
        pyro.sample("z", dist.Categorical(logits=logits))

    def truth() -> Tensor:
        q, p = P("free").log_softmax(-1), torch.tensor([0.3, 0.1]).log_softmax(-1)
        x = dist.Normal(torch.tensor([0.0, 2.0]), 0.7).log_prob(torch.tensor(0.4))
        return (q.exp() * (q - p - x)).sum()

    guide()
    assert_exact(model, guide, truth)


def test_vectorized_particles_are_copies():
    model, guide = gaussian_mixture(torch.randn(3))
    loss, gradients = evaluate(SilentELBO(), model, guide)

    def batched() -> None:
        with pyro.plate("components", 2):
            means = pyro.sample("means", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            one_hot = torch.eye(2)[z]
            pyro.sample("x", dist.Normal((one_hot * means.unsqueeze(-2)).sum(-1), 0.7), obs=x)

    x = poutine.trace(model).get_trace().nodes["x"]["value"]
    elbo = SilentELBO(num_particles=2, vectorize_particles=True)
    vectorized, found = evaluate(elbo, batched, guide)
    assert_close(vectorized, loss, 1e-9, "loss")
    for name in gradients:
        assert_close(found[name], gradients[name], 1e-8, name)


def test_autoguides_side_by_side():
    """AutoNormal for the means, AutoDiscreteParallel for the assignments."""
    x = torch.randn(3)
    model, _ = gaussian_mixture(x)
    pyro.clear_param_store()
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(poutine.block(model, hide=["z"])))
    guide.append(autoguide.AutoDiscreteParallel(poutine.block(model, expose=["z"])))
    guide()
    for leaf in leaves().values():
        leaf.data += 0.3 * torch.randn_like(leaf)

    def same_posterior() -> None:
        with pyro.plate("components", 2):
            pyro.sample("means", dist.Normal(guide[0].locs.means, guide[0].scales.means))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Categorical(guide[1].z_probs))

    assert_exact(model, guide, lambda: negative_elbo(model, same_posterior))


class MixtureMessenger(GuideMessenger):
    """The mixture's posterior written site by site; the model's mark is the guide's."""

    def get_posterior(self, name: str, prior):
        if name == "means":
            return dist.Normal(P("loc"), P("scale").exp())
        return dist.Categorical(logits=P("logits"))


def test_a_guide_messenger_enumerates():
    model, guide = gaussian_mixture(torch.randn(3))
    truth, gradients = evaluate(SilentELBO(), model, guide)
    marked = config_enumerate(model)
    loss, found = evaluate(SilentELBO(), marked, MixtureMessenger(marked))
    assert_close(loss, truth, 1e-12, "loss")
    for name in gradients:
        assert_close(found[name], gradients[name], 1e-12, name)


# Random programs: global and local bits and Gaussians that depend on each other


class Site(NamedTuple):
    """A latent with the earlier sites its guide and its prior depend on."""

    name: str
    discrete: bool
    local: bool
    guide_parents: tuple[str, ...]
    parents: tuple[str, ...]


@strategies.composite
def programs(draw) -> tuple[Site, ...]:
    """A global site and two in a plate of two; bits depend on bits, Gaussians on everything."""
    sites: list[Site] = []
    for i in range(3):
        discrete, local = draw(strategies.booleans()), i >= 1
        earlier = [site.name for site in sites if site.discrete or not discrete]

        def parents(names: list[str] = earlier) -> tuple[str, ...]:
            return tuple(name for name in names if draw(strategies.booleans()))

        sites.append(Site(f"s{i}", discrete, local, parents(), parents()))
    return tuple(sites)


def _value(prefix: str, site: Site, names: tuple[str, ...], values: dict[str, Tensor]) -> Tensor:
    """An affine function of earlier values, with an intercept for each position of the plate."""
    total = P(f"{prefix}_{site.name}")
    for name in names:
        total = total + P(f"{prefix}_{site.name}_{name}") * values[name]
    return total


def _law(site: Site, value: Tensor, scale: float) -> dist.Distribution:
    return dist.Bernoulli(logits=value) if site.discrete else dist.Normal(value, scale)


def random_pair(sites: tuple[Site, ...]) -> tuple[Callable, Callable]:
    for site in sites:
        shape = (2,) if site.local else ()
        new_parameters(**{f"q_{site.name}": shape, f"p_{site.name}": shape})
        new_parameters(**{f"q_{site.name}_{name}": () for name in site.guide_parents})
        new_parameters(**{f"p_{site.name}_{name}": () for name in site.parents})
    new_parameters(**{f"w{site.name}": () for site in sites})

    def run(prefix: str, plate: pyro.plate, infer: dict, scale: float) -> Tensor:
        values: dict[str, Tensor] = {}
        total = torch.zeros(2)
        for site in sites:
            names = site.guide_parents if prefix == "q" else site.parents
            with plate if site.local else nullcontext():
                law = _law(site, _value(prefix, site, names, values), scale)
                mark = infer if site.discrete else None
                values[site.name] = pyro.sample(site.name, law, infer=mark)
            total = total + P(f"w{site.name}") * values[site.name]
        return total

    def model() -> None:
        plate = pyro.plate("data", 2)
        loc = run("p", plate, {}, 1.0)
        with plate:
            pyro.sample("x", dist.Normal(loc, 0.7), obs=torch.tensor([0.3, -0.8]))

    return model, lambda: run("q", pyro.plate("data", 2), dict(PARALLEL), 0.5)


@hypothesis.settings(max_examples=12)
@hypothesis.given(programs())
def test_random_programs(sites):
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    model, guide = random_pair(sites)
    loss, gradients = evaluate(SilentELBO(), model, guide)
    truth = negative_elbo(model, guide)
    assert_close(loss, truth, 1e-9, "loss")
    for name, gradient in gradients_of(truth).items():
        assert_close(gradients[name], gradient, 1e-8, name)


# Beside sampled latents


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
@pytest.mark.parametrize("law", [dist.Normal, NonreparameterizedNormal])
def test_sampled_latents_beside_enumerated_ones(law):
    """Reparameterized or by the score: globally, and one for each value of an enumerated site."""
    pair = Conditional()

    def guide() -> None:
        b = pyro.sample("b", dist.Bernoulli(logits=P("bit")), infer=PARALLEL).long()
        shift = pyro.sample("shift", law(P("offset")[b], 0.4), infer={"silent": False})
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(logits=P("logits")), infer=PARALLEL)
            loc = P("loc")[b, z] + P("slope")[z] * shift
            pyro.sample("a", law(loc, 0.3 + 0.2 * z), infer={"silent": False})

    truth = negative_elbo(pair.model, pair.guide, 10000)
    elbo = SilentELBO(num_particles=200, vectorize_particles=True)
    assert_unbiased(elbo, pair.model, guide, truth)


@pytest.mark.filterwarnings("ignore::pyro_silent.SampledSiteWarning")
@pytest.mark.parametrize("latent", ["normal", "bernoulli"])
def test_an_intractable_term_is_sampled_for_each_value(latent):
    """The latents behind a deep decoder are drawn for each value of z: by value or by score."""
    x = torch.randn(2, 3)
    new_parameters(logits=(2, 2), code=(2, 2), w1=(2, 3), w2=(3, 3))

    def law(code: Tensor) -> dist.Distribution:
        if latent == "normal":
            return dist.Normal(code, 0.4).to_event(1)
        return dist.Bernoulli(logits=code).to_event(1)

    def decoded(code: Tensor) -> Tensor:
        return torch.tanh(2.0 * torch.tanh(2.0 * code @ P("w1")) @ P("w2"))

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            a = pyro.sample("a", law(torch.zeros(2)))
            loc = decoded(a) + z.unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, 0.7).to_event(1), obs=x)

    @config_enumerate
    def guide() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(logits=P("logits")))
            pyro.sample("a", law(P("code")[z]), infer={"enumerate": None})

    def truth() -> Tensor:
        q = P("logits").softmax(-1)
        log_ratio = (q * (q.log() - torch.tensor([0.4, 0.6]).log())).sum()
        if latent == "normal":
            grid, probabilities = gauss_hermite_grid(2)
            codes = P("code")[:, None] + 0.4 * grid
            probabilities = probabilities.expand(2, -1)
            divergence = kl_normal(P("code"), torch.full((2, 2), 0.4), 0.0, 0.4).sum(-1)
        else:
            pairs = list(binary_codes(P("code").sigmoid()))
            codes = torch.stack([code for code, _ in pairs]).expand(2, -1, -1)
            probabilities = torch.stack([probability for _, probability in pairs], -1)
            divergence = kl_bernoulli(P("code").sigmoid(), 0.5).sum(-1)
        loc = decoded(codes)[None] + torch.arange(2.0)[:, None, None]  # [x, z, node, 3]
        log_prob = dist.Normal(loc, 0.7).log_prob(x[:, None, None]).sum(-1)
        expected = (probabilities * log_prob).sum(-1) - divergence
        return log_ratio - (q * expected).sum()

    elbo = SilentELBO(
        intractable="sample", estimator=None, num_particles=100, vectorize_particles=True
    )
    assert_unbiased(elbo, model, guide, truth())


class RandomWeights:
    """The probabilities of an enumerated site depend on a Gaussian latent of the guide."""

    def __init__(self) -> None:
        new_parameters(loc=(), slope=3)

    def model(self) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Categorical(WEIGHTS))
        pyro.sample("x", dist.Normal(a + z, 0.7), obs=torch.tensor(0.5))

    @config_enumerate
    def guide(self) -> None:
        a = pyro.sample("a", dist.Normal(P("loc"), 0.5))
        pyro.sample("z", dist.Categorical(logits=a.unsqueeze(-1) * P("slope")))


def test_random_weights_are_refused():
    pair = RandomWeights()
    with pytest.raises(LeakError, match="'z' needs the value of 'a'.*silent"):
        SilentELBO().loss(pair.model, pair.guide)


def test_random_weights_are_unbiased_where_their_latents_are_sampled():
    pair = RandomWeights()
    elbo = SilentELBO(intractable="sample", num_particles=100, vectorize_particles=True)
    with pytest.warns(UserWarning, match="'a' is estimated"):
        elbo.loss(pair.model, pair.guide)
    nodes, weights = gauss_hermite(60)
    a = P("loc") + 0.5 * nodes
    log_q = (a[:, None] * P("slope")).log_softmax(-1)
    log_x = dist.Normal(a[:, None] + torch.arange(3.0), 0.7).log_prob(torch.tensor(0.5))
    expected = (log_q.exp() * (WEIGHTS.log() + log_x - log_q)).sum(-1)
    truth = kl_normal(P("loc"), torch.tensor(0.5)) - (weights * expected).sum()
    assert_unbiased(elbo, pair.model, pair.guide, truth)


# What is refused


def _pair(infer: dict, law: dist.Distribution) -> tuple[Callable, Callable]:
    def model() -> None:
        pyro.sample("z", law)

    def guide() -> None:
        pyro.sample("z", law, infer=infer)

    return model, guide


@pytest.mark.parametrize(
    ("infer", "law", "message"),
    [
        ({"enumerate": "sequential"}, dist.Bernoulli(0.5), "'z'.*sequential.*expected.*parallel"),
        ({"enumerate": "parallel", "num_samples": 3}, dist.Bernoulli(0.5), "'z'.*num_samples"),
        (PARALLEL, dist.Poisson(1.0), "'z'.*Poisson.*finite support"),
        (PARALLEL, dist.Bernoulli(torch.ones(2) / 2).to_event(1), "'z'.*Independent.*plate"),
    ],
    ids=["sequential", "num_samples", "infinite", "event"],
)
def test_ways_of_enumeration_that_are_refused(infer, law, message):
    with pytest.raises(ConfigurationError, match=message):
        SilentELBO().loss(*_pair(infer, law))


def test_a_latent_of_the_model_alone_is_refused():
    def model() -> None:
        z = pyro.sample("z", dist.Categorical(WEIGHTS), infer=PARALLEL)
        pyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=torch.tensor(0.3))

    with pytest.raises(ConfigurationError, match="'z'.*guide.*TraceEnum_ELBO"):
        SilentELBO().loss(model, lambda: None)


def test_a_term_outside_the_plate_is_refused():
    """A function of all assignments needs their joint values."""
    new_parameters(logits=(3, 2))

    def model() -> None:
        with pyro.plate("data", 3, dim=-1):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        with pyro.plate("other", 1, dim=-2):
            pyro.sample("x", dist.Normal(1.0 * z[..., :1], 1.0), obs=torch.zeros(1, 1))

    @config_enumerate
    def guide() -> None:
        with pyro.plate("data", 3, dim=-1):
            pyro.sample("z", dist.Categorical(logits=P("logits")))

    with pytest.raises(IntractableError, match="'x'.*'z'.*outside its plate 'data'") as info:
        SilentELBO(intractable="sample").loss(model, guide)
    assert info.value.site == "x"
    assert info.value.latents == ("z",)
