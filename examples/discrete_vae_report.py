"""The table and the page of the discrete VAE: our bounds beside the published ones."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from discrete_vae_estimators import CONTENDERS
from discrete_vae_model import CODES
from discrete_vae_runs import MOMENTUM

ARITIES = (2, 4, 8, 16)
BATCH_SIZES = (20, 200)

# Bounds at batch size 20 and 200 for 2, 4, 8 and 16 values: Paulus, Maddison and Krause 2021.
PAPER = {
    "GS": ((98.2, 95.7, 95.5, 96.8), (96.4, 93.8, 92.3, 94.3)),
    "REINFORCE": ((202.6, 173.7, 203.9, 169.4), (121.4, 122.2, 124.9, 129.5)),
    "ST": ((105.5, 106.2, 107.2, 108.2), (103.1, 104.5, 105.1, 104.5)),
    "ST-GS": ((100.7, 99.1, 98.0, 98.8), (97.1, 93.7, 92.8, 92.6)),
    "GR-MC10": ((100.7, 97.8, 97.4, 97.9), (97.4, 93.8, 93.1, 92.4)),
    "GR-MC100": ((100.6, 97.5, 96.8, 97.3), (96.8, 94.0, 92.2, 92.4)),
}


class Summary(NamedTuple):
    """The runs of a cell: mean over the seeds, its standard error, how many diverged."""

    mean: float
    error: float
    num_seeds: int
    num_diverged: int

    def __str__(self) -> str:
        if self.num_diverged == self.num_seeds:
            return "diverged"
        text = f"{self.mean:.1f}"
        if math.isfinite(self.error):
            text += f" ± {self.error:.1f}"
        return text + (f", {self.num_diverged} diverged" if self.num_diverged else "")


Cells = dict[tuple[str, int, int], Summary]


def summarize(records: Sequence[dict[str, Any]], figure: str = "bound") -> Cells:
    """Return a summary for each (estimator, batch size, arity); diverged runs are left out of it."""
    values: dict[tuple[str, int, int], list[float | None]] = defaultdict(list)
    for record in records:
        key = (record["estimator"], record["batch_size"], record["arity"])
        values[key].append(record[figure])
    cells = {}
    for key, found in values.items():
        finite = [value for value in found if value is not None]
        mean = statistics.fmean(finite) if finite else math.nan
        error = statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else math.nan
        cells[key] = Summary(mean, error, len(found), len(found) - len(finite))
    return cells


def published(name: str, batch_size: int, arity: int) -> float | None:
    """Return the published bound, where there is one."""
    rows = PAPER.get(name)
    return rows and rows[BATCH_SIZES.index(batch_size)][ARITIES.index(arity)]


def table(cells: Cells, errors: bool = True) -> str:
    """Return the Markdown table: a row per estimator, ours [theirs] in each cell.

    A cell with fewer seeds than the most says how many.

    :param errors: with standard errors.
    """
    columns = sorted({key[1:] for key in cells})
    most = max((cell.num_seeds for cell in cells.values()), default=0)
    lines = [
        "| | " + " | ".join(f"{_kind(arity)}, batch {batch}" for batch, arity in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for name in CONTENDERS:
        row = []
        for batch, arity in columns:
            ours, theirs = cells.get((name, batch, arity)), published(name, batch, arity)
            text = "" if ours is None else str(ours if errors else ours._replace(error=math.nan))
            if ours is not None and ours.num_seeds < most:
                text += f" (n = {ours.num_seeds})"
            row.append(f"{text} [{theirs:.1f}]" if ours and theirs else text)
        if any(row):
            lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


_PAGE = """# VAEs with discrete codes

Bounds on the negative log likelihood of test digits in nats, lower is better: mean over {seeds}
seeds ± its standard error, and in brackets the number published for the estimator. Made by

    {command}

{table}

Not using the code, every pixel at its base rate, gives {no_code:.1f}. All codes have the same
information: {codes}.

![The bounds against the arity](discrete_vae.png)

The numbers in brackets, the lower row of the figure, are those of the submission of Paulus, Maddison
and Krause 2021: 50,000 steps, settings from a random search of 20 runs for each number, bounds of
5,000 samples. Ours are runs of {steps} with smaller networks
on another binarization: compare the order of the estimators, not the numbers.
{limits}
What the runs say, over all arities, and over both batch sizes where none is named:

{claims}

## Budget and decisions

The source leaves these open, or they are ours for reasons of time.

