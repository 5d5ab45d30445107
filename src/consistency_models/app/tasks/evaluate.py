"""`task=evaluate`: sample with several samplers, score the images, and write the results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from consistency_models.app.commands import project_root
from consistency_models.app.tasks.ode import ode_errors
from consistency_models.app.tasks.records import publish, result, write
from consistency_models.app.tasks.sample_workers import Producer, index_sets, progress_bar, results_folder, samplers_of
from consistency_models.app.tasks.scoring import evaluation_of, features_divided
from consistency_models.errors import ConfigError
from consistency_models.evaluation import combined
from consistency_models.evaluation.grids import save_comparison, save_scatter
from consistency_models.evaluation.plots import save_ode_error, save_quality
from consistency_models.files import read_yaml
from consistency_models.sampling.generator import Generator
from consistency_models.storage.loading import checkpoint_file

__all__ = ["eval_config", "eval_defaults", "run", "sample_sets"]


def eval_defaults() -> dict[str, Any]:
    """Return the settings of conf/eval.yaml, without its groups."""
    settings = read_yaml(project_root() / "conf/eval.yaml")
    del settings["defaults"]
    return settings


def eval_config(train_config: dict[str, Any], run: str) -> dict[str, Any]:
    """Return the configuration of eval.py that scores a run with the settings of its training (`test=true`)."""
    evaluation = train_config["evaluation"]
    shared = {key: evaluation[key] for key in ("steps", "n", "seed", "batch_size")}
    accelerator = train_config["trainer"]["accelerator"]
    gpu = "cuda" if torch.cuda.is_available() else "mps"
    device = {"gpu": gpu, "cuda": "cuda", "cpu": "cpu", "mps": "mps"}.get(accelerator, "auto")
    chosen = {"task": {"_target_": f"{__name__}.run"}, "run": run, "device": device}
    return eval_defaults() | shared | chosen | {"show_traceback": train_config["show_traceback"]}


def run(config: dict[str, Any], generator: Generator) -> None:
    """Score images of `run` at the step counts `steps`, or at the levels `sigmas`."""
    samplers, sets = samplers_of(config, generator), index_sets(config, generator.config["evaluation"]["n"])
    evaluation, folder = evaluation_of(config, generator), results_folder(config["run"])
    results: list[dict[str, Any]] = []
    pictures: dict[str, Any] = {}
    calls = sum(sampler.nfe for sampler in samplers) * sum(map(len, sets))
    with (
        Producer(config, generator, calls) as producer,
        features_divided(evaluation, producer, config),
        progress_bar() as progress,
    ):
        for sampler in samplers:
            steps, scores, spent = len(sampler.sigmas), [], 0.0
            task = progress.add_task(f"{steps}-step samples", total=sum(map(len, sets)))
            for indices, images, seconds in sample_sets(producer, sampler, sets, lambda n: progress.advance(task, n)):  # noqa: B023
                scores.append(evaluation.scores(images, generator.labels(torch.tensor(indices)), steps))
                pictures.setdefault(f"{steps}-step", images)
                spent += seconds
            results += [
                result(vars(score) | {"name": score.name}, sampler, spent) for score in map(combined, zip(*scores))
            ]
    curves = []
    for sampler, scores, curve, seconds in ode_errors(generator, evaluation.data, samplers, config["device"]):
        results += [result(score, sampler, seconds) for score in scores]
        curves.append(curve)
    content = {
        "schema": 1,
        "checkpoint": str(checkpoint_file(config["run"])),
        "digest": generator.origin["digest"],
        "weights": generator.weights,
        "precision": config["precision"],
        "seed": config["seed"],
        "class_names": list(generator.class_names),
        "sets": [f"{indices.start}-{indices.stop - 1}" for indices in sets],
        "results": results,
        "floor": {f"eval/{score.name}": score.value for score in evaluation.floor()},
        "ode_error": curves,
    }
    title = f"the same noise, weights {generator.weights}"
    if generator.clamp or evaluation.data.is_latent:
        shown = {name: evaluation.data.pictures(images[:40]) for name, images in pictures.items()}
        names = generator.names(generator.labels(torch.tensor(sets[0][:40])))
        save_comparison(folder / "samples.png", shown, title=title, names=names)
    else:
        save_scatter(folder / "samples.png", {"data": evaluation.data.images[: len(sets[0])], **pictures}, title)
    if any(entry["value"] is not None and entry["features"] is not None for entry in results):
        save_quality(folder / "quality.png", {f"weights {generator.weights}": results})
    if curves:
        save_ode_error(folder / "ode_error.png", {f"weights {generator.weights}": curves})
    print(write(folder, content))
    publish(config["wandb"], generator.config, folder, content)
    print(f"written to {folder}")


def sample_sets(
    producer: Producer, sampler: Any, sets: Sequence[range], advance: Callable[[int], Any]
) -> Iterator[tuple[range, Tensor, float]]:
    """Yield (indices, images in order, seconds) of each sample set; calls `advance(n)` after n images."""
    for indices in sets:
        started, shape = time.perf_counter(), (len(indices), *producer.generator.shape)
        try:
            images = torch.empty(shape)
        except RuntimeError as error:
            reason = f"{4 * math.prod(shape) / 1e9:,.0f} GB of images cannot be allocated"
            raise ConfigError("images of a set", len(indices), "as many as fit", reason=reason) from error
        for part, batch in producer.batches(sampler, indices):
            images[part.start - indices.start : part.stop - indices.start] = batch
            advance(len(part))
        yield indices, images, time.perf_counter() - started
