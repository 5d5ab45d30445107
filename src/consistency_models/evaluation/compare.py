"""`python -m consistency_models.evaluation.compare FOLDER…`: runs that were evaluated, side by side.

Reads evaluation/evaluation.json of each run folder (or the file itself), prints a table sorted by a metric, and draws
quality against network calls, and ODE errors where there are any.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consistency_models.evaluation.plots import family, save_ode_error, save_quality

__all__ = ["main", "read_runs", "table"]


def read_runs(paths: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """Name -> content of evaluation.json; a run is called as its folder and the one above.

    Raises:
        ValueError: a folder has no evaluation.json that can be read, or two runs have one name.
    """
    runs: dict[str, dict[str, Any]] = {}
    for path in map(Path, paths):
        file = next(
            (p for p in (path, path / "evaluation.json", path / "evaluation/evaluation.json") if p.is_file()), None
        )
        if file is None:
            raise ValueError(
                f"{path}: allowed: a run folder with evaluation/evaluation.json; make it by eval.py run={path}"
            )
        try:
            content = json.loads(file.read_text())
            if (content["schema"], {"results", "weights"} <= content.keys()) != (1, True):
                raise ValueError("another schema")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: allowed: what eval.py writes; found: {error!r}") from error
        name = "/".join(file.resolve().parent.parent.parts[-2:])
        if name in runs:
            raise ValueError(f"{path}: allowed: each run once; another one is called {name}, too")
        runs[name] = content
    return runs


def table(runs: Mapping[str, Mapping[str, Any]], metric: str | None = None) -> str:
    """Markdown of all results of one metric, best first.

    Args:
        runs: see `read_runs`.
        metric: how its names begin, such as fd or fd1797_classifier; by default the first of the first run.

    Raises:
        ValueError: no run has been scored by it.
    """
    every = [(name, found, content) for name, content in runs.items() for found in content["results"]]
    known = list(dict.fromkeys(family(found["metric"]) for _, found, _ in every))
    chosen = next((each for each in known if metric is None or each.startswith(metric)), None)
    if chosen is None:
        raise ValueError(f"metric={metric}: allowed: {', '.join(known) or 'no run has any result'}")
    rows = [row for row in every if family(row[1]["metric"]) == chosen and row[1]["value"] is not None]
    rows.sort(key=lambda row: row[1]["value"] if row[1].get("is_distance", True) else -row[1]["value"])
    lines = [f"| run | weights | sampler | network calls | {chosen} |", "|---|---|---|---|---|"]
    for name, found, content in rows:
        value = f"{found['value']:.4g}" + (f" ± {found['spread']:.2g}" if found["spread"] is not None else "")
        way = f"{found['sampler']}, {found['steps']} step{'s' * (found['steps'] > 1)}"
        lines.append(f"| {name} | {content['weights']} | {way} | {found['nfe']} | {value} |")
    missing = [name for name in runs if name not in {row[0] for row in rows}]
    lines += [f"\nNot scored by {chosen}: {', '.join(missing)}"] if missing else []
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the runs on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m consistency_models.evaluation.compare", description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders that eval.py has scored")
    parser.add_argument("--metric", help="by which to sort, such as fd; by default the first")
    parser.add_argument("--out", default="comparison", help="figures are OUT_quality.png and OUT_ode_error.png")
    given = parser.parse_args(arguments)
    try:
        runs = read_runs(given.folders)
        print(table(runs, given.metric))
        save_quality(f"{given.out}_quality.png", {name: content["results"] for name, content in runs.items()})
        print(f"written to {given.out}_quality.png")
        curves = {name: content["ode_error"] for name, content in runs.items() if content.get("ode_error")}
        if curves:
            save_ode_error(f"{given.out}_ode_error.png", curves)
            print(f"written to {given.out}_ode_error.png")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
