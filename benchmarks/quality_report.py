"""Tables and curves of the results of time_to_quality.py."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring

from consistency_models.evaluation.plots import save_curves

__all__ = ["report"]

Row = Mapping[str, Any]


def report(folder: Path, rows: Sequence[Row]) -> str:
    """Draw curves_MINUTES.png, and return a table, for each number of minutes."""
    tables = []
    for minutes in sorted({row["minutes"] for row in rows}):
        same = [row for row in rows if row["minutes"] == minutes]
        choices = _seeds(same)
        short = [_short(choice) for choice in choices]
        names = short if len(set(short)) == len(short) else choices
        curves = {
            name: [_curve(same, choice, seed) for seed in seeds]
            for name, (choice, seeds) in zip(names, choices.items())
        }
        save_curves(folder / f"curves_{minutes:g}.png", curves, over="minutes of one core, including the stages")
        heading = f"## {minutes:g} min, {same[0]['metric']}, floor {same[0]['floor']:.3g}"
        tables.append(f"{heading}\n\n{_table([row for row in same if row['step'] == row['of_steps']])}\n")
    return "\n".join(tables)


def _short(choice: str) -> str:
    """Return `mcm segments=1` of `model=mcm model.segments=1 teacher=run teacher.path=TEACHER`."""
    words = [word for word in choice.split() if not word.startswith(("teacher", "init"))]
    return " ".join(re.sub(r"^model[.=]", "", word) for word in words)


def _seeds(rows: Sequence[Row]) -> dict[str, list[int]]:
    choices = dict.fromkeys(row["choice"] for row in rows)
    return {choice: sorted({row["seed"] for row in rows if row["choice"] == choice}) for choice in choices}


def _curve(rows: Sequence[Row], choice: str, seed: int) -> dict[str, list[tuple[float, float]]]:
    """Return the curves of one run: metric -> (minutes, value)."""
    curve: dict[str, list[tuple[float, float]]] = {}
    for row in (row for row in rows if (row["choice"], row["seed"]) == (choice, seed)):
        for steps, value in row["fd"].items():
            name = f"{row['metric']}, steps: {steps}"
            curve.setdefault(name, []).append((row["after_minutes"], value))
    return curve


def _table(rows: Sequence[Row]) -> str:
    """Format final values, mean ± standard deviation over the seeds; the choice with the best one-step images first."""
    counts, lines = sorted({int(steps) for row in rows for steps in row["fd"]}), []
    for choice, seeds in _seeds(rows).items():
        same = [row for row in rows if row["choice"] == choice]
        values = {n: [row["fd"][str(n)] for row in same if str(n) in row["fd"]] for n in counts}
        cells = {f"FD, {n} step{'s' * (n > 1)}": _spread(values[n]) for n in counts}
        cells = {"choice": f"`{choice}`", "steps of training": same[0]["of_steps"], "seeds": len(seeds)} | cells
        lines.append((statistics.fmean(values[counts[0]] or [float("inf")]), cells))
    lines.sort(key=lambda line: line[0])
    return measuring.table([cells for _, cells in lines], {title: f"{{{title}}}" for title in lines[0][1]})


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3g}{deviation}" if values else ""
