"""Programs with twin modules, and what their gradients must be: two separate runs, combined by hand.

Model and guide take the name of a branch as their first argument: ``"twin"`` runs the twin modules as a
user would, ``"analytic"`` and ``"expressive"`` run one branch of each whatever the loss. The oracle is
two ordinary runs of two ordinary losses on the two branches; it knows nothing of AnnealedELBO.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Independent

from pyro_silent import TwinDecoder
from tests.elbo.agreement import assert_close, leaves

ROWS, DATA, CODE, HIDDEN = 4, 3, 2, 5
P = pyro.param


def mlp(inputs: int, outputs: int) -> nn.Module:
    """A nonlinear decoder."""
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs))


class Twins:
    """A twin module and its branches, by the name of a branch."""

    def __init__(self, analytic: nn.Module, expressive: nn.Module) -> None:
        self.branches = {
            "twin": TwinDecoder(analytic, expressive),
            "analytic": analytic,
            "expressive": expressive,
        }

    def __call__(self, branch: str, name: str, *args: Tensor) -> Any:
        """Run a branch; all parameters are registered whichever it is."""
        pyro.module(name, self.branches["twin"])
        return self.branches[branch](*args)


class Program(NamedTuple):
    """A model and guide of ``(branch, data)``, the data, the decoders, the encoder if there is one."""

    model: Callable[[str, Tensor], None]
    guide: Callable[[str, Tensor], None]
    data: Tensor
    twins: Twins
    encoder: Any = None

    @property
    def run(self) -> tuple[Any, ...]:
        """Model, guide and arguments as users run them."""
        return self.model, self.guide, "twin", self.data


def observe(loc: Tensor, x: Tensor, scale: Any = 0.6) -> None:
    """A row of data."""
    pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


class Family(NamedTuple):
    """A law of codes: encoder outputs, posterior, prior, input of the decoder."""

    outputs: int
    posterior: Callable[[Tensor], dist.Distribution]
    prior: Callable[[Tensor], dist.Distribution]
    code: Callable[[Tensor], Tensor] = lambda z: z


STATES = 3


def _one_hot(logits: Tensor) -> dist.Distribution:
    logits = logits.reshape(*logits.shape[:-1], CODE, STATES)
    return dist.OneHotCategorical(logits=logits).to_event(1)


FAMILIES = {
    "normal": Family(
        2 * CODE,
        lambda h: dist.Normal(h[..., :CODE], h[..., CODE:].exp()).to_event(1),
        lambda p: dist.Normal(p[..., :CODE], p[..., CODE:].exp()).to_event(1),
    ),
    "bernoulli": Family(
        CODE,
        lambda h: dist.Bernoulli(logits=h).to_event(1),
        lambda p: dist.Bernoulli(logits=p).to_event(1),
    ),
    "one_hot": Family(
        CODE * STATES, _one_hot, _one_hot, lambda z: z.reshape(*z.shape[:-2], CODE * STATES)
    ),
    "categorical": Family(
        STATES, lambda h: dist.Categorical(logits=h), lambda p: dist.Categorical(logits=p)
    ),
}
INPUTS = {"normal": CODE, "bernoulli": CODE, "one_hot": CODE * STATES}


def _decoders(family: str) -> Twins:
    if family == "categorical":
        deep = nn.Sequential(nn.Embedding(STATES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, DATA))
        return Twins(nn.Embedding(STATES, DATA), deep)
    return Twins(nn.Linear(INPUTS[family], DATA), mlp(INPUTS[family], DATA))


def flat(family: str, infer: Callable[[Tensor], dict] = lambda x: {}) -> Program:
    """One code per row, amortized; a learned prior, a learned noise that both branches share.

    :param infer: ``x -> infer`` of the guide's site.
    """
    law, twins, data = FAMILIES[family], _decoders(family), torch.randn(ROWS, DATA)
    encoder, start = nn.Linear(DATA, law.outputs), 0.3 * torch.randn(law.outputs)

    def model(branch: str, x: Tensor) -> None:
        noise = P("noise", torch.tensor(0.2)).exp()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", law.prior(P("prior", start)))
            observe(twins(branch, "decoder", law.code(z)), x, noise)

    def guide(branch: str, x: Tensor) -> None:
        pyro.module("encoder", encoder)
        h = encoder(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", law.posterior(h), infer=infer(x))

    return Program(model, guide, data, twins, encoder)


def prior_network() -> Program:
    """The prior of a code is a network of the row, as in a conditional VAE; model and guide share it."""
    twins, data = _decoders("normal"), torch.randn(ROWS, DATA)
    trunk, prior, posterior = mlp(DATA, HIDDEN), nn.Linear(HIDDEN, 2 * CODE), mlp(HIDDEN, 2 * CODE)

    def normal(h: Tensor) -> dist.Distribution:
        return FAMILIES["normal"].posterior(h)

    def model(branch: str, x: Tensor) -> None:
        pyro.module("trunk", trunk)
        pyro.module("prior", prior)
        h = prior(trunk(x[:, [0]].expand(ROWS, DATA)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(h))
            observe(twins(branch, "decoder", z), x)

    def guide(branch: str, x: Tensor) -> None:
        pyro.module("trunk", trunk)
        pyro.module("posterior", posterior)
        h = posterior(trunk(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(h))

    return Program(model, guide, data, twins)


def bottom_up() -> Program:
    """q(z1 | x) q(z2 | z1, x) against p(z2) p(z1 | z2) p(x | z1), with a learned step in the prior."""
    twins, data = _decoders("normal"), torch.randn(ROWS, DATA)
    encoder, step, prior = nn.Linear(DATA, 4 * CODE), nn.Linear(CODE, CODE), nn.Linear(CODE, CODE)

    def model(branch: str, x: Tensor) -> None:
        pyro.module("prior", prior)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            width = P("width", torch.tensor(-0.3)).exp()
            z1 = pyro.sample("z1", dist.Normal(prior(z2), width).to_event(1))
            observe(twins(branch, "decoder", z1), x)

    def guide(branch: str, x: Tensor) -> None:
        pyro.module("encoder", encoder)
        pyro.module("step", step)
        m1, s1, m2, s2 = encoder(x).chunk(4, -1)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(m1, s1.exp()).to_event(1))
            pyro.sample("z2", dist.Normal(m2 + step(z1), s2.exp()).to_event(1))

    return Program(model, guide, data, twins, encoder)


def top_down() -> Program:
    """q(z2 | x) q(z1 | z2, x): the prior's step and the decoder are twins, and they see both codes."""
    twins, data = Twins(nn.Linear(2 * CODE, DATA), mlp(2 * CODE, DATA)), torch.randn(ROWS, DATA)
    prior = Twins(nn.Linear(CODE, CODE), mlp(CODE, CODE))
    encoder, step = nn.Linear(DATA, 4 * CODE), nn.Linear(CODE, CODE)

    def model(branch: str, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(P("top", torch.zeros(CODE)), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(prior(branch, "prior", z2), 0.8).to_event(1))
            observe(twins(branch, "decoder", torch.cat([z1, z2], -1)), x)

    def guide(branch: str, x: Tensor) -> None:
        pyro.module("encoder", encoder)
        pyro.module("step", step)
        m1, s1, m2, s2 = encoder(x).chunk(4, -1)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(m2, s2.exp()).to_event(1))
            pyro.sample("z1", dist.Normal(m1 + step(z2), s1.exp()).to_event(1))

    return Program(model, guide, data, twins, encoder)


