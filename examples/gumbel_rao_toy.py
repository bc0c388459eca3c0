"""How much gradient variance Gumbel-Rao takes away on the simplex, point by point.

The toy problem of "Rao-Blackwellizing the Straight-Through Gumbel-Softmax Gradient Estimator"
(Paulus, Maddison & Krause, ICLR 2021), written out in ``simplex_problem.py``. At every point of a lattice
over the simplex and every temperature the trace of the covariance of one gradient is measured for the
straight-through Gumbel-softmax estimator (ST-GS) and for Gumbel-Rao with 1000 conditional draws (GR). The
draws of our Gumbel-Rao lie on a randomised lattice; at so many that makes no difference to be seen. The
claims that are checked:

- log10 of the ratio agrees with integrals by quadrature at every point, and at four points with an
  earlier computation that shares no code with this one, to 0.03;
- GR improves on ST-GS everywhere, more at a lower temperature, and more in the corners than in the
  middle, as the paper's figure shows;
- the two have one bias, so GR has the smaller mean squared error; ZGR is unbiased, f being quadratic.

Writes ``gumbel_rao_toy.json``, ``.md`` and ``.png`` to ``--out``. ``--num-gradients`` and
``--num-gradients-rao`` are per point; the four points of the tables take ten times as many.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gumbel_rao_toy_picture import draw
from pyro_silent.estimators import (
    ZGR,
    Estimator,
    GumbelRao,
    StraightThrough,
    StraightThroughGumbelSoftmax,
)
from simplex_problem import Moments, exact_gradient, integrated_moments, lattice, sampled_moments

TEMPERATURES = (1.0, 0.5, 0.1)
NUM_GUMBELS = 1000
# log10 of the variance of ST-GS less that of GR, two digits, one figure per temperature.
REFERENCE = {
    (0.2, 0.3, 0.5): (0.08, 0.24, 0.85),
    (0.05, 0.15, 0.8): (0.23, 0.45, 1.00),
    (0.1, 0.25, 0.65): (0.10, 0.25, 0.81),
    (0.02, 0.03, 0.95): (0.48, 0.59, 0.97),
}
ST_GS, RAO = "ST-GS", f"GR-MC{NUM_GUMBELS}"
# ST and ZGR take no noise beyond the draw: enough for every outcome to come up is exact.
NUM_GRADIENTS_NOISELESS = 1_000
GRADIENTS_AT_ONCE = 100_000

Row = dict[str, Any]


def measure(estimator: Estimator, p: Tensor, num_gradients: int, bar: tqdm) -> Moments:
    """Moments at every point, a block of points at a time, which keeps the memory small."""
    found = []
    for block in p.split(max(1, GRADIENTS_AT_ONCE // num_gradients)):
        found.append(sampled_moments(estimator, block, num_gradients))
        bar.update(len(block))
    return Moments(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def log_ratio(plain: Moments, rao: Moments) -> Tensor:
    """log10 of the trace-variance of ST-GS less that of GR."""
    return (plain.variance / rao.variance).log10()


def variance_rows(p: Tensor, measured: dict[float, tuple[Moments, Moments]]) -> list[Row]:
    """A row for each point of the table and temperature."""
    rows = []
    for t, (temperature, pair) in enumerate(measured.items()):
        expected = log_ratio(*integrated_moments(p, temperature, NUM_GUMBELS)).tolist()
        for i, found in enumerate(log_ratio(*pair).tolist()):
            point, references = list(REFERENCE.items())[i]
            rows.append(
                {
                    "p": point,
                    "temperature": temperature,
                    "measured": found,
                    "quadrature": expected[i],
                    "reference": references[t],
                }
            )
    return rows


def error_rows(p: Tensor, measured: dict[str, Moments]) -> list[Row]:
    """A row for each point of the table and estimator: bias, variance, mean squared error."""
    exact = exact_gradient(p)
    return [
        {
            "p": point,
            "gradient": exact[i].norm().item(),
            "estimator": name,
            "bias": moments.bias(exact)[i].item(),
            "variance": moments.variance[i].item(),
            "mse": moments.mean_squared_error(exact)[i].item(),
        }
        for i, point in enumerate(REFERENCE)
        for name, moments in measured.items()
    ]


def grid_rows(grid: Tensor, measured: Tensor, integrated: Tensor) -> list[Row]:
    """A row for each temperature: the log ratio over the lattice ``[points]``."""
    corner, middle = grid.amax(-1) >= 0.75, grid.amax(-1) < 0.5
    return [
        {
            "temperature": temperature,
            "smallest": found.min().item(),
            "largest": found.max().item(),
            "mean": found.mean().item(),
            "corners": found[corner].mean().item(),
            "middle": found[middle].mean().item(),
            "largest_error": (found - expected).abs().max().item(),
        }
        for temperature, found, expected in zip(TEMPERATURES, measured, integrated, strict=True)
    ]


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def named(point: Sequence[float]) -> str:
    """A point of the simplex, for people."""
    return ", ".join(f"{x:g}" for x in point)


def page(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    over_simplex, variances = record["over_simplex"], record["variances"]
    errors, num_points = record["errors"], len(record["grid"])
    summary = markdown_table(
        ["tau", "smallest", "mean", "largest", "mean of corners", "mean of middle"],
        [
            [
                f"{row['temperature']:g}",
                *(
                    f"{row[key]:.2f}"
                    for key in ("smallest", "mean", "largest", "corners", "middle")
                ),
            ]
            for row in over_simplex
        ],
    )
    variance = markdown_table(
        ["p", "tau", "measured", "quadrature", "reference"],
        [
            [
                named(row["p"]),
                f"{row['temperature']:g}",
                f"{row['measured']:.3f}",
                f"{row['quadrature']:.3f}",
                f"{row['reference']:.2f}",
            ]
            for row in variances
        ],
    )
    error = markdown_table(
        ["p", "norm of the gradient", "estimator", "bias", "variance", "MSE"],
        [
            [
                named(row["p"]),
                f"{row['gradient']:.1e}",
                row["estimator"],
                f"{row['bias']:.1e}" if row["bias"] > 1e-12 else "0",
                f"{row['variance']:.2e}",
                f"{row['mse']:.2e}",
            ]
            for row in errors
        ],
    )
    return f"""# Gumbel-Rao on the simplex

