"""Readers of finished runs, for comparisons: results and curves of run folders, grouped over seeds."""

from __future__ import annotations

import csv
import json
import re
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consistency_models.errors import pasteable
from consistency_models.files import open_regular, open_text, read_json, read_text, read_yaml
from consistency_models.seeds import SEEDS, without_seeds

__all__ = ["Cell", "Run", "cells_of", "differing_choices", "differing_keys", "leaves", "read_runs"]

IGNORED_KEYS = re.compile(r"name|tags|ckpt_path|paths\..*|logger\..*|callbacks\..*|show_traceback|sweep_size|test")
HIGHER_IS_BETTER = ("is", "precision", "recall", "agreement")  # for a summary.json without `is_distance`
PNG, GIF = b"\x89PNG\r\n\x1a\n", b"GIF89a"
CURVES = r"val/.*|train/loss|curriculum/N"
COUNT = "train/images_seen"
LONGEST_LINE = 1 << 20


@dataclass
class Run:
    """One run folder.

    Attributes:
        name: names of the parent folder and the folder.
        setting: overrides that differ from the other jobs of the multirun, seed included; empty for a single run.
        config: dotted key -> value of the run's configuration.
        weights: name of the scored weights.
        results: results as in evaluation.json; without it, the final metrics of training.
        ode_error: curves as in evaluation.json.
        curves: logged name -> (images seen, value), as in metrics.csv.
        picture: PNG file of samples, or None.
        film: GIF file of samples over the training, or None.
        choices: key -> value of the overrides of the command line.
    """

    name: str
    setting: list[str]
    config: dict[str, Any]
    weights: str
    results: list[dict[str, Any]]
    ode_error: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    picture: Path | None = None
    film: Path | None = None
    choices: dict[str, str] = field(default_factory=dict)


@dataclass
class Cell:
    """Runs that differ only in the seed.

    Attributes:
        name: overrides that differ from other cells; for a single run the name of the run.
        runs: one run for each seed.
    """

    name: str
    runs: list[Run]

    @property
    def results(self) -> list[dict[str, Any]]:
        """Results with the mean over the seeds as value and the standard deviation as spread."""
        if len(self.runs) == 1:
            return self.runs[0].results
        by_metric: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for run in self.runs:
            for result in run.results:
                by_metric.setdefault((result["metric"], result["sampler"], result["steps"]), []).append(result)
        return [_mean(results) for results in by_metric.values()]


def _mean(results: list[dict[str, Any]]) -> dict[str, Any]:
    values = [result["value"] for result in results if result["value"] is not None]
    spread = statistics.stdev(values) if len(values) > 1 else None
    return results[0] | {"value": statistics.mean(values) if values else None, "spread": spread}


def read_runs(paths: Sequence[str | Path]) -> dict[str, Run]:
    """Read run folders and the finished jobs of sweep folders; returns name -> run.

    Raises:
        ValueError: a folder holds no readable run, or two runs have the same name.
    """
    runs: dict[str, Run] = {}
    for path in map(Path, paths):
        jobs = _jobs(path)
        if not jobs and (path / "jobs.csv").exists():
            raise ValueError(f"{path}: no job of this sweep is finished")
        for folder, differs in jobs.items() or {path: ""}.items():
            run = _read(folder, shlex.split(differs))
            if run.name in runs:
                raise ValueError(f"{path}: another run has the name {run.name}, too; give each run once")
            runs[run.name] = run
    return runs


def cells_of(runs: Mapping[str, Run]) -> list[Cell]:
    """Group runs that differ only in the seed."""
    cells: dict[str, Cell] = {}
    for run in runs.values():
        content = {key: value for key, value in run.config.items() if _counts(key)}
        name = without_seeds(run.setting) or (run.name.rpartition("/")[0] if run.setting else run.name)
        cells.setdefault(json.dumps([content, run.weights], sort_keys=True), Cell(name, [])).runs.append(run)
    return list(cells.values())


