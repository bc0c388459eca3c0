"""Which parameter gets which gradient: the blend, or one loss's own in full."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_silent import (
    ZGR,
    AnnealedELBO,
    DisARMELBO,
    Exponential,
    GumbelRaoELBO,
    LeaveOneOutELBO,
    Linear,
    RelaxedELBO,
    SilentELBO,
    StraightThroughELBO,
)
from tests.elbo.agreement import assert_close, gradients_of, leaves
from tests.elbo.annealed_programs import (
    DATA,
    PROGRAMS,
    Program,
    ScaleEverySite,
    assert_gradients,
    baselines,
    collect,
    combine,
    distance,
    flat,
    is_branch,
    mlp,
    restore_baselines,
    scaled_loss,
    separate,
    summed,
)

WEIGHTS = (0.0, 0.3, 1.0)
each_weight = pytest.mark.parametrize("weight", WEIGHTS)


def _averaged(x: torch.Tensor) -> dict:
    return {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}}


class Baseline(nn.Module):
    """A network that predicts the cost of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(DATA, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).squeeze(-1)


def _predicted(x: torch.Tensor) -> dict:
    network = pyro.module("baseline", _predicted.network)
    return {"baseline": {"nn_baseline": network, "nn_baseline_input": x}}


# Stochastic losses -> how they are made; those of discrete latents, with options of the guide's site.
REPARAMETERIZED = {
    "trace": Trace_ELBO,
    "mean_field": TraceMeanField_ELBO,
    "graph": TraceGraph_ELBO,
    "gumbel_rao": GumbelRaoELBO,
    "leave_one_out": LeaveOneOutELBO,
}
DISCRETE: dict[str, tuple[Callable[[], Any], Callable[[torch.Tensor], dict]]] = {
    "trace": (Trace_ELBO, lambda x: {}),
    "graph": (TraceGraph_ELBO, lambda x: {}),
    "graph_average": (TraceGraph_ELBO, _averaged),
    "graph_network": (TraceGraph_ELBO, _predicted),
    "gumbel_rao": (
        lambda: GumbelRaoELBO(Exponential(1.0, 0.2, num_steps=3), 5),
        lambda x: {},
    ),
    "straight_through": (lambda: StraightThroughELBO(ZGR()), lambda x: {}),
    "relaxed": (lambda: RelaxedELBO(Linear(2.0, 0.5, num_steps=3)), lambda x: {}),
    "leave_one_out": (lambda: LeaveOneOutELBO(3), lambda x: {}),
    "leave_one_out_vectorized": (
        lambda: LeaveOneOutELBO(3, vectorize_particles=True, max_plate_nesting=1),
        lambda x: {},
    ),
}


def check_steps(
    program: Program,
    stochastic: Callable[[], Any],
    weight: float,
    silent: Callable[[], Any] = SilentELBO,
    steps: int = 2,
) -> None:
    """Some steps of gradient descent; at each the gradients are those of the oracle."""
    parts = silent(), stochastic()
    elbo = AnnealedELBO(silent(), stochastic(), weight)
    for step in range(steps):
        seed = 10 + step
        (_, silent_grads), (loss, stochastic_grads) = separate(program, *parts, seed)
        if weight == 0.0:
            silent_grads = {}
        expected = combine(weight, silent_grads, stochastic_grads)
        actual_loss, actual = collect(elbo, *program.run, seed=seed)
        assert_gradients(actual, expected)
        assert_close(actual_loss, loss, 1e-9, "loss")
        assert sum(found is not None for found in actual.values()) >= 3
        with torch.no_grad():
            for name, leaf in leaves().items():
                if (found := actual.get(name)) is not None:
                    leaf -= 0.05 * found
    assert elbo.num_steps == steps


@each_weight
@pytest.mark.parametrize("stochastic", REPARAMETERIZED)
def test_gaussian_codes(stochastic, weight):
    check_steps(flat("normal"), REPARAMETERIZED[stochastic], weight)


@pytest.mark.parametrize(
    "family, stochastic, weight",
    [
        *itertools.product(["bernoulli", "one_hot", "categorical"], DISCRETE, [0.3]),
        *itertools.product(["bernoulli"], ["graph_average", "graph_network"], [0.0, 1.0]),
        *itertools.product(["one_hot", "categorical"], ["trace", "gumbel_rao"], [0.0, 1.0]),
        *itertools.product(["one_hot"], ["relaxed", "leave_one_out_vectorized"], [0.0, 1.0]),
    ],
)
def test_discrete_codes(family, stochastic, weight):
    """Temperatures and running baselines go on from step to step."""
    make, infer = DISCRETE[stochastic]
    _predicted.network = Baseline()
    check_steps(flat(family, infer), make, weight)
    assert bool(baselines()) == (stochastic == "graph_average")


@each_weight
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "normal"])
def test_structure(name, weight):
    """Priors, hierarchies, chains, tied parameters, twins of two likelihoods."""
    check_steps(PROGRAMS[name](), Trace_ELBO, weight)


@pytest.mark.parametrize(
    "name, stochastic",
    [
        *itertools.product(["bottom_up", "top_down"], ["graph", "leave_one_out", "gumbel_rao"]),
        *itertools.product(["top_down", "autoregressive"], ["mean_field"]),  # one order of sites
    ],
)
def test_hierarchies_under_other_losses(name, stochastic):
    check_steps(PROGRAMS[name](), REPARAMETERIZED[stochastic], 0.4, steps=1)


def test_disarm():
    """Antithetic pairs: the guide's laws are those of both members."""
    check_steps(flat("bernoulli"), DisARMELBO, 0.3)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_weight_follows_the_schedule(weight):
    """``schedule(step)`` is asked once for each step, and any callable will do."""
    program, asked = flat("normal"), []

    def schedule(step: int) -> float:
        asked.append(step)
        return weight / (1 + step)

    elbo = AnnealedELBO(SilentELBO(), Trace_ELBO(), schedule)
    for step in range(3):
        asked.clear()
        pair = separate(program, SilentELBO(), Trace_ELBO(), seed=step)
        expected = combine(weight / (1 + step), pair[0][1], pair[1][1])
        assert elbo.weight == weight / (1 + step)
        assert_gradients(collect(elbo, *program.run, seed=step)[1], expected)
        assert set(asked) == {step}


# Controls


def test_the_silent_part_may_be_stochastic():
    """The control: samples through the analytic branch. Held against the recorded samples."""
    program = flat("normal")
    seen: dict[str, list] = {}

    def remember(branch: str) -> Callable:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen.setdefault(branch, []).append(args[0].detach().clone())

        return hook

    elbo = AnnealedELBO(Trace_ELBO(), Trace_ELBO(), 0.3)
    handles = [
        program.twins.branches[branch].register_forward_hook(remember(branch))
        for branch in ("analytic", "expressive")
    ]
    loss, actual = collect(elbo, *program.run, seed=2)
    for handle in handles:
        handle.remove()
    assert {name: len(values) for name, values in seen.items()} == {"analytic": 1, "expressive": 1}

    def by_hand(branch: str) -> torch.Tensor:
        """Trace_ELBO's loss at the code that this branch has seen."""
        z, x = seen[branch][0], program.data
        loc, log_scale = program.encoder(x).chunk(2, -1)
        posterior = torch.distributions.Normal(loc, log_scale.exp())
        z = loc + log_scale.exp() * ((z - loc) / log_scale.exp()).detach()
        mean, width = pyro.param("prior").chunk(2, -1)
        prior = torch.distributions.Normal(mean, width.exp())
        decoded = program.twins.branches[branch](z)
        likelihood = torch.distributions.Normal(decoded, pyro.param("noise").exp())
        terms = (likelihood.log_prob(x), prior.log_prob(z), -posterior.log_prob(z))
        return -sum(term.sum() for term in terms)

    def reached(part: torch.Tensor) -> dict:
        return {name: found if found.any() else None for name, found in gradients_of(part).items()}

    silent, stochastic = by_hand("analytic"), by_hand("expressive")
    blend = combine(0.3, *(reached(part) for part in (silent, stochastic)))
    assert_gradients(actual, blend)
    assert_close(loss, stochastic, 1e-9, "loss")
    assert abs(loss - silent.item()) > 0.1


def test_the_control_has_running_baselines_of_its_own():
    """Two parts with decaying averages: the stochastic one's are those it would have alone."""
    program = flat("bernoulli", _averaged)
    elbo = AnnealedELBO(TraceGraph_ELBO(), TraceGraph_ELBO(), 0.3)
    name = "__baseline_avg_downstream_cost_z"
    for seed in (1, 2):
        collect(elbo, *program.run, seed=seed)
    beside, kept = baselines(), set(leaves())
    restore_baselines({})
    for seed in (1, 2):
        apart = program.model, program.guide, "expressive", program.data
        collect(TraceGraph_ELBO(), *apart, seed=seed)
    assert_close(beside[name], baselines()[name], 1e-12, "baseline")
    assert beside[name].any() and f"silent:{name}" in kept


# Planted faults: the oracle tells them apart


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("wrong", [scaled_loss, summed])
def test_wrong_blends_are_far_away(name, wrong):
    """Weighting whole losses, or adding them up, is not what is asked for, on any program."""
    program = PROGRAMS[name]()
    pair = separate(program, SilentELBO(), Trace_ELBO(), seed=1)
    right = combine(0.3, pair[0][1], pair[1][1])
    planted = wrong(0.3, pair[0][1], pair[1][1])
    assert distance(right, planted) > 0.05
    with pytest.raises(AssertionError, match="^gradient of"):
        assert_gradients(planted, right)


@pytest.mark.parametrize("name", ["normal", "bottom_up", "top_down", "autoregressive"])
def test_scaling_at_every_site_is_wrong_for_chains(name):
    """A gradient that passes two sites of a chain would be scaled twice; without a chain it is right."""
    program, weight = PROGRAMS[name](), 0.3
    silent, (_, stochastic) = separate(program, SilentELBO(), Trace_ELBO(), seed=1)
    right = combine(weight, silent[1], stochastic)
    guide = ScaleEverySite(1 - weight)(program.guide)
    scaled = collect(Trace_ELBO(), program.model, guide, "expressive", program.data, seed=1)[1]
    mine = [name for name in leaves() if name.startswith(("encoder", "step"))]
    planted = {name: weight * silent[1][name] + scaled[name] for name in mine}
    error = distance(planted, {n: right[n] for n in planted})
    assert (error < 1e-12) if name == "normal" else (error > 0.02), error


def test_the_divergence_counts_once():
    """With decoders that ignore the code, only the KL moves the guide: in full at every weight."""
    program = flat("normal")
    program.encoder(program.data)
    gradients = []
    for weight in WEIGHTS:
        elbo = AnnealedELBO(SilentELBO(), TraceMeanField_ELBO(), weight)
        collect(elbo, *program.run, seed=0)
        with torch.no_grad():
            for name, leaf in leaves().items():
                if is_branch(name):
                    leaf.zero_()
        gradients.append(collect(elbo, *program.run, seed=0)[1])
    for found in gradients:
        for name in ("encoder$$$weight", "encoder$$$bias", "prior"):
            assert found[name].abs().max() > 0.01
            assert_close(found[name], gradients[0][name], 1e-12, name)
