"""What can be made again is kept on disk: computed once for all runs of a machine."""

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
    """The text of the modules that define these classes and functions: what they give may change with it.

    What was typed at a prompt, or compiled, has no text: then its name.
    """
    texts = []
    for each in objects:
        try:
            texts.append(inspect.getsource(inspect.getmodule(each) or each))
        except (OSError, TypeError):
            texts.append(repr(each))
    return texts


def cached(what: str, key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `compute` gives, or what an earlier run has kept of it in `cache_folder()`.

    Args:
        what: how the file's name begins.
        key: all that the content depends on, told apart by its `repr`; the package's version counts, too.
        compute: gives tensors, numbers, strings, lists and dicts.
    """
    name = hashlib.blake2b(repr((key, __version__)).encode(), digest_size=12).hexdigest()
    path = cache_folder() / f"{what}-{name}.pt"
    if path.exists():
        try:
            return read(path)["content"]
        except (CheckpointError, KeyError) as error:
            log.warning("what was kept cannot be used and is computed again: %s", error)
    content = compute()
    try:
        write({"schema": SCHEMA, "content": content}, path)
    except OSError as error:
        log.warning("%s cannot be kept and will be computed again by the next run: %s", what, error)
    return content
