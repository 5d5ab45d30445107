"""Consistency models: train, ablate, compare and use generative models that make an image in one network call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consistency_models.version import __version__

if TYPE_CHECKING:
    from consistency_models.sampling.generator import Generator

__all__ = ["__version__", "load"]


def load(path: Any, **arguments: Any) -> Generator:
    """A trained model that samples: `load("runs/…").sample(n, steps=1)`; see `storage.loading.load`."""
    from consistency_models.storage import loading  # here, because `import consistency_models` shall not import torch

    return loading.load(path, **arguments)
