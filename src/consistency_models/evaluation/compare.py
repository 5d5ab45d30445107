"""`python -m consistency_models.evaluation.compare FOLDER…`: runs and sweeps side by side, without W&B.

Prints a table sorted by a metric, seeds of one setting together, and which keys of the configurations differ; writes
the same as OUT.md and OUT.csv, figures of quality against network calls, of curves over training and of ODE errors,
and OUT.html, one page with all of it and the samples side by side.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consistency_models.errors import ConfigError
from consistency_models.evaluation.html_report import save_page
from consistency_models.evaluation.plots import family, save_curves, save_ode_error, save_quality
from consistency_models.evaluation.runs import Cell, Run, cells_of, differing_keys, read_runs

__all__ = ["COLUMNS", "differences", "main", "read_runs", "rows", "table"]

COLUMNS = ("run", "weights", "sampler", "steps", "network calls", "metric", "value", "spread", "seeds")
MOST_COLUMNS = 6


def rows(cells: Sequence[Cell], metric: str | None = None) -> list[dict[str, Any]]:
    """One row a cell, sampler and step count, best first: see COLUMNS.

    Args:
        cells: runs, seeds together.
        metric: how its names begin, such as fd or fd1797_classifier; by default the first of the first run.

    Raises:
        ValueError: no run has been scored by it.
    """
    every = [(cell, found) for cell in cells for found in cell.results]
    known = list(dict.fromkeys(family(found["metric"]) for _, found in every))
    chosen = next((each for each in known if metric is None or each.startswith(metric)), None)
    if chosen is None:
        raise ConfigError("metric", metric, ", ".join(known) or "null", reason="" if known else "no run has any result")
    fitting = [
        (cell, found) for cell, found in every if family(found["metric"]) == chosen and found["value"] is not None
    ]
    fitting.sort(key=lambda one: one[1]["value"] if one[1].get("is_distance", True) else -one[1]["value"])
    return [
        dict(
            zip(
                COLUMNS,
                (
                    *(cell.name, cell.runs[0].weights, found["sampler"], found["steps"], found["nfe"], chosen),
                    *(found["value"], found["spread"], len(cell.runs)),
                ),
            )
        )
        for cell, found in fitting
    ]


def table(runs: Mapping[str, Run], metric: str | None = None) -> str:
    """Markdown of all results of one metric, best first: means over seeds, with their deviation.

    Args:
        runs: see `read_runs`.
        metric: as for `rows`.

    Raises:
        ValueError: as `rows`.
    """
    cells = cells_of(runs)
    found = rows(cells, metric)
    lines = [f"| run | weights | sampler | network calls | {found[0]['metric']} | seeds |" if found else ""]
    lines.append("|---|---|---|---|---|---|")
    for row in found:
        value = f"{row['value']:.4g}" + (f" ± {row['spread']:.2g}" if row["spread"] is not None else "")
        way = row["sampler"] + (f", {row['steps']} step{'s' * (row['steps'] > 1)}" if row["steps"] else "")
        calls = row["network calls"] or ""
        lines.append(f"| {row['run']} | {row['weights']} | {way} | {calls} | {value} | {row['seeds']} |")
    missing = [cell.name for cell in cells if cell.name not in {row["run"] for row in found}]
    lines += [f"\nWithout a value: {', '.join(missing)}"] if missing else []
    return "\n".join(lines) + "\n"


def differences(cells: Sequence[Cell]) -> str:
    """Markdown of the keys in which the configurations differ: their value in each cell, of many cells all values."""
    each = len(cells) <= MOST_COLUMNS
    names = [cell.name for cell in cells] if each else ["values"]
    lines = [f"| key | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for key, values in differing_keys(cells).items():
        shown = ["-" if value is None else json.dumps(value).strip('"') for value in values]
        lines.append(f"| {key} | {' | '.join(shown if each else [', '.join(dict.fromkeys(shown))])} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def figures(cells: Sequence[Cell], out: str) -> list[str]:
    """Draw what there is to draw; returns the files."""
    wanted = {
        f"{out}_quality.png": (save_quality, {cell.name: cell.results for cell in cells}),
        f"{out}_curves.png": (save_curves, {cell.name: [run.curves for run in cell.runs] for cell in cells}),
        f"{out}_ode_error.png": (
            save_ode_error,
            {cell.name: cell.runs[0].ode_error for cell in cells if cell.runs[0].ode_error},
        ),
    }
    written = []
    for path, (draw, content) in wanted.items():
        try:
            draw(path, content)
            written.append(path)
        except ValueError:  # there is nothing to plot
            continue
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the runs on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m consistency_models.evaluation.compare", description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, and folders of sweeps")
    parser.add_argument("--metric", help="by which to sort, such as fd; by default the first")
    parser.add_argument("--out", default="comparison", help="how the files that are written begin")
    given = parser.parse_args(arguments)
    try:
        runs = read_runs(given.folders)
        cells = cells_of(runs)
        tables = {"Results, best first": table(runs, given.metric), "Keys in which they differ": differences(cells)}
        text = "\n".join(tables.values())
        print(text)
        Path(given.out).parent.mkdir(parents=True, exist_ok=True)
        written = figures(cells, given.out)
        Path(f"{given.out}.md").write_text(text)
        with open(f"{given.out}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows(cells, given.metric))
        save_page(f"{given.out}.html", tables, written, cells)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("written to " + " ".join([f"{given.out}.{kind}" for kind in ("md", "csv", "html")] + written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
