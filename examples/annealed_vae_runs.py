"""Races of the annealed VAE: training at equal steps and at equal time, and the file of results.

A race is the arms of one cell (data, decoder, code, estimator, minibatch size, seed): same initial
parameters and minibatches, one process, the arms taking turns of some steps each, so that a busy
machine slows all of them alike. After the budget of steps the arms that were cheaper than the silent
one train on until they have used its time; one that was not keeps its steps, since to be cut short
would leave its schedule unfinished. Time is the processor time of the training steps alone.

The file is ``{"runs": [record, ...]}``. A record holds the fields of its :class:`Job` and

======================  ==========================================================================
``elbo``                test ELBO per image at equal steps: hard samples, the deep decoder
``elbo_equal_time``     the same when the run had used the silent arm's time, ``elbo`` if its steps took
                        longer than that; None without a race
``linear_elbo``         test ELBO of the linear decoder on samples; None for arms without one
``kl``                  KL(q || prior) per image on test images
``active_units``        units whose posterior mean varies over images by more than 0.01
``collapsed``           no code in use: test ELBO within ``COLLAPSE_NATS`` of ``no_code_elbo``, or no
                        active unit; None while ``elbo`` is
``diverged``            training stopped at a loss that is not finite; ``elbo`` is None then
``no_code_elbo``        test ELBO of one Gaussian for all images: pixel means, one scale
``train_seconds``       of the budget of steps
``steps_equal_time``    steps done then
``seconds_equal_time``  the silent arm's time
``curve``               ``[[step, seconds, validation ELBO], ...]``, over the extra time too
``noise``               ``[[step, weight, trace variance, squared norm of the mean], ...]`` of the
                        encoder's gradient per image on one minibatch, parameters held fixed;
                        ``weight`` is the silent (control: linear) loss's or the KL term's; for
                        plain 0
``evaluate_seconds``    processor time outside training
======================  ==========================================================================
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from tqdm.auto import tqdm

from annealed_vae_arms import SCHEDULES, CatchUp, make_loss
from annealed_vae_model import CODES, DeepVAE, Images
from finished_runs import Record, Results
from pyro_silent import AnnealedELBO

GAIN = 0.3  # of both decoders' last weights; chosen on validation, see the page
TURNS = 20
EXTRA_STEPS = 10  # between two looks at the clock, when steps are over and time is not
EVALUATION_PARTICLES = 8
NOISE_REPEATS = 20
ACTIVE_VARIANCE = 0.01
COLLAPSE_NATS = 5.0


class Job(NamedTuple):
    """A run: everything that its result depends on."""

    split: str  # "test", or "validation" for a search (then every ``elbo`` is of validation images)
    data: str  # "digits" (the packaged 5,000), "MNIST" or "Fashion-MNIST"
    num_train: int
    num_evaluated: int
    decoder: str  # "MLP", "conv", "tanh" (three layers, hardly collapses)
    code: str  # "Gaussian", "Bernoulli", "categorical"
    num_units: int  # latent variables: 32, 128, 32 one-hot of 8
    estimator: str  # "reparam", "GS", "ST-GS", "GR", "GR-MC10", "REINFORCE", "RLOO"
    batch_size: int
    steps: int
    seed: int
    arm: str  # "plain", "KL warm-up", "control", "silent"
    learning_rate: float
    temperature: float  # of GS, ST-GS and GR; else 1
    schedule: str  # "none" (plain), "linear", "cosine", "step", "adaptive"
    length: float  # share of the steps over which the schedule runs; 0 for plain

    def __str__(self) -> str:
        return (
            f"{self.data}, {self.decoder}, {self.code}, {self.estimator}, {self.arm}, "
            f"batch {self.batch_size}, seed {self.seed}"
        )

    @property
    def cell(self) -> tuple[Any, ...]:
        """What the arms of a race share."""
        return (*self[: self._fields.index("arm")], self.temperature)


class Run:
    """One arm under way: its networks, optimizer and loss, its own random state and Pyro parameters."""

    def __init__(self, job: Job, images: Images, clock: Callable[[], float]) -> None:
        self.job, self.images, self.clock = job, images, clock
        self.step, self.seconds, self.diverged = 0, 0.0, False
        self.curve: list[list[float]] = []
        self.noise: list[list[float]] = []
        self._store: dict[str, Any] = {"params": {}, "constraints": {}}
        self._generator = torch.Generator().manual_seed(job.seed)
        torch.manual_seed(job.seed)
        code = CODES[job.code](job.num_units)
        self.vae = DeepVAE(code, job.decoder, images.train, GAIN)
        # one optimizer for all parameters in place of ``SVI``, whose one for each takes longer
        self.optimizer = torch.optim.Adam(self.vae.parameters(), job.learning_rate, fused=True)
        length = max(1, round(job.length * job.steps))
        self.schedule = SCHEDULES[job.schedule](length) if job.schedule != "none" else None
        # a loss of samples alone has no use for the schedule
        self.loss = make_loss(
            job.arm, job.estimator, job.temperature, self.schedule or SCHEDULES["step"](0)
        )
        self._random_state = torch.get_rng_state()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, the global random state and parameter store are this run's."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self._random_state)
        try:
            with pyro.get_param_store().scope(self._store) as self._store:
                yield
        finally:
            self._random_state = torch.get_rng_state()
            torch.set_rng_state(outside)

    @property
    def weight(self) -> float:
        """The weight of the linear decoder's loss or of the KL term; 0 for plain."""
        if isinstance(self.loss, AnnealedELBO):
            return self.loss.weight
        return self.vae.kl_weight if self.schedule is not None else 0.0

    def train(self, num_steps: int) -> None:
        """Take steps, in this run's turn; stop for good at a loss that is not finite."""
        with self.turn():
            began = self.clock()
            for _ in range(num_steps):
                if self.diverged:
                    break
                self._take_step()
            self.seconds += self.clock() - began

    def _take_step(self) -> None:
        train, job = self.images.train, self.job
        rows = torch.randint(len(train), (job.batch_size,), generator=self._generator)
        batch = train[rows]
        self._warm_up()
        self.optimizer.zero_grad()
        deep = self.loss.loss_and_grads(self.vae.model, self.vae.guide, batch)
        if isinstance(self.schedule, CatchUp) and isinstance(self.loss, AnnealedELBO):
            linear = self.loss.last_silent_loss
            if linear is not None:
                self.schedule.compare(self.step, linear, deep)
        if not math.isfinite(deep):
            self.diverged = True
            return
        self.optimizer.step()
        self.step += 1

    def _warm_up(self) -> None:
        if self.schedule is not None and not isinstance(self.loss, AnnealedELBO):
            # Pyro refuses a scale of 0
            self.vae.kl_weight = max(1 - self.schedule(self.step), 1e-3)

    def look(self) -> None:
        """Note the validation ELBO."""
        elbo = self.evaluate(self.images.validation[:500], num_particles=2)
        self.curve.append([self.step, round(self.seconds, 3), round(elbo, 3)])

    @torch.no_grad()
    def evaluate(self, images: Tensor, num_particles: int = EVALUATION_PARTICLES) -> float:
        """ELBO per image of the deep decoder with hard samples and the whole KL term."""
        kl_weight, self.vae.kl_weight = self.vae.kl_weight, 1.0
        elbo = Trace_ELBO(num_particles=num_particles)
        with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
            torch.manual_seed(0)  # common random numbers
            loss = elbo.loss(self.vae.model, self.vae.guide, images)
        self.vae.kl_weight = kl_weight
        return -loss / len(images)

    def measure_noise(self, repeats: int) -> None:
        """Note the variance of the encoder's gradient on one minibatch; training is left as it was."""
        batch = self.images.train[: self.job.batch_size]
        self._warm_up()
        weight, loss = self.weight, copy.deepcopy(self.loss)
        gradients, store = [], pyro.get_param_store()
        with self.turn(), torch.random.fork_rng(devices=[]), store.scope(store.get_state()):
            torch.manual_seed(0)
            for _ in range(repeats):
                self.vae.zero_grad()
                if isinstance(loss, AnnealedELBO):
                    loss.num_steps = self.step
                loss.loss_and_grads(self.vae.model, self.vae.guide, batch)
                parts = [p.grad.flatten() for p in self.vae.encoder.parameters()]  # type: ignore
                gradients.append(torch.cat(parts) / len(batch))
        self.vae.zero_grad()
        variance, mean_square = _moments(gradients)
        self.noise.append([self.step, weight, variance, mean_square])


