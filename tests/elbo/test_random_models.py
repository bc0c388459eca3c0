"""Random models against brute force: plates, chains, gathers, sums, scales, masks, in any mix."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_silent import SilentELBO
from pyro_silent.expectation import gaussian
from pyro_silent.random_tensor.affine import Affine
from tests.devices import seeded
from tests.elbo.agreement import assert_close, evaluate, gradients_of
from tests.elbo.oracle import negative_elbo

A, B = 2, 3  # sizes of the outer and the inner plate, at dims -2 and -1
BUDGET = 7  # scalar latents, each with two values in the oracle
SHAPES = {"": (), "b": (B,), "a": (A, 1), "ab": (A, B)}


class Site(NamedTuple):
    """What a site is, before any tensor exists."""

    name: str
    plates: str
    width: int
    law: str
    parents: tuple[tuple[str, str], ...]
    guide_parents: tuple[tuple[str, str], ...]
    scale: float
    masked: bool


def size_of(site: Site) -> int:
    """Number of scalar latents."""
    return torch.Size(SHAPES[site.plates]).numel() * site.width


def random_sites(rng: random.Random) -> tuple[list[Site], list[Site]]:
    """Latent and observed sites; parents come before their children."""
    latents: list[Site] = []
    observed: list[Site] = []
    budget = BUDGET

    def parents() -> tuple[tuple[str, str], ...]:
        chosen = [site.name for site in latents if rng.random() < 0.6]
        return tuple((name, rng.choice(READINGS)) for name in chosen)

    for i in range(rng.randint(1, 3)):
        law = rng.choice(["normal", "normal", "mvn", "low_rank", "bernoulli", "one_hot"])
        site = Site(
            f"z{i}",
            rng.choice(list(SHAPES)),
            rng.randint(1, 3),
            law,
            parents() if law not in DISCRETE else (),
            parents() if law not in DISCRETE and rng.random() < 0.5 else (),
            rng.choice([1.0, 1.0, 0.5]),
            rng.random() < 0.2,
        )
        if size_of(site) <= budget:
            budget -= size_of(site)
            latents.append(site)
    for i in range(rng.randint(1, 3)):
        plates, width = rng.choice(list(SHAPES)), rng.randint(1, 3)
        law = rng.choice(["normal", "normal", "mvn", "low_rank"])
        scale, masked = rng.choice([1.0, 2.0]), rng.random() < 0.2
        observed.append(Site(f"x{i}", plates, width, law, parents(), (), scale, masked))
    return latents, observed


DISCRETE = ("bernoulli", "one_hot")
READINGS = ["plain", "gather", "difference", "difference", "flip", "cumsum", "centred"]


def read(z: Tensor, plates: str, target: str, how: str) -> Tensor:
    """A latent [batch, event] seen from a site in other plates, by a linear map over the batch."""
    batch = z.reshape(((1, 1) + z.shape[:-1])[-2:] + z.shape[-1:])
    for dim, plate in ((0, "a"), (1, "b")):
        if plate not in plates:
            continue
        if plate not in target:
            batch = batch.sum(dim, keepdim=True)
            continue
        index = torch.tensor([1, 0, 1])[: batch.shape[dim]]
        if how == "gather":
            batch = batch.index_select(dim, index)
        elif how == "difference":
            batch = batch - batch.index_select(dim, index)
        elif how == "flip":
            batch = 0.5 * batch + batch.flip(dim)
        elif how == "cumsum":
            batch = batch.cumsum(dim)
        elif how == "centred":
            batch = batch - batch.mean(dim, keepdim=True)
    return batch


def parameter(name: str, *shape: int) -> Tensor:
    """A parameter whose start depends on its name alone."""
    seed = sum(ord(c) * (i + 1) for i, c in enumerate(name))
    generator = seeded(seed)
    return pyro.param(name, lambda: 0.6 * torch.randn(shape, generator=generator).double())


def location(site: Site, parents: tuple, values: dict, sites: dict, prefix: str) -> Tensor:
    """An affine function of the parents in the site's batch and event shape."""
    total = parameter(f"{prefix}_{site.name}", *SHAPES[site.plates], site.width)
    for name, how in parents:
        weight = parameter(f"{prefix}_{site.name}_{name}", sites[name].width, site.width)
        part = read(values[name], sites[name].plates, site.plates, how) @ weight
        total = total + part[(0,) * (2 - len(SHAPES[site.plates]))]
    return total


def distribution(site: Site, loc: Tensor, prefix: str) -> dist.Distribution:
    if site.law == "bernoulli":
        return dist.Bernoulli(logits=loc).to_event(1)
    if site.law == "one_hot":
        return dist.OneHotCategorical(logits=loc)
    spread = parameter(f"{prefix}_{site.name}_scale", site.width).exp()
    if site.law == "normal":
        return dist.Normal(loc, spread).to_event(1)
    if site.law == "low_rank":
        factor = parameter(f"{prefix}_{site.name}_factor", site.width, 2)
        return dist.LowRankMultivariateNormal(loc, factor, spread)
    tril = parameter(f"{prefix}_{site.name}_tril", site.width, site.width).tril(-1)
    return dist.MultivariateNormal(loc, scale_tril=tril + torch.diag(spread))


def sample(site: Site, fn: dist.Distribution, obs: Tensor | None = None) -> Tensor:
    """One site in its plates, under its scale and mask."""
    shape = SHAPES[site.plates]
    mask = (torch.arange(torch.Size(shape).numel()) % 2 == 0).reshape(shape)
    handlers: list = [poutine.scale(scale=site.scale)]
    if site.masked and shape:
        handlers.append(poutine.mask(mask=mask))
    if "a" in site.plates:
        handlers.append(pyro.plate(f"{site.name}_a", A, dim=-2))
    if "b" in site.plates:
        handlers.append(pyro.plate(f"{site.name}_b", B, dim=-1))

    def run() -> Tensor:
        return pyro.sample(site.name, fn, obs=obs)

    for handler in handlers:
        run = handler(run)
    return run()


def random_pair(seed: int) -> tuple[Callable, Callable]:
    """A model and its guide."""
    latents, observed = random_sites(random.Random(seed))
    sites = {site.name: site for site in latents}

    def guide() -> None:
        values: dict[str, Tensor] = {}
        for site in latents:
            loc = location(site, site.guide_parents, values, sites, "q")
            values[site.name] = sample(site, distribution(site, loc, "q"))

    def model() -> None:
        values: dict[str, Tensor] = {}
        for site in latents:
            loc = location(site, site.parents, values, sites, "p")
            values[site.name] = sample(site, distribution(site, loc, "p"))
        for site in observed:
            loc = location(site, site.parents, values, sites, "p")
            data = torch.linspace(-1.0, 2.0, loc.numel()).reshape(loc.shape)
            sample(site, distribution(site, loc, "p"), obs=data)

    return model, guide


@pytest.mark.parametrize("seed", range(50))
def test_random_model(seed):
    model, guide = random_pair(seed)
    loss, gradients = evaluate(SilentELBO(), model, guide)
    expected = negative_elbo(model, guide)
    assert_close(loss, expected, 1e-9, "loss")
    for name, truth in gradients_of(expected).items():
        assert_close(gradients[name], truth, 1e-8, f"gradient of {name}")


@pytest.mark.parametrize("planted", ["variance", "covariance"])
def test_brute_force_catches_planted_errors(planted, monkeypatch):
    """Variances forgotten, or two readings of one latent taken for uncorrelated."""
    true_covariance = gaussian.covariance

    def wrong(a, b, weight, dims):
        if planted == "variance":
            return 0.0 * true_covariance(a, b, weight, dims)
        alone = [Affine(a.offset, (term,)) for term in a.terms]
        return sum(true_covariance(part, part, weight, dims) for part in alone)

    monkeypatch.setattr(gaussian, "covariance", wrong)
    caught = 0
    for seed in range(20):
        pyro.clear_param_store()
        model, guide = random_pair(seed)
        loss = SilentELBO().loss(model, guide)
        truth = negative_elbo(model, guide).item()
        caught += abs(loss - truth) > 1e-6 * max(1.0, abs(truth))
    assert caught >= (12 if planted == "variance" else 2), caught
