"""Weights for inference, in one file with the configuration that builds their network.

Both formats hold one set of weights, named by `generator.weights`. They hold no optimiser and no path of the machine
that trained the model. `loading.read_safetensors` documents the header of a safetensors file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from consistency_models.errors import import_extra
from consistency_models.files import replaced
from consistency_models.sampling.generator import Generator
from consistency_models.storage import checkpoints
from consistency_models.storage.loading import HEADER, HEADER_SCHEMA

__all__ = ["description", "to_checkpoint", "to_safetensors"]

GROUPS = (
    *("name", "seed", "model", "network", "preconditioning", "sampler", "evaluation", "schedule", "curriculum"),
    *("loss", "weighting", "optimizer", "learning_rate", "ema", "solver", "augment", "channels_last"),
)
"""Parts of the configuration that describe the model and its rounding. Paths and devices are left out."""


def description(generator: Generator) -> dict[str, Any]:
    """The description of the model in a file: {"schema", "config", "origin"}; `load` builds the network from it."""
    config = {group: generator.config[group] for group in GROUPS if group in generator.config}
    config["data"] = {key: value for key, value in generator.config["data"].items() if key not in ("_target_", "root")}
    config["data"].pop("source", None)
    origin = {key: value for key, value in generator.origin.items() if key != "path"}
    return {"schema": HEADER_SCHEMA, "config": config, "origin": {**origin, "weights": generator.weights}}


def to_safetensors(generator: Generator, path: Path | str) -> None:
    """Write a safetensors file. `consistency_models.load` samples from it bit for bit.

    Raises:
        ModuleNotFoundError: the extra `export` is not installed.
        OSError: it cannot be written.
    """
    safetensors = import_extra("safetensors.torch")
    weights = {name: value.detach().cpu().contiguous() for name, value in generator.model.state_dict().items()}
    header = {"format": "pt", HEADER: json.dumps(description(generator))}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replaced(Path(path).resolve()) as part:  # a link stays
        part.write_bytes(safetensors.save(weights, header))


def to_checkpoint(generator: Generator, path: Path | str) -> None:
    """Write a checkpoint of this project, for `eval.py`, `teacher=run` and `load`.

    Raises:
        OSError: it cannot be written.
    """
    said = description(generator)
    state: dict[str, Any] = {"step": 0, "images_seen": 0, "ema": {}, "optimizer": {}, "trainer": {}}
    state |= {"target": None, "teacher": None}
    weights = {name: value.detach().cpu() for name, value in generator.model.state_dict().items()}
    checkpoints.write({**said, "schema": checkpoints.SCHEMA, **state, "model": weights}, path)
