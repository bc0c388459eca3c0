"""How a noisy loss is held against a truth: z-scores over independent runs.

With 40 runs a z-score follows Student's t with 39 degrees of freedom; ``Z_LIMIT = 6`` is exceeded
by chance with probability 5e-7 per number. Fewer than 1000 numbers are tested in this folder, so a
right estimator fails with probability below 1e-3 (and the seeds are fixed).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.elbo.agreement import evaluate, gradients_of
from tests.formulas import z_scores

RUNS = 40
Z_LIMIT = 6.0


def run_many(elbo, model, guide, *args, runs: int = RUNS) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses [runs] and gradients [runs, ...] at different seeds."""
    results = [evaluate(elbo, model, guide, *args, seed=1000 + seed) for seed in range(runs)]
    losses = torch.tensor([loss for loss, _ in results])
    names = results[0][1]
    return losses, {n: torch.stack([gradients[n] for _, gradients in results]) for n in names}


def worst_z_scores(elbo, model, guide, truth: Tensor, *args, runs: int = RUNS) -> dict[str, float]:
    """The largest |z| of the loss and of each gradient; what has no noise must agree to 1e-8."""
    losses, gradients = run_many(elbo, model, guide, *args, runs=runs)
    samples = {"loss": losses, **gradients}
    targets = {"loss": truth.detach(), **gradients_of(truth)}
    worst = {}
    for name, target in targets.items():
        sample = samples[name]
        noiseless = sample.std(0) <= 1e-9
        error = (sample.mean(0) - target).abs()
        assert (error[noiseless] < 1e-8).all(), f"{name} has no noise and is off by {error}"
        scores = z_scores(sample, target).abs()[~noiseless]
        worst[name] = scores.max().item() if scores.numel() else 0.0
    return worst


def assert_unbiased(
    elbo, model, guide, truth: Tensor, *args, runs: int = RUNS, noisy: bool = True
) -> None:
    """Loss and gradients agree with a truth within their standard errors, and are finite.

    :param noisy: whether the loss is sampled at all; without noise it must agree to 1e-8.
    """
    losses, _ = run_many(elbo, model, guide, *args, runs=4)  # two may draw the same discrete values
    differs = losses.max() - losses.min() > 1e-9
    assert differs == noisy, "the loss is exact" if noisy else "noise"
    worst = worst_z_scores(elbo, model, guide, truth, *args, runs=runs)
    assert all(score < Z_LIMIT for score in worst.values()), worst
