"""For each distribution and each random argument: how its expected log density is found.

Every row of the table is tried: a small program makes the distribution with something random about it,
``expected_log_prob`` is asked for, and what it did is written down. ``closed form`` is exact to rounding;
``quadrature`` integrates one Gaussian scalar per element (or two), with as many nodes as it takes;
``enumerated`` sums over all values of discrete latents; ``sampled`` means that there is no expectation:
``SilentELBO`` raises ``IntractableError`` or, with ``intractable="sample"``, estimates this one site's
term. The claim that is checked: every public distribution of torch and Pyro is either in the table or
left out for a reason given below it.

Writes the table to ``--out``.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from distribution_rows import EXCLUDED, ROWS, Row
from pyro_silent import (
    IntractableError,
    LeakError,
    expected_log_prob,
    random_parameters,
    random_tensor,
)
from pyro_silent.expectation.method import recording


def laws(row: Row) -> list[Distribution]:
    """The laws of a row's latents, three independent elements each."""
    kinds = [kind.strip() for kind in row.latent.split(",")]
    kinds += kinds[-1:] * (row.num_latents - len(kinds))
    dtype = torch.get_default_dtype()
    found: list[Distribution] = []
    for i, kind in enumerate(kinds):
        mean = torch.tensor([0.3, -0.2, 0.5], dtype=dtype).roll(i)
        if kind == "normal":
            found.append(dist.Normal(mean, torch.tensor([0.2, 0.4, 0.3], dtype=dtype).roll(i)))
        elif kind == "bernoulli":
            found.append(dist.Bernoulli(logits=mean))
        else:
            found.append(dist.Categorical(logits=torch.stack([mean, -mean], -1)))
    return found


def expectation(row: Row, latents: Sequence[Tensor]) -> tuple[Tensor, list[str]]:
    """The expected log density, and what was used for it beyond closed forms."""
    with random_parameters():
        distribution, value = row.program(*latents)
        with recording() as methods:
            return expected_log_prob(distribution, value), methods


def method_of(row: Row) -> str:
    """``closed form``, ``quadrature(n)``, ``enumerated`` or ``sampled``."""
    latents = [random_tensor(law, "zy"[i]) for i, law in enumerate(laws(row))]
    try:
        _, methods = expectation(row, latents)
    except (IntractableError, LeakError):
        return "sampled"
    counts = [int(method[11:-1]) for method in methods if method.startswith("quadrature(")]
    found = sorted(method for method in methods if not method.startswith("quadrature("))
    if counts:
        found.append(f"quadrature({max(counts)})")
    return ", ".join(found) or "closed form"


def public_distributions() -> set[str]:
    """Names of all public classes of distributions of torch and Pyro."""
    return {
        name
        for module in (torch.distributions, dist)
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Distribution) and not name.startswith("_")
    }


def table() -> str:
    """The page, in Markdown."""
    lines = [
        "# Expected log densities",
        "",
        "How `expected_log_prob` finds E[log p(x)] for each distribution and each random argument,",
        "where z and y are Gaussian latents unless said otherwise. Made by",
        "`examples/distributions_table.py`, which tries each row.",
        "",
        "- *closed form*: exact to rounding.",
        "- *quadrature(n)*: an integral over one Gaussian scalar per element, or over two, with the",
        "  number of nodes it took here; it takes more where the latent is wider.",
        "- *enumerated*: a sum over all values of discrete latents.",
        "- *sampled*: no expectation is known (or it is infinite). `SilentELBO` raises",
        '  `IntractableError`; with `intractable="sample"` it estimates the term of this site and keeps',
        "  the others exact.",
        "",
        "| distribution | random | through | method |",
        "| --- | --- | --- | --- |",
    ]
    for row in sorted(ROWS, key=lambda row: row.name):
        lines.append(f"| {row.name} | {row.argument} | {row.through} | {method_of(row)} |")
    lines += ["", "Left out:", ""]
    lines += [f"- {name}: {reason}." for name, reason in sorted(EXCLUDED.items())]
    return "\n".join(lines) + "\n"


def main(args: argparse.Namespace) -> None:
    """Make the table and check that nothing is missing."""
    torch.set_default_dtype(torch.float64)
    page = table()
    covered = {row.name for row in ROWS} | set(EXCLUDED)
    missing = public_distributions() - covered
    if missing:
        raise SystemExit(f"distributions neither in the table nor left out: {sorted(missing)}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page)
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How expected log densities are found")
    parser.add_argument("--out", type=Path, default=Path("docs/distributions.md"))
    parser.add_argument("--smoke-test", action="store_true", help="the same: it takes seconds")
    main(parser.parse_args())
