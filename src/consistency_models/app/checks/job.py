"""The configuration of one job: every key by its rule, then the relations between keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig

from consistency_models.app.checks import relations
from consistency_models.app.checks.composing import groups_of, leaves, plain, resolved
from consistency_models.app.checks.problems import ConfigErrors, problem, unknown_key
from consistency_models.app.checks.rules import Rule, nearest, show, target
from consistency_models.app.checks.table import EVAL, NOT_ARGUMENTS, PATHS, TRAIN, rule_of
from consistency_models.app.checks.targets import find
from consistency_models.app.folder import is_run_of
from consistency_models.errors import ConfigError

__all__ = ["REQUIRED", "check_job"]

ANYTHING = Rule("any value", lambda value: True)
TABLES = {"train": TRAIN, "eval": EVAL}
RELATIONS = {"train": relations.TRAIN, "eval": relations.EVAL}

REQUIRED: dict[str, tuple[str, ...]] = {
    "train": (
        *("name", "seed", "tags", "train", "test", "ckpt_path", "show_traceback", "plan", "compile", "paths.runs"),
        *("channels_last", "augment"),
        *("model._target_", "model.name", "model.needs_teacher", "network._target_", "schedule._target_"),
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
"""Keys that are read whatever the groups are."""

Path = tuple[Any, ...]


def check_job(task: str, config: DictConfig, job: int | None = None, typed: Sequence[str] = ()) -> None:
    """Check the configuration of a job, as it was composed; takes it apart.

    `job` is its number in a multirun, and `typed` are then its overrides: it may go on in the folder that it has begun.

    What is written comes first; what is derived from it (`${…}`) only if that is right, and relations last, so that one
    mistake is one line.

    Raises:
        ConfigErrors: it has problems.
    """
    choices = {str(group): str(option) for group, option in config.hydra.runtime.choices.items()}
    groups, tree = groups_of(config), plain(config)
    found = dict(leaves(tree))
    derived = [path for path, value in found.items() if "${" in str(value)]

    def wrong(path: Path, value: Any) -> list[ConfigError]:
        return _wrong(task, tree, path, value, groups)

    problems = [one for path in found if path not in derived for one in wrong(path, found[path])]
    if not problems:
        keys = {_dotted(path[:end]) for path in found for end in range(1, len(path) + 1)}
        problems = [
            problem(key, "", "a value", reason="the key is missing") for key in REQUIRED[task] if key not in keys
        ]
    if not problems:
        content, choices["run folder"] = resolved(config, job)
        choices["goes on"] = show(job is not None and is_run_of(choices["run folder"], typed))
        problems = [one for path in derived for one in wrong(path, _at(content, path))]
    if not problems:
        problems = [one for relation in RELATIONS[task] for one in relation(content, choices)]
    if problems:
        raise ConfigErrors(problems)


def _wrong(task: str, tree: dict[str, Any], path: Path, value: Any, groups: list[str]) -> list[ConfigError]:
    """What is wrong with one key: nothing, or one problem."""
    key, rule, objects = _dotted(path), rule_of(task, _dotted(path)), list(_objects(tree, path))
    for where in objects:
        if strange := _no_argument(tree, path, where, value, rule is None):
            return [strange]
    if rule is None:
        below = _below(task, key)
        if below and not isinstance(value, dict):
            return [problem(key, value, f"keys below it: {', '.join(below)}", f"did you mean {key}.{below[0]}=…?")]
        for end in range(1, len(path)):  # a mapping where a value belongs
            above, name = rule_of(task, _dotted(path[:end])), _dotted(path[:end])
            if above and not _below(task, name) and not above.accepts(_at(tree, path[:end])):
                return [problem(name, _at(tree, path[:end]), above.allowed)]
        if not objects:
            known = [_dotted(other) for other, _ in leaves(tree) if rule_of(task, _dotted(other))]
            return [unknown_key(key, value, known, groups)]
        rule = target() if path[-1] == "_target_" else ANYTHING  # what only the object itself knows how to judge
    if value == "???":
        return [problem(key, value, rule.allowed, f"add {key}=…", reason="it must be given")]
    if rule.accepts(value):
        return []
    meant = rule.meant(value)
    return [problem(key, value, rule.allowed, "" if meant is None else f"did you mean {key}={show(meant)}?")]


def _below(task: str, key: str) -> list[str]:
    """The keys that the table has below this one."""
    return sorted({name.removeprefix(f"{key}.") for name in TABLES[task] if name.startswith(f"{key}.")})


def _objects(tree: dict[str, Any], path: Path) -> Iterator[Path]:
    """Where the objects stand that a key belongs to."""
    for end in range(len(path)):
        node = _at(tree, path[:end])
        if isinstance(node, dict) and isinstance(node.get("_target_"), str):
            yield path[:end]


def _no_argument(tree: dict[str, Any], path: Path, where: Path, value: Any, new: bool) -> ConfigError | None:
    """The problem of a key that the object at `where` does not take; `new`: the key is in no table."""
    name, key = _at(tree, where)["_target_"], path[len(where)]
    if key in NOT_ARGUMENTS or (name.startswith("lightning.") and not new):
        return None
    arguments = find(name).arguments
    if arguments is None or key in arguments:
        return None
    meant = nearest(key, [*arguments, *(part for part in _at(tree, where) if part in NOT_ARGUMENTS)])
    fix = f"did you mean {_dotted((*where, meant))}={show(value)}?" if meant else ""
    return problem(
        _dotted(path), value, f"arguments of {name.rpartition('.')[2]}: {', '.join(arguments) or 'none'}", fix
    )


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree
