"""A blended step under handlers, in plates, with guides of every kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from torch import Tensor, nn

from pyro_silent import (
    AnnealedELBO,
    LeaveOneOutELBO,
    SampledSiteWarning,
    SilentELBO,
    TwinDecoder,
)
from tests.devices import seeded
from tests.elbo.agreement import assert_close
from tests.elbo.annealed_programs import (
    CODE,
    DATA,
    ROWS,
    Program,
    Squash,
    Twins,
    assert_gradients,
    collect,
    combine,
    flat,
    mlp,
    observe,
    separate,
)

P = pyro.param
WEIGHT = 0.3


# Handlers and plates: a program is held against its two branches run apart


def check(
    program: Program,
    silent: Callable[[], Any] = SilentELBO,
    stochastic: Callable[[], Any] = Trace_ELBO,
    outside: Callable[[Any], Any] = lambda run: run(),
) -> None:
    """One step is the blend of two separate ones, under whatever handler is outside."""
    first, second = outside(lambda: separate(program, silent(), stochastic(), seed=3))
    elbo = AnnealedELBO(silent(), stochastic(), WEIGHT)
    loss, actual = outside(lambda: collect(elbo, *program.run, seed=3))
    assert_gradients(actual, combine(WEIGHT, first[1], second[1]))
    assert_close(loss, second[0], 1e-9, "loss")
    assert any(found is not None and found.abs().max() > 1e-3 for found in actual.values())


@pytest.mark.parametrize(
    "handler",
    [poutine.scale(scale=0.1), poutine.mask(mask=torch.tensor([True, False, True, True]))],
    ids=["scale", "mask"],
)
@pytest.mark.parametrize("place", ["step", "model", "guide", "both"])
def test_scale_and_mask_outside(handler, place):
    """Around the whole step they act once, like around model and guide."""
    program = flat("normal")
    if place in ("model", "both"):
        program = program._replace(model=handler(program.model))
    if place in ("guide", "both"):
        program = program._replace(guide=handler(program.guide))

    def outside(run: Any) -> Any:
        if place != "step":
            return run()
        with handler:
            return run()

    check(program, outside=outside)
    if place == "step" and isinstance(handler, poutine.scale_messenger.ScaleMessenger):
        elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), WEIGHT)
        whole, scaled = (
            collect(elbo, *program.run, seed=3)[1],
            outside(lambda: collect(elbo, *program.run, seed=3))[1],
        )
        assert_gradients(scaled, {name: 0.1 * found for name, found in whole.items()})


def plain(model: Callable, guide: Callable, data: Tensor | None = None) -> Program:
    """A program without an encoder."""
    twins = Twins(nn.Linear(CODE, DATA), mlp(CODE, DATA))
    data = torch.randn(ROWS, DATA) if data is None else data

    def of(program: Callable) -> Callable:
        return lambda branch, x: program(lambda z: twins(branch, "decoder", z), x)

    return Program(of(model), of(guide), data, twins)


def start(name: str, rows: int, columns: int = CODE) -> Tensor:
    """A parameter whose first values are drawn without disturbing the seed of the run."""
    generator = seeded(sum(map(ord, name)))
    return P(name, 0.5 * torch.randn(rows, columns, generator=generator))


def code(name: str = "z", infer: dict | None = None, rows: int | None = None) -> Tensor:
    """A Gaussian code of the guide with parameters of its own."""
    loc, width = start(f"{name}_loc", rows or 1), start(f"{name}_width", rows or 1).exp()
    if rows is None:
        loc, width = loc[0], width[0]
    return pyro.sample(name, dist.Normal(loc, width).to_event(1), infer=infer)


def prior(name: str = "z", **keywords: Any) -> Tensor:
    """Its prior, with a learned mean."""
    loc = P(f"{name}_prior", torch.full((CODE,), 0.2))
    return pyro.sample(name, dist.Normal(loc, 1.3).to_event(1), **keywords)


def _handlers() -> Program:
    def model(decode: Callable, x: Tensor) -> None:
        with pyro.plate("data", ROWS), poutine.scale(scale=0.7):
            z = prior()
            pyro.deterministic("twice", 2 * z, event_dim=1)
            pyro.factor("penalty", -0.3 * P("strength", torch.tensor(0.4)) * z.sum(-1))
            with poutine.mask(mask=torch.arange(ROWS) > 0):
                pyro.sample("x", dist.Normal(decode(z), 0.6).to_event(1), obs=x)

    def guide(decode: Callable, x: Tensor) -> None:
        with pyro.plate("data", ROWS), poutine.scale(scale=0.7):
            code(rows=ROWS)

    return plain(model, guide)


def _nested() -> Program:
    def model(decode: Callable, x: Tensor) -> None:
        with pyro.plate("group", 2, dim=-2):
            a = prior("a")
            with pyro.plate("data", ROWS, dim=-1):
                b = prior("b")
                pyro.sample("x", dist.Normal(decode(a + b), 0.6).to_event(1), obs=x)

    def guide(decode: Callable, x: Tensor) -> None:
        with pyro.plate("group", 2, dim=-2):
            code("a")
            with pyro.plate("data", ROWS, dim=-1):
                code("b", rows=ROWS)

    return plain(model, guide, torch.randn(2, ROWS, DATA))


def _sequential() -> Program:
    def model(decode: Callable, x: Tensor) -> None:
        for i in pyro.plate("rows", 3):
            z = prior(f"z{i}")
            pyro.sample(f"x{i}", dist.Normal(decode(z), 0.6).to_event(1), obs=x[i])

    def guide(decode: Callable, x: Tensor) -> None:
        for i in pyro.plate("rows", 3):
            code(f"z{i}")

    return plain(model, guide)


def _unequal() -> Program:
    """The guide may sample in another order, and the model may have latent-free terms."""

    def model(decode: Callable, x: Tensor) -> None:
        top = prior("top")
        pyro.sample("w", dist.Normal(P("w_loc", torch.tensor(0.3)), 1.0), obs=torch.tensor(1.0))
        with pyro.plate("data", ROWS):
            z = prior()
            pyro.sample("x", dist.Normal(decode(z + top), 0.6).to_event(1), obs=x)

    def guide(decode: Callable, x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            code(rows=ROWS)
        code("top")

    return plain(model, guide)


def _transformed() -> Program:
    """A LogNormal site, and one under an affine transform."""

    def model(decode: Callable, x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(P("rate", torch.tensor(0.1)), 0.5))
        with pyro.plate("data", ROWS):
            z = prior()
            pyro.sample("x", dist.Normal(decode(z) + scale, 0.6).to_event(1), obs=x)

    def guide(decode: Callable, x: Tensor) -> None:
        loc, width = P("log_loc", torch.tensor(0.2)), P("log_width", torch.tensor(-1.0)).exp()
        pyro.sample("scale", dist.LogNormal(loc, width))
        base = dist.Normal(start("loc", ROWS), P("width", torch.tensor(-0.5)).exp())
        affine = dist.transforms.AffineTransform(0.5, 1.5)
        with pyro.plate("data", ROWS):
            pyro.sample("z", dist.TransformedDistribution(base, affine).to_event(1))

    return plain(model, guide)


def _opted_out() -> Program:
    def model(decode: Callable, x: Tensor) -> None:
        b = prior("b")
        with pyro.plate("data", ROWS):
            z = prior()
            pyro.sample("x", dist.Normal(decode(z), 0.6).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(b, 0.6).to_event(1), obs=x[:, :CODE])

    def guide(decode: Callable, x: Tensor) -> None:
        code("b", infer={"silent": False})
        with pyro.plate("data", ROWS):
            code(rows=ROWS)

    return plain(model, guide)


def _delta() -> Program:
    def model(decode: Callable, x: Tensor) -> None:
        b = prior("b")
        with pyro.plate("data", ROWS):
            z = prior()
            pyro.sample("x", dist.Normal(decode(z + b), 0.6).to_event(1), obs=x)

    def guide(decode: Callable, x: Tensor) -> None:
        pyro.sample("b", dist.Delta(start("point", 1)[0], event_dim=1))
        with pyro.plate("data", ROWS):
            code(rows=ROWS)

    return plain(model, guide)


def _unused() -> Program:
    """A latent of no data: its gradient is that of its KL alone."""

    def model(decode: Callable, x: Tensor) -> None:
        prior("b")
        with pyro.plate("data", ROWS):
            z = prior()
            pyro.sample("x", dist.Normal(decode(z), 0.6).to_event(1), obs=x)

    def guide(decode: Callable, x: Tensor) -> None:
        pyro.sample("aux", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        code("b")
        with pyro.plate("data", ROWS):
            code(rows=ROWS)

    return plain(model, guide)


HANDLED = {
    "handlers": _handlers,
    "nested": _nested,
    "sequential": _sequential,
    "order": _unequal,
    "transformed": _transformed,
    "delta": _delta,
    "auxiliary": _unused,
}


@pytest.mark.parametrize("name", HANDLED)
def test_programs(name):
    check(HANDLED[name]())


@pytest.mark.parametrize("name", ["nested", "sequential", "handlers"])
def test_programs_with_vectorized_particles(name):
    """Pyro guesses how deep plates are nested: before the draws at a seed, so that these agree."""

    def vectorized() -> Any:
        return Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=2)

    check(HANDLED[name](), stochastic=vectorized)


def test_data_missing_by_mask():
    """``obs_mask``: the rows that are not observed are latents of their own, in both branches."""

    def model(decode: Callable, x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            z = prior()
            pyro.sample(
                "x",
                dist.Normal(decode(z), 0.6).to_event(1),
                obs=x,
                obs_mask=torch.arange(ROWS) != 1,
            )

    def guide(decode: Callable, x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            code(rows=ROWS)
            loc = start("missing", ROWS, DATA)
            pyro.sample("x_unobserved", dist.Normal(loc, 0.5).to_event(1))

    check(plain(model, guide))


def test_a_site_that_opts_out_is_sampled():
    """In the silent part; the other site stays exact there: less noise than with both sampled."""
    program = _opted_out()
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), 1.0, silent_warm_up=True)
    runs = [collect(elbo, *program.run, seed=seed)[1] for seed in (1, 2)]
    silent = collect(SilentELBO(), program.model, program.guide, "analytic", program.data, seed=1)
    assert_gradients(runs[0], silent[1])
    assert torch.equal(runs[0]["z_loc"], runs[1]["z_loc"])
    assert not torch.equal(runs[0]["b_loc"], runs[1]["b_loc"])
    for weight in (0.0, WEIGHT):
        elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), weight)
        assert collect(elbo, *program.run, seed=1)[1]["b_loc"].isfinite().all()


# Subsampling. Both parts are silent here, on two affine branches, so that nothing but the subsamples
# is random, and the oracle is given these.


def _subsampled(seen: dict[str, list], given: dict[str, Tensor], in_guide: bool) -> Program:
    twins = Twins(nn.Linear(CODE, DATA), nn.Linear(CODE, DATA))
    data = torch.randn(8, DATA)

    def plate(who: str, name: str, size: int, count: int, dim: int) -> Any:
        return pyro.plate(name, size, subsample_size=count, subsample=given.get(name), dim=dim)

    def model(branch: str, x: Tensor) -> None:
        rows, columns = (
            plate("model", "rows", 8, 3, -1),
            plate("model", "columns", 6, 2, -2),
        )
        with rows as i:
            seen["rows"].append(i.clone())
            z = prior()
            observe(twins(branch, "decoder", z), x[i])
        with columns as j:
            seen["columns"].append(j.clone())
            w = pyro.sample("w", dist.Normal(P("w_prior", torch.tensor(0.1)), 1.0))
        with rows as i, columns as j:
            loc = z[..., 0] * 0.5 + w
            target = x[i, 0] + j.to(x.dtype)[:, None]
            pyro.sample("y", dist.Normal(loc, 1.0), obs=target)

    def guide(branch: str, x: Tensor) -> None:
        rows_loc = start("z_loc", 8)
        columns_loc = start("w_loc", 6, 1)
        if in_guide:
            with plate("guide", "rows", 8, 3, -1) as i:
                pyro.sample("z", dist.Normal(rows_loc[i], 0.5).to_event(1))
            with plate("guide", "columns", 6, 2, -2) as j:
                pyro.sample("w", dist.Normal(columns_loc[j], 0.7))
        else:
            with pyro.plate("rows", 8, subsample_size=3, subsample=given.get("rows"), dim=-1):
                pyro.sample("z", dist.Normal(rows_loc[0], 0.5).to_event(1))
            with pyro.plate("columns", 6, subsample_size=2, subsample=given.get("columns"), dim=-2):
                pyro.sample("w", dist.Normal(columns_loc[0], 0.7))

    return Program(model, guide, data, twins)


@pytest.mark.parametrize("num_particles", [1, 2])
def test_both_parts_see_the_same_minibatch(num_particles):
    seen: dict[str, list] = {"rows": [], "columns": []}
    given: dict[str, Tensor] = {}
    program = _subsampled(seen, given, in_guide=True)
    elbo = AnnealedELBO(SilentELBO(), SilentELBO(num_particles=num_particles), WEIGHT)
    used = set()
    for seed in range(4):
        given.clear()
        for indices in seen.values():
            indices.clear()
        loss, actual = collect(elbo, *program.run, seed=seed)
        for name, indices in seen.items():
            assert len(indices) == 1 + num_particles
            assert all(torch.equal(indices[0], other) for other in indices), name
            given[name] = indices[0]
        used.add(tuple(given["rows"].tolist()))
        first, second = separate(program, SilentELBO(), SilentELBO(), seed=0)
        assert_gradients(actual, combine(WEIGHT, first[1], second[1]))
        assert_close(loss, second[0], 1e-9, "loss")
    assert len(used) == 4


def test_a_subsample_of_the_model_alone_is_shared():
    """The guide has no plate: the parts draw nothing that the other has drawn."""
    seen: list[Tensor] = []
    data = torch.randn(8, DATA)
    twins = Twins(nn.Linear(CODE, DATA), mlp(CODE, DATA))

    def model(branch: str, x: Tensor) -> None:
        z = prior()
        with pyro.plate("rows", 8, subsample_size=3) as i:
            seen.append(i)
            observe(twins(branch, "decoder", z), x[i])

    def guide(branch: str, x: Tensor) -> None:
        code()

    program = Program(model, guide, data, twins)
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), WEIGHT)
    collect(elbo, *program.run, seed=0)
    assert len(seen) == 2 and torch.equal(*seen)
    collect(elbo, *program.run, seed=1)
    assert len(seen) == 4 and torch.equal(*seen[2:]) and not torch.equal(*seen[1:3])


# Guides


GUIDES = [
    AutoNormal,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoLowRankMultivariateNormal,
    AutoNormalMessenger,
    AutoDelta,
]


def automatic(make: Callable) -> Program:
    """A group effect, a positive scale and codes, under an autoguide."""
    twins, data = Twins(nn.Linear(CODE, DATA), mlp(CODE, DATA)), torch.randn(ROWS, DATA)

    def model(branch: str, x: Tensor) -> None:
        shift = pyro.sample("shift", dist.LogNormal(P("centre", torch.tensor(0.2)), 0.5))
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            observe(twins(branch, "decoder", z) + shift, x)

    guide = make(model)
    guide("twin", data)
    return Program(model, guide, data, twins)


@pytest.mark.parametrize("make", GUIDES, ids=lambda make: make.__name__)
def test_automatic_guides(make):
    check(automatic(make))


@pytest.mark.parametrize("marked", [True, False])
def test_control_flow_of_the_guide(marked):
    """A value that decides between statements: the guide runs for each part, each with its draw.

    Whether the switch is marked as sampled, or the silent part finds out and warns.
    """

    def model(decode: Callable, x: Tensor) -> None:
        switch = pyro.sample("switch", dist.Normal(P("centre", torch.tensor(0.1)), 1.0))
        with pyro.plate("data", ROWS):
            z = prior()
            observe(decode(z) + switch, x)

    def guide(decode: Callable, x: Tensor) -> None:
        fn = dist.Normal(P("switch_loc", torch.tensor(0.3)), 0.5)
        switch = pyro.sample("switch", fn, infer={"silent": False} if marked else None)
        with pyro.plate("data", ROWS):
            if switch > 0:
                code(rows=ROWS)
            else:
                pyro.sample("z", dist.Normal(start("other", ROWS), 0.5).to_event(1))

    program = plain(model, guide)
    silent = SilentELBO(intractable="sample"), SilentELBO(intractable="sample")
    elbo, seen = AnnealedELBO(silent[0], Trace_ELBO(), WEIGHT), set()
    if not marked:
        for part in silent:  # from here on both know the switch
            with pytest.warns(SampledSiteWarning):
                part.loss(program.model, program.guide, "analytic", program.data)
    for seed in range(8):
        _, actual = collect(elbo, *program.run, seed=seed)
        run = program.model, program.guide
        _, stochastic = collect(Trace_ELBO(), *run, "expressive", program.data, seed=seed)
        # the stochastic part has drawn its switch first, and the silent part goes on
        state = torch.get_rng_state()
        _, after = collect(Continued(silent[1], state), *run, "analytic", program.data, seed=0)
        assert_gradients(actual, combine(WEIGHT, after, stochastic))
        seen.add((stochastic.get("other") is None, after.get("other") is None))
    assert len(seen) > 2, "the switch is always the same"


class Continued:
    """A loss whose random numbers go on from a state."""

    def __init__(self, elbo: Any, state: Tensor) -> None:
        self.elbo, self.state = elbo, state

    def loss_and_grads(self, *args: Any) -> float:
        torch.set_rng_state(self.state)
        return self.elbo.loss_and_grads(*args)


def _network_chain() -> Program:
    """A code that moves the next one through a network."""
    network = mlp(DATA, CODE)

    def model(decode: Callable, x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(DATA), 1.0).to_event(1))
        with pyro.plate("data", ROWS):
            observe(decode(prior()) + a, x)

    def guide(decode: Callable, x: Tensor) -> None:
        pyro.module("network", network)
        a = pyro.sample("a", dist.Normal(start("a_loc", 1, DATA)[0], 0.4).to_event(1))
        with pyro.plate("data", ROWS):
            pyro.sample("z", dist.Normal(network(x + a), 0.5).to_event(1))

    return plain(model, guide)


def _discrete_chain() -> Program:
    """A class, then a code whose mean is looked up."""
    table = nn.Embedding(3, CODE)

    def model(decode: Callable, x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            pyro.sample("k", dist.Categorical(logits=start("odds", 1, 3)[0]))
            observe(decode(prior()), x)

    def guide(decode: Callable, x: Tensor) -> None:
        pyro.module("table", table)
        with pyro.plate("data", ROWS):
            k = pyro.sample("k", dist.Categorical(logits=start("logits", ROWS, 3)))
            pyro.sample("z", dist.Normal(table(k) + start("z_loc", ROWS), 0.5).to_event(1))

    return plain(model, guide)


def _skip() -> Program:
    """The model reads features that the guide's run has made, as skip connections do."""
    trunk, head, kept = nn.Linear(DATA, DATA), nn.Linear(DATA, CODE), {}

    def model(decode: Callable, x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            observe(decode(prior()) + kept["features"], x)

    def guide(decode: Callable, x: Tensor) -> None:
        pyro.module("trunk", trunk)
        pyro.module("head", head)
        kept["features"] = trunk(x).tanh()
        with pyro.plate("data", ROWS):
            pyro.sample("z", dist.Normal(head(kept["features"]), 0.5).to_event(1))

    return plain(model, guide)


@pytest.mark.parametrize("stochastic", [Trace_ELBO, TraceGraph_ELBO, LeaveOneOutELBO])
@pytest.mark.parametrize("make", [_network_chain, _discrete_chain, _skip])
def test_chains_beyond_closed_forms(make, stochastic):
    """Both parts draw, so the oracle's silent run goes on from the random state of the other."""
    program, silent = make(), SilentELBO(intractable="sample", estimator=None)
    run = program.model, program.guide
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SampledSiteWarning)
        silent.loss(*run, "analytic", program.data)
        elbo = AnnealedELBO(SilentELBO(intractable="sample", estimator=None), stochastic(), WEIGHT)
        loss, actual = collect(elbo, *program.run, seed=3)
    expected, second = collect(stochastic(), *run, "expressive", program.data, seed=3)
    after = Continued(silent, torch.get_rng_state())
    _, first = collect(after, *run, "analytic", program.data, seed=0)
    assert_gradients(actual, combine(WEIGHT, first, second))
    assert_close(loss, expected, 1e-9, "loss")


@pytest.mark.parametrize("weight", [0.0, WEIGHT, 1.0])
def test_enumerated_sites_of_the_guide(weight):
    """Both parts enumerate: neither draws the switch, and both losses are exact here."""
    twins = Twins(nn.Linear(1, DATA), mlp(1, DATA))

    def model(branch: str, x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            k = pyro.sample("k", dist.Bernoulli(logits=P("odds", torch.tensor(0.3))))
            observe(twins(branch, "decoder", k.unsqueeze(-1)), x)

    def guide(branch: str, x: Tensor) -> None:
        logits = start("logits", ROWS, 1)[:, 0]
        with pyro.plate("data", ROWS):
            pyro.sample("k", dist.Bernoulli(logits=logits), infer={"enumerate": "parallel"})

    program = Program(model, guide, torch.randn(ROWS, DATA), twins)
    parts = SilentELBO(max_plate_nesting=1), TraceEnum_ELBO(max_plate_nesting=1)
    first, second = separate(program, *parts, seed=0)
    elbo = AnnealedELBO(*parts, weight)
    _, actual = collect(elbo, *program.run, seed=1)
    silent = first[1] if weight else {}
    assert_gradients(actual, combine(weight, silent, second[1]))


def test_one_module_for_model_and_guide():
    """A VAE registered in both under one name."""
    vae = nn.ModuleDict(
        {
            "encoder": nn.Linear(DATA, CODE),
            "decoder": TwinDecoder(nn.Linear(CODE, DATA), mlp(CODE, DATA)),
        }
    )
    branches = {"twin": vae["decoder"], **dict(vae["decoder"].named_children())}

    def model(branch: str, x: Tensor) -> None:
        pyro.module("vae", vae)
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            observe(branches[branch](z), x)

    def guide(branch: str, x: Tensor) -> None:
        pyro.module("vae", vae)
        with pyro.plate("data", ROWS):
            pyro.sample("z", dist.Normal(vae["encoder"](x), 0.4).to_event(1))

    check(Program(model, guide, torch.randn(ROWS, DATA), Twins(nn.Identity(), Squash())))


def test_a_parameter_that_one_loss_reaches_past_the_guide():
    """A noise scale that the expressive branch alone has; one is used by the analytic branch alone."""
    program = flat("normal")
    scales = {"analytic": torch.tensor(0.4), "expressive": torch.tensor(-0.2)}

    class Noisy(nn.Module):
        def __init__(self, name: str, decoder: nn.Module) -> None:
            super().__init__()
            self.name, self.decoder = name, decoder

        def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
            return self.decoder(z), P(f"alone_{self.name}", scales[self.name]).exp()

    twins = Twins(*(Noisy(name, program.twins.branches[name]) for name in scales))

    def model(branch: str, x: Tensor) -> None:
        with pyro.plate("data", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
            loc, scale = twins(branch, "decoder", z)
            observe(loc, x, scale)

    program = program._replace(model=model)
    first, second = separate(program, SilentELBO(), Trace_ELBO(), seed=1)
    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), WEIGHT)
    _, actual = collect(elbo, *program.run, seed=1)
    for name, own in (("alone_analytic", first[1]), ("alone_expressive", second[1])):
        assert own[name].abs() > 0.1
        assert_close(actual[name], own[name], 1e-9, name)


