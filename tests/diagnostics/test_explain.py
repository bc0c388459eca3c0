"""Explanations: methods, sources, reasons and places, as data and as a table."""

from __future__ import annotations

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, autoguide
from torch import nn

from pyro_silent import (
    ConfigurationError,
    DisARMELBO,
    Explanation,
    GumbelRaoELBO,
    IntractableError,
    LeaveOneOutELBO,
    RelaxedELBO,
    SilentELBO,
    audit,
    explain,
)
from pyro_silent.expectation.settings import current_points
from tests.diagnostics.programs import (
    ONE,
    every_method,
    every_method_guide,
    leaking,
    leaking_guide,
    leaking_into_a_factor,
    line,
    marked_guide,
    normal,
    positive,
    ranked,
    ranked_guide,
    unknown_law,
    unknown_law_guide,
)

ROOT = __file__.removesuffix("tests/diagnostics/test_explain.py")


def by_site(explanation: Explanation) -> dict[str, dict]:
    return {row["site"]: row for row in explanation.rows}


def methods(explanation: Explanation) -> dict[str, str]:
    """The method of each site, with the number of nodes left out."""
    return {row["site"]: re.sub(r"\(\d+\)", "(n)", row["method"]) for row in explanation.rows}


TABLE = """\
Site      Kind      Term           Method                       Sources  Reason
--------  --------  -------------  ---------------------------  -------  ----------------------------------------------------------------------
z         latent    -KL(q || p)    closed form                  z
rate      latent    -KL(q || p)    closed form                  rate
k         latent    log p - log q  enumerated                   k
linear    observed  log p          closed form                  z
count     observed  log p          closed form                  z
robust    observed  log p          quadrature(nn)               z        log p of StudentT has no closed expectation.
                                                                         at {robust}
switched  observed  log p          enumerated                   z, k
mixed     observed  log p          enumerated + quadrature(nn)  z, k     log p of StudentT has no closed expectation.
                                                                         at {mixed}
waiting   observed  log p          sampled                      rate     It depends on 'rate', which is sampled: the exact moments of Gamma are
                                                                         not known. Choose a law that is Gaussian or a transformed Gaussian
                                                                         (LogNormal, an autoguide), or one-hot, categorical or Bernoulli.
                                                                         at {rate}
penalty   observed  log p          closed form                  z"""  # noqa: E501


def test_table_of_every_method(monkeypatch):
    monkeypatch.chdir(ROOT)
    explanation = explain(every_method, every_method_guide)
    printed = re.sub(r"quadrature\(\d\d\)", "quadrature(nn)", str(explanation))
    places = {mark: line(mark).removeprefix(ROOT) for mark in ("robust", "mixed", "rate")}
    assert printed == TABLE.format(**places)
    assert re.fullmatch(
        r"Explanation\(10 sites: 5 closed form, 2 enumerated, 1 quadrature\(\d+\), "
        r"1 enumerated \+ quadrature\(\d+\), 1 sampled\)",
        repr(explanation),
    )
    assert not explanation.is_silent


def test_rows_are_plain_data():
    rows = by_site(explain(every_method, every_method_guide))
    assert rows["linear"] == {
        "site": "linear",
        "kind": "observed",
        "term": "log p",
        "method": "closed form",
        "sources": ("z",),
        "reason": None,
        "location": None,
    }
    assert all(row.keys() == rows["linear"].keys() for row in rows.values())
    assert rows["waiting"]["location"] == line("rate")
    assert rows["mixed"]["location"] == line("mixed")
    assert "twice" not in rows, "a deterministic site has no term"


def test_an_operation_without_expectation():
    """The refusal of the loss is the reason; the line of the operation is the place."""
    row = by_site(explain(ranked, ranked_guide))["ranks"]
    with pytest.raises(IntractableError) as refusal:
        SilentELBO().loss(ranked, ranked_guide)
    assert (row["method"], row["sources"]) == ("sampled", ("w",))
    assert row["location"] == refusal.value.location == line("sorted")
    assert row["reason"].startswith("The expected log density of Normal with random loc: ")
    assert "exactness was lost in torch.sort (" in row["reason"]
    assert row["reason"].endswith(
        "It mixes several random elements: write the term with functions of one element at a time, or "
        "accept the sample."
    )