- Data: {num_train:,} training digits, binarized once (each pixel on with its grey value as
  probability, fixed seed; not the published fixed binarization). The bounds are means over the first
  {num_evaluated} test digits, the same for all runs, of {num_samples} importance samples each. With
  more samples a bound is lower. The standard errors are over seeds alone.
- Networks: two hidden layers of {num_hidden} tanh units each way, Xavier initialisation. The encoder
  sees the pixels less their base rates, the decoder the code less its prior mean; the bias of its
  output starts at the logit of the base rates.
- Training: gradient descent with momentum {momentum}, a rate that falls linearly to 0 (with a
  constant one, runs this short end some 15 nats higher), minibatches drawn with replacement, the
  same for all estimators. One sample a step; RLOO and DisARM take two.
- Rates and temperatures: for each estimator and batch size the best of a grid on validation digits,
  with the 8-ary code, one run of the same length with another seed each (`--search`); the rates
  tried at batch size 200 are three times those at 20. All arities use what was found. GR-MC100 and
  GR exact take the settings of GR-MC10, DisARM those of RLOO. The table has the bounds of the search,
  and of a few more candidates.
- REINFORCE is Pyro's `TraceGraph_ELBO` with its decaying average as the baseline. GS trains on
  relaxed codes; its bound, like all others, is of discrete ones.
- ReinMax at temperature 1 would be ZGR, so its search starts above.

Rates, with temperatures where there is one:

{settings}
"""


# True of runs of hundreds of steps.
_LIMITS = """
Two limits of runs this short. The straight-through estimators were all given the largest rate of the
grid (at batch size 200 twice that rate ends above 250), and there a lower variance pays; at a third
of it the search finds them within 1.6 nats of each other (last table). And the published lag of ST
behind ST-GS, 5 to 12 nats, is not seen: at batch size 20 ST is ahead.
"""
_SHORT = 1000


def settings_table(records: Sequence[dict[str, Any]], search: Sequence[dict[str, Any]] = ()) -> str:
    """Return the Markdown table of learning rates and temperatures: those used, those tried."""
    used = {(r["estimator"], r["batch_size"]): _setting(r) for r in records}
    batches = sorted({batch for _, batch in used})
    columns = [f"batch {batch}: {what}" for batch in batches for what in ("used", "tried (bound)")]
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name in CONTENDERS:
        row = []
        for batch in batches:
            tried = [
                f"{_setting(r)} ({'diverged' if r['bound'] is None else format(r['bound'], '.1f')})"
                for r in sorted(search, key=lambda r: (r["learning_rate"], r["temperature"]))
                if (r["estimator"], r["batch_size"]) == (name, batch)
            ]
            row += [used.get((name, batch), ""), ", ".join(tried)]
        if any(row):
            lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _setting(record: dict[str, Any]) -> str:
    name = record["estimator"]
    tempered = CONTENDERS[CONTENDERS[name].settings_of or name].temperatures != (1.0,)
    rate = f"{record['learning_rate']:g}"
    return f"{rate} at {record['temperature']:g}" if tempered else rate


def _kind(arity: int) -> str:
    return "binary" if arity == 2 else f"{arity}-ary"


def readme_table(record: dict[str, Any]) -> str:
    """Return the table without its standard errors, from the content of ``discrete_vae.json``."""
    return table(summarize([run for run in record["runs"] if run["split"] == "test"]), errors=False)


def page(
    records: Sequence[dict[str, Any]],
    no_code: float,
    command: str,
    claims: Sequence[str],
    search: Sequence[dict[str, Any]] = (),
) -> str:
    """Return the Markdown page.

    :param no_code: the bound of independent pixels.
    :param command: what made the runs.
    :param claims: sentences.
    :param search: the records of the search for settings.
    """
    cells = summarize(records)
    steps = {record["batch_size"]: record["steps"] for record in records}
    shapes = [f"{CODES[a].num_variables} {_kind(a)}" for a in sorted({key[2] for key in cells})]
    return _PAGE.format(
        **{
            key: records[0][key]
            for key in ("num_train", "num_evaluated", "num_samples", "num_hidden")
        },
        seeds=max(cell.num_seeds for cell in cells.values()),
        command=command,
        table=table(cells),
        no_code=no_code,
        codes=", ".join(shapes) + " variables",
        steps=" and ".join(f"{n} steps (batch {batch})" for batch, n in sorted(steps.items())),
        claims="\n".join(f"- {claim}" for claim in claims),
        momentum=MOMENTUM,
        settings=settings_table(records, search),
        limits=_LIMITS if max(steps.values()) < _SHORT else "",
    )