def test_a_parameter_of_the_guide_and_of_one_decoder():
    """Its guide's share is blended, the decoder's is in full, as for two parameters of equal value."""
    first = torch.randn(DATA, CODE)
    data = torch.randn(ROWS, DATA)

    def gradients(decoders: str, elbo: Any, branch: str) -> dict:
        pyro.clear_param_store()

        class Deep(nn.Module):
            def forward(self, z: Tensor) -> Tensor:
                return (z @ P(decoders, first.clone()).T).tanh()

        twins = Twins(nn.Linear(CODE, DATA, bias=False), Deep())
        with torch.no_grad():
            twins.branches["analytic"].weight.copy_(0.5 * torch.ones(DATA, CODE))

        def model(branch: str, x: Tensor) -> None:
            with pyro.plate("data", ROWS):
                z = pyro.sample("z", dist.Normal(torch.zeros(CODE), 1.0).to_event(1))
                observe(twins(branch, "decoder", z), x)

        def guide(branch: str, x: Tensor) -> None:
            with pyro.plate("data", ROWS):
                pyro.sample("z", dist.Normal(x @ P("tied", first.clone()), 0.4).to_event(1))

        return collect(elbo, model, guide, branch, data, seed=2)[1]

    actual = gradients("tied", AnnealedELBO(SilentELBO(), Trace_ELBO(), WEIGHT), "twin")
    silent = gradients("tied", SilentELBO(), "analytic")
    stochastic = gradients("other", Trace_ELBO(), "expressive")
    blend = WEIGHT * silent["tied"] + (1 - WEIGHT) * stochastic["tied"]
    assert_close(actual["tied"], blend + stochastic["other"], 1e-9, "tied")
