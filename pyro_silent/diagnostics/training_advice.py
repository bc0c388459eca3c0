"""What the final values of training runs allow to say."""

from __future__ import annotations

import math
import statistics
from typing import Any

from pyro_silent.diagnostics.student_t import student_t
from pyro_silent.diagnostics.tables import number

_ROUNDING = 1e-6
_FEW = 5
_LEVEL = 0.01


def advice(rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> str:
    """What the final values say, and no more; the rules are those of ``TrainingComparison.advice``.

    :param rows: of losses.
    :param runs: of losses and seeds.
    """
    finals = {
        " ".join(row["name"].split()): [r["final"] for r in runs if r["name"] == row["name"]]
        for row in rows
        if row["error"] is None and row["final_mean"] is not None
    }
    finals = {name: values for name, values in finals.items() if all(map(math.isfinite, values))}
    if not finals:
        return "No loss was trained to the end."
    if len(finals) == 1:
        (name,) = finals
        return f'Only "{name}" was trained to the end: there is nothing to compare it with.'
    pairs = len(finals) * (len(finals) - 1) // 2
    best = min(finals, key=lambda name: math.fsum(finals[name]))
    higher, level = [], []
    for name, values in finals.items():
        if name == best:
            continue
        mean, error = _difference(values, finals[best])
        if _is_tie(values, finals[best]):
            level.append(f'"{name}"')
        elif len(values) == 1:
            higher.append(f'"{name}" by {number(mean)}')
        elif mean > student_t(len(values) - 1, _LEVEL / pairs) * error:
            higher.append(f'"{name}" by {number(mean)} ± {number(error, 2)}')
        else:
            level.append(f'"{name}" ({number(mean)} ± {number(error, 2)} higher)')
    if len(finals[best]) == 1:
        told = [f'"{best}" ended lowest'] if higher else []
        told += [f"{' and '.join(higher)} higher"] if higher else []
        told += [f'{", ".join(level)} level with "{best}"'] if level else []
        return (
            "; ".join(told) + ". With one seed the spread between seeds is unknown, so this may be "
            "chance; write seeds=(0, 1, 2, 3, 4) to find out."
        )
    told = []
    if higher:
        told.append(
            f'"{best}" ended lower than {", ".join(higher)}, beyond chance (1 % for all losses together)'
        )
    if level:
        told.append(f'not told apart from "{best}": {", ".join(level)}')
    text = "; ".join(told)
    more = " More seeds would tell more." if level and len(finals[best]) < _FEW else ""
    return f"Over {len(finals[best])} seeds, {text}.{more}"


def _difference(values: list[float], others: list[float]) -> tuple[float, float]:
    """Mean difference by seed and its standard error, nan for one seed."""
    differences = [a - b for a, b in zip(values, others, strict=True)]
    mean = math.fsum(differences) / len(differences)
    if len(differences) == 1:
        return mean, math.nan
    return mean, statistics.stdev(differences) / math.sqrt(len(differences))


def _is_tie(values: list[float], others: list[float]) -> bool:
    """Whether two losses end alike up to rounding, at every seed."""
    return all(
        math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
        for a, b in zip(values, others, strict=True)
    )
