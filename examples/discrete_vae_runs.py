"""Runs of the discrete VAE: training, evaluation, and a file of results that survives interruption."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import pyro
import torch
from tqdm.auto import tqdm

from discrete_vae_bound import importance_bound
from discrete_vae_estimators import CONTENDERS
from discrete_vae_model import CODES, Digits, DiscreteVAE, base_rates
from finished_runs import Record, Results

MOMENTUM = 0.9


class Job(NamedTuple):
    """A run: everything that its result depends on."""

    split: str  # what the bound is computed on
    arity: int
    batch_size: int
    estimator: str
    seed: int
    learning_rate: float
    temperature: float
    steps: int
    num_hidden: int
    num_train: int
    num_evaluated: int
    num_samples: int

    def __str__(self) -> str:
        return f"{self.estimator}, arity {self.arity}, batch {self.batch_size}, seed {self.seed}"


def run(job: Job, digits: Digits, bar: tqdm) -> Record:
    """Train and evaluate; the bounds are None where training diverged."""
    began = time.process_time()
    vae = train(job, digits, bar)
    record = {**job._asdict(), "bound": None, "elbo": None}
    record["train_seconds"] = round(time.process_time() - began, 2)
    if vae is not None:
        evaluated = getattr(digits, job.split)[: job.num_evaluated]
        pyro.set_rng_seed(job.seed)
        bound = importance_bound(vae.model, vae.guide, evaluated, job.num_samples)
        if bound.importance.isfinite().all():
            record["bound"] = round(bound.importance.mean().item(), 4)
            record["elbo"] = round(bound.elbo.mean().item(), 4)
    record["seconds"] = round(time.process_time() - began, 2)
    return record


def train(job: Job, digits: Digits, bar: tqdm) -> DiscreteVAE | None:
    """Train by gradient descent with momentum, the rate falling linearly; None if a loss is not finite.

    One torch optimizer for all parameters in place of ``SVI``: Pyro keeps one for each, which takes
    longer.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(job.seed)
    vae = DiscreteVAE(CODES[job.arity], base_rates(digits.train), job.num_hidden)
    # Pyro's losses sum over the minibatch: the rate is for the mean.
    optimizer = torch.optim.SGD(
        vae.parameters(), job.learning_rate / job.batch_size, momentum=MOMENTUM, foreach=True
    )
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / job.steps)
    loss = CONTENDERS[job.estimator].loss(job.temperature)
    generator = torch.Generator().manual_seed(job.seed)
    for step in range(job.steps):
        rows = torch.randint(len(digits.train), (job.batch_size,), generator=generator)
        optimizer.zero_grad()
        if not math.isfinite(loss.loss_and_grads(vae.model, vae.guide, digits.train[rows])):
            bar.update(job.steps - step)
            return None
        optimizer.step()
        decay.step()
        bar.update()
    return vae


def run_all(jobs: Sequence[Job], digits: Digits, results: Results) -> list[Record]:
    """Run the jobs that are not finished; return the records of all."""
    missing = [job for job in jobs if not results.find([job])]
    with tqdm(total=sum(job.steps for job in missing), unit="step", smoothing=0.05) as bar:
        for job in missing:
            bar.set_description(str(job))
            results.add(run(job, digits, bar))
    return results.find(jobs)
