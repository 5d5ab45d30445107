"""Conversion of an official checkpoint into a checkpoint of this project, which samples the same images bit for bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from consistency_models.errors import CheckpointError
from consistency_models.pretrained import load

__all__ = ["checkpoint_of"]


def checkpoint_of(path: Path | str) -> dict[str, Any]:
    """Return the content of a checkpoint of this project with the same model, as `checkpoints.write` takes it.

    The configuration has the parts that sampling needs. An official file names no data set and no metrics.

    Raises:
        CheckpointError: see `pretrained.load`.
    """
    loaded = load(path)
    nodes = {name: _node(part, path) for name, part in loaded.recipe.items()}
    nodes["sampler"]["_partial_"] = True
    return {
        "schema": 1,
        "step": 0,
        "images_seen": 0,
        "config": {
            **nodes,
            "data": {
                "channels": loaded.channels,
                "image_size": loaded.image_size,
                "network_classes": loaded.num_classes,
                "clamp": loaded.clamp,
            },
            "evaluation": {"steps": list(loaded.steps), "n": 2000},
        },
        "model": loaded.model.state_dict(),
        "target": None,
        "ema": {},
        "optimizer": {},
        "teacher": None,
        "trainer": {},
        "origin": {"path": str(path), "digest": loaded.digest, "kind": loaded.kind},
    }


def _node(part: partial, path: Path | str) -> dict[str, Any]:
    if "${" in str(part.keywords):  # an interpolation could read the user's environment
        raise CheckpointError("arguments without ${", str(part.keywords), path)
    inner = {key: _node(value, path) if isinstance(value, partial) else value for key, value in part.keywords.items()}
    return {"_target_": f"{part.func.__module__}.{part.func.__qualname__}", **inner}
