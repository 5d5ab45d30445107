"""Checkpoints stored in W&B: `wandb:ENTITY/PROJECT/NAME:ALIAS` instead of a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from consistency_models.app.checks.files import ARTIFACT
from consistency_models.app.wandb_mode import check_variables
from consistency_models.errors import ConfigError
from consistency_models.storage.cache import cache_folder

__all__ = ["download_artifact", "resolve_artifacts"]

KEYS = (("ckpt_path",), ("teacher", "path"), ("init", "path"))


def resolve_artifacts(config: dict[str, Any]) -> dict[str, Any]:
    """Download the required artifacts once, and replace them by local files in the configuration.

    Raises:
        ConfigError: an artifact cannot be downloaded, or has no checkpoint.
    """
    for *parents, last in KEYS if config.get("train", True) else KEYS[:1]:
        group = config
        for name in parents:
            group = group.get(name) or {}
        if ARTIFACT.fullmatch(str(group.get(last))):
            group[last] = str(download_artifact(".".join([*parents, last]), group[last]))
    return config


def download_artifact(key: str, reference: str) -> Path:
    """Download an artifact and return its checkpoint file: best.ckpt, else last.ckpt, else the only one.

    Raises:
        ConfigError: see `resolve_artifacts` and `check_variables`.
    """
    import wandb

    check_variables()
    name = reference.removeprefix("wandb:")
    try:
        artifact = wandb.Api().artifact(name)
        folder = Path(artifact.download(root=str(cache_folder() / "artifacts" / artifact.digest.replace("/", "_"))))
    except (wandb.Error, ValueError, OSError) as error:
        allowed, fix = "an artifact that W&B hands out", "log in with wandb login"
        raise ConfigError(key, reference, allowed, fix, reason=str(error)) from error
    files = sorted(path for kind in ("*.ckpt", "*.pkl", "*.pt") for path in folder.rglob(kind))
    by_name = {path.name: path for path in files}
    file = by_name.get("best.ckpt") or by_name.get("last.ckpt") or (files[0] if len(files) == 1 else None)
    if file is None:
        raise ConfigError(key, reference, "an artifact with one checkpoint", reason=f"this one has {len(files)}")
    return file