Made by `examples/gumbel_rao_toy.py`; the problem is written out in `examples/simplex_problem.py`.

![log10 of the ratio of variances over the simplex](gumbel_rao_toy.png)

log10 of the trace-variance of {ST_GS} less that of {RAO}, for one gradient in the logits. What the
paper says of its figure [P]: an improvement everywhere, largest near the corners and at low
temperature. All numbers here are [ours], from one run over {num_points} points of the simplex.
Corners are points with some p_k >= 3/4, the middle those with all p_k < 1/2; the objective is
singular on the lines p_k = 2/3, which the figure leaves out.

{summary}

## Variance

The same difference at four points: measured with the estimators of this package; by quadrature, which
uses none of them; and a reference from an earlier computation that shares no code with either, of two
digits.

{variance}

## Bias, variance and mean squared error

One gradient in the logits, f with A held constant. {ST_GS} and {RAO} have the same bias, up to the noise
of the measurement. ST (at temperature 1) and ZGR take no noise beyond the draw of D, so their rows are
exact; ZGR is unbiased because f is quadratic.

{error}
"""


def readme_table(record: dict[str, Any]) -> str:
    """What the README shows of ``gumbel_rao_toy.json``: log10 of the ratio of variances."""
    rows = [
        [
            name,
            *(f"{row['measured']:.2f}" for row in record["variances"] if name == named(row["p"])),
        ]
        for name in dict.fromkeys(named(row["p"]) for row in record["variances"])
    ]
    for name in ("smallest", "mean", "largest"):
        cells = [f"{row[name]:.2f}" for row in record["over_simplex"]]
        rows.append([f"{name} over the simplex", *cells])
    temperatures = [f"tau = {row['temperature']:g}" for row in record["over_simplex"]]
    return markdown_table(["p", *temperatures], rows)


def claim(holds: bool, sentence: str) -> None:
    """Stop with the sentence unless it holds."""
    if not holds:
        raise SystemExit(f"failed: {sentence}")
    print(f"checked: {sentence}")


def check(over_simplex: list[Row], measured: Tensor, variances: list[Row]) -> None:
    """Stop unless the variances are as claimed.

    :param over_simplex: the rows of :func:`grid_rows`.
    :param measured: log ratios ``[temperatures, points]``, highest temperature first.
    """
    worst = max(row["largest_error"] for row in over_simplex)
    claim(worst < 0.1, f"the lattice agrees with quadrature: largest difference {worst:.3f} < 0.1")
    for other in ("quadrature", "reference"):
        worst = max(abs(row["measured"] - row[other]) for row in variances)
        claim(worst <= 0.03, f"the table agrees with its {other}: largest difference {worst:.3f}")
    smallest = measured.min().item()
    claim(smallest > 0, f"GR improves everywhere: the smallest difference is {smallest:.3f} > 0")
    gain = measured.diff(dim=0).min().item()
    claim(gain > 0, f"more at a lower temperature, at every point: by at least {gain:.3f}")
    for row in over_simplex:
        claim(
            row["corners"] > row["middle"],
            f"tau = {row['temperature']:g}: more in the corners, {row['corners']:.2f}, than in the "
            f"middle, {row['middle']:.2f}",
        )


def check_errors(p: Tensor, measured: dict[str, Moments], num_plain: int, num_rao: int) -> None:
    """Stop unless the biases are as claimed; the same number of gradients at every point."""
    exact = exact_gradient(p)
    bias = measured["ZGR"].bias(exact).max().item()
    claim(bias < 1e-12, f"ZGR is unbiased: its largest bias is {bias:.1e}")
    for temperature in TEMPERATURES:
        plain, rao = (measured[label(kind, temperature)] for kind in (ST_GS, RAO))
        # Post-stratified means err by the variance within outcomes alone, which is what GR takes
        # away. Beyond 5 standard errors less than once in 100,000 seeds; the seed is fixed.
        within = plain.variance - rao.variance
        error = (within * (1 / num_plain + 1 / (NUM_GUMBELS * num_rao))).sqrt()
        z = ((plain.mean - rao.mean).norm(dim=-1) / error).max().item()
        claim(
            z < 5, f"tau = {temperature:g}: one bias, the means are {z:.1f} standard errors apart"
        )
        better = plain.mean_squared_error(exact) > rao.mean_squared_error(exact)
        claim(bool(better.all()), f"tau = {temperature:g}: GR has the smaller mean squared error")


def label(kind: str, temperature: float) -> str:
    """What an estimator is called in the table of errors."""
    return f"{kind}, tau = {temperature:g}"


def main(args: argparse.Namespace) -> None:
    """Measure, write the page, the figures and the picture, and check the claims."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    if args.smoke_test:
        args.steps, args.num_gradients, args.num_gradients_rao = 7, 10_000, 200
    grid = lattice(args.steps)
    table = torch.tensor(list(REFERENCE), dtype=torch.float64)

    on_grid, on_table = [], {}
    noise_free = {"ST": StraightThrough(), "ZGR": ZGR()}
    num_points = 2 * len(TEMPERATURES) * (len(grid) + len(table)) + len(noise_free) * len(table)
    with tqdm(total=num_points, desc="points", disable=None) as bar:
        errors = {
            name: measure(estimator, table, NUM_GRADIENTS_NOISELESS, bar)
            for name, estimator in noise_free.items()
        }
        for temperature in TEMPERATURES:
            plain = StraightThroughGumbelSoftmax(temperature)
            rao = GumbelRao(temperature, num_gumbels=NUM_GUMBELS)
            on_grid.append(
                log_ratio(
                    measure(plain, grid, args.num_gradients, bar),
                    measure(rao, grid, args.num_gradients_rao, bar),
                )
            )
            on_table[temperature] = (
                measure(plain, table, 10 * args.num_gradients, bar),
                measure(rao, table, 10 * args.num_gradients_rao, bar),
            )
            for kind, moments in zip((ST_GS, RAO), on_table[temperature], strict=True):
                errors[label(kind, temperature)] = moments

    measured = torch.stack(on_grid)
    integrated = torch.stack(
        [log_ratio(*integrated_moments(grid, tau, NUM_GUMBELS)) for tau in TEMPERATURES]
    )
    over_simplex = grid_rows(grid, measured, integrated)
    variances = variance_rows(table, on_table)

    settings = {key: value for key, value in vars(args).items() if key != "out"}
    record = {
        "settings": {**settings, "num_gumbels": NUM_GUMBELS},
        "over_simplex": over_simplex,
        "variances": variances,
        "errors": error_rows(table, errors),
        "grid": [
            {"p": [round(x, 6) for x in point], "log_ratio": [round(x, 4) for x in values]}
            for point, values in zip(grid.tolist(), measured.T.tolist(), strict=True)
        ],
    }
    print(page(record))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gumbel_rao_toy.md").write_text(page(record))
    (args.out / "gumbel_rao_toy.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(grid, dict(zip(TEMPERATURES, measured, strict=True)), args.out / "gumbel_rao_toy.png")

    check(over_simplex, measured, variances)
    check_errors(table, errors, 10 * args.num_gradients, 10 * args.num_gradients_rao)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Gradient variance of Gumbel-Rao on the simplex")
    parser.add_argument("--steps", type=int, default=25, help="points along a side: 3 k + 1")
    parser.add_argument("--num-gradients", type=int, default=100_000, help="of ST-GS, per point")
    parser.add_argument("--num-gradients-rao", type=int, default=1_000, help="of GR, per point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--smoke-test", action="store_true", help="tiny, in seconds")
    main(parser.parse_args())
