"""Which guide sites the losses for discrete latents treat, and as what."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_silent import (
    ZGR,
    ConfigurationError,
    StraightThroughELBO,
)
from tests.elbo.agreement import (
    assert_close,
    evaluate,
    gradients_of,
    new_parameters,
)
from tests.elbo.chance import run_many
from tests.elbo.discrete_losses import LOSSES, SURROGATES, each_loss, many
from tests.elbo.discrete_oracle import surrogate_loss
from tests.elbo.discrete_programs import PROGRAMS, THREE, P, observe


def test_what_is_written_with_probabilities_is_the_same():
    """``probs`` and ``logits`` give the same samples and, through the chain rule, gradients."""
    program = PROGRAMS["IndexedTable"]
    new_parameters(**program.shapes)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Categorical(P("logits").softmax(-1)))

    results = [
        evaluate(StraightThroughELBO(ZGR()), program.model, g, seed=5)
        for g in (program.guide, guide)
    ]
    assert_close(results[0][0], torch.tensor(results[1][0]), 1e-12, "loss")
    for name, gradient in results[0][1].items():
        assert_close(results[1][1][name], gradient, 1e-12, f"gradient of {name}")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda fn: fn.mask(torch.tensor([True, True])),
        lambda fn: fn.expand([2]),
        lambda fn: dist.ExpandedDistribution(fn, [2]),
        lambda fn: dist.OneHotCategoricalStraightThrough(logits=fn.logits),
    ],
)
def test_wrapped_laws(wrap):
    """Masks, expansions, Pyro's straight-through class: as if the law stood there bare."""
    new_parameters(q=(2, 3), w=3)

    def model() -> None:
        with pyro.plate("data", 2):
            c = pyro.sample("c", dist.OneHotCategorical(logits=THREE))
            observe("x", (c @ P("w")).exp(), THREE[:2])

    def guide(wrapped: bool) -> None:
        fn = dist.OneHotCategorical(logits=P("q"))
        with pyro.plate("data", 2):
            if not wrapped:
                pyro.sample("c", fn)
            else:
                pyro.sample("c", wrap(fn))

    elbo = StraightThroughELBO(ZGR(), max_plate_nesting=1)
    fn = dist.OneHotCategorical(logits=THREE.expand(2, 3))
    _, bare = evaluate(elbo, lambda wrapped: model(), guide, False, seed=5)
    _, gradients = evaluate(elbo, lambda wrapped: model(), guide, True, seed=5)
    for name, gradient in bare.items():
        # a mask takes the closed divergence away, which the model's parameters do not feel
        if name == "w" or not isinstance(wrap(fn), dist.MaskedDistribution):
            assert_close(gradients[name], gradient, 1e-12, f"gradient of {name}")


class Biased(dist.Bernoulli):
    """A user's own subclass with another way to draw: nothing is known of its law."""

    def sample(self, sample_shape: tuple = ()) -> Tensor:
        return torch.ones(self.shape(torch.Size(sample_shape)))


@pytest.mark.parametrize("loss", SURROGATES)
def test_subclasses_with_their_own_draws_are_not_estimated(loss):
    new_parameters(q=())

    def model() -> None:
        b = pyro.sample("b", dist.Bernoulli(0.4))
        assert type(b) is Tensor and b == 1

    def guide() -> None:
        pyro.sample("b", Biased(logits=P("q")))

    for seed in range(5):
        evaluate(LOSSES[loss](), model, guide, seed=seed)


class Amortized(GuideMessenger):
    """A guide that runs the model itself; b's posterior depends on the a that was drawn."""

    def get_posterior(self, name: str, prior: dist.Distribution) -> dist.Distribution:
        if name == "a":
            return dist.Bernoulli(logits=P("q_a"))
        return dist.Bernoulli(logits=P("table")[self.upstream_value("a").long()])


@each_loss
def test_guide_messengers(loss):
    """The same numbers as with the guide written out."""
    new_parameters(q_a=(), table=2)

    def model() -> None:
        a = pyro.sample("a", dist.Bernoulli(0.4))
        b = pyro.sample("b", dist.Bernoulli(0.3))
        observe("x", 3 * a * b - b, 2.0)

    def guide() -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=P("q_a")))
        pyro.sample("b", dist.Bernoulli(logits=P("table")[a.long()]))

    messenger = Amortized(model)
    evaluate(LOSSES[loss](), model, messenger)
    loss_of_messenger, gradients = evaluate(LOSSES[loss](), model, messenger, seed=5)
    expected, truth = evaluate(LOSSES[loss](), model, guide, seed=5)
    assert_close(loss_of_messenger, torch.tensor(expected), 1e-12, "loss")
    for name, gradient in truth.items():
        assert_close(gradients[name], gradient, 1e-12, f"gradient of {name}")


def test_opting_out_gives_a_plain_sample():
    """In every loss: the model sees a tensor, and the gradient is the score function's."""
    new_parameters(q=())
    seen = []

    def model() -> None:
        seen.append(pyro.sample("b", dist.Bernoulli(0.4)))

    def guide() -> None:
        pyro.sample("b", dist.Bernoulli(logits=P("q")), infer={"silent": False})

    for make in LOSSES.values():
        make().loss(model, guide)
    assert {type(value) for value in seen} == {Tensor}


@each_loss
def test_enumeration_in_another_way_is_refused(loss):
    new_parameters(q=3)

    def model() -> None:
        pyro.sample("z", dist.Categorical(logits=THREE))

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=P("q")), infer={"enumerate": "sequential"})

    with pytest.raises(ConfigurationError, match="guide site 'z': got infer with enumerate="):
        LOSSES[loss]().loss(model, guide)


def test_the_sites_together_serve_both_kinds_of_gradient():
    """Surrogate and score function in one program, both entering one loss: no term is lost."""
    program = PROGRAMS["Scored"]
    new_parameters(**program.shapes)
    losses, gradients = run_many(
        many(program, StraightThroughELBO, ZGR()), program.model, program.guide
    )
    truth = gradients_of(surrogate_loss(program))
    assert gradients.keys() == truth.keys()
    assert losses.std() > 0
    for name, gradient in truth.items():
        assert gradient.abs().max() > 1e-3 and (gradients[name].std(0) > 0).any()
