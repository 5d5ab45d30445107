"""The tasks of eval.py, one file for each task: `run(config, generator, **keys of the task)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
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
            generator.make_sampler = _make_sampler(config["sampler"], generator)
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


def _make_sampler(chosen: dict[str, Any], generator: Generator) -> Callable[..., Any]:
    """Build the chosen sampler. Null values, such as the segments, are those of the run's sampler.

    Raises:
        ConfigError: the run has no such value, or the sampler is not for models of as many times.
    """
    own = generator.config["sampler"]
    filled = {key: own.get(key) if value is None else value for key, value in chosen.items()}
    make: Any = instantiate({key: value for key, value in filled.items() if value is not None})
    if not isinstance(make, partial):
        raise ConfigError("sampler._partial_", None, "true", reason="a sampler is built for each number of steps")
    sampler = make.func
    required = {name for name, p in inspect.signature(sampler).parameters.items() if p.default is p.empty}
    for key in [key for key, value in filled.items() if value is None and key in required]:
        fix = f"give it, or choose another sampler than {sampler.__qualname__}"
        raise ConfigError(f"sampler.{key}", None, "a value", fix, reason="the run's own sampler has none")
    name, two_times = sampler.__qualname__, getattr(generator.model, "two_times", False)
    facts = getattr(sampler, "__self__", sampler)  # the class of a class method
    if two_times and getattr(facts, "one_time", False):
        reason, fix = "the model takes two times, and this sampler passes one", "did you mean sampler=flow_map?"
        raise ConfigError("sampler", name, "flow_map, euler, heun", fix, reason=reason)
    if not two_times and getattr(facts, "needs_two_times", False):
        reason, fix = "the model has one time, and this sampler passes two", "did you mean sampler=consistency?"
        raise ConfigError("sampler", name, "a sampler for models of one time", fix, reason=reason)
    return make
