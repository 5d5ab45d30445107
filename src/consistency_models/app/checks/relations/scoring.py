"""What eval.py scores, and how it samples."""

from __future__ import annotations

import os
from pathlib import Path

from consistency_models.app.checks.files import wrong_checkpoint, wrong_path
from consistency_models.app.checks.problems import problem
from consistency_models.app.checks.relations.choices import Choices, Config, Problems
from consistency_models.errors import show
from consistency_models.files import is_pipeline

__all__ = ["sample_sets", "scored_run", "ways"]


def scored_run(config: Config, choices: Choices) -> Problems:
    """The run or checkpoint can be scored; official files and exports require a data set."""
    path = Path(config["run"]).expanduser()
    if config["run"].startswith("wandb:"):
        fix = f"wandb artifact get {config['run'].removeprefix('wandb:')} fetches it"
        yield problem("run", config["run"], "a run folder or a checkpoint file, on this machine", fix)
        return
    exported = (path / "model.safetensors").is_file() or is_pipeline(path)
    if path.suffix not in (".pkl", ".pt", ".safetensors") and not exported:
        yield from wrong_checkpoint("run", config["run"])
        return
    yield from wrong_path("run", config["run"], "a run folder, a checkpoint file, an official file or an export")
    if choices.get("task", "evaluate") not in ("evaluate", "search"):
        return
    reason = "official checkpoints and exports name neither data nor features"
    for group, add in (("data", "data=cifar10 data.root=FOLDER"), ("features", "features=classifier")):
        if group not in config:
            yield problem(group, None, f"an option of {group}", f"add {add}", reason=reason)


def sample_sets(config: Config, choices: Choices) -> Problems:
    """Images are given by seeds, or by n and repeats; all sample sets have the same size."""
    seeds, task = config["seeds"], choices.get("task")
    if seeds is not None:
        for key, usual in (("n", None), ("repeats", 1)):
            if config[key] != usual:
                reason = f"seeds={show(seeds)} already sets the number of images"
                yield problem(key, config[key], show(usual), reason=reason)
        ends = [tuple(map(int, each.split("-"))) for each in (seeds if isinstance(seeds, list) else [seeds])]
        if len({last - first for first, last in ends}) > 1:
            reason = "metrics of different numbers of images cannot be compared"
            yield problem("seeds", seeds, "ranges of one size", reason=reason)
        if task == "sample" and len(ends) > 1:
            yield problem("seeds", seeds, "one range with task=sample")
    if task == "sample" and config["repeats"] > 1:
        yield problem("repeats", config["repeats"], "1 with task=sample", "set n")


def ways(config: Config, choices: Choices) -> Problems:
    """Steps and levels are consistent, and there are enough devices."""
    steps, sigmas = config["steps"], config["sigmas"]
    if sigmas is not None and steps not in (None, [len(sigmas)]):
        reason = f"sigmas={show(sigmas)} are {len(sigmas)} steps"
        yield problem("steps", steps, "null", "leave steps out", reason=reason)
    if choices.get("task") in ("sample", "search") and steps is not None and len(steps) > 1:
        yield problem("steps", steps, f"one step count with task={choices['task']}")
    if choices.get("task") == "search":
        if sigmas is not None:
            yield problem("sigmas", sigmas, "null", reason="task=search looks for them")
        if steps == [1]:
            reason = "task=search needs a second level, which one step does not have"
            yield problem("steps", steps, "a step count from 2", reason=reason)
    if config["devices"] > 1 and config["device"] not in ("auto", "cpu", "cuda"):
        yield problem(
            "devices", config["devices"], f"1 with device={config['device']}", "or device=cuda, for the first"
        )
    if "TORCHELASTIC_RUN_ID" in os.environ and (processes := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        fix, reason = f"run python eval.py with devices={processes}", "each process of torchrun would do the whole task"
        yield problem("devices", config["devices"], "the number of processes, without torchrun", fix, reason=reason)
