"""What a run folder that may be a stranger's can ask of the command line, when a run goes on in it."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from consistency_models.app.checks.composing import Composer
from consistency_models.app.checks.problems import ConfigErrors, one_line, problem
from consistency_models.app.checks.targets import find
from consistency_models.errors import ConfigError
from consistency_models.storage.small_files import link_outwards
from consistency_models.trust import advice, is_trusted

__all__ = ["check_links", "harmless"]

ELSEWHERE = ("folder", "dirpath", "cache_dir", "download", "profiler", "entity", "default_root_dir")
"""Last parts of keys that make a run write outside its folder, fetch files, or send results to another account."""

OPTIMIZER = re.compile(r"torch\.optim\.[A-Z]\w*")
MAX_LINES, MAX_LENGTH = 1000, 10_000


def harmless(composer: Composer, folder: Path, lines: Sequence[Any], typed: Sequence[str]) -> list[Override]:
    """The overrides in a folder's `overrides.yaml`, without those whose keys are typed now.

    An override that would write or send something elsewhere is left out with a warning. What the folder itself decides
    (`paths`) is left out in silence.

    Args:
        composer: reads overrides.
        folder: the run folder.
        lines: the content of the file.
        typed: keys that are typed now, and are the user's own choice.

    Raises:
        ConfigErrors: an override names a class that a file may not name, resolves an interpolation by a function, sets
            something of Hydra's, or is none.
    """
    if len(lines) > MAX_LINES or not all(isinstance(line, str) and len(line) <= MAX_LENGTH for line in lines):
        allowed = f"a run folder with up to {MAX_LINES} overrides of up to {MAX_LENGTH:,} characters"
        raise problem("ckpt_path", folder, allowed, reason="its overrides.yaml is damaged")
    try:
        overrides = composer.parse(lines)
    except ConfigError:
        raise
    except Exception as error:  # the parser of Hydra recurses
        raise problem("ckpt_path", folder, "a run folder", reason=f"its overrides.yaml: {one_line(error)}") from error
    kept, problems = [], []
    for override in overrides:
        key = override.key_or_group
        if key in typed or key.startswith("paths."):
            continue
        wrong = _wrong(override)
        problems += wrong
        if not wrong and any(part in ELSEWHERE for part, _ in _leaves(override)):
            line = override.input_line
            print(
                f"warning: {folder}: {line} is left out: type it again to write, fetch or send there", file=sys.stderr
            )
        elif not wrong:
            kept.append(override)
    if problems:
        raise ConfigErrors(problems)
    return kept


def check_links(key: str, folder: Path, top: Collection[str] | None = None) -> None:
    """Refuse a run folder with a link that leads out of it: what is written there would go elsewhere.

    The folder `wandb` is not looked into: W&B keeps links to its own logs there.

    Args:
        key: where the folder is given.
        folder: the run folder.
        top: the names in the folder that are written to; by default all.

    Raises:
        ConfigError: there is such a link.
    """
    if folder.is_dir() and (link := link_outwards(folder, top, closed=("wandb",))):
        allowed, fix = "a run folder without links that lead out of it", "put the file in place of the link"
        raise problem(key, folder, allowed, fix, reason=f"{link} is one")


def _wrong(override: Override) -> list[ConfigError]:
    key, line = override.get_key_element(), override.input_line or ""
    value, fix = line.partition("=")[2], "type it again if it is yours"
    if override.is_hydra_override() or override.package is not None:
        allowed = "overrides of this project's own keys in the overrides.yaml of a run folder"
        return [problem(key, value, allowed, fix, reason="a setting of Hydra")]
    if "${" in line and ":" in line:
        allowed = "interpolations of keys, such as ${seed}, in the overrides.yaml of a run folder"
        return [problem(key, value, allowed, fix, reason="a function would be called")]
    return [
        problem(key, name, advice(str(name)), fix, reason="overrides.yaml of a run folder may not name it")
        for part, name in _leaves(override)
        if part == "_target_" and not _is_known(name)
    ]


def _is_known(target: Any) -> bool:
    """Whether a class or function may be named; nothing is imported."""
    if target is None:
        return True
    name = str(target)
    return find(name).loadable or bool(OPTIMIZER.fullmatch(name)) or is_trusted(name)


def _leaves(override: Override) -> Iterator[tuple[str, Any]]:
    """(last part of the key, value) of all that an override sets."""
    waiting = [(override.key_or_group.rpartition(".")[2], override.value())]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += [(str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [("", item) for item in value]