def autoregressive() -> Program:
    """A chain of scalars, each posterior a learned affine function of those before."""
    length = 3
    twins, data = Twins(nn.Linear(length, DATA), mlp(length, DATA)), torch.randn(ROWS, DATA)
    encoder, weights = nn.Linear(DATA, 2 * length), 0.5 * torch.randn(length, length)

    def model(branch: str, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            codes: list[Any] = []
            for t in range(length):
                loc = P("drift", torch.tensor(0.7)) * codes[-1] if codes else torch.zeros(())
                codes.append(pyro.sample(f"z{t}", dist.Normal(loc, 1.0)))
            observe(twins(branch, "decoder", torch.stack(codes, -1)), x)

    def guide(branch: str, x: Tensor) -> None:
        pyro.module("encoder", encoder)
        m, s = encoder(x).chunk(2, -1)
        steps = P("steps", weights)
        with pyro.plate("data", len(x)):
            codes: list[Any] = []
            for t in range(length):
                loc = m[:, t]
                for earlier, z in enumerate(codes):
                    loc = loc + steps[t, earlier] * z
                codes.append(pyro.sample(f"z{t}", dist.Normal(loc, s[:, t].exp())))

    return Program(model, guide, data, twins, encoder)


class _Tied(nn.Module):
    """A decoder that reads a parameter it does not own."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(DATA))
        self.last = last

    def forward(self, z: Tensor) -> Tensor:
        return self.last(z @ P("tied").T + self.bias)


class Squash(nn.Module):
    """No closed form, no parameters."""

    def forward(self, h: Tensor) -> Tensor:
        return h.tanh() * h


def tied() -> Program:
    """The encoder's matrix, transposed, is the decoders' as well."""
    twins = Twins(_Tied(nn.Identity()), _Tied(Squash()))
    data, start = torch.randn(ROWS, DATA), 0.5 * torch.randn(DATA, CODE)

    def model(branch: str, x: Tensor) -> None:
        P("tied", start)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            observe(twins(branch, "decoder", z), x)

    def guide(branch: str, x: Tensor) -> None:
        loc = x @ P("tied", start)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, P("scale", torch.zeros(CODE)).exp()).to_event(1))

    return Program(model, guide, data, twins)


class LocScale(nn.Module):
    """A linear mean with one learned scale per dimension: a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Linear(CODE, DATA)
        self.log_scale = nn.Parameter(0.3 * torch.randn(DATA))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc(z), self.log_scale.exp()


class DeepLocScale(nn.Module):
    """A deep mean with a log-linear scale."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.log_scale = mlp(CODE, DATA), nn.Linear(CODE, DATA)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc(z), (0.3 * self.log_scale(z)).exp()


def likelihoods() -> Program:
    """Twins of two likelihoods: a scale per dimension, and one that depends on the code."""
    twins, data, encoder = (
        Twins(LocScale(), DeepLocScale()),
        torch.randn(ROWS, DATA),
        nn.Linear(DATA, 2 * CODE),
    )

    def model(branch: str, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            loc, scale = twins(branch, "decoder", z)
            observe(loc, x, scale)

    def guide(branch: str, x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", FAMILIES["normal"].posterior(encoder(x)))

    return Program(model, guide, data, twins, encoder)


PROGRAMS: dict[str, Callable[[], Program]] = {
    "normal": lambda: flat("normal"),
    "prior_network": prior_network,
    "bottom_up": bottom_up,
    "top_down": top_down,
    "autoregressive": autoregressive,
    "tied": tied,
    "likelihoods": likelihoods,
}


# What the gradients must be

Gradients = dict[str, Tensor | None]


def collect(elbo: Any, model: Any, guide: Any, *args: Any, seed: int) -> tuple[float, Gradients]:
    """Loss and gradients of one step; None for a parameter that the loss does not reach."""
    for leaf in leaves().values():
        leaf.grad = None
    pyro.set_rng_seed(seed)
    loss = elbo.loss_and_grads(model, guide, *args)
    gradients = {name: leaf.grad for name, leaf in leaves().items()}
    for leaf in leaves().values():
        leaf.grad = None
    return loss, gradients


def combine(weight: float, silent: Gradients, stochastic: Gradients) -> Gradients:
    """What belongs to one loss gets its gradient in full, everything else the blend."""
    blended: Gradients = {}
    for name in silent.keys() | stochastic.keys():
        s, t = silent.get(name), stochastic.get(name)
        if s is None and t is None:
            blended[name] = None
        elif is_alone(name):
            assert s is None or t is None, f"{name} belongs to one loss"
            blended[name] = t if s is None else s
        else:
            zero = torch.zeros(())
            s, t = (zero if found is None else found for found in (s, t))
            blended[name] = weight * s + (1 - weight) * t
    return blended


def is_branch(name: str) -> bool:
    """Whether a parameter belongs to one branch of a twin."""
    return any(f"{branch}." in name for branch in ("analytic", "expressive"))


def is_alone(name: str) -> bool:
    """Whether it belongs to one loss: to a branch, or to a baseline."""
    return is_branch(name) or name.startswith("baseline")


def baselines() -> dict[str, Tensor]:
    """The running means that TraceGraph_ELBO keeps in the param store."""
    named = {name: value for name, value in leaves().items() if name.startswith("__baseline")}
    return {name: value.detach().clone() for name, value in named.items()}


def restore_baselines(saved: dict[str, Tensor]) -> None:
    """Put them back, and forget new ones."""
    for name in baselines():
        if name in saved:
            pyro.get_param_store()[name] = saved[name]
        else:
            del pyro.get_param_store()[name]


def separate(
    program: Program, silent: Any, stochastic: Any, seed: int
) -> tuple[tuple[float, Gradients], tuple[float, Gradients]]:
    """Both losses, each on its branch, at the same seed; the baselines are left as they were."""
    saved = baselines()
    runs = []
    for elbo, branch in ((silent, "analytic"), (stochastic, "expressive")):
        runs.append(collect(elbo, program.model, program.guide, branch, program.data, seed=seed))
    restore_baselines(saved)
    return runs[0], runs[1]


def assert_gradients(actual: Gradients, expected: Gradients, tolerance: float = 1e-9) -> None:
    """The same parameters are reached, and each gradient agrees."""
    for name in actual.keys() | expected.keys():
        found, truth = actual.get(name), expected.get(name)
        if truth is None:
            assert found is None or not found.any(), f"{name} has a gradient"
            continue
        assert found is not None, f"{name} has no gradient"
        assert_close(found, truth, tolerance, f"gradient of {name}")


def distance(one: Gradients, two: Gradients) -> float:
    """The largest difference of any two entries."""
    zero = torch.zeros(())
    return max(
        ((zero if one.get(n) is None else one[n]) - (zero if two.get(n) is None else two[n]))
        .abs()
        .max()
        .item()
        for n in one.keys() | two.keys()
    )


# Wrong ways to blend


class ScaleEverySite(Messenger):
    """A wrong variant: scales the gradient at each site's own parameters, chains or not."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        base, event_dim = (fn.base_dist, 1) if isinstance(fn, Independent) else (fn, 0)
        if isinstance(base, dist.Normal):
            scaled = dist.Normal(self._scaled(base.loc), self._scaled(base.scale))
            msg["fn"] = scaled.to_event(event_dim)

    def _scaled(self, value: Tensor) -> Tensor:
        return self.weight * value + (1 - self.weight) * value.detach()


def scaled_loss(weight: float, silent: Gradients, stochastic: Gradients) -> Gradients:
    """A wrong variant: the whole losses are weighted, the decoders with them."""
    zero = torch.zeros(())
    blended: Gradients = {}
    for name in silent.keys() | stochastic.keys():
        s, t = (found.get(name) for found in (silent, stochastic))
        both = weight * (zero if s is None else s) + (1 - weight) * (zero if t is None else t)
        blended[name] = None if s is None and t is None else both
    return blended


def summed(weight: float, silent: Gradients, stochastic: Gradients) -> Gradients:
    """A wrong variant: two full losses, as two SVI steps give; the KL counts twice."""
    doubled = scaled_loss(0.5, silent, stochastic)
    return {name: None if g is None else 2 * g for name, g in doubled.items()}
