"""Finished runs as a comparison sees them: read from their folders, seeds of one setting together."""

from __future__ import annotations

import csv
import json
import re
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Cell", "Run", "cells_of", "differing_keys", "read_runs"]

SEEDS = ("seed", "data.seed")
NO_PART_OF_THE_RESULT = re.compile(
    r"name|tags|ckpt_path|paths\..*|logger\..*|callbacks\..*|show_traceback|sweep_size|test"
)
GROWS = ("is", "precision", "recall", "agreement")  # metrics of which more is better: evaluation.metrics
CURVES = r"val/.*|train/loss|curriculum/N"


@dataclass
class Run:
    """One run folder.

    Attributes:
        name: as the folder and the one above.
        setting: what differs from the other jobs of its multirun, seed included; empty for a run on its own.
        config: dotted key -> value, as the run was configured.
        weights: which were scored.
        results: as in evaluation.json; of a run that eval.py has not scored, what training measured at its end.
        ode_error: curves as in evaluation.json.
        curves: figure -> (images seen, value), as in metrics.csv.
        picture: of its samples.
    """

    name: str
    setting: list[str]
    config: dict[str, Any]
    weights: str
    results: list[dict[str, Any]]
    ode_error: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    picture: Path | None = None


@dataclass
class Cell:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: what it differs in from other cells; for a run on its own the run's.
        runs: its seeds.
    """

    name: str
    runs: list[Run]

    @property
    def results(self) -> list[dict[str, Any]]:
        """Those of its first run, each with the mean over the seeds as value and their deviation as spread."""
        if len(self.runs) == 1:
            return self.runs[0].results
        found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for run in self.runs:
            for result in run.results:
                found.setdefault((result["metric"], result["sampler"], result["steps"]), []).append(result)
        return [_mean(results) for results in found.values()]


def _mean(results: list[dict[str, Any]]) -> dict[str, Any]:
    values = [result["value"] for result in results if result["value"] is not None]
    spread = statistics.stdev(values) if len(values) > 1 else None
    return results[0] | {"value": statistics.mean(values) if values else None, "spread": spread}


def read_runs(paths: Sequence[str | Path]) -> dict[str, Run]:
    """Name -> run, of run folders and of the finished jobs of sweep folders.

    Raises:
        ValueError: a folder holds no run that can be read, or two runs have one name.
    """
    runs: dict[str, Run] = {}
    for path in map(Path, paths):
        done = {row["job"]: row["differs"] for row in _rows(path / "jobs.csv") if row["status"] == "DONE"}
        for folder, differs in {path / job: differs for job, differs in done.items()}.items() or {path: ""}.items():
            run = _read(folder, shlex.split(differs))
            if run.name in runs:
                raise ValueError(f"{path}: another run is called {run.name}, too; give each run once")
            runs[run.name] = run
    return runs


def cells_of(runs: Mapping[str, Run]) -> list[Cell]:
    """The runs, those together that differ in nothing but the seed."""
    cells: dict[str, Cell] = {}
    for run in runs.values():
        content = {key: value for key, value in run.config.items() if _counts(key)}
        name = " ".join(part for part in run.setting if not part.startswith("seed=")) or run.name
        cells.setdefault(json.dumps([content, run.weights], sort_keys=True), Cell(name, [])).runs.append(run)
    return list(cells.values())


def differing_keys(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Dotted key -> its value in each cell, None where it has none, of the keys in which the cells differ."""
    configs = [cell.runs[0].config for cell in cells]
    keys = dict.fromkeys(key for config in configs for key in config if _counts(key))
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def _counts(key: str) -> bool:
    return key not in SEEDS and not NO_PART_OF_THE_RESULT.fullmatch(key)


def _read(path: Path, setting: list[str]) -> Run:
    file = next((p for p in (path, path / "evaluation.json", path / "evaluation/evaluation.json") if p.is_file()), None)
    if file is None and (path / "summary.json").is_file():
        folder, scored = path, _from_summary(path)
    elif file is None:
        expected = "a finished run, a scored run, or a sweep of them"
        raise ValueError(f"{path}: expected {expected}; make it by eval.py run={path}")
    else:
        folder, scored = file.resolve().parent.parent, _scored(file)
    config = dict(_leaves(yaml.safe_load((folder / "config.yaml").read_text())))
    picture = next((p for p in (folder / "evaluation/samples.png", folder / "samples/final.png") if p.is_file()), None)
    return Run(
        name="/".join(folder.resolve().parts[-2:]),
        setting=setting,
        config=config,
        weights=scored["weights"],
        results=scored["results"],
        ode_error=scored.get("ode_error") or [],
        curves=_curves(folder / "metrics.csv", config["data.batch_size"]),
        picture=picture,
    )


def _scored(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
        if (content["schema"], {"results", "weights"} <= content.keys()) != (1, True):
            raise ValueError("another schema")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected the evaluation.json of eval.py; found {error!r}") from error
    return content


def _from_summary(folder: Path) -> dict[str, Any]:
    """What training measured at its end, in the form of evaluation.json."""
    sampler = yaml.safe_load((folder / "config.yaml").read_text())["sampler"]["_target_"]
    final = json.loads((folder / "summary.json").read_text()).get("metrics", {}).get("final", {})
    results = []
    for metric, value in final.items():
        counted = re.search(r"_(\d+)step$", metric)
        steps = int(counted[1]) if counted else None
        name = re.match(r"val/([a-z_]+)", metric)
        results.append(
            {
                "metric": metric,
                "value": value,
                "spread": None,
                "features": "as named" if counted else None,
                "is_distance": name is None or name[1].split("_")[0] not in GROWS,
                "sampler": sampler.removesuffix(".for_steps").rpartition(".")[2],
                "steps": steps,
                "nfe": 2 * steps - 1 if steps and sampler.endswith(".Heun") else steps,
            }
        )
    return {"weights": "averaged", "results": results}


def _curves(file: Path, batch_size: int) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(file):
        for name, value in row.items():
            if value and re.fullmatch(CURVES, name):
                curves.setdefault(name, []).append((int(row["step"]) * batch_size, float(value)))
    return curves


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with open(file, newline="") as rows:
        return list(csv.DictReader(rows))


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree
