"""The example of VAEs with discrete codes: its bound, its data, its networks, its tables."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import discrete_vae
import discrete_vae_model
from data import NUM_PIXELS
from discrete_vae_bound import importance_bound
from discrete_vae_estimators import CONTENDERS, SETTINGS, candidates
from discrete_vae_model import CODES, DiscreteVAE, base_rates, load_binary_digits
from discrete_vae_report import page, published, settings_table, summarize, table
from discrete_vae_runs import Job, Results

LOGITS = torch.tensor([0.4, -0.7])
WEIGHTS = torch.tensor([[1.0, -2.0, 0.5], [-1.5, 0.3, 2.0]])


def tiny_model(data: torch.Tensor) -> None:
    with pyro.plate("data", len(data)):
        prior = torch.tensor([0.3, 0.6]).expand(len(data), 2)
        z = pyro.sample("z", dist.Bernoulli(prior).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=z @ WEIGHTS).to_event(1), obs=data)


def tiny_guide(data: torch.Tensor) -> None:
    with pyro.plate("data", len(data)):
        law = dist.Bernoulli(logits=LOGITS * (data.sum(-1, keepdim=True) - 1)).to_event(1)
        pyro.sample("z", law)


def enumerated_weights(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(x, z) - log q(z | x) and q(z | x) of all four codes, ``[4, num_data]``, float64."""
    codes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64)
    proposal = torch.sigmoid((LOGITS * (data.sum(-1, keepdim=True) - 1)).double())
    log_weights, probabilities = [], []
    for code in codes:
        on = torch.sigmoid(code @ WEIGHTS.double())
        prior = torch.tensor([0.3, 0.6], dtype=torch.float64)
        joint = (data * on + (1 - data) * (1 - on)).prod(-1)
        joint = joint * (code * prior + (1 - code) * (1 - prior)).prod(-1)
        q = (code * proposal + (1 - code) * (1 - proposal)).prod(-1)
        log_weights.append((joint / q).log())
        probabilities.append(q)
    return torch.stack(log_weights), torch.stack(probabilities)


DATA = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])


def test_the_bound_tends_to_the_enumerated_likelihood():
    log_weights, q = enumerated_weights(DATA)
    log_likelihood = (log_weights + q.log()).logsumexp(0)
    n = 40_000
    bound = importance_bound(tiny_model, tiny_guide, DATA, n, chunk=1_999)
    # delta method: the standard error of the log of a mean of weights
    spread = ((log_weights - log_likelihood).exp() - 1).square()
    error = ((q * spread).sum(0) / n).sqrt()
    z_scores = (bound.importance + log_likelihood) / error
    assert bound.importance.dtype == torch.float64 and z_scores.abs().max() < 4.5
    mean = (q * log_weights).sum(0)
    error = ((q * (log_weights - mean).square()).sum(0) / n).sqrt()
    assert ((bound.elbo + mean) / error).abs().max() < 4.5  # one seed in 25,000, both together


def test_the_bound_has_the_mean_of_its_number_of_samples():
    """Two samples: E[-log((w1 + w2) / 2)] over all pairs of codes, not the likelihood."""
    log_weights, q = enumerated_weights(DATA)
    pairs = torch.logaddexp(log_weights[:, None], log_weights[None]) - math.log(2)
    exact = -(q[:, None] * q[None] * pairs).sum((0, 1))
    # 20,000 estimates at once: the data repeated
    repeated = DATA.repeat_interleave(20_000, 0)
    bounds = importance_bound(tiny_model, tiny_guide, repeated, 2).importance.reshape(3, -1)
    z_scores = (bounds.mean(1) - exact) / (bounds.std(1) / bounds.shape[1] ** 0.5)
    assert z_scores.abs().max() < 4.5
    log_likelihood = (log_weights + q.log()).logsumexp(0)
    assert (exact + log_likelihood).min() > 0.01  # a bound, and not a tight one


@pytest.mark.parametrize("arity", CODES)
def test_all_codes_have_a_bound(arity):
    vae = DiscreteVAE(CODES[arity], torch.full((NUM_PIXELS,), 0.2), num_hidden=4)
    digits = (torch.rand(3, NUM_PIXELS) < 0.2).float()
    bound = importance_bound(vae.model, vae.guide, digits, 7, chunk=3)
    assert bound.importance.shape == (3,) and (bound.importance <= bound.elbo).all()
    assert arity ** (CODES[arity].num_variables) == 2**240


def test_the_same_pixels_every_time(monkeypatch):
    grey = torch.linspace(0, 1, 5).repeat(600, 2), torch.linspace(0, 1, 5).repeat(600, 2)
    monkeypatch.setattr(discrete_vae_model, "load_digits", lambda folder: grey)
    once = load_binary_digits(None)
    torch.rand(1)
    again = load_binary_digits(None)
    assert all(torch.equal(a, b) for a, b in zip(once, again))
    assert [len(split) for split in once] == [500, 100, 600]
    assert set(once.train.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(torch.cat(once[:2]), once.test)  # each split has its own draws


def test_the_decoder_starts_from_the_base_rates():
    digits = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    rates = base_rates(digits)
    torch.testing.assert_close(rates, torch.tensor([0.25, 0.75, 0.5, 0.25]))
    vae = DiscreteVAE(CODES[8], rates, num_hidden=5)
    torch.testing.assert_close(torch.sigmoid(vae.decoder[-1].bias), rates)
    torch.nn.init.zeros_(vae.decoder[-1].weight)
    with pyro.poutine.trace() as tr:
        vae.model(digits)
    torch.testing.assert_close(tr.trace.nodes["x"]["fn"].mean, rates.expand(2, 4))


def record(estimator: str, bound: float | None, **changes: object) -> dict:
    job = Job("test", 8, 20, estimator, 0, 1e-3, 1.0, 5, 4, 100, 10, 3)
    return {**job._replace(**changes)._asdict(), "bound": bound, "elbo": bound}


def test_the_table_shows_ours_beside_theirs():
    records = [
        record("ST", 100.0),
        record("ST", 104.0, seed=1),
        record("ST", None, seed=2),
        record("ZGR", 99.0),
        record("RLOO", None, batch_size=200),
    ]
    assert table(summarize(records)).splitlines() == [
        "| | 8-ary, batch 20 | 8-ary, batch 200 |",
        "| --- | ---: | ---: |",
        "| RLOO |  | diverged (n = 1) |",
        "| ST | 102.0 ± 2.0, 1 diverged [107.2] |  |",
        "| ZGR | 99.0 (n = 1) |  |",
    ]
    text = page(records, 206.5, "python here.py", ["ST is here"])
    assert (
        table(summarize(records)) in text
        and "206.5" in text
        and "python here.py" in text
        and "- ST is here" in text
    )


def test_settings_are_shown_with_what_was_tried():
    used = record("ST-GS", 1.0, learning_rate=0.03, temperature=0.65)
    tried = [{**used, "bound": 143.64}, record("ST-GS", None, learning_rate=0.1, temperature=0.35)]
    rows = settings_table([used, record("ST", 1.0)], tried).splitlines()
    assert rows[2:] == [
        "| ST | 0.001 |  |",
        "| ST-GS | 0.03 at 0.65 | 0.03 at 0.65 (143.6), 0.1 at 0.35 (diverged) |",
    ]


def test_the_readme_has_the_test_runs_alone():
    runs = [record("ST", 100.0), record("ST", 102.0, seed=1), record("ST", 1.0, split="validation")]
    assert "| ST | 101.0 [107.2] |" in discrete_vae.readme_table({"runs": runs})


def test_published_bounds_are_found_by_cell():
    assert published("GS", 20, 2) == 98.2 and published("GR-MC100", 200, 8) == 92.2
    assert published("REINFORCE", 20, 8) == 203.9 and published("ZGR", 20, 8) is None


def test_results_survive_an_interruption(tmp_path):
    path = tmp_path / "new" / "results.json"
    Results(path).add(record("ST", 100.0))
    Results(path).add(record("ST", None, seed=1))
    job = Job(*(record("ST", 0.0)[key] for key in Job._fields))
    again = Results(path)
    assert [r["bound"] for r in again.find([job._replace(seed=1), job])] == [None, 100.0]
    assert again.find([job._replace(steps=6), job._replace(seed=2)]) == []


def test_gaps_pair_runs_that_differ_in_the_estimator_alone():
    records = [record("ST", 100.0), record("ST", 120.0, arity=2), record("ST", 90.0, seed=1)]
    records += [record("ZGR", 99.0), record("ZGR", 117.0, arity=2), record("ZGR", None, seed=1)]
    found = discrete_vae.gap(records, "ST", "ZGR")
    assert found.mean == 2.0 and found.error == pytest.approx(1.0) and found.num_pairs == 2


def test_claims_are_judged_by_standard_errors():
    bounds = {"ST": (110.0, 110.2, 110.4), "ZGR": (99.0, 101.0, 100.0), "GS": (99.5, 100.9, 99.0)}
    records = [
        record(name, b, seed=i) for name, three in bounds.items() for i, b in enumerate(three)
    ]

    def holds(*claim: object) -> bool:
        return discrete_vae.judge(discrete_vae.Claim(*claim), records)[1]

    assert holds("ST", "ZGR") and not holds("ZGR", "ST") and not holds("ZGR", "ST", False)
    # ZGR - GS: -0.5, 0.1, 1.0, mean 0.2, standard error 0.44
    assert not holds("ZGR", "GS") and holds("ZGR", "GS", False) and holds("GS", "ZGR", False)
    assert not holds("ST", "ZGR", True, 200)  # not run
    line = discrete_vae.judge(discrete_vae.Claim("ZGR", "ST"), records)[0]
    assert line == "ZGR ends 10.20 nats below ST (standard error 0.53, 3 pairs of runs)"


def test_every_contender_has_settings_from_its_grid():
    for batch_size, name in itertools.product(discrete_vae.STEPS, CONTENDERS):
        if CONTENDERS[name].settings_of is None:
            assert SETTINGS[batch_size, name] in candidates(name, batch_size)
    assert all(c.settings_of in (None, *CONTENDERS) for c in CONTENDERS.values())


def test_the_search_keeps_the_lowest_bound():
    records = [
        record("ST", 100.0),
        record("ST", 90.0, learning_rate=3e-3),
        record("ST", None, learning_rate=1e-2),
        record("ST", 80.0, batch_size=200, temperature=0.5),
    ]
    found = discrete_vae.best_settings(records)
    assert found == {(20, "ST"): (3e-3, 1.0), (200, "ST"): (1e-3, 0.5)}
