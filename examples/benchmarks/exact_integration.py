"""Hold SilentELBO against funsor's exact integration on a linear-Gaussian model.

Bayesian linear regression with known noise under independent Gaussians: funsor has the joint density
as one Gaussian factor, by elimination over the rows, and integrates it under the guide. Claims: the
loss and its gradient agree with ours to 1e-9, and a captured training step takes at most a fifth of
funsor's; our bound is not above the evidence that funsor finds.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from harness.measure import median_times, one_core, paired_ratio, time_in_turn
from harness.models import LEARNING_RATE
from harness.peers import installed, not_installed
from harness.report import Target, benchmark_parser, finish, table
from pyro_silent import CompiledSVI, SilentELBO

NOISE = 0.3
SILENT, CAPTURED, FUNSOR = "SilentELBO", "captured SilentELBO", "funsor, exact integration"


class LinearRegression:
    """Model and guide, whose parameters are plain tensors under names of their own."""

    def __init__(self, name: str, num_columns: int) -> None:
        self.name, self.num_columns = name, num_columns

    def model(self, x: Tensor, y: Tensor) -> None:
        """Draw weights from N(0, I) and responses from N(x w, noise)."""
        law = dist.Normal(x.new_zeros(self.num_columns), 1.0).to_event(1)
        weights = pyro.sample("weights", law)
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(x @ weights, NOISE), obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Draw independent weights."""
        loc = pyro.param(f"{self.name}.loc", lambda: x.new_full((self.num_columns,), 0.1))
        raw = pyro.param(f"{self.name}.log_scale", lambda: x.new_full((self.num_columns,), -2.0))
        pyro.sample("weights", dist.Normal(loc, raw.exp()).to_event(1))


def funsor_integration(x: Tensor, y: Tensor) -> tuple[Callable[..., Tensor], Callable[[], float]]:
    """Return funsor's -ELBO as a function of location and log scale, and its log evidence."""
    import funsor
    from funsor import ops
    from funsor.cnf import Contraction
    from funsor.domains import Bint, Reals
    from funsor.gaussian import Gaussian
    from funsor.integrate import Integrate

    funsor.set_backend("torch")
    num_rows, num_columns = x.shape
    weights = OrderedDict(weights=Reals[num_columns])
    variables = frozenset([funsor.Variable("weights", Reals[num_columns])])
    half_log_two_pi = 0.5 * math.log(2 * math.pi)
    # funsor's Gaussian factors are normalised at their peak: this is what the densities have beside.
    constant = -half_log_two_pi * num_columns - num_rows * (math.log(NOISE) + half_log_two_pi)

    def gaussian(white_vec: Tensor, prec_sqrt: Tensor, **inputs: Any) -> Any:
        return Gaussian(white_vec, prec_sqrt, OrderedDict(**inputs, **weights))

    def joint() -> Any:
        prior = gaussian(torch.zeros_like(x[0]), torch.eye(num_columns, dtype=x.dtype))
        rows = Bint[num_rows]
        likelihood = gaussian((y / NOISE)[:, None], (x / NOISE)[:, :, None], rows=rows)
        return prior + likelihood.reduce(ops.add, "rows")

    def expectation(guide: Any, factor: Any) -> Any:
        mass = guide.reduce(ops.logaddexp, "weights").data.exp()
        terms = factor.terms if isinstance(factor, Contraction) else (factor,)
        return sum(
            Integrate(guide, term, variables).data / mass
            if isinstance(term, Gaussian)
            else term.data
            for term in terms
        )

    def loss(loc: Tensor, log_scale: Tensor) -> Tensor:
        guide = gaussian(loc * (-log_scale).exp(), torch.diag((-log_scale).exp()))
        normalizer = (log_scale + half_log_two_pi).sum()
        cross = expectation(guide, joint()) + constant
        value: Tensor = expectation(guide, guide) - normalizer - cross
        return value

    def evidence() -> float:
        return float(joint().reduce(ops.logaddexp, "weights").data) + constant

    return loss, evidence


def ours(name: str, x: Tensor, y: Tensor) -> LinearRegression:
    """Return programs whose parameters are in the param store."""
    programs = LinearRegression(name, x.shape[1])
    programs.guide(x, y)
    return programs


def agreement(x: Tensor, y: Tensor, loss: Callable[..., Tensor], evidence: float) -> list[Target]:
    """Compare value and gradient of both losses at one point, and the bound with the evidence."""
    programs = ours("check", x, y)
    leaves = [pyro.get_param_store()[f"check.{name}"] for name in ("loc", "log_scale")]
    silent = SilentELBO().differentiable_loss(programs.model, programs.guide, x, y)
    other = loss(*leaves)
    gradients = [torch.cat(torch.autograd.grad(value, leaves)) for value in (silent, other)]
    value_difference = ((silent - other) / other).abs().item()
    gradient_difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    return [
        Target("relative difference of the loss", value_difference, 1e-9),
        Target("relative difference of the gradient", gradient_difference.item(), 1e-9),
        Target("ELBO less log evidence", -silent.item() - evidence, 0.0),
    ]


def funsor_step(x: Tensor, y: Tensor, loss: Callable[..., Tensor]) -> Callable[[], float]:
    """Return a training step on funsor's loss, with ``torch.optim.Adam``."""
    leaves = [x.new_full((x.shape[1],), value).requires_grad_() for value in (0.1, -2.0)]
    optimizer = torch.optim.Adam(leaves, lr=LEARNING_RATE)

    def step() -> float:
        optimizer.zero_grad()
        value = loss(*leaves)
        value.backward()
        optimizer.step()
        return value.item()

    return step


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--backend", default="inductor", help="of CompiledSVI")
    arguments = parser.parse_args()
    if arguments.smoke_test:
        arguments.rows, arguments.rounds, arguments.backend = 50, 2, "eager"
    one_core()
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(arguments.seed)
    x = torch.randn(arguments.rows, arguments.columns)
    y = x @ torch.randn(arguments.columns) + NOISE * torch.randn(arguments.rows)

    def adam() -> pyro.optim.PyroOptim:
        return pyro.optim.Adam({"lr": LEARNING_RATE})

    eager, captured = ours("eager", x, y), ours("captured", x, y)
    svi = pyro.infer.SVI(eager.model, eager.guide, adam(), SilentELBO())
    compiled = CompiledSVI(
        captured.model, captured.guide, adam(), SilentELBO(), backend=arguments.backend
    )
    calls = {SILENT: lambda: svi.step(x, y), CAPTURED: lambda: compiled.step(x, y)}
    targets, figures = [], {}
    if installed("funsor"):
        loss, evidence = funsor_integration(x, y)
        figures["log evidence"] = evidence()
        targets += agreement(x, y, loss, figures["log evidence"])
        if not all(target.passed for target in targets):
            print(*targets, sep="\n")
            return 1
        print(f"log evidence {figures['log evidence']:.6f}")
        calls[FUNSOR] = funsor_step(x, y, loss)
    else:
        print(not_installed("funsor"))
    times = time_in_turn(calls, arguments.rounds)
    milliseconds = {name: 1e3 * value for name, value in median_times(times).items()}
    print(table(["step", "ms"], [list(row) for row in milliseconds.items()]))
    if FUNSOR in times:
        ratio = paired_ratio(times, CAPTURED, FUNSOR).median
        targets.append(Target(f"{CAPTURED} / {FUNSOR}", ratio, 0.2))
    return finish(arguments, {"milliseconds": milliseconds, **figures}, targets)


if __name__ == "__main__":
    sys.exit(main())
