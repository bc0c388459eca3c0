"""Models that go on from a lookup with nonlinear torch: the same as with the code times the table."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.ops.indexing import Vindex

from pyro_silent.discrete_sample import bernoulli_sample, index_sample


def _mixture(means: torch.Tensor) -> torch.Tensor:
    components = dist.Normal(torch.stack([means, means + 1], -1), 1.0)
    mixing = dist.Categorical(logits=torch.stack([means, -means], -1))
    return dist.MixtureSameFamily(mixing, components).log_prob(torch.ones(()))


# (program of z and a table, the same of the one-hot code and the table, shape of the table)
INDEX = {
    "Categorical(logits=t[z])": (
        lambda z, t: dist.Categorical(logits=t[z]).log_prob(torch.tensor(1)),
        lambda c, t: dist.Categorical(logits=c @ t).log_prob(torch.tensor(1)),
        (4, 3),
    ),
    "Normal(t[z], 1)": (
        lambda z, t: dist.Normal(t[z], 1.0).log_prob(torch.tensor(0.3)),
        lambda c, t: dist.Normal(c @ t, 1.0).log_prob(torch.tensor(0.3)),
        (4,),
    ),
    "Normal(0, z + 1)": (
        lambda z, t: dist.Normal(t, z + 1.0).log_prob(torch.tensor(0.3)),
        lambda c, t: dist.Normal(t, c @ torch.arange(4.0) + 1).log_prob(torch.tensor(0.3)),
        (3,),
    ),
    "Normal(z, 1)": (
        lambda z, t: dist.Normal(z, 1.0).log_prob(t),
        lambda c, t: dist.Normal(c @ torch.arange(4.0), 1.0).log_prob(t),
        (3,),
    ),
    "Poisson(z + 1)": (
        lambda z, t: dist.Poisson(z + 1).log_prob(torch.tensor(2.0)) * t,
        lambda c, t: (
            (c @ torch.stack([dist.Poisson(k + 1.0).log_prob(torch.tensor(2.0)) for k in range(4)]))
            * t
        ),
        (3,),
    ),
    "Binomial(5, t).log_prob(z)": (
        lambda z, t: dist.Binomial(5, logits=t).log_prob(z)[:0],
        lambda c, t: dist.Binomial(5, logits=t).log_prob(c @ torch.arange(4.0))[:0],
        (3,),
    ),
    "Binomial(z + 1)": (
        lambda z, t: dist.Binomial(z + 1, logits=t).log_prob(torch.tensor(1.0)),
        lambda c, t: dist.Binomial(c @ torch.arange(4.0) + 1, logits=t).log_prob(torch.tensor(1.0)),
        (3,),
    ),
    "mixture": (lambda z, t: _mixture(t[z]), lambda c, t: _mixture(c @ t), (4,)),
    "network": (
        lambda z, t: torch.tanh(F.embedding(z, t)) @ torch.ones(3, 2),
        lambda c, t: torch.tanh(c @ t) @ torch.ones(3, 2),
        (4, 3),
    ),
    "one_hot network": (
        lambda z, t: torch.tanh(F.one_hot(z, 4).to(t.dtype) @ t),
        lambda c, t: torch.tanh(c @ t),
        (4, 3),
    ),
    "Vindex": (
        lambda z, t: Vindex(t)[..., z, :].exp(),
        lambda c, t: torch.einsum("sbk,skd->sbd", c.expand(2, 3, 4), t[:, 0]).exp(),
        (2, 1, 4, 5),
    ),
    "scale chosen by ==": (
        lambda z, t: dist.Normal(0.0, torch.where(z == 2, t.exp(), 1.0)).log_prob(
            torch.tensor(1.0)
        ),
        lambda c, t: dist.Normal(0.0, c[:, 2] * t.exp() + (1 - c[:, 2])).log_prob(
            torch.tensor(1.0)
        ),
        (3,),
    ),
    "Delta": (
        lambda z, t: dist.Delta(z.to(t.dtype)).log_prob(z.to(t.dtype)) + t[z],
        lambda c, t: c @ t,
        (4,),
    ),
    "MultivariateNormal": (
        lambda z, t: dist.MultivariateNormal(t[z], torch.eye(2)).log_prob(torch.ones(2)),
        lambda c, t: dist.MultivariateNormal(c @ t, torch.eye(2)).log_prob(torch.ones(2)),
        (4, 2),
    ),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("name", INDEX)
def test_index(name, soft, validate):
    torch.set_default_dtype(torch.float64)
    program, contraction, shape = INDEX[name]
    if soft and validate and name.startswith("Binomial"):
        pytest.skip("torch refuses counts that are not integers, also without samples")
    logits = torch.randn(3, 4)
    code = logits.softmax(-1) if soft else F.one_hot(logits.argmax(-1), 4).to(torch.float64)
    code.requires_grad_()
    table = torch.randn(shape).requires_grad_()
    with dist.validation_enabled(validate):
        value = program(index_sample(code, "z", soft=soft), table)
        known = contraction(code, table)
    torch.testing.assert_close(value.detach(), known.detach(), atol=1e-12, rtol=0)
    upstream = torch.randn(known.shape)
    found = torch.autograd.grad(value, [code, table], upstream, allow_unused=True)
    truth = torch.autograd.grad(known, [code, table], upstream, allow_unused=True)
    for gradient, expected in zip(found, truth):
        assert (gradient is None) == (expected is None)
        if gradient is not None:
            gradient, expected = gradient - gradient[..., :1], expected - expected[..., :1]
            torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


BERNOULLI = {
    "Normal(b, 1)": lambda b, x: dist.Normal(b, 1.0).log_prob(x),
    "Normal(w b, 1)": lambda b, x: dist.Normal(b @ x, 1.0).to_event(1).log_prob(torch.ones(3)),
    "Bernoulli(b)": lambda b, x: dist.Bernoulli(logits=b + x).log_prob(torch.ones(())),
    "Bernoulli.log_prob(b)": lambda b, x: dist.Bernoulli(logits=x).log_prob(b),
    "RelaxedBernoulli of probs": lambda b, x: (b * x).sigmoid().clamp(0.1, 0.9).log(),
    "Delta(b)": lambda b, x: dist.Delta(b, event_dim=1).log_prob(b) + (b * x).sum(-1),
    "expand": lambda b, x: (
        dist.Bernoulli(logits=x).to_event(1).expand([2, 3]).log_prob(b.expand(2, 3, 3))
    ),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("name", BERNOULLI)
def test_bernoulli(name, validate):
    """A float sample gives what the plain float tensor gives under autograd."""
    program = BERNOULLI[name]
    bits = torch.tensor([[0.0, 1.0, 1.0]] * 3, requires_grad=True)
    x = torch.randn(3, 3, requires_grad=True)
    with dist.validation_enabled(validate):
        value = program(bernoulli_sample(bits, "b"), x)
        known = program(bits, x)
    assert torch.equal(value.detach(), known.detach())
    found = torch.autograd.grad(value.sum(), [bits, x])
    truth = torch.autograd.grad(known.sum(), [bits, x])
    for gradient, expected in zip(found, truth):
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)
