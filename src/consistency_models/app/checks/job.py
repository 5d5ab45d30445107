"""Check of the configuration of one job: arguments by annotations, settings by the table, then relations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig

from consistency_models.app.checks import relations
from consistency_models.app.checks.composing import Composer, groups_of, leaves, plain, resolved
from consistency_models.app.checks.problems import ConfigErrors, problem, unknown_key
from consistency_models.app.checks.rules import meant, meant_target, nearest
from consistency_models.app.checks.table import EVAL, FOREIGN, HYDRA, NOT_ARGUMENTS, PATHS, TRAIN, kind_of
from consistency_models.app.checks.targets import find
from consistency_models.app.folder import is_run_of
from consistency_models.errors import ConfigError, show
from consistency_models.values import accepts, describe

__all__ = ["REQUIRED", "check_job", "wrong"]

TABLES = {"train": TRAIN, "eval": EVAL}
RELATIONS = {"train": relations.TRAIN, "eval": relations.EVAL}

REQUIRED: dict[str, tuple[str, ...]] = {
    "train": (
        *("name", "seed", "tags", "train", "test", "ckpt_path", "show_traceback", "plan", "compile", "paths.runs"),
        *("channels_last", "augment"),
        *("model._target_", "model.name", "network._target_", "schedule._target_"),
        *("curriculum._target_", "loss._target_", "weighting._target_", "preconditioning._target_", "sampler._target_"),
        *("optimizer._target_", "optimizer._partial_", "learning_rate._target_", "ema._target_", "teacher._target_"),
        *("init._target_", "features._target_", "logger.csv", "logger.tensorboard", "trainer.devices"),
        *(f"data.{key}" for key in ("_target_", "source._target_", "name", "image_size", "channels", "num_classes")),
        *(f"data.{key}" for key in ("conditional", "batch_size", "clamp", "network_classes", "root", "flip")),
        *(f"evaluation.{key}" for key in ("steps", "n", "batch_size", "seed", "ode_points", "ode_steps")),
        *(f"trainer.{key}" for key in ("max_steps", "max_images", "accelerator", "strategy", "num_nodes", "precision")),
        *("trainer.accumulate_grad_batches",),
    ),
    "eval": tuple(key for key in EVAL if key not in PATHS),
}
"""Keys that every configuration must have."""

Path = tuple[Any, ...]


def check_job(
    composer: Composer, task: str, config: DictConfig, job: int | None = None, typed: Sequence[str] = ()
) -> None:
    """Check the configuration of a job from `composer`; modifies `config`.

    `job` is the number in a multirun and `typed` its overrides: a job with the same overrides may resume in its folder.

    Literal values are checked first, then interpolated values (`${…}`), then relations. A stage runs only if the
    previous stage has no problems, so that one mistake gives one line.

    Raises:
        ConfigErrors: the configuration has problems.
    """
    chosen = {str(group): str(option) for group, option in config.hydra.runtime.choices.items()}
    keys_typed = [str(line).partition("=")[0].lstrip("+") for line in config.hydra.overrides.task]
    choices = relations.Choices(chosen, composer.contents, keys_typed)
    groups, tree = groups_of(config), plain(config)
    values = dict(leaves(tree))
    derived = [path for path, value in values.items() if "${" in str(value)]
    problems = [one for path in values if path not in derived for one in wrong(task, tree, path, groups)]
    if not problems:
        keys = {dotted(path[:end]) for path in values for end in range(1, len(path) + 1)}
        problems = [
            problem(key, "", "a value", reason="the key is missing") for key in REQUIRED[task] if key not in keys
        ]
    if not problems:
        content, choices["run folder"] = resolved(config, job)
        choices["goes on"] = show(job is not None and is_run_of(choices["run folder"], typed))
        problems = [one for path in derived for one in wrong(task, content, path, groups, _written(tree, path))]
    if not problems:
        problems = [one for relation in RELATIONS[task] for one in relation(content, choices)]
    if problems:
        raise ConfigErrors(problems)


def _written(tree: dict[str, Any], path: Path) -> str:
    """Return the key that the value of `path` refers to by `${…}`."""
    key = dotted(path)
    while path and isinstance(value := at(tree, path), str) and (link := re.fullmatch(r"\$\{(\w[\w.]*)\}", value)):
        key, path = link[1], tuple(link[1].split("."))
    return key


def wrong(task: str, tree: dict[str, Any], path: Path, groups: list[str], written: str = "") -> list[ConfigError]:
    """Return the problems of one key of a configuration; messages name the key `written`, if given."""
    key, value, objects = dotted(path), at(tree, path), list(_objects(tree, path))
    for where in objects:
        if problems := _of_argument(task, tree, path, where, groups, written):
            return problems
    kind = kind_of(task, key)
    if kind is not None:
        return _of_value(written or key, value, kind)
    below = _below(task, key)
    if below and not isinstance(value, dict):
        return [problem(key, value, f"keys below it: {', '.join(below)}", f"did you mean {key}.{below[0]}=…?")]
    for end in range(1, len(path)):  # a mapping instead of a value
        above, name = kind_of(task, dotted(path[:end])), dotted(path[:end])
        if above and not _below(task, name) and not accepts(above, at(tree, path[:end])):
            return [problem(name, at(tree, path[:end]), describe(above))]
    if objects:
        return []  # an argument
    known = [dotted(other) for other, _ in leaves(tree) if kind_of(task, dotted(other)) or any(_objects(tree, other))]
    return [unknown_key(key, value, [each for each in known if each != key], groups)]


def _of_value(key: str, value: Any, kind: Any) -> list[ConfigError]:
    """Return the problem of a value that does not have its type."""
    if value == "???":
        return [problem(key, value, describe(kind), f"add {key}=…", reason="it must be given")]
    if accepts(kind, value):
        return []
    reason = "it must be given" if value is None else ""
    close = (meant_target if key.endswith("_target_") else partial(meant, kind))(value)
    fix = "" if close is None else f"did you mean {key}={show(close)}?"
    return [problem(key, value, describe(kind), fix, reason=reason)]


def _of_argument(
    task: str, tree: dict[str, Any], path: Path, where: Path, groups: list[str], written: str
) -> list[ConfigError]:
    """Return the problem of the argument at `path` of the object at `where`."""
    object_config, argument, own = at(tree, where), path[len(where)], path[: len(where) + 1]
    target, key = object_config["_target_"], dotted(own)
    arguments = find(target).arguments
    settings = NOT_ARGUMENTS.get(dotted(where), ())
    if argument in settings or argument in HYDRA or arguments is None:
        return []
    if argument not in arguments:
        close = nearest(argument, [*arguments, *(part for part in object_config if part in settings)])
        fix = f"did you mean {dotted((*where, close))}={show(at(tree, path))}?" if close else ""
        allowed = f"arguments of {target.rpartition('.')[2]}: {', '.join(arguments) or 'none'}"
        return [problem(dotted(path), at(tree, path), allowed, fix)]
    value = _with_objects(object_config[argument])
    if kind_of(task, key) or "${" in str(value):
        return []
    key = written if written and own == path else key
    foreign = next((kinds for prefix, kinds in FOREIGN.items() if target.startswith(prefix)), {})
    problems = _of_value(key, value, foreign.get(argument, arguments[argument]))
    if problems and argument in groups and not problems[0].fix:
        return [problem(key, value, problems[0].allowed, f"did you mean {key}=${{{argument}}}?")]
    return problems


def _with_objects(value: Any) -> Any:
    """Return the value with a placeholder function in place of each object that is built from a configuration."""
    if isinstance(value, dict):
        return _built if "_target_" in value else {key: _with_objects(item) for key, item in value.items()}
    return [_with_objects(item) for item in value] if isinstance(value, list) else value


def _built() -> None:
    """Placeholder for an object that is not built."""


def _below(task: str, key: str) -> list[str]:
    """Return the keys of the table below this key."""
    return sorted({name.removeprefix(f"{key}.") for name in TABLES[task] if name.startswith(f"{key}.")})


def _objects(tree: dict[str, Any], path: Path) -> Iterator[Path]:
    """Yield the paths of the objects that contain this path."""
    for end in range(len(path)):
        value = at(tree, path[:end])
        if isinstance(value, dict) and isinstance(value.get("_target_"), str):
            yield path[:end]


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree
