"""Checks of an untrusted run folder before a run resumes in it."""

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
from consistency_models.files import link_outwards
from consistency_models.trust import advice, is_trusted

__all__ = ["check_links", "harmless"]

ELSEWHERE = ("folder", "dirpath", "cache_dir", "download", "profiler", "entity", "default_root_dir")
"""Last parts of keys that let a run write outside its folder, download files, or send results to another account."""

OPTIMIZER = re.compile(r"torch\.optim\.[A-Z]\w*")
MAX_LINES, MAX_LENGTH = 1000, 10_000


def harmless(composer: Composer, folder: Path, lines: Sequence[Any], typed: Sequence[str]) -> list[Override]:
    """Return the overrides of `overrides.yaml` in a run folder, without keys that the command overrides.

    Overrides that write, fetch or send elsewhere are dropped with a warning. Overrides of `paths` are dropped, because
    the folder is known.

    Args:
        composer: parses overrides.
        folder: the run folder.
        lines: the content of the file.
        typed: keys of the command line, which the user has chosen.

    Raises:
        ConfigErrors: an override names a class that is not trusted, calls a function in an interpolation, sets a key of
            Hydra, or cannot be parsed.
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
    safe, problems = [], []
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
            safe.append(override)
    if problems:
        raise ConfigErrors(problems)
    return safe


def check_links(key: str, folder: Path, top: Collection[str] | None = None) -> None:
    """Refuse a run folder with a link to another folder, through which results would be written elsewhere.

    The folder `wandb` is skipped, because W&B has links to its own logs there.

    Args:
        key: the key of the folder.
        folder: the run folder.
        top: names in the folder to check; by default all.

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
    """Whether a class or function is trusted; imports nothing."""
    if target is None:
        return True
    name = str(target)
    return find(name).loadable or bool(OPTIMIZER.fullmatch(name)) or is_trusted(name)


def _leaves(override: Override) -> Iterator[tuple[str, Any]]:
    """Yield (last part of the key, value) of all values of an override."""
    waiting = [(override.key_or_group.rpartition(".")[2], override.value())]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += [(str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [("", item) for item in value]
