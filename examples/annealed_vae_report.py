"""The page of the annealed VAE and its part of the README, computed from the file of results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from annealed_vae_readings import headlines, readings
from annealed_vae_summary import (
    ARMS,
    AT_EQUAL_STEPS,
    AT_EQUAL_TIME,
    FALSE_ALARMS,
    STANDARD_ERRORS,
    Cell,
    Record,
    gains,
    races,
    row_names,
    summarize,
)
from annealed_vae_tables import (
    codes_table,
    early_and_late,
    gains_table,
    markdown,
    marked,
    noise_table,
    search_table,
    table,
    time_table,
)

__all__ = ["page", "readme_table", "table"]

_PAGE = """# Annealing from the silent loss to a stochastic one

How much does a deep VAE gain when its encoder is first taught by the exact gradient of a linear
decoder, and how much of that gain is due to the gradient being *exact*? Made by

    {command}

Every row trains one model with one gradient estimator for the deep decoder, in four arms that begin
with the same parameters and see the same minibatches:

- **plain**: the deep decoder alone;
- **KL warm-up**: the same, the weight of the KL term rising from 0 to 1 at first;
- **control**: `AnnealedELBO(stochastic, stochastic, schedule)`: a linear decoder beside the deep one, the
  encoder taught by both, the linear decoder's gradient taken from *samples*;
- **silent**: `AnnealedELBO(SilentELBO(), stochastic, schedule)`: the same, but for the linear decoder's
  gradient, which is exact.

Estimators: reparam is `TraceMeanField_ELBO`, GS `RelaxedELBO`, ST-GS `StraightThroughELBO`, GR
`GumbelRaoELBO` (of binary codes with the exact conditional expectation; MC10: with ten draws), RLOO
`LeaveOneOutELBO` of two samples, REINFORCE `TraceGraph_ELBO` with a decaying average as baseline.

So control - KL warm-up is what the second decoder and the schedule bring, and silent - control is what
silence brings. Rows are of {usual}, where they do not say otherwise.
Numbers are nats per image of the deep model, higher is better: mean over the seeds (up to {seeds}) ± its
standard error. A run that used no code in the end (*collapsed*) or met a loss that is not finite
(*diverged*) is counted beside the mean and enters no mean, no difference and no figure's band.

## Test ELBO at equal time

Each arm has had at least the training time of the silent arm: processor time of the training steps, the
arms of a race taking turns in one process. A cheaper arm trains on until it has used that time; one whose
steps cost more, as the control's often do, keeps its whole number of steps, in the rivals' favour.

{equal_time}

## Test ELBO at equal steps

{equal_steps}

## How much of the gain is silence

Differences seed by seed, over the seeds in which all three arms have a code in use, so that total =
curriculum + silence; a number in brackets says how many seeds there are, where it is not all of them.
Where no KL warm-up run counts, only silence is compared. **Bold**: beyond {standard_errors:g} standard
errors. {false_alarms}

At equal time:

{gains_equal_time}

At equal steps:

{gains_equal_steps}

## What the runs say

{claims}

