"""A Pyro model sees samples at its sites: plates, masks, factors, validation, Vindex."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from pyro.ops.indexing import Vindex

from pyro_silent.discrete_sample import bernoulli_sample, index_sample, one_hot_sample

N, K = 5, 3


def model(p):
    with pyro.plate("n", N):
        a = pyro.sample("a", dist.Categorical(logits=p["start"]))
        b = pyro.sample("b", dist.Categorical(logits=Vindex(p["step"])[a]))
        c = pyro.sample("c", dist.Bernoulli(torch.where(a == b, 0.2, 0.7)))
        d = pyro.sample("d", dist.OneHotCategorical(logits=p["step"][b]))
        pyro.deterministic("sum", a + b)
        pyro.factor("bonus", (a == 1) * 0.5)
        loc = p["mean"][b] + 2 * c + d @ p["mean"] + F.one_hot(a, K).to(c.dtype) @ p["mean"]
        with poutine.mask(mask=a != 2):
            pyro.sample("x", dist.Normal(loc, torch.where(c == 1, 1.0, 2.0)), obs=p["x"])
        pyro.sample("y", dist.Poisson(1.0 + a), obs=torch.ones(N))
        pyro.sample(
            "w", dist.Categorical(logits=p["step"][d.argmax(-1)]), obs=torch.zeros(N).long()
        )
    pyro.sample("count", dist.Normal((a == 2).sum().to(c.dtype), 1.0), obs=torch.tensor(3.0))


def contracted(p, a, b, c, d):
    """The same log joint with every lookup and comparison written as a sum over codes."""
    levels = torch.arange(float(K))
    same = (a * b).sum(-1)
    prior = dist.Bernoulli(same * 0.2 + (1 - same) * 0.7)
    total = (a * p["start"].log_softmax(-1)).sum()
    total = total + (b * (a @ p["step"]).log_softmax(-1)).sum()
    total = total + prior.log_prob(c).sum()
    total = total + (d * (b @ p["step"]).log_softmax(-1)).sum()
    total = total + 0.5 * a[:, 1].sum()
    loc = b @ p["mean"] + 2 * c + d @ p["mean"] + a @ p["mean"]
    log_x = dist.Normal(loc, c * 1.0 + (1 - c) * 2.0).log_prob(p["x"])
    total = total + (log_x * (1 - a[:, 2])).sum()
    total = total + dist.Poisson(1.0 + a @ levels).log_prob(torch.ones(N)).sum()
    total = total + (d @ p["step"]).log_softmax(-1)[:, 0].sum()
    return total + dist.Normal(a[:, 2].sum(), 1.0).log_prob(torch.tensor(3.0))


@pytest.mark.parametrize("validate", [True, False])
def test_log_joint(validate):
    torch.set_default_dtype(torch.float64)
    parameters = {
        "start": torch.randn(K),
        "step": torch.randn(K, K),
        "mean": torch.randn(K),
        "x": torch.randn(N),
    }
    parameters = {name: value.requires_grad_() for name, value in parameters.items()}
    codes = {
        name: torch.eye(K)[torch.randint(K, (N,))].requires_grad_() for name in ("a", "b", "d")
    }
    codes["c"] = torch.randint(2, (N,)).double().requires_grad_()
    values = {
        "a": index_sample(codes["a"], "a"),
        "b": index_sample(codes["b"], "b"),
        "c": bernoulli_sample(codes["c"], "c"),
        "d": one_hot_sample(codes["d"], "d"),
    }
    with pyro.validation_enabled(validate):
        trace = poutine.trace(poutine.condition(model, values)).get_trace(parameters)
        log_joint = trace.log_prob_sum()
        plain = {name: value.detach() for name, value in values.items()}
        known = poutine.trace(poutine.condition(model, plain)).get_trace(parameters).log_prob_sum()
    truth = contracted(parameters, codes["a"], codes["b"], codes["c"], codes["d"])
    assert torch.equal(log_joint.detach(), known.detach())
    torch.testing.assert_close(log_joint.detach(), truth.detach(), atol=1e-10, rtol=0)

    tensors = [*codes.values(), *parameters.values()]
    found = torch.autograd.grad(log_joint, tensors)
    expected = torch.autograd.grad(truth, tensors)
    for name, gradient, target in zip([*codes, *parameters], found, expected):
        if name in ("a", "b", "d"):  # constants over the categories are free
            gradient = gradient - gradient.mean(-1, keepdim=True)
            target = target - target.mean(-1, keepdim=True)
        assert target.abs().max() > 1e-3
        torch.testing.assert_close(gradient, target, atol=1e-10, rtol=0, msg=name)
