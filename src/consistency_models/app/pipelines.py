"""Settings that a folder of a diffusers pipeline gives: the configuration of the U-Net and the scheduler's table."""

from __future__ import annotations

from typing import Any

from consistency_models.files import is_pipeline
from consistency_models.pretrained import read_pipeline

__all__ = ["pipeline_folder", "with_pipeline"]

NETWORK = "consistency_models.networks.diffusers.UNet"
SCALINGS = "consistency_models.noise.discrete.Discrete"


def pipeline_folder(config: dict[str, Any]) -> str | None:
    """Return the folder of the teacher or of the initial weights, if it is a pipeline of diffusers."""
    paths = (config[group].get("path") for group in ("teacher", "init") if config[group].get("_target_"))
    return next((path for path in paths if path and is_pipeline(path)), None)


def with_pipeline(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with null settings of U-Nets and tables from the folder of `pipeline_folder`.

    A checkpoint is then complete without the folder.

    Raises:
        CheckpointError: the folder cannot be used.
    """
    folder = pipeline_folder(config)
    if folder is None:
        return config
    pipeline = read_pipeline(folder)
    table = {key: value for key, value in pipeline.table.items() if key != "boundary"}
    return _filled(config, {NETWORK: {"config": pipeline.config}, SCALINGS: table})


def _filled(node: Any, values: dict[str, dict[str, Any]]) -> Any:
    """Copy with `values[target]` in place of null in every object of that target."""
    if isinstance(node, list):
        return [_filled(item, values) for item in node]
    if not isinstance(node, dict):
        return node
    own = values.get(str(node.get("_target_")), {})
    return {key: own[key] if value is None and key in own else _filled(value, values) for key, value in node.items()}
