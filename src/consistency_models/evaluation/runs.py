"""Finished runs as a comparison sees them: read from their folders, seeds of one setting together."""

from __future__ import annotations

import csv
import json
import re
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from consistency_models.errors import pasteable

__all__ = ["Cell", "Run", "cells_of", "differing_keys", "leaves", "read_runs"]

SEEDS = ("seed", "data.seed")
NO_PART_OF_THE_RESULT = re.compile(
    r"name|tags|ckpt_path|paths\..*|logger\..*|callbacks\..*|show_traceback|sweep_size|test"
)
GROWS = ("is", "precision", "recall", "agreement")  # metrics of which more is better: evaluation.metrics
CURVES = r"val/.*|train/loss|curriculum/N"
COUNT = "train/images_seen"


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
            try:
                setting = shlex.split(differs)
            except ValueError as error:
                raise ValueError(
                    f"{path / 'jobs.csv'}: expected the file that a multirun writes; found {error}"
                ) from error
            run = _read(folder, setting)
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
        raise ValueError(f"{path}: expected {expected}; make it by eval.py {pasteable('run', path)}")
    else:
        folder, scored = file.resolve().parent.parent, _scored(file)
    config = dict(leaves(_mapping(folder / "config.yaml", yaml.safe_load)))
    picture = next((p for p in (folder / "evaluation/samples.png", folder / "samples/final.png") if p.is_file()), None)
    return Run(
        name="/".join(folder.resolve().parts[-2:]),
        setting=setting,
        config=config,
        weights=scored["weights"],
        results=scored["results"],
        ode_error=scored.get("ode_error") or [],
        curves=_curves(folder / "metrics.csv", config.get("data.batch_size")),
        picture=picture,
    )


def _mapping(file: Path, load: Callable[[str], Any]) -> dict[str, Any]:
    """The content of a YAML or JSON file that is a mapping.

    Raises:
        ValueError: the file is missing, damaged or something else.
    """
    try:
        content = load(file.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file}: expected the file that a run writes; found {found}") from error
    return content


def _scored(file: Path) -> dict[str, Any]:
    """evaluation.json, with everything that a comparison reads of it."""
    content = _mapping(file, json.loads)
    try:
        results, curves = content["results"], content.get("ode_error") or []
        good = content["schema"] == 1 and isinstance(content["weights"], str)
        good = good and all(_is_result(result) for result in results)
        if not (good and isinstance(curves, list) and all(_is_ode_error(curve) for curve in curves)):
            raise ValueError("another schema")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: expected the evaluation.json of eval.py; found {error!r}") from error
    return content


def _is_result(result: dict[str, Any]) -> bool:
    texts = isinstance(result["metric"], str) and isinstance(result["sampler"], str)
    return texts and all(
        result[key] is None or type(result[key]) in (int, float) for key in ("value", "spread", "steps", "nfe")
    )


def _is_ode_error(curve: dict[str, Any]) -> bool:
    lists = [value for value in curve.values() if isinstance(value, list)]
    numbers = all(type(x) in (int, float) for values in lists for x in values)
    return {"sigmas", "rms", "median", "self_consistency"} <= curve.keys() and numbers


def _from_summary(folder: Path) -> dict[str, Any]:
    """What training measured at its end, in the form of evaluation.json."""
    config, summary = _mapping(folder / "config.yaml", yaml.safe_load), _mapping(folder / "summary.json", json.loads)
    try:
        sampler = str(config["sampler"]["_target_"])
        final = {
            name: None if value is None else float(value)
            for name, value in summary.get("metrics", {}).get("final", {}).items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder}: expected a run folder as training leaves it; found {error!r}") from error
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


class _Curve:
    """At most 2·MOST points of a curve, evenly thinned while they come, and its last one."""

    MOST = 1000  # a figure is no wider

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.last: tuple[float, float] | None = None
        self.every, self.count = 1, 0

    def add(self, place: float, value: float) -> None:
        self.last = place, value
        if self.count % self.every == 0:
            self.points.append(self.last)
            if len(self.points) > 2 * self.MOST:
                self.points, self.every = self.points[::2], 2 * self.every
        self.count += 1

    def thinned(self) -> list[tuple[float, float]]:
        return self.points if self.points[-1] == self.last else [*self.points, self.last]


def _curves(file: Path, batch_size: int | None) -> dict[str, list[tuple[float, float]]]:
    """The figures that are drawn, over the images seen; rows that a full disk or a kill has cut off are left out.

    Args:
        file: metrics.csv.
        batch_size: by which the images of a row without train/images_seen are counted from the row before.
    """
    curves: dict[str, _Curve] = {}
    if not file.is_file():
        return {}
    with open(file, newline="", errors="replace") as lines:
        reader = csv.reader(line.replace("\0", "") for line in lines)
        header = next(reader, [])
        if "step" not in header:
            return {}
        drawn = [(i, name) for i, name in enumerate(header) if re.fullmatch(CURVES, name)]
        at, counted = header.index("step"), header.index(COUNT) if COUNT in header else None
        known = (0, 0.0)  # a step, and the images seen by then
        for row in reader:
            try:
                step = int(row[at])
                if counted is not None and row[counted]:
                    known = step, float(row[counted])
                place = known[1] + (step - known[0]) * (batch_size or 1)
                for i, name in drawn:
                    if row[i]:
                        curves.setdefault(name, _Curve()).add(place, float(row[i]))
            except (ValueError, IndexError):
                continue
    return {name: curve.thinned() for name, curve in curves.items()}


def _rows(file: Path) -> list[dict[str, str]]:
    """The jobs of a sweep.

    Raises:
        ValueError: the file is damaged.
    """
    if not file.is_file():
        return []
    try:
        with open(file, newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{file}: expected the file that a multirun writes; found {error}") from error
    if any(row.get(key) is None for row in rows for key in ("job", "differs", "status")):
        raise ValueError(f"{file}: expected the file that a multirun writes, with the columns job, differs and status")
    return rows


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is no mapping with keys."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree
