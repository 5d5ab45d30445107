"""The configuration of one job: every key by its rule, then the relations between keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from consistency_models.app.checks import relations
from consistency_models.app.checks.composing import Composer, leaves, plain, resolved
from consistency_models.app.checks.problems import ConfigErrors, problem, unknown_key
from consistency_models.app.checks.rules import show, target
from consistency_models.app.checks.table import EVAL, REQUIRED, TRAIN, rule_of
from consistency_models.app.errors import ConfigError

__all__ = ["check_job"]

OURS = ("consistency_models.", "torch.", "lightning.")
TABLES = {"train": TRAIN, "eval": EVAL}
RELATIONS = {"train": relations.TRAIN, "eval": relations.EVAL}

Path = tuple[Any, ...]


def check_job(task: str, composer: Composer, overrides: Sequence[Override]) -> None:
    """Compose the job's configuration and check it.

    What is written comes first; what is derived from it (`${…}`) only if that is right, and relations last, so that one
    mistake is one line.

    Raises:
        ConfigErrors: it has problems.
    """
    config = composer.compose(overrides)
    groups, choices = composer.groups(config), {str(k): str(v) for k, v in config.hydra.runtime.choices.items()}
    tree = plain(config)
    found = dict(leaves(tree))
    derived = [path for path, value in found.items() if "${" in str(value)]

    def wrong(path: Path, value: Any) -> list[ConfigError]:
        return _wrong(task, tree, path, value, groups)

    problems = [one for path in found if path not in derived for one in wrong(path, found[path])]
    if not problems:
        keys = {_dotted(path[:end]) for path in found for end in range(1, len(path) + 1)}
        problems = [problem(key, "", "a value; this key is missing") for key in REQUIRED[task] if key not in keys]
    if not problems:
        content, choices["run folder"] = resolved(config)
        problems = [one for path in derived for one in wrong(path, _at(content, path))]
    if not problems:
        problems = [one for relation in RELATIONS[task] for one in relation(content, choices)]
    if problems:
        raise ConfigErrors(problems)


def _wrong(task: str, tree: dict[str, Any], path: Path, value: Any, groups: list[str]) -> list[ConfigError]:
    """What is wrong with one key: nothing, or one problem."""
    key, rule = _dotted(path), rule_of(task, _dotted(path))
    if rule is None and _of_others(tree, path):
        if path[-1] != "_target_":
            return []
        rule = target()
    if rule is None:
        below = sorted({name.removeprefix(f"{key}.") for name in TABLES[task] if name.startswith(f"{key}.")})
        if below:
            return [problem(key, value, f"keys below it: {', '.join(below)}", f"did you mean {key}.{below[0]}=…?")]
        known = [_dotted(other) for other, _ in leaves(tree) if rule_of(task, _dotted(other))]
        return [unknown_key(key, value, known, groups)]
    if value == "???":
        return [problem(key, value, rule.allowed, f"it must be given: {key}=…")]
    if rule.accepts(value):
        return []
    meant = rule.meant(value)
    return [problem(key, value, rule.allowed, "" if meant is None else f"did you mean {key}={show(meant)}?")]


def _of_others(tree: dict[str, Any], path: Path) -> bool:
    """Whether the key is an argument of an object of somebody else's package, about which only that package knows."""
    targets = [node.get("_target_") for end in range(len(path)) if isinstance(node := _at(tree, path[:end]), dict)]
    named = [name for name in targets if isinstance(name, str)]
    return bool(named) and not named[-1].startswith(OURS)


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree
