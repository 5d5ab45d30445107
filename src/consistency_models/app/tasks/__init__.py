"""The tasks of eval.py, one file for each task: `run(config, generator, **keys of the task)`."""

from __future__ import annotations

from typing import Any

from hydra.utils import get_method

from consistency_models.app.outcome import quiet, report
from consistency_models.devices import chosen_device
from consistency_models.errors import ConfigError, Exit
from consistency_models.sampling.generator import Generator
from consistency_models.storage.checkpoints import CheckpointError
from consistency_models.storage.loading import instantiate, load

__all__ = ["run_task"]


def run_task(config: dict[str, Any]) -> Exit:
    """Load `run`, do `task`, and return the exit code."""
    try:
        quiet()
        task, config = dict(config["task"]), {**config, "device": chosen_device(config["device"])}
        generator = _load(config)
        if config.get("sampler"):
            generator.make_sampler = instantiate(_sampler(config["sampler"], generator.config["sampler"]))
        get_method(task.pop("_target_"))(config, generator, **task)
        return Exit.DONE
    except Exception as error:
        return report(error, config["show_traceback"])[0]


def _load(config: dict[str, Any]) -> Generator:
    try:
        return load(config["run"], config["weights"], config["device"], precision=config["precision"])
    except CheckpointError:
        raise
    except ValueError as error:
        reason = str(error).partition(": ")[2]
        raise ConfigError("weights", config["weights"], "model, or the name of an average", reason=reason) from error


def _sampler(chosen: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Fill null values of the chosen sampler, such as the segments, with the values of the run's sampler."""
    filled = {key: own.get(key) if value is None else value for key, value in chosen.items()}
    return {key: value for key, value in filled.items() if value is not None}
