"""The page of the comparisons, and what the README shows of it."""

from __future__ import annotations

from typing import Any

from compare_elbos_claims import STANDARD_ERRORS

README_PROBLEM = "linear"
README_POINT = "first parameters"

_PAGE = """# Losses side by side

What `compare` and `train_and_compare` say of {num_losses} losses on real data: a Poisson regression
with group effects on visits to a doctor (RAND Health Insurance Experiment) under Pyro's `AutoNormal`,
and a VAE of handwritten digits with a binary code, its decoder linear or with a hidden layer. Made by

    {command}

on one thread of a machine that was shared, so compare times within a table only. All figures are in
[compare_elbos.csv](compare_elbos.csv), those of each parameter as well.

All three problems have an exact loss, which every other is held against. For the regression and the
linear decoder `compare` found it by itself: `SilentELBO`, closed forms. For the deep decoder there is no
closed form, but the bits are few enough to run through all their values: `SilentELBO` and
`TraceEnum_ELBO` are given the guide under `config_enumerate`. That takes 2^{bits} rows of everything
that depends on the bits, so it ends at some ten bits, and `TraceEnum_ELBO` wants each bit as a sample
site of its own; the closed form of the linear decoder has neither limit.

Each problem is compared twice, at the first parameters and after {steps} steps of Adam with the exact
loss: noise and bias belong to a point, not to a loss.
{sections}
## Training

The VAE with the linear decoder trained by {num_trained} losses: {train_steps} steps of Adam, minibatches
of {digits} digits, {seeds} seeds. All losses of a seed start from the same parameters and see the same
minibatches. The yardstick is a sum over {held_out} held-out digits.

```text
{training}
```

![-ELBO on held-out digits against steps and against seconds](compare_elbos_training.png)

## What was checked

The margins are {standard_errors:g} standard errors of the figures themselves, so that a true sentence
about normal figures fails once in 300,000.

<details><summary>{num_claims} sentences, all true</summary>

{claims}

</details>

## What the figures say

- Exact losses alone have no noise, and where the expectation has a closed form they take about the time
  of a sampled one or a few times that. Enumeration is as exact and doubles with each bit.
- In the guide, the unbiased losses for bits (score function, with and without baselines) have more noise
  than ST, ST-GS and Gumbel-Rao, here at every point. The noise in the decoder is that of drawn bits
  whatever the estimator; two evaluations a step (`LeaveOneOutELBO`, `DisARMELBO`) lower it.
- Straight-through losses pay for that with a bias that does not average out. A lower temperature moves
  the trade; Gumbel-Rao has less noise than ST-GS at the same temperature. ZGR has no bias where the ELBO
  is quadratic in the bits (linear decoder, Gaussian pixels): theory, and nothing else was found.
- A small noise is not a virtue by itself: later on, the straight-through gradient of the linear decoder's
  guide is the least noisy of all sampled ones, and it points away from the exact one (negative cosine).
- Some biases are hidden in the whole and show in single parameters:
{in_parts}

  The first is a defect of Pyro 1.9.2: the location of `spread` enters through the `log_density` of a
  Delta, which `TraceMeanField_ELBO`'s analytic KL leaves out.

## What they do not say

- The figures hold for these parameters and this minibatch. Which loss trains best is another question,
  that of the section on training, and its answer holds for this model, step size and length.
- The running means of `TraceGraph_ELBO`'s baselines have settled on the very minibatch that is compared,
  which training with ever new minibatches does not grant.
- Noise is summed over parameters in their unconstrained units. An optimizer that rescales each parameter
  weighs them otherwise.
- When codes saturate, the noise of score-function losses comes in rare bursts, and standard errors found
  from {num_samples} samples are too small.
"""

_SECTION = """
## {title}

{point}:

```text
{text}
```

![Bias against noise, and time against noise]({picture})
"""


def page(record: dict[str, Any]) -> str:
    """The Markdown page, from the content of ``compare_elbos.json``."""
    settings = record["settings"]
    sections = []
    title = ""
    for comparison in record["comparisons"]:
        section = _SECTION.format(
            **{**comparison, "point": comparison["point"].capitalize()},
        )
        if comparison["title"] == title:
            section = section.replace(f"## {title}\n\n", "")
        title = comparison["title"]
        sections.append(section)
    return _PAGE.format(
        **settings,
        command=record["command"],
        num_losses=len({name for c in record["comparisons"] for name in c["names"]}),
        sections="".join(sections),
        training=record["training"]["text"],
        num_trained=record["training"]["num_losses"],
        standard_errors=STANDARD_ERRORS,
        num_claims=sum(map(len, record["claims"].values())),
        claims="\n\n".join(
            "\n".join([f"{where}:", "", *(f"- {sentence}." for sentence in sentences)])
            for where, sentences in record["claims"].items()
        ),
        in_parts="\n".join(f"  - {line}" for line in record["in_parts"]),
    )


def readme_table(record: dict[str, Any]) -> str:
    """One printed comparison, without the table of guide and model."""
    (text,) = (
        comparison["text"]
        for comparison in record["comparisons"]
        if (comparison["problem"], comparison["point"]) == (README_PROBLEM, README_POINT)
    )
    table, *_, prose = text.split("\n\n")
    return f"```text\n{table}\n\n{prose}\n```"
