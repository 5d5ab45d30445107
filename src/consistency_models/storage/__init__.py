"""Files: checkpoints, models loaded from them, a disk cache, and downloads of published weights.

A name is imported when it is first used: the check of a command needs `moved_names`, and must not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consistency_models.storage.cache import cache_folder, cached
    from consistency_models.storage.checkpoints import CheckpointError, digest_of, newest_good, read, write
    from consistency_models.storage.downloads import Weights, weights_folder
    from consistency_models.storage.loading import build_model, load

__all__ = [
    "CheckpointError",
    "Weights",
    "build_model",
    "cache_folder",
    "cached",
    "digest_of",
    "load",
    "newest_good",
    "read",
    "weights_folder",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("checkpoints", "cache", "downloads", "loading"):
            found = import_module(f"{__name__}.{module}")
            if name in found.__all__:
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