def test_terms_of_a_sampled_latent():
    """Only terms that depend on it are sampled, and each says why and what to write."""
    explanation = explain(unknown_law, unknown_law_guide)
    rows = by_site(explanation)
    assert methods(explanation) == {
        "rate": "closed form",
        "z": "closed form",
        "count": "sampled",
        "linear": "closed form",
        "both": "sampled",
    }
    assert rows["count"]["sources"] == ("rate",)
    assert rows["both"]["sources"] == ("z", "rate")
    assert rows["linear"]["sources"] == ("z",)
    assert rows["count"]["reason"] == (
        "It depends on 'rate', which is sampled: the exact moments of Gamma are not known. Choose "
        "a law that is Gaussian or a transformed Gaussian (LogNormal, an autoguide), or one-hot, "
        "categorical or Bernoulli."
    )
    assert rows["count"]["location"] == rows["both"]["location"] == line("unknown law")


def test_a_latent_that_the_user_has_sampled():
    rows = by_site(explain(unknown_law, marked_guide))
    assert rows["rate"]["method"] == rows["count"]["method"] == "sampled"
    assert rows["rate"]["reason"] == 'It is sampled because of infer={"silent": False}.'
    assert rows["rate"]["location"] == rows["count"]["location"] == line("marked")
    assert rows["linear"]["method"] == "closed form"


def test_a_leak_is_located():
    """The branch on z changes the scale of x, so x depends on z though no tensor says so."""
    pyro.set_rng_seed(1)
    rows = by_site(explain(leaking, leaking_guide))
    assert rows["x"]["method"] == "sampled"
    assert rows["x"]["sources"] == ("v", "z")
    assert rows["x"]["location"] == line("leak")
    assert "needs the value of latent 'z'. Write the step with torch" in rows["x"]["reason"]
    assert rows["y"]["method"] == "closed form"
    assert rows["z"]["term"] == "-KL(q || p)"


def test_a_leak_at_a_factor_is_located_under_an_autoguide():
    """A factor is an auxiliary site to Pyro, but its line is the user's."""
    guide = autoguide.AutoNormal(leaking_into_a_factor)
    rows = by_site(explain(leaking_into_a_factor, guide))
    assert rows["z"]["location"] == rows["penalty"]["location"] == line("factor")


def test_a_discrete_law_without_moments_may_be_enumerated():
    def model() -> None:
        n = pyro.sample("n", dist.Binomial(3, torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(n, 1.0), obs=ONE)

    def guide() -> None:
        pyro.sample("n", dist.Binomial(3, torch.tensor(0.4)))

    reason = by_site(explain(model, guide))["x"]["reason"]
    assert reason.endswith(
        'Write infer={"enumerate": "parallel"} at the guide site to sum over its values.'
    )
    taken = poutine.infer_config(guide, lambda site: {"enumerate": "parallel"})
    assert methods(explain(model, taken)) == {"n": "enumerated", "x": "enumerated"}


def test_factors_of_the_guide():
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        z = normal("z", 0.5)
        pyro.factor("tilt", 2 * z, has_rsample=True)

    row = by_site(explain(model, guide))["tilt"]
    assert (row["kind"], row["term"], row["method"]) == ("observed", "-log q", "closed form")


AUTOGUIDES = {
    "AutoNormal": "tau_unconstrained",
    "AutoDiagonalNormal": "_AutoDiagonalNormal_latent",
    "AutoMultivariateNormal": "_AutoMultivariateNormal_latent",
    "AutoLowRankMultivariateNormal": "_AutoLowRankMultivariateNormal_latent",
    "AutoStructured": "tau_aux",
    "AutoNormalMessenger": "tau",
}


@pytest.mark.parametrize("is_set_up", [False, True])
@pytest.mark.parametrize("family", AUTOGUIDES)
def test_autoguides(family, is_set_up):
    """The prior's line is what counts, not a line in Pyro; the auxiliary latent has its own row."""
    guide = getattr(autoguide, family)(positive)
    if is_set_up:
        guide()
    explanation = explain(positive, guide)
    rows, source = by_site(explanation), AUTOGUIDES[family]
    assert rows["tau"]["sources"] == rows["x"]["sources"] == (source,)
    assert (rows["tau"]["kind"], rows["tau"]["term"]) == ("latent", "log p - log q")
    assert rows["tau"]["method"].startswith("quadrature(")
    assert rows["tau"]["reason"] == (
        "log p of HalfCauchy, seen through Tensor.exp, has no closed expectation."
    )
    assert rows["tau"]["location"] == line("prior of tau")
    assert rows["x"]["method"] == "closed form"
    if source != "tau":
        own = rows[source]
        assert (own["kind"], own["term"], own["method"]) == ("latent", "-log q", "closed form")
    assert explanation.is_silent


def test_points_have_no_sources():
    rows = by_site(explain(positive, autoguide.AutoDelta(positive)))
    assert all(row["method"] == "closed form" and row["sources"] == () for row in rows.values())


def test_minibatches_are_noted():
    data = torch.randn(50)

    def model(data) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 50, subsample_size=5) as index, pyro.plate("sides", 2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])

    def guide(data) -> None:
        normal("z", 0.5)

    explanation = explain(model, guide, data=data)
    assert explanation.notes == (
        "Plate 'data' is subsampled, 5 of 50: terms are exact given the minibatch.",
    )
    assert str(explanation).endswith(explanation.notes[0])


def test_options_of_the_loss_are_used():
    seen = []

    def model() -> None:
        seen.append(current_points())
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        normal("z", 0.5)

    explain(model, guide)
    explain(model, guide, elbo=SilentELBO(quadrature_points=77))
    assert seen == [32, 77]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_particles": 3},
        {"num_particles": 3, "vectorize_particles": True},
        {"max_plate_nesting": 2},
    ],
)
def test_the_plan_is_the_same_for_any_number_of_particles(options):
    elbo = SilentELBO(**options)
    before = {name: value for name, value in vars(elbo).items()}
    assert methods(explain(unknown_law, marked_guide, elbo=elbo)) == methods(
        explain(unknown_law, marked_guide)
    )
    assert vars(elbo) == before


@pytest.mark.parametrize("elbo", [Trace_ELBO(), SilentELBO, "silent"])
def test_other_losses_are_refused(elbo):
    with pytest.raises(ConfigurationError, match="elbo: got .*, expected a SilentELBO, or None"):
        explain(positive, autoguide.AutoNormal(positive), elbo=elbo)


def test_long_cells_are_wrapped():
    net = nn.Linear(12, 2)

    def model() -> None:
        z = [pyro.sample(f"latent_{k}", dist.Normal(0.0, 1.0)) for k in range(12)]
        pyro.sample("x", dist.Normal(net(torch.stack(z)), 1.0).to_event(1), obs=torch.zeros(2))

    def guide() -> None:
        for k in range(12):
            normal(f"latent_{k}", 0.5)

    explanation = explain(model, guide)
    assert len(by_site(explanation)["x"]["sources"]) == 12
    assert max(map(len, str(explanation).splitlines())) < 120


def _two_laws():
    z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(torch.tensor([0.0, 2.0, 5.0])[z], 1.0), obs=torch.tensor(4.0))
    pyro.sample("y", dist.Normal(w, 1.0), obs=torch.tensor(1.0))


def _two_laws_guide():
    pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.zeros(3))))
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))


@pytest.mark.parametrize(
    ("loss", "manner"),
    [
        (GumbelRaoELBO(0.5, 10), "a hard draw with the gradient of GumbelRao"),
        (RelaxedELBO(0.5), "a soft draw of GumbelSoftmax"),
        (LeaveOneOutELBO(2), "drawn, with a score-function gradient"),
        (DisARMELBO(), "drawn, with a score-function gradient"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_losses_of_samples_are_explained(loss, manner):
    rows = {row["site"]: row for row in explain(_two_laws, _two_laws_guide, elbo=loss).rows}
    assert {name: row["method"] for name, row in rows.items()} == {
        **{"z": "closed form", "w": "closed form"},
        **{"x": "sampled", "y": "sampled"},
    }
    assert rows["x"]["sources"] == ("z",)
    assert manner in rows["x"]["reason"]
    assert "drawn, reparameterized" in rows["y"]["reason"]
    assert loss.num_steps == 0
    assert audit(_two_laws, _two_laws_guide, elbo=loss)["z"]
