"""The example of annealed VAEs: arms that differ in one thing, races at equal time, choices, claims."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import annealed_vae
import annealed_vae_runs
from annealed_vae_arms import ARMS, ESTIMATORS, SCHEDULES, SETTINGS, SETTINGS_OF, CatchUp, Settings
from annealed_vae_model import CODES, DECODERS, Code, DeepVAE, Images
from annealed_vae_runs import Job, Results, Run, no_code_elbo, race, run_all
from data import NUM_PIXELS
from pyro_silent import SilentELBO

STEPS = 40


def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    return Images(*(torch.rand(40, NUM_PIXELS, generator=generator) for _ in range(3)))


def job(arm: str, **changes: object) -> Job:
    fields = {
        "split": "test",
        "data": "digits",
        "num_train": 40,
        "num_evaluated": 40,
        "decoder": "MLP",
        "code": "Bernoulli",
        "num_units": 3,
        "estimator": "RLOO",
        "batch_size": 5,
        "steps": STEPS,
        "seed": 0,
        "arm": arm,
        "learning_rate": 1e-3,
        "temperature": 1.0,
        "schedule": "none" if arm == "plain" else "linear",
        "length": 0.0 if arm == "plain" else 0.5,
    }
    return Job(**{**fields, **changes})  # type: ignore[arg-type]


class FakeClock:
    """A clock that the steps move, by what a step of their arm costs."""

    COSTS = {"plain": 1.0, "KL warm-up": 1.0, "control": 2.0, "silent": 1.6}

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.batches: dict[str, list[torch.Tensor]] = {arm: [] for arm in ARMS}

        def take_step(run: Run) -> None:
            rows = torch.randint(40, (run.job.batch_size,), generator=run._generator)
            self.batches[run.job.arm].append(rows)
            self.now += self.COSTS[run.job.arm]
            run.step += 1

        monkeypatch.setattr(Run, "_take_step", take_step)

    def __call__(self) -> float:
        return self.now


def test_cheaper_arms_train_on_until_the_silent_time_is_used(monkeypatch):
    clock = FakeClock(monkeypatch)
    records = {
        r["arm"]: r
        for r in race([job(arm) for arm in ARMS], images(), None, clock, noise_repeats=2)
    }
    budget = STEPS * clock.COSTS["silent"]
    assert all(record["seconds_equal_time"] == budget for record in records.values())
    assert records["silent"]["steps_equal_time"] == STEPS
    # 64 steps of one second, looked at every 10 steps: rounding is in the rivals' favour
    assert records["plain"]["steps_equal_time"] == records["KL warm-up"]["steps_equal_time"] == 70
    assert records["control"]["steps_equal_time"] == STEPS  # more time than silent, not cut short
    assert records["control"]["train_seconds"] == 2 * STEPS
    for arm, record in records.items():
        assert [step for step, *_ in record["curve"]][:21] == list(range(0, STEPS + 1, 2)), arm
        assert record["curve"][-1][0] == len(clock.batches[arm])
    shared = torch.stack(clock.batches["silent"])
    for arm in ARMS:
        assert torch.equal(torch.stack(clock.batches[arm])[:STEPS], shared)


def test_the_equal_time_value_is_that_of_the_parameters_then(monkeypatch):
    clock = FakeClock(monkeypatch)
    counted = Run._take_step

    def take_step(run: Run) -> None:
        counted(run)
        with torch.no_grad():  # the ELBO falls with every step
            run.vae.decoder.expressive.network[-1].bias.add_(0.01)

    monkeypatch.setattr(Run, "_take_step", take_step)
    jobs = [job(arm) for arm in ("silent", "control", "plain")]
    silent, control, plain = race(jobs, images(), None, clock, noise_repeats=2)
    assert plain["elbo_equal_time"] < plain["elbo"] - 1  # 70 steps
    assert control["elbo_equal_time"] == control["elbo"]
    assert silent["elbo_equal_time"] == silent["elbo"]


def test_a_run_is_the_same_alone_and_in_a_race():
    """Turns leave no trace: neither random numbers, nor Pyro's parameters, nor running means."""
    jobs = [job(arm, estimator="REINFORCE", steps=4) for arm in ("plain", "control")]
    together = race(jobs, images(), noise_repeats=2)
    for one, record in zip(jobs, together, strict=True):
        (alone,) = race([one], images(), noise_repeats=3)
        assert alone["elbo"] == record["elbo"] and alone["kl"] == record["kl"]
    assert together[0]["elbo"] != together[1]["elbo"]


@pytest.mark.parametrize("arm", ["plain", "control"])
def test_measuring_noise_leaves_a_run_as_it_was(arm):
    run = Run(job(arm, estimator="REINFORCE"), images(), lambda: 0.0)
    run.train(2)
    store = {name: value.clone() for name, value in run._store["params"].items()}
    assert any("baseline" in name for name in store)  # the running mean
    random_state, weight = run._random_state.clone(), run.weight
    run.measure_noise(2)
    assert torch.equal(run._random_state, random_state) and run.weight == weight
    assert all(torch.equal(run._store["params"][name], value) for name, value in store.items())


def test_arms_start_equal_and_silence_has_no_noise():
    runs = {arm: Run(job(arm), images(), lambda: 0.0) for arm in ARMS}
    start = runs["silent"].vae.state_dict()
    for run in runs.values():
        assert all(torch.equal(v, start[k]) for k, v in run.vae.state_dict().items())
        run.measure_noise(4)
    (step, weight, variance, square) = runs["silent"].noise[0]
    assert (step, weight, variance) == (0, 1.0, 0.0) and square > 0
    assert runs["control"].noise[0][1:3] > [1.0, 0.0]
    assert runs["KL warm-up"].noise[0][1] < 0.01 and runs["plain"].noise[0][1] == 0


def test_moments_of_gradients_are_unbiased():
    draws = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1)) * 3 + 1
    pairs = [annealed_vae_runs._moments(list(pair)) for pair in draws.view(-1, 2, 2)[:5000]]
    variance, _ = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    error = math.sqrt(2 * 81 * 2 / 5000)  # of a sum of two chi-squares with 1 degree of freedom
    assert abs(variance - 18) < 4.5 * error
    _, square = annealed_vae_runs._moments(list(draws))
    assert abs(square - 2) < 4.5 * 2 * math.sqrt(2) * 3 / math.sqrt(20_000)


@pytest.mark.parametrize("estimator", ["RLOO", "REINFORCE"])
def test_the_kl_weight_scales_the_kl_gradient_alone(estimator):
    """The mean of the estimator's encoder gradients is that of E[-log p(x|z)] + w KL, enumerated."""
    pyro.set_rng_seed(0)
    vae = DeepVAE(Code(2, 2), "tanh", images().train, gain=3.0)
    vae.decoder.expressive.log_scale.data.fill_(math.log(6.0))
    vae.encoder[-1].bias.data = torch.tensor([2.0, -2.0])  # far from the prior
    batch = images().train[:2]
    parameter = vae.encoder[-1].bias

    def exact(weight: float) -> torch.Tensor:
        logits = vae.encoder(batch - vae.means)
        law = dist.Bernoulli(logits=logits).to_event(1)
        prior = dist.Bernoulli(logits=torch.zeros_like(logits)).to_event(1)
        total = weight * torch.distributions.kl_divergence(law.base_dist, prior.base_dist).sum()
        for code in itertools.product([0.0, 1.0], repeat=2):
            z = torch.tensor(code).expand(2, 2)
            loc, scale = vae.decoder.expressive(z - 0.5)
            fit = dist.Normal(loc, scale).to_event(1).log_prob(batch)
            total = total - (law.log_prob(z).exp() * fit).sum()
        return torch.autograd.grad(total, parameter)[0]

    vae.kl_weight = 0.25
    loss = ESTIMATORS[estimator](1.0)
    gradients = []
    with pyro.get_param_store().scope():
        for _ in range(250):
            vae.zero_grad()
            loss.loss_and_grads(vae.model, vae.guide, batch)
            gradients.append(parameter.grad.clone())
    stacked = torch.stack(gradients[110:])  # the running mean has settled
    error = stacked.std(0) / math.sqrt(len(stacked))
    z_scores = (stacked.mean(0) - exact(0.25)) / error
    assert z_scores.abs().max() < 4.5
    assert ((stacked.mean(0) - exact(1.0)) / error).abs().max() > 6  # the wrong weight is told


