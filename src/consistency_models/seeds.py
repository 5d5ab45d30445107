"""Keys of a configuration that choose random numbers and nothing else: jobs that differ only in them are one cell."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["SEEDS", "without_seeds"]

SEEDS = ("seed", "data.seed")


def without_seeds(overrides: Iterable[str]) -> str:
    """Join the overrides of all keys but the seeds: the name of a cell."""
    return " ".join(override for override in overrides if override.partition("=")[0] not in SEEDS)
