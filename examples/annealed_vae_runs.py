"""Races of the annealed VAE: training at equal steps and at equal time, and the file of results.

A race is the arms of one cell (data, decoder, code, estimator, minibatch size, seed): same initial
parameters and minibatches, one process, the arms taking turns of some steps each, so that a busy
machine slows all of them alike. After the budget of steps the arms that were cheaper than the silent
one train on until they have used its time. Time is the processor time of the training steps alone.

The file is ``{"runs": [record, ...]}``. A record holds the fields of its :class:`Job` and

======================  ==========================================================================
``elbo``                test ELBO per image at equal steps: hard samples, the deep decoder
``elbo_equal_time``     the same when the run had used the silent arm's time; None without a race
``linear_elbo``         test ELBO of the linear decoder on samples; None for arms without one
``kl``                  KL(q || prior) per image on test images
``active_units``        units whose posterior mean varies over images by more than 0.01
``collapsed``           no code in use: test ELBO within ``COLLAPSE_NATS`` of ``no_code_elbo``, or no
                        active unit; None while ``elbo`` is
``diverged``            training stopped at a loss that is not finite; ``elbo`` is None then
``no_code_elbo``        test ELBO of one Gaussian for all images: pixel means, one scale
``train_seconds``       of the budget of steps
``steps_equal_time``    steps done when the run had used the silent arm's time
``seconds_equal_time``  that time
``curve``               ``[[step, seconds, validation ELBO], ...]``, over the extra time too
``noise``               ``[[step, weight, trace variance, squared norm of the mean], ...]`` of the
                        encoder's gradient per image on one minibatch, parameters held fixed;
                        ``weight`` is the silent (control: linear) loss's or the KL term's; for
                        plain 0
``evaluate_seconds``    processor time outside training
======================  ==========================================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

COLLAPSE_NATS = 5.0

Record = dict[str, Any]


class Job(NamedTuple):
    """A run: everything that its result depends on."""

    split: str  # "test", or "validation" for a search (then every ``elbo`` is of validation images)
    data: str  # "digits" (the packaged 5,000), "MNIST" or "Fashion-MNIST"
    num_train: int
    num_evaluated: int
    decoder: str  # "MLP", "conv", "tanh" (three layers, hardly collapses)
    code: str  # "Gaussian", "Bernoulli", "categorical"
    num_units: int  # latent variables: 32, 128, 32 one-hot of 8
    estimator: str  # "reparam", "GS", "ST-GS", "GR", "REINFORCE", "RLOO"
    batch_size: int
    steps: int
    seed: int
    arm: str  # "plain", "KL warm-up", "control", "silent"
    learning_rate: float
    temperature: float  # of GS, ST-GS, GR; else 1
    schedule: str  # "none" (plain), "linear", "cosine", "step", "adaptive"
    length: float  # share of the steps over which the schedule runs; 0 for plain

    def __str__(self) -> str:
        return (
            f"{self.data}, {self.decoder}, {self.code}, {self.estimator}, {self.arm}, "
            f"batch {self.batch_size}, seed {self.seed}"
        )