def test_the_kl_weight_in_the_silent_loss():
    vae = DeepVAE(CODES["Gaussian"](3), "MLP", images().train)
    batch = images().train[:4]
    losses = []
    for weight in (0.5, 1.0):
        vae.kl_weight = weight
        losses.append(SilentELBO().loss(vae.model, vae.guide, batch))
    law = vae.posterior(batch).base_dist
    kl = torch.distributions.kl_divergence(law, dist.Normal(torch.zeros(4, 3), 1.0)).sum().item()
    assert losses[1] - losses[0] == pytest.approx(0.5 * kl, rel=1e-3)


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_start_at_the_mean_image_and_take_batches_of_any_shape(decoder):
    vae = DeepVAE(CODES["Bernoulli"](6), decoder, images().train, gain=0.0)
    codes = torch.randn(2, 5, 6)
    for branch in (vae.decoder.analytic, vae.decoder.expressive):
        loc, scale = branch(codes)
        torch.testing.assert_close(loc, vae.means.expand(2, 5, NUM_PIXELS))
        assert scale.item() == pytest.approx((images().train - vae.means).std().item())


@pytest.mark.parametrize("name", CODES)
def test_zeros_encode_the_prior(name):
    code = CODES[name](3)
    law = code.law(torch.zeros(4, code.encoded_size))
    assert law.batch_shape == (4,)
    torch.testing.assert_close(law.mean, torch.full_like(law.mean, code.centre))


def test_the_elbo_without_a_code_is_that_of_one_gaussian():
    train, test, _ = images()
    law = dist.Normal(train.mean(0), (train - train.mean(0)).std())
    value = sum(law.log_prob(image).sum().item() for image in test) / len(test)
    assert no_code_elbo(train, test) == pytest.approx(value, rel=1e-5)


def test_a_run_without_a_code_in_use_is_collapsed():
    """An encoder that ignores the image, and learns nothing."""
    run = Run(job("plain", learning_rate=0.0), images(), lambda: 0.0)
    torch.nn.init.zeros_(run.vae.encoder[-1].weight)
    record = annealed_vae_runs._equal_steps(run)
    assert record["collapsed"] and record["active_units"] == 0 and not record["diverged"]


def test_a_loss_that_is_not_finite_is_a_divergence():
    run = Run(job("plain"), images(), lambda: 0.0)
    run.loss.loss_and_grads = lambda *_: math.nan  # type: ignore[method-assign]
    run.train(3)
    record = annealed_vae_runs._equal_steps(run)
    assert record["diverged"] and run.step == 0
    assert record["elbo"] is None and record["collapsed"] is None


def test_finished_races_are_kept_and_skipped(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        annealed_vae_runs,
        "race",
        lambda jobs, *_, **__: asked.extend(jobs) or [{**j._asdict(), "elbo": 1.0} for j in jobs],
    )
    path = tmp_path / "results.json"
    first, second = [job("plain"), job("silent")], [job("plain", seed=1), job("silent", seed=1)]
    run_all([first], lambda _: images(), Results(path))
    records = run_all([first, second], lambda _: images(), Results(path))
    assert asked == first + second
    assert [(r["arm"], r["seed"]) for r in records] == [(j.arm, j.seed) for j in first + second]


