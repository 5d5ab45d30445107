"""`task=evaluate`: sample at several step counts, score the images, and write down what was measured."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from consistency_models.app import build
from consistency_models.app.errors import ConfigError
from consistency_models.app.folder import write_atomically
from consistency_models.evaluation import Evaluation
from consistency_models.evaluation.grids import save_comparison, save_scatter
from consistency_models.generation import Generator, checkpoint_file

log = logging.getLogger(__name__)

__all__ = ["run", "settings_of"]


def settings_of(trained: dict[str, Any], run: str) -> dict[str, Any]:
    """What eval.py would be told, to score a run with the settings of its training configuration (`test=true`)."""
    evaluation = trained["evaluation"]
    kept = {key: evaluation[key] for key in ("steps", "n", "seed", "batch_size")}
    accelerator = trained["trainer"]["accelerator"]
    device = {"gpu": "cuda", "cuda": "cuda", "cpu": "cpu", "mps": "mps"}.get(accelerator, "auto")
    chosen = {"run": run, "weights": None, "device": device, "data": None, "features": None}
    task = {"_target_": f"{__name__}.run"}
    return {"task": task, **kept, **chosen, "show_traceback": trained["show_traceback"]}


def run(config: dict[str, Any], generator: Generator) -> None:
    """Score images of `run` at the step counts `steps`."""
    path = checkpoint_file(config["run"])
    settings = generator.config["evaluation"]
    steps = config["steps"] or settings["steps"]
    n = config["n"] or settings["n"]
    if any(not isinstance(count, int) or count < 1 for count in steps) or n < 2:
        raise ConfigError("steps", steps, "a list of whole numbers from 1, and n of at least 2")
    evaluation = _evaluation(config, generator)
    labels = generator.labels(torch.arange(n))
    results, pictures = [], {}
    with Progress() as progress:
        for count in steps:
            task = progress.add_task(f"{count}-step samples", total=n)
            started = time.perf_counter()
            images = generator.sample(
                n,
                steps=count,
                seed=config["seed"],
                batch_size=config["batch_size"],
                progress=lambda done, task=task: progress.advance(task, done),
            )
            seconds = time.perf_counter() - started
            pictures[f"{count}-step"] = images
            sampler = generator.make_sampler(steps=count)
            results += [
                {
                    "metric": f"eval/{found.name}",
                    "value": None if math.isnan(found.value) else found.value,
                    "spread": found.spread,
                    "n": found.n,
                    "features": found.features,
                    "reference": found.reference,
                    "reference_digest": found.reference_digest,
                    "sampler": type(sampler).__name__,
                    "steps": count,
                    "sigmas": list(sampler.sigmas),
                    "nfe": sampler.nfe,
                    "seconds": round(seconds, 3),
                }
                for found in evaluation.scores(images, labels, count)
            ]
    floor = {f"eval/{found.name}": found.value for found in evaluation.floor()}
    folder = _folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": 1,
        "checkpoint": str(path),
        "digest": generator.origin["digest"],
        "weights": generator.weights,
        "seed": config["seed"],
        "results": results,
        "floor": floor,
    }
    write_atomically(folder / "evaluation.json", json.dumps(content, indent=2) + "\n")
    table = _table(content)
    write_atomically(folder / "evaluation.md", table)
    title = f"the same noise, weights {generator.weights}"
    if generator.bounded:
        save_comparison(folder / "samples.png", {name: images[:40] for name, images in pictures.items()}, title=title)
    else:
        save_scatter(folder / "samples.png", {"data": evaluation.data.images[:n], **pictures}, title)
    print(table)
    print(f"written to {folder}")


def _evaluation(config: dict[str, Any], generator: Generator) -> Evaluation:
    """What is measured, against which data: those of the run, or those on the command line."""
    parts = {group: config.get(group) or generator.config.get(group, {}) for group in ("data", "features")}
    for group, add in (("data", "data=cifar10 data.root=FOLDER"), ("features", "features=classifier")):
        if "_target_" not in parts[group]:
            raise ConfigError(group, None, f"a choice of its own: {config['run']} names none", f"add {add}")
    data = build.build_data(parts)
    shape, classes = tuple(data.source.images.shape[1:]), data.source.num_classes
    if shape != generator.shape or generator.num_classes not in (0, classes):
        made = f"images of shape {generator.shape} in {generator.num_classes or 'no'} classes, as {config['run']} makes"
        raise ConfigError("data", parts["data"]["name"], f"{made}; these are {shape} in {classes}")
    return build.build_evaluation(parts, data)


def _table(content: dict[str, Any]) -> str:
    lines = [
        f"Checkpoint `{content['checkpoint']}`, weights {content['weights']}, seed {content['seed']}.",
        "",
        "| metric | value | network calls | seconds |",
        "|---|---|---|---|",
    ]
    for result in content["results"]:
        value = "not finite" if result["value"] is None else f"{result['value']:.4g}"
        lines.append(f"| {result['metric']} | {value} | {result['nfe']} | {result['seconds']:.1f} |")
    lines += [f"| {name} (data against data) | {value:.4g} | | |" for name, value in content["floor"].items()]
    return "\n".join(lines) + "\n"


def _folder(checkpoint: Path) -> Path:
    """evaluation/ of the run folder, or beside a checkpoint that lies elsewhere."""
    parent = checkpoint.parent
    return (parent.parent if parent.name == "checkpoints" else parent / checkpoint.stem) / "evaluation"
