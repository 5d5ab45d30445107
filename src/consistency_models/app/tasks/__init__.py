"""What eval.py can do with a trained model: a task a file, `run(config, generator, **keys of its own)`."""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import get_method

from consistency_models.app.run import quiet, report
from consistency_models.errors import ConfigError, Exit
from consistency_models.sampling.generator import Generator
from consistency_models.storage.checkpoints import CheckpointError
from consistency_models.storage.loading import instantiate, load

__all__ = ["run_task"]


def run_task(config: dict[str, Any]) -> Exit:
    """Load `run` and do `task` with it; returns the exit code."""
    try:
        quiet()
        task, config = dict(config["task"]), {**config, "device": _device(config["device"])}
        generator = _load(config)
        if config.get("sampler"):
            generator.make_sampler = instantiate(_sampler(config["sampler"], generator.config["sampler"]))
        get_method(task.pop("_target_"))(config, generator, **task)
        return Exit.DONE
    except Exception as error:
        return report(error, config["show_traceback"])[0]


def _load(config: dict[str, Any]) -> Generator:
    try:
        return load(config["run"], config["weights"], config["device"])
    except CheckpointError:
        raise
    except ValueError as error:
        found = str(error).partition(": ")[2]
        raise ConfigError("weights", config["weights"], "model, or an average that there is", reason=found) from error


def _sampler(chosen: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The sampler that was chosen; what is null in it, such as the segments of a chain, is as in the run's own."""
    filled = {key: own.get(key) if value is None else value for key, value in chosen.items()}
    return {key: value for key, value in filled.items() if value is not None}


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