def test_schedules_fall_from_one_to_zero():
    for name in ("linear", "cosine", "step"):
        weights = [SCHEDULES[name](10)(step) for step in range(15)]
        assert weights[0] == 1 and weights[10:] == [0.0] * 5
        assert weights == sorted(weights, reverse=True)


def test_the_adaptive_schedule_waits_for_the_deep_decoder():
    schedule = CatchUp(num_steps=10, memory=5)
    for step in range(30):  # the deep loss is higher until step 20
        assert schedule(step) == 1
        schedule.compare(step, linear_loss=1.0, deep_loss=2.0 if step < 20 else 0.0)
        if schedule.caught_up is not None:
            break
    assert schedule.caught_up is not None and 20 < schedule.caught_up < 26
    assert schedule(schedule.caught_up + 5) == 0.5 and schedule(schedule.caught_up + 10) == 0
    early = CatchUp(num_steps=10, memory=5)
    early.compare(0, linear_loss=1.0, deep_loss=0.0)
    assert early(1) == 1  # nothing is decided before so many steps


@pytest.mark.parametrize(("better", "rate"), [(6.0, 2e-3), (4.0, 1e-3)])
def test_the_search_gives_every_arm_its_best_candidate(better, rate):
    assert len({len(annealed_vae.candidates(arm)) for arm in ARMS[1:]}) == 1  # equal effort
    records = []
    for arm in ("control", "silent"):
        for tried in annealed_vae.candidates(arm):
            elbo = better * (tried.learning_rate == 2e-3) + 3.0 * (tried.schedule == "cosine")
            records.append({"arm": arm, "elbo": elbo, **tried._asdict()})
        records.append({**records[-1], "elbo": None})
        records.append({**records[0], "schedule": "adaptive", "elbo": 99.0})  # no candidate
    assert annealed_vae.best_settings(records, "silent") == Settings(rate, "cosine", 0.5)


def test_every_row_has_settings_for_every_arm():
    rows = [row for regime in annealed_vae.REGIMES.values() for row in regime]
    for row, arm in itertools.product(rows, ARMS):
        settings = annealed_vae.settings_of(row, arm)
        assert (settings.schedule == "none") == (arm == "plain")
        assert row.estimator in ESTIMATORS and row.decoder in DECODERS and row.code in CODES
    assert set(SETTINGS_OF.values()) <= set(SETTINGS)


def records_with(gaps: dict[str, float]) -> list[dict]:
    """Runs of the default rows; silent is ahead of both rivals by so much, give or take one."""
    records = []
    for row in annealed_vae.REGIMES["default"]:
        for seed, arm in itertools.product(range(3), ARMS):
            ahead = gaps[row.estimator] + seed - 1 if arm == "silent" else 0.0
            fields = {"split": "test", "seed": seed, "arm": arm, "diverged": False}
            values = {"elbo": ahead, "elbo_equal_time": ahead, "collapsed": False}
            records.append({**row._asdict(), **fields, **values, "no_code_elbo": -50.0})
    return records


@pytest.mark.parametrize(
    ("gaps", "holds"),
    [
        ({"reparam": 9.0, "GR": 9.0, "RLOO": 9.0}, True),
        ({"reparam": 0.0, "GR": 9.0, "RLOO": 9.0}, True),
        ({"reparam": 0.0, "GR": 0.0, "RLOO": 9.0}, False),
        ({"reparam": 9.0, "GR": 9.0, "RLOO": 0.0}, False),
    ],
)
def test_the_claim_needs_the_score_function_and_one_other(gaps, holds):
    judged = annealed_vae.claims(records_with(gaps))
    assert len(judged) == 3 and all(verdict for _, verdict in judged) is holds


def test_the_claim_is_not_made_against_collapsed_runs():
    records = records_with({"reparam": 9.0, "GR": 9.0, "RLOO": 9.0})
    for record in records:
        if record["arm"] == "KL warm-up" and record["estimator"] == "RLOO":
            record["collapsed"] = True
    assert not all(verdict for _, verdict in annealed_vae.claims(records))