def _moments(gradients: Sequence[Tensor]) -> tuple[float, float]:
    """Return the trace variance and the squared norm of the mean, without bias, to four digits."""
    # about the first, so that equal gradients have a variance of exactly 0
    deviations = torch.stack([g - gradients[0] for g in gradients]).double()
    variance = deviations.var(0).sum().item()
    mean = gradients[0].double() + deviations.mean(0)
    square = max(mean.square().sum().item() - variance / len(gradients), 0.0)
    return float(f"{variance:.4g}"), float(f"{square:.4g}")


def race(
    jobs: Sequence[Job],
    images: Images,
    bar: tqdm | None = None,
    clock: Callable[[], float] = time.process_time,
    noise_repeats: int = NOISE_REPEATS,
) -> list[Record]:
    """Train the arms in turns, then those that were cheaper than silent until its time is used.

    :param clock: of the training steps.
    :param noise_repeats: gradients of which a variance is taken.
    """
    runs = [Run(job, images, clock) for job in jobs]
    steps = jobs[0].steps
    looks = sorted({steps * turn // TURNS for turn in range(TURNS + 1)})
    # a search looks at the result alone
    measured = {looks[0], looks[len(looks) // 10], looks[-1]} if jobs[0].split == "test" else set()
    evaluation = {run.job.arm: 0.0 for run in runs}
    for look, following in zip(looks, [*looks[1:], None], strict=True):
        for run in runs:
            began = time.process_time()
            if not run.diverged:
                run.look()
                if look in measured:
                    run.measure_noise(noise_repeats)
            evaluation[run.job.arm] += time.process_time() - began
            if following is not None:
                run.train(following - look)
                if bar is not None:
                    bar.update(following - look)
    records = []
    for run in runs:
        began = time.process_time()
        records.append({**run.job._asdict(), **_equal_steps(run)})
        evaluation[run.job.arm] += time.process_time() - began
    budget = next((run.seconds for run in runs if run.job.arm == "silent"), None)
    if budget is not None and len(runs) > 1:
        _train_on(runs, budget, steps // TURNS)
    for run, record in zip(runs, records, strict=True):
        began = time.process_time()
        record.update(_equal_time(run, budget if len(runs) > 1 else None, record["elbo"]))
        evaluation[run.job.arm] += time.process_time() - began
        record["evaluate_seconds"] = round(evaluation[run.job.arm], 2)
    return records


def _train_on(runs: Sequence[Run], budget: float, look_every: int) -> None:
    late = [run for run in runs if not run.diverged and run.seconds < budget]
    while late:
        for run in late:
            run.train(EXTRA_STEPS)
            if run.step - run.curve[-1][0] >= look_every or run.seconds >= budget:
                run.look()
        late = [run for run in late if not run.diverged and run.seconds < budget]


def _evaluated(run: Run) -> Tensor:
    images = run.images.validation if run.job.split == "validation" else run.images.test
    return images[: run.job.num_evaluated]


@torch.no_grad()
def _equal_steps(run: Run) -> Record:
    images, vae = _evaluated(run), run.vae
    no_code = no_code_elbo(run.images.train, images)
    record: Record = {"elbo": None, "linear_elbo": None, "kl": None, "active_units": None}
    record.update(collapsed=None, diverged=run.diverged, no_code_elbo=round(no_code, 3))
    record["train_seconds"] = round(run.seconds, 3)
    if run.diverged:
        return record
    posterior = vae.posterior(images)
    prior = vae.code.law(images.new_zeros(len(images), vae.code.encoded_size))
    divergence = torch.distributions.kl_divergence(posterior, prior).mean().item()
    variance = posterior.mean.var(0).reshape(vae.code.num_units, -1).sum(-1)
    elbo = run.evaluate(images)
    active = int((variance > ACTIVE_VARIANCE).sum())
    linear = None
    if isinstance(run.loss, AnnealedELBO):
        with run.turn(), torch.random.fork_rng(devices=[]):
            linear = run.loss.silent_loss(vae.model, vae.guide, images)
    record.update(
        elbo=round(elbo, 3),
        linear_elbo=None if linear is None else round(-linear / len(images), 3),
        kl=round(divergence, 3),
        active_units=active,
        collapsed=active == 0 or elbo < no_code + COLLAPSE_NATS,
    )
    return record


def _equal_time(run: Run, budget: float | None, elbo: float | None) -> Record:
    record: Record = {"elbo_equal_time": None, "steps_equal_time": None}
    record.update(seconds_equal_time=None if budget is None else round(budget, 3))
    if budget is not None and not run.diverged:
        if run.step > run.job.steps:
            elbo = round(run.evaluate(_evaluated(run)), 3)
        record.update(elbo_equal_time=elbo, steps_equal_time=run.step)
    record.update(curve=run.curve, noise=run.noise)
    return record


def no_code_elbo(train: Tensor, images: Tensor) -> float:
    """Log density per image of a Gaussian about the training images' mean, one scale for all pixels."""
    means = train.mean(0)
    scale = (train - means).std()
    return torch.distributions.Normal(means, scale).log_prob(images).sum(-1).mean().item()


def run_all(
    races: Sequence[Sequence[Job]],
    images: Callable[[str], Images],
    results: Results,
    noise_repeats: int = NOISE_REPEATS,
) -> list[Record]:
    """Run the races of which a run is missing; return the records of all.

    :param images: the images, given a data set's name.
    """
    missing = [jobs for jobs in races if len(results.find(jobs)) < len(jobs)]
    total = sum(job.steps for jobs in missing for job in jobs)
    with tqdm(total=total, unit="step", smoothing=0.05) as bar:
        for jobs in missing:
            bar.set_description(str(jobs[0]))
            results.add(*race(jobs, images(jobs[0].data), bar, noise_repeats=noise_repeats))
    return [record for jobs in races for record in results.find(jobs)]
