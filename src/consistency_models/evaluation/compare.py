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

from consistency_models.errors import ConfigError, Exit, command
from consistency_models.evaluation.html_report import Table, save_page
from consistency_models.evaluation.plots import family, save_curves, save_ode_error, save_quality
from consistency_models.evaluation.runs import Cell, Run, cells_of, differing_choices, differing_keys, read_runs
from consistency_models.files import write_atomically
from consistency_models.text import markdown

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
    titles = ["run", "weights", "sampler", "network calls", results[0]["metric"], "seeds"] if results else []
    lines = [_line(titles)]
    lines.append("|---|---|---|---|---|---|")
    for row in results:
        value = _with_spread(row["value"], row["spread"])
        sampler = row["sampler"] + (f", {row['steps']} step{'s' * (row['steps'] > 1)}" if row["steps"] else "")
        lines.append(_line([row["run"], row["weights"], sampler, row["network calls"] or "", value, row["seeds"]]))
    missing = _without_value(cells, results)
    lines += [f"\n{markdown(missing)}"] if missing else []
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[Any]) -> str:
    """Return a line of a Markdown table. Names come from files of strangers."""
    return f"| {' | '.join(map(markdown, cells))} |"


def _with_spread(value: float, spread: float | None) -> str:
    return f"{value:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")


def _without_value(cells: Sequence[Cell], results: Sequence[Mapping[str, Any]]) -> str:
    missing = [cell.name for cell in cells if cell.name not in {row["run"] for row in results}]
    return f"Without a value: {', '.join(missing)}" if missing else ""


def overview(cells: Sequence[Cell], metric: str | None = None) -> Table:
    """Return one row for each cell, sampler and step count, with a column for each metric.

    Rows that have the chosen metric come first, in the order of `rows`.

    Args:
        cells, metric: see `rows`.

    Raises:
        ValueError: see `rows`.
    """
    results = rows(cells, metric)
    lines: dict[tuple[Any, ...], dict[str, str]] = {(r["run"], r["sampler"], r["steps"]): {} for r in results}
    metrics = [row["metric"] for row in results[:1]]
    for cell in cells:
        for result in (each for each in cell.results if each["value"] is not None):
            about = (cell.name, cell.runs[0].weights, result["sampler"], result["steps"], result["nfe"], len(cell.runs))
            texts = ["" if value is None else str(value) for value in about]
            line = lines.setdefault((cell.name, result["sampler"], result["steps"]), {})
            line |= dict(zip(("run", "weights", "sampler", "steps", "network calls", "seeds"), texts))
            line[name := family(result["metric"])] = _with_spread(result["value"], result["spread"])
            metrics.append(name)
    columns = ["run", "weights", "sampler", "steps", "network calls", *dict.fromkeys(metrics), "seeds"]
    return columns, [[line.get(column, "") for column in columns] for line in lines.values()]


def _key_table(cells: Sequence[Cell], values: Mapping[str, Sequence[Any]]) -> Table:
    """Return a table of keys with one column for each cell, or with one column of all values for many cells."""
    one_column_each = len(cells) <= MOST_COLUMNS
    table_rows = []
    for key, each in values.items():
        texts = ["-" if value is None else json.dumps(value).strip('"') for value in each]
        table_rows.append([key, *(texts if one_column_each else [", ".join(dict.fromkeys(texts))])])
    return ["key", *([cell.name for cell in cells] if one_column_each else ["values"])], table_rows


def differences(cells: Sequence[Cell]) -> str:
    """Format the keys in which the configurations differ as a Markdown table.

    Up to `MOST_COLUMNS` cells have one column each. More cells share one column with all values.
    """
    columns, table_rows = _key_table(cells, differing_keys(cells))
    lines = [columns, ["---"] * len(columns), *table_rows]
    return "".join(f"{_line(line)}\n" for line in lines) if table_rows else ""


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


@command
def main(arguments: Sequence[str] | None = None) -> Exit:
    """Compare the runs that the command line names, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m consistency_models.evaluation.compare", description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, and folders of sweeps")
    parser.add_argument("--metric", help="metric that sorts the table, such as fd; by default the first")
    parser.add_argument("--out", default="comparison", help="prefix of the files to write")
    args = parser.parse_args(arguments)
    runs = read_runs(args.folders)
    cells = cells_of(runs)
    text = "\n".join([table(runs, args.metric), differences(cells)])
    print(text)
    write_atomically(Path(f"{args.out}.md"), text)
    written = figures(cells, args.out)
    with open(f"{args.out}.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows(cells, args.metric))
    choices, keys = differing_choices(cells), differing_keys(cells)
    following = {key: values for key, values in keys.items() if key not in choices}
    save_page(
        f"{args.out}.html",
        results=overview(cells, args.metric),
        note=_without_value(cells, rows(cells, args.metric)),
        choices=_key_table(cells, choices),
        following=_key_table(cells, following),
        figures=written,
        cells=cells,
    )
    print("written to " + " ".join([f"{args.out}.{kind}" for kind in ("md", "csv", "html")] + written))
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