![Validation ELBO over training time and the noise of the encoder's gradient](annealed_vae.png)

## Early and late

Validation ELBO, silent - control, after a share of the silent arm's training time:

{early_and_late}

## Gradient noise

The root of the summed variance of the encoder's gradient per image on one minibatch, parameters held
fixed, and in brackets its ratio to the norm of the mean gradient, after {noise_shares} % of the steps.
The silent arm's is 0 while its weight is 1; inf: the mean is lost in the noise. Means over the seeds, of
runs with a code in use.

{noise}

## Codes in use and time

Active units (whose posterior mean varies over the test images) and KL(q || prior) in nats; below,
milliseconds of a training step.

{codes}

{time}

## Schedules tried

Validation ELBO of one run each, other seed and images than the tests'. The weight of the linear decoder
falls from 1 to 0 within a share of the steps (the columns), for KL warm-up the KL weight rises:

- *linear*, *cosine*: along that curve;
- *step*: all at once after that share, so 100 % is never;
- *adaptive*: along a line of that share, from when the deep decoder's loss has caught up with the linear
  one's.

**Bold**: the best of the row's arm. Rates were compared at one schedule and schedules at one rate;
another rate than the middle one was taken only where it led clearly, and the adaptive schedule and
100 % of a step were tried but not to choose from. In the tests: {chosen}.

{search}

## Budget and decisions

The idea is that of Shao, Liu and Van den Broeck, "Zero-Variance Gradients for Variational Autoencoders",
arXiv 2508.03587. Architectures, schedules and every number here are ours.

{budget}
"""


def _chosen(records: Sequence[Record]) -> str:
    """Return the schedules of the tests, those of most rows first."""
    texts = []
    for arm in ARMS[1:]:
        found = [(r["schedule"], r["length"]) for r in records if r["arm"] == arm]
        kinds = sorted(set(found), key=found.count, reverse=True)
        words = ", ".join(f"{schedule} over {100 * length:g} %" for schedule, length in kinds)
        if found:
            texts.append(f"{arm} {words}")
    return "; ".join(texts)


def _budget(records: Sequence[Record]) -> str:
    """Return the list of what the numbers rest on."""

    def each(key: str, form: Callable[[Any], str] = str) -> str:
        return ", ".join(form(value) for value in sorted({r[key] for r in records}))

    lines = [
        f"Images: {_images(records)}; others for every choice.",
        f"Steps: {each('steps')}, Adam at rate {each('learning_rate', '{:g}'.format)}. Temperatures "
        "(of GS, ST-GS, GR): "
        + each("temperature", "{:g}".format)
        + ". The same for the arms of a row."
        if _arms_agree(records)
        else f"Steps: {each('steps')}, Adam at rates {each('learning_rate', '{:g}'.format)}, "
        "chosen for each arm.",
        "The test ELBO takes hard samples of the code and the deep decoder, whatever trained the "
        "parameters. Standard errors are over seeds alone.",
        "No arm stops early: the longest runs see each training image "
        f"{max(r['steps'] * r['batch_size'] / r['num_train'] for r in records):.0f} times.",
        f"All runs together took {sum(_seconds(r) for r in records) / 3600:.1f} hours of training on one "
        "thread.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _images(records: Sequence[Record]) -> str:
    found = {(r["data"], r["num_train"], r["num_evaluated"]) for r in records}
    return "; ".join(
        f"{data}, {train:,} to train, {test:,} to test" for data, train, test in sorted(found)
    )


def _seconds(record: Record) -> float:
    return float(record["curve"][-1][1]) if record["curve"] else float(record["train_seconds"])


def _arms_agree(records: Sequence[Record]) -> bool:
    """Whether the arms of each row have one learning rate and temperature."""
    settings: dict[Cell, set[tuple[float, float]]] = {}
    for record in records:
        cell = Cell(*(record[key] for key in Cell._fields))
        settings.setdefault(cell, set()).add((record["learning_rate"], record["temperature"]))
    return all(len(found) == 1 for found in settings.values())


def readme_table(content: dict[str, Any]) -> str:
    """Return the README's table and what the runs say, from the content of ``annealed_vae.json``."""
    records = [run for run in content["runs"] if run["split"] == "test"]
    search = [run for run in content["runs"] if run["split"] == "validation"]
    cells = races(records)
    usual, names = row_names(cells)
    rows = []
    for cell, arms in cells.items():
        num_seeds = max(len(runs) for runs in arms.values())
        parts = gains(arms, AT_EQUAL_TIME)
        elbos = (str(summarize(arms[arm], AT_EQUAL_TIME)._replace(error=math.nan)) for arm in ARMS)
        total, silence = marked(parts.total, num_seeds), marked(parts.silence, num_seeds)
        rows.append([names[cell], str(num_seeds), *elbos, total, silence])
    header = [usual, "seeds", *ARMS, "silent - KL warm-up", "due to silence: silent - control"]
    said = "\n".join(f"- {line}" for line in headlines(records, search))
    return f"{markdown(header, rows)}\n\nWhen to use it and when not, as far as these runs go:\n\n{said}"


def page(
    records: Sequence[Record],
    command: str,
    claims: Sequence[str],
    search: Sequence[Record] = (),
) -> str:
    """Return the Markdown page.

    :param command: what made the runs.
    :param claims: sentences.
    :param search: the records of the search for schedules.
    """
    seeds = max(len(runs) for arms in races(records).values() for runs in arms.values())
    alarms = ""
    if seeds in FALSE_ALARMS:
        alarms = (
            f"With {seeds} seeds a difference of nothing passes that mark in "
            f"{100 * FALSE_ALARMS[seeds]:g} % of cases, so look at the rows together."
        )
    noise_shares = sorted({100 * p[0] / r["steps"] for r in records for p in r["noise"]})
    said = [*claims, *readings(records, search)]
    return _PAGE.format(
        command=command,
        seeds=seeds,
        usual=row_names(races(records))[0],
        equal_time=table(records, AT_EQUAL_TIME),
        equal_steps=table(records, AT_EQUAL_STEPS),
        standard_errors=STANDARD_ERRORS,
        false_alarms=alarms,
        gains_equal_time=gains_table(records, AT_EQUAL_TIME),
        gains_equal_steps=gains_table(records, AT_EQUAL_STEPS),
        claims="\n".join(f"- {line}" for line in said),
        early_and_late=early_and_late(records),
        noise_shares=", ".join(f"{share:g}" for share in noise_shares),
        noise=noise_table(records),
        codes=codes_table(records),
        time=time_table(records),
        chosen=_chosen(records),
        search=search_table(search),
        budget=_budget(records),
    )
