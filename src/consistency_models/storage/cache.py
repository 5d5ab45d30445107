"""A disk cache for results that can be recomputed, shared by all runs of a machine."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consistency_models.storage.checkpoints import SCHEMA, CheckpointError, read, write
from consistency_models.version import __version__

__all__ = ["cache_folder", "cached", "source_fingerprint"]

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/consistency_models`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "consistency_models"


def source_fingerprint(*objects: Any) -> list[str]:
    """The source text of the modules that define these classes and functions, as a part of a cache key.

    Objects without source text, typed at a prompt or compiled, are represented by their name.
    """
    texts = []
    for each in objects:
        try:
            texts.append(inspect.getsource(inspect.getmodule(each) or each))
        except (OSError, TypeError):
            texts.append(repr(each))
    return texts


def cached(what: str, key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return `compute()`, or the result that an earlier run stored in `cache_folder()`.

    Args:
        what: beginning of the file name.
        key: everything that the result depends on; its `repr` and the version of the package identify the result.
        compute: returns tensors, numbers, strings, lists and dicts.
    """
    name = hashlib.blake2b(repr((key, __version__)).encode(), digest_size=12).hexdigest()
    path = cache_folder() / f"{what}-{name}.pt"
    if path.exists():
        try:
            return read(path)["content"]
        except (CheckpointError, KeyError) as error:
            log.warning("a cached result cannot be used and is computed again: %s", error)
    content = compute()
    try:
        write({"schema": SCHEMA, "content": content}, path)
    except OSError as error:
        log.warning("%s cannot be cached; the next run computes the result again: %s", what, error)
    return content
