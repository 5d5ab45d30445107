"""`python -m consistency_models.evaluation.compare FOLDER…`: compare runs and sweeps without W&B.

Prints a table sorted by a metric, with the mean over the seeds of each setting, and the keys in which the
configurations differ. Writes the tables to OUT.md and OUT.csv, figures of quality against network calls, of training
curves and of ODE errors, and OUT.html, a report with tables, figures and samples.
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
    """Return one row for each cell, sampler and step count, best first: see COLUMNS.

    Args:
        cells: runs, grouped over seeds.
        metric: prefix of the metric's name, such as fd or fd1797_classifier; by default the first of the first run.

    Raises:
        ValueError: no run has a result with this metric.
    """
    pairs = [(cell, result) for cell in cells for result in cell.results]
    metrics = list(dict.fromkeys(family(result["metric"]) for _, result in pairs))
    chosen = next((name for name in metrics if metric is None or name.startswith(metric)), None)
    if chosen is None:
        reason = "" if metrics else "no run has any result"
        raise ConfigError("metric", metric, ", ".join(metrics) or "null", reason=reason)
    scored = [
        (cell, result) for cell, result in pairs if family(result["metric"]) == chosen and result["value"] is not None
    ]
    scored.sort(key=lambda pair: pair[1]["value"] if pair[1].get("is_distance", True) else -pair[1]["value"])
    return [
        dict(
            zip(
                COLUMNS,
                (
                    *(cell.name, cell.runs[0].weights, result["sampler"], result["steps"], result["nfe"], chosen),
                    *(result["value"], result["spread"], len(cell.runs)),
                ),
            )
        )
        for cell, result in scored
    ]


def table(runs: Mapping[str, Run], metric: str | None = None) -> str:
    """Format all results of one metric as a Markdown table, best first: mean and standard deviation over seeds.

    Args:
        runs: see `read_runs`.
        metric: see `rows`.

    Raises:
        ValueError: see `rows`.
    """
    cells = cells_of(runs)
    results = rows(cells, metric)
    lines = [f"| run | weights | sampler | network calls | {results[0]['metric']} | seeds |" if results else ""]
    lines.append("|---|---|---|---|---|---|")
    for row in results:
        value = f"{row['value']:.4g}" + (f" ± {row['spread']:.2g}" if row["spread"] is not None else "")
        sampler = row["sampler"] + (f", {row['steps']} step{'s' * (row['steps'] > 1)}" if row["steps"] else "")
        calls = row["network calls"] or ""
        lines.append(f"| {row['run']} | {row['weights']} | {sampler} | {calls} | {value} | {row['seeds']} |")
    missing = [cell.name for cell in cells if cell.name not in {row["run"] for row in results}]
    lines += [f"\nWithout a value: {', '.join(missing)}"] if missing else []
    return "\n".join(lines) + "\n"


def differences(cells: Sequence[Cell]) -> str:
    """Format the keys in which the configurations differ as a Markdown table.

    Up to `MOST_COLUMNS` cells have one column each. More cells share one column with all values.
    """
    one_column_each = len(cells) <= MOST_COLUMNS
    names = [cell.name for cell in cells] if one_column_each else ["values"]
    lines = [f"| key | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for key, values in differing_keys(cells).items():
        texts = ["-" if value is None else json.dumps(value).strip('"') for value in values]
        lines.append(f"| {key} | {' | '.join(texts if one_column_each else [', '.join(dict.fromkeys(texts))])} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def figures(cells: Sequence[Cell], out: str) -> list[str]:
    """Draw the figures for which there is data, and return their files."""
    drawings = {
        f"{out}_quality.png": (save_quality, {cell.name: cell.results for cell in cells}),
        f"{out}_curves.png": (save_curves, {cell.name: [run.curves for run in cell.runs] for cell in cells}),
        f"{out}_ode_error.png": (
            save_ode_error,
            {cell.name: cell.runs[0].ode_error for cell in cells if cell.runs[0].ode_error},
        ),
    }
    written = []
    for path, (draw, content) in drawings.items():
        try:
            draw(path, content)
            written.append(path)
        except ValueError:  # no run has data for this figure
            continue
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the runs that the command line names, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m consistency_models.evaluation.compare", description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, and folders of sweeps")
    parser.add_argument("--metric", help="metric that sorts the table, such as fd; by default the first")
    parser.add_argument("--out", default="comparison", help="prefix of the files to write")
    args = parser.parse_args(arguments)
    try:
        runs = read_runs(args.folders)
        cells = cells_of(runs)
        tables = {"Results, best first": table(runs, args.metric), "Keys in which they differ": differences(cells)}
        text = "\n".join(tables.values())
        print(text)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        written = figures(cells, args.out)
        Path(f"{args.out}.md").write_text(text)
        with open(f"{args.out}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows(cells, args.metric))
        save_page(f"{args.out}.html", tables, written, cells)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("written to " + " ".join([f"{args.out}.{kind}" for kind in ("md", "csv", "html")] + written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
