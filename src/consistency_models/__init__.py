"""Consistency models: train, ablate, compare and use generative models that sample in one network call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consistency_models.version import __version__

if TYPE_CHECKING:
    from consistency_models.sampling.generator import Generator

__all__ = ["__version__", "load"]


def load(path: Any, **arguments: Any) -> Generator:
    """Load a trained model for sampling: `load("runs/…").sample(n, steps=1)`. See `storage.loading.load`."""
    from consistency_models.storage import (
        loading,  # `import consistency_models` does not import torch
    )

    return loading.load(path, **arguments)