def differing_keys(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Return the keys in which the cells differ: dotted key -> value in each cell, None for a missing key."""
    configs = [cell.runs[0].config for cell in cells]
    keys = dict.fromkeys(key for config in configs for key in config if _counts(key))
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def differing_choices(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Return the overrides in which the cells differ: key or group -> option or value in each cell.

    A cell without this override has the value of its configuration, or the name of the group's option if it has one;
    otherwise None.
    """
    runs = [cell.runs[0] for cell in cells]
    keys = dict.fromkeys(key for run in runs for key in run.choices if _counts(key) and _counts(f"{key}."))
    found = {}
    for key in keys:
        values = [run.choices.get(key, run.config.get(key, run.config.get(f"{key}.name"))) for run in runs]
        if any(str(value) != str(values[0]) for value in values):
            found[key] = values
    return found


def _counts(key: str) -> bool:
    return key not in SEEDS and not IGNORED_KEYS.fullmatch(key)


def _jobs(path: Path) -> dict[Path, str]:
    """Read the finished jobs of a sweep folder: folder -> overrides that differ."""
    with _reading(path / "jobs.csv", "the jobs.csv of a sweep"):
        done = {row["job"]: row["differs"] for row in _rows(path, "jobs.csv") if row["status"] == "DONE"}
        if unsafe := [job for job in done if Path(job).name != job or job == ".."]:
            raise ValueError(f"the job {unsafe[0]!r}")
        return {path / job: differs for job, differs in done.items()}


@contextmanager
def _reading(path: Path, expected: str) -> Iterator[None]:
    """Convert any error inside to a ValueError that names the file; damaged files raise errors of many types."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: expected {expected}; found {error!r}") from error


def _read(path: Path, setting: list[str]) -> Run:
    file = next((p for p in (path, path / "evaluation.json", path / "evaluation/evaluation.json") if p.is_file()), None)
    if file is None and not (path / "summary.json").is_file():
        expected = "a finished run, a scored run, or a sweep of them"
        raise ValueError(f"{path}: expected {expected}; score the run with eval.py {pasteable('run', path)}")
    folder = path if file is None else file.absolute().parent.parent
    with _reading(folder / "config.yaml", "the configuration of a run"):
        config = dict(leaves(read_yaml(folder / "config.yaml", folder)))
        batch_size, sampler = int(config["data.batch_size"]), str(config["sampler._target_"])
    if file is None:
        with _reading(folder / "summary.json", "the summary.json of a run"):
            scored = _from_summary(folder, sampler)
    else:
        with _reading(file, "the evaluation.json of eval.py"):
            scored = _scored(file, folder)
    with _reading(folder / "metrics.csv", "the metrics.csv of a run"):
        curves = _curves(folder, batch_size)
    pictures = (folder / "evaluation/samples.png", folder / "samples/final.png")
    return Run(
        name="/".join(folder.resolve().parts[-2:]),
        setting=setting,
        config=config,
        weights=scored["weights"],
        results=scored["results"],
        ode_error=scored.get("ode_error") or [],
        curves=curves,
        picture=next((picture for picture in pictures if _is_own_file(picture, folder, PNG)), None),
        film=next((film for film in (folder / "samples/film.gif",) if _is_own_file(film, folder, GIF)), None),
        choices=_choices(folder),
    )


def _choices(folder: Path) -> dict[str, str]:
    """Read the overrides of a run; empty if they are unknown."""
    try:
        lines = read_yaml(folder / "overrides.yaml", folder)
    except (OSError, ValueError):
        return {}
    pairs = [str(line).partition("=") for line in lines] if isinstance(lines, list) else []
    return {key.lstrip("+~"): value.strip("'\"") for key, _, value in pairs}


def _is_own_file(path: Path, folder: Path, start: bytes) -> bool:
    """Whether a file inside the folder starts with these bytes; a link to a private file would be shown to others."""
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        return False
    with open_regular(path) as file:
        return file.read(len(start)) == start


def _scored(file: Path, folder: Path) -> dict[str, Any]:
    content = read_json(file, folder)
    if content["schema"] != 1:
        raise ValueError("unknown schema")
    for result in content["results"]:
        _check_result(result)
    for curve in content.get("ode_error") or []:
        lengths = {len(curve[name]) for name in ("sigmas", "rms", "median")}
        if not _is_number(curve["steps"]) or type(curve["reference"]) is not str or len(lengths) != 1:
            raise ValueError(f"a malformed curve of steps={curve['steps']!r}")
        if not all(map(_is_number, [*curve["sigmas"], *curve["rms"], *curve["median"]])):
            raise ValueError("a curve with values that are no numbers")
    return content | {"weights": str(content["weights"])}


def _check_result(result: dict[str, Any]) -> None:
    """Check that names are strings and values are numbers or None."""
    for key in ("metric", "sampler"):
        if type(result[key]) is not str:
            raise ValueError(f"{key}={result[key]!r}")
    if result["features"] is not None and not (type(result["features"]) is str and _is_number(result["nfe"])):
        raise ValueError(f"features={result['features']!r}")
    for key in ("value", "spread", "steps", "nfe"):
        if result[key] is not None and not _is_number(result[key]):
            raise ValueError(f"{key}={result[key]!r}")


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _from_summary(folder: Path, sampler: str) -> dict[str, Any]:
    """Return the final metrics of training, in the format of evaluation.json."""
    metrics = read_json(folder / "summary.json", folder).get("metrics", {})
    distances, calls = metrics.get("is_distance", {}), metrics.get("network_calls", {})
    results = []
    for metric, value in metrics.get("final", {}).items():
        counted = re.search(r"_(\d+)step$", metric)
        steps = int(counted[1]) if counted else None
        name = re.match(r"val/([a-z_]+)", metric)
        is_distance = name is None or name[1].split("_")[0] not in HIGHER_IS_BETTER
        results.append(
            {
                "metric": metric,
                "value": value,
                "spread": None,
                "features": "as named" if counted else None,
                "is_distance": bool(distances.get(metric, is_distance)),
                "sampler": sampler.removesuffix(".for_steps").rpartition(".")[2],
                "steps": steps,
                "nfe": calls.get(str(steps), 2 * steps - 1 if steps and sampler.endswith(".Heun") else steps),
            }
        )
        _check_result(results[-1])
    return {"weights": "averaged", "results": results}


class _Curve:
    """Collects a curve and thins it evenly to at most 2·MOST points and the last point."""

    MOST = 1000  # a figure has no more pixels across

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.last: tuple[float, float] | None = None
        self.stride, self.count = 1, 0

    def add(self, place: float, value: float) -> None:
        self.last = place, value
        if self.count % self.stride == 0:
            self.points.append(self.last)
            if len(self.points) > 2 * self.MOST:
                self.points, self.stride = self.points[::2], 2 * self.stride
        self.count += 1

    def thinned(self) -> list[tuple[float, float]]:
        return self.points if self.points[-1] == self.last else [*self.points, self.last]


def _curves(folder: Path, batch_size: int) -> dict[str, list[tuple[float, float]]]:
    """Read the curves of `CURVES` over the images seen. Rows that a kill has truncated are skipped.

    Args:
        folder: folder of the run.
        batch_size: images of a step, for steps after the last row with train/images_seen.
    """
    curves: dict[str, _Curve] = {}
    if not (folder / "metrics.csv").exists():
        return {}
    with open_text(folder / "metrics.csv", folder) as file:
        rows = csv.reader(iter(lambda: file.readline(LONGEST_LINE), ""))
        header = next(rows, [])
        drawn = [(i, name) for i, name in enumerate(header) if re.fullmatch(CURVES, name)]
        step_column, count_column = header.index("step"), header.index(COUNT) if COUNT in header else None
        counted = (0, 0.0)  # the last step with a count, and the images seen by then
        for row in rows:
            if len(row) != len(header):
                continue
            step = int(row[step_column])
            if count_column is not None and row[count_column]:
                counted = step, float(row[count_column])
            place = counted[1] + (step - counted[0]) * batch_size
            for i, name in drawn:
                if row[i]:
                    curves.setdefault(name, _Curve()).add(place, float(row[i]))
    return {name: curve.thinned() for name, curve in curves.items()}


def _rows(folder: Path, name: str) -> list[dict[str, str]]:
    """Read the rows of a CSV file; empty if there is no such file."""
    if not (folder / name).exists():
        return []
    return list(csv.DictReader(read_text(folder / name, folder).splitlines()))


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all values that are not non-empty mappings."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree
